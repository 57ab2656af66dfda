package snapshot

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"spore/kvm"
)

var update = flag.Bool("update", false, "write the golden state file of the current version")

// sample is a machine with a different value everywhere.
func sample(vcpus int) *State {
	s := &State{Memory: 64 << 20, TSCKHz: 2_450_000, Blocks: make([]uint64, BlockWords(64<<20))}
	s.Blocks[0] = 0x8000000f
	n := byte(1)
	fill := func(b []byte) {
		for i := range b {
			b[i] = n
			n = n*5 + 1
		}
	}
	for i := range s.Chips {
		fill(kvm.Bytes(&s.Chips[i]))
		s.Chips[i].ID = uint32(i)
	}
	fill(kvm.Bytes(&s.Clock))
	for range vcpus {
		var v VCPU
		fill(kvm.Bytes(&v.MP))
		fill(kvm.Bytes(&v.Regs))
		fill(kvm.Bytes(&v.XSave))
		fill(kvm.Bytes(&v.XCRs))
		fill(kvm.Bytes(&v.Sregs))
		fill(kvm.Bytes(&v.LAPIC))
		fill(kvm.Bytes(&v.DebugRegs))
		fill(kvm.Bytes(&v.Events))
		v.MSRs = []kvm.MSR{{Index: 0x10, Value: 1 << 60}, {Index: 0xc0000080, Value: 0xd01}}
		v.CPUID = []kvm.CPUIDEntry{{Function: 1, EAX: 2, EBX: 3, ECX: 4, EDX: 5}, {Function: 4, Index: 1, Flags: kvm.CPUIDSignificantIndex}}
		s.VCPUs = append(s.VCPUs, v)
	}
	s.Devices = []Device{{"disk0", []byte(`{"status":15}`)}, {"rng", []byte(`{}`)}}
	return s
}

func encode(t testing.TB, s *State) []byte {
	t.Helper()
	b, err := Encode(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRoundTrip(t *testing.T) {
	for _, vcpus := range []int{1, 2, MaxVCPUs} {
		s := sample(vcpus)
		b := encode(t, s)
		got, err := Decode(b)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, s) {
			t.Errorf("%d vCPUs: decoded otherwise than encoded", vcpus)
		}
		if again := encode(t, got); !bytes.Equal(again, b) {
			t.Errorf("%d vCPUs: encoded otherwise the second time", vcpus)
		}
	}
}

// TestGolden reads the state files of all versions that were ever written. They are kept for ever; a new version adds one.
func TestGolden(t *testing.T) {
	current := filepath.Join("testdata", "v2.state")
	if *update {
		if err := os.WriteFile(current, encode(t, sample(2)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for path, want := range map[string]*State{current: sample(2), filepath.Join("testdata", "v1.state"): sample(2)} {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Decode(b)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s is read otherwise than it was written", path)
		}
	}
}

// sameSections compares all but the version, which is the current one in whatever is written.
func sameSections(a, b []byte) bool { return bytes.Equal(a[headSize:], b[headSize:]) }

// TestSNAP01 cuts a state file off at every length and flips a bit of every byte: an error or another machine, and never a
// panic.
func TestSNAP01(t *testing.T) {
	b := encode(t, sample(1))
	for n := range b {
		if _, err := Decode(b[:n]); !errors.Is(err, ErrFormat) {
			t.Fatalf("SNAP-01: %d of %d bytes: %v, want ErrFormat", n, len(b), err)
		}
	}
	for i := range b {
		for bit := range 8 {
			b[i] ^= 1 << bit
			if s, err := Decode(b); err == nil {
				if again, err := Encode(s); err != nil || !sameSections(again, b) {
					t.Fatalf("SNAP-01: byte %d, bit %d: taken for something else than what is there: %v", i, bit, err)
				}
			} else if !errors.Is(err, ErrFormat) {
				t.Fatalf("SNAP-01: byte %d, bit %d: %v, want ErrFormat", i, bit, err)
			}
			b[i] ^= 1 << bit
		}
	}
	if _, err := Decode(append(b, 0)); !errors.Is(err, ErrFormat) {
		t.Errorf("SNAP-01: a byte more: %v", err)
	}
}

// TestSNAP02 makes every count and every length lie.
func TestSNAP02(t *testing.T) {
	good := encode(t, sample(1))
	for at := headSize; at < len(good); {
		n := int(le.Uint32(good[at+4:]))
		for _, lie := range []uint32{0, uint32(n) + 1, uint32(n) - 1, 1 << 31, ^uint32(0)} {
			if lie == uint32(n) {
				continue
			}
			b := bytes.Clone(good)
			le.PutUint32(b[at+4:], lie)
			if _, err := Decode(b); !errors.Is(err, ErrFormat) {
				t.Errorf("SNAP-02: section %d of %d bytes says %d: %v", le.Uint32(good[at:]), n, lie, err)
			}
		}
		at += sectionHead + n
	}
	machine := headSize + sectionHead
	for off, name := range map[int]string{12: "vCPUs", 16: "devices"} {
		for _, lie := range []uint32{0, 3, MaxVCPUs + 1, MaxDevices + 1, ^uint32(0)} {
			b := bytes.Clone(good)
			le.PutUint32(b[machine+off:], lie)
			if _, err := Decode(b); !errors.Is(err, ErrFormat) {
				t.Errorf("SNAP-02: %d %s: %v", lie, name, err)
			}
		}
	}
}

// TestSNAP03 changes how much memory there is.
func TestSNAP03(t *testing.T) {
	good := encode(t, sample(1))
	for _, memory := range []uint64{0, 1, BlockSize - 1, 4 << 40, 1 << 63, ^uint64(0)} {
		b := bytes.Clone(good)
		le.PutUint64(b[headSize+sectionHead:], memory)
		if _, err := Decode(b); !errors.Is(err, ErrFormat) {
			t.Errorf("SNAP-03: %#x bytes of memory: %v", memory, err)
		}
	}
}

func TestDecodeRefusesOtherVersions(t *testing.T) {
	b := encode(t, sample(1))
	for _, v := range []uint32{0, OldestVersion - 1, Version + 1} {
		le.PutUint32(b[len(magic):], v)
		if _, err := Decode(b); !errors.Is(err, ErrFormat) {
			t.Errorf("version %d: %v", v, err)
		}
	}
}

func FuzzState(f *testing.F) {
	f.Add(encode(f, sample(1)))
	f.Add(encode(f, sample(2)))
	f.Add([]byte("SPOREVM\n\x01\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := Decode(b)
		if err != nil {
			return
		}
		again, err := Encode(s)
		if err != nil || !sameSections(again, b) {
			t.Errorf("taken for something else than what is there: %v", err)
		}
	})
}
