package kvm

import (
	"slices"
	"testing"
)

func TestCPUIDForm(t *testing.T) {
	in := []CPUIDEntry{{Function: 1, EAX: 2, EBX: 3, ECX: 4, EDX: ^uint32(0)}, {Function: 4, Index: 1, Flags: CPUIDSignificantIndex}}
	b := AppendCPUID(nil, in)
	if out, err := ParseCPUID(b); err != nil || !slices.Equal(in, out) {
		t.Errorf("%v, became %v", err, out)
	}
	if out, err := ParseCPUID(nil); err != nil || len(out) != 0 {
		t.Errorf("nothing: %v, %v", out, err)
	}
	for _, b := range [][]byte{b[1:], b[:1], make([]byte, (MaxCPUID+1)*cpuidSize)} {
		if _, err := ParseCPUID(b); err == nil {
			t.Errorf("%d bytes: no error", len(b))
		}
	}
}
