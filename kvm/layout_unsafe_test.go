package kvm

import (
	"testing"
	"unsafe"
)

// TestMEM03 is the run-time half of the compile-time checks: sizes that no ioctl number encodes, and offsets inside
// the structures (RUSTSEC-2024-0428).
func TestMEM03Layouts(t *testing.T) {
	for _, test := range []struct {
		name      string
		got, want uintptr
	}{
		{"kvm_cpuid_entry2", unsafe.Sizeof(CPUIDEntry{}), 40},
		{"kvm_msr_entry", unsafe.Sizeof(MSR{}), 16},
		{"kvm_msr_entry.data", unsafe.Offsetof(MSR{}.Value), 8},
		{"kvm_segment", unsafe.Sizeof(Segment{}), 24},
		{"kvm_segment.type", unsafe.Offsetof(Segment{}.Type), 14},
		{"kvm_dtable", unsafe.Sizeof(DTable{}), 16},
		{"kvm_sregs.gdt", unsafe.Offsetof(Sregs{}.GDT), 192},
		{"kvm_sregs.cr0", unsafe.Offsetof(Sregs{}.CR0), 224},
		{"kvm_sregs.apic_base", unsafe.Offsetof(Sregs{}.APICBase), 272},
		{"kvm_vcpu_events.sipi_vector", unsafe.Offsetof(Events{}.SIPI), 16},
		{"kvm_vcpu_events.smi", unsafe.Offsetof(Events{}.SMI), 24},
		{"kvm_vcpu_events.exception_has_payload", unsafe.Offsetof(Events{}.Payload), 55},
		{"kvm_fpu.xmm", unsafe.Offsetof(FPU{}.XMM), 152},
		{"kvm_xcrs.xcrs", unsafe.Offsetof(XCRs{}.XCR), 8},
		{"kvm_clock_data.realtime", unsafe.Offsetof(Clock{}.Realtime), 16},
		{"kvm_irqchip.chip", unsafe.Offsetof(IRQChip{}.State), 8},
	} {
		if test.got != test.want {
			t.Errorf("%s: %d, want %d", test.name, test.got, test.want)
		}
	}
}
