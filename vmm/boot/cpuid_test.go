package boot

import (
	"testing"

	"spore/kvm"
)

// host is a processor that offers more than a guest may see.
func host() []kvm.CPUIDEntry {
	const all = ^uint32(0)
	sub := uint32(kvm.CPUIDSignificantIndex)
	return []kvm.CPUIDEntry{
		{Function: 0, EAX: 0x10},
		{Function: 1, EAX: 0x800f12, EBX: all, ECX: all, EDX: all},
		{Function: 4, Flags: sub, EAX: all, EBX: 1},
		{Function: 7, Flags: sub, EAX: 1, EBX: all, ECX: all, EDX: all},
		{Function: 0xa, EAX: all, EBX: all},
		{Function: 0xb, Flags: sub, EDX: 99},
		{Function: 0xd, Flags: sub, EAX: all, EBX: 576, ECX: 11008, EDX: all},
		{Function: 0xd, Index: 1, Flags: sub, EAX: 0xf, EBX: 99, ECX: all},
		{Function: 0xd, Index: 2, Flags: sub, EAX: 256, EBX: 576},
		{Function: 0xd, Index: 9, Flags: sub, EAX: 8, EBX: 2688},
		{Function: 0xd, Index: 18, Flags: sub, EAX: 8192, EBX: 2816},
		{Function: 0x40000000, EAX: 0x40000001},
		{Function: 0x40000001, EAX: all},
		{Function: 0x80000001, ECX: all, EDX: all},
		{Function: 0x80000008, EAX: 0x3030, ECX: all},
		{Function: 0x8000000a, EAX: 1, EBX: 8},
		{Function: 0x8000001f, EAX: all},
	}
}

func leaf(t *testing.T, table []kvm.CPUIDEntry, function, index uint32) kvm.CPUIDEntry {
	t.Helper()
	for _, e := range table {
		if e.Function == function && e.Index == index {
			return e
		}
	}
	t.Fatalf("no leaf %#x.%d", function, index)
	return kvm.CPUIDEntry{}
}

// TestHOST01 is about nested virtualisation, which a guest must not have (CVE-2021-29657).
func TestHOST01NoNestedVirtualisation(t *testing.T) {
	got := CPUID(host(), CPU{Count: 1})
	if leaf(t, got, 1, 0).ECX&ecx1VMX != 0 || leaf(t, got, 0x80000001, 0).ECX&ecxExtSVM != 0 {
		t.Error("VMX or SVM is visible")
	}
	for _, e := range got {
		if e.Function == 0x8000000a || e.Function == 0x8000001f {
			t.Errorf("leaf %#x is there", e.Function)
		}
	}
	if e := leaf(t, got, 0xa, 0); e.EAX != 0 || e.EBX != 0 {
		t.Error("performance counters are visible")
	}
}

func TestTopology(t *testing.T) {
	for _, test := range []struct {
		count, id int
		bits      uint32
	}{{1, 0, 0}, {2, 1, 1}, {3, 2, 2}, {4, 3, 2}, {16, 15, 4}} {
		got := CPUID(host(), CPU{ID: test.id, Count: test.count})
		if e := leaf(t, got, 1, 0); e.EBX>>24 != uint32(test.id) || e.EBX>>16&0xff != uint32(test.count) ||
			(e.EDX&edx1HTT != 0) != (test.count > 1) {
			t.Errorf("%d vCPUs: leaf 1 %#x %#x", test.count, e.EBX, e.EDX)
		}
		if e := leaf(t, got, 0xb, 1); e.EAX != test.bits || e.EBX != uint32(test.count) || e.EDX != uint32(test.id) {
			t.Errorf("%d vCPUs: leaf 0xb.1 %+v", test.count, e)
		}
		if e := leaf(t, got, 0x80000008, 0); e.ECX != uint32(test.count-1)|test.bits<<12 {
			t.Errorf("%d vCPUs: leaf 0x80000008 ECX %#x", test.count, e.ECX)
		}
	}
}

func TestXSaveSizesAreConsistent(t *testing.T) {
	got := CPUID(host(), CPU{Count: 1})
	e := leaf(t, got, 0xd, 0)
	if e.EAX != xcr0 || e.EDX != 0 || e.ECX != 576+256 {
		t.Errorf("leaf 0xd.0 %+v: want the states of xcr0 %#x and the end of AVX", e, xcr0)
	}
	for _, e := range got {
		if e.Function == 0xd && (e.Index == 9 || e.Index == 18) {
			t.Errorf("state %d is still there", e.Index)
		}
	}
	if e := leaf(t, got, 7, 0); e.ECX&ecx7PKU != 0 || e.EDX&edx7AMX != 0 {
		t.Error("features whose state is gone are visible")
	}
}

func TestTiming(t *testing.T) {
	const khz = 2_596_122
	got := CPUID(host(), CPU{Count: 1, TSCKHz: khz, TSCDeadline: true})
	if e := leaf(t, got, 0x15, 0); uint64(e.ECX)*uint64(e.EBX)/uint64(e.EAX) != khz*1000 {
		t.Errorf("leaf 0x15 tells %d Hz", uint64(e.ECX)*uint64(e.EBX)/uint64(e.EAX))
	}
	if e := leaf(t, got, 0x40000010, 0); e.EAX != khz || leaf(t, got, 0x40000000, 0).EAX < 0x40000010 {
		t.Errorf("leaf 0x40000010 %+v", e)
	}
	if leaf(t, got, 0, 0).EAX < 0x15 {
		t.Error("leaf 0x15 is out of range")
	}
	if leaf(t, got, 1, 0).ECX&ecx1TSCDeadline == 0 {
		t.Error("no TSC-deadline timer")
	}
}
