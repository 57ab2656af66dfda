package acpi

import (
	"bytes"
	"encoding/binary"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"spore/internal/testenv"
)

var update = flag.Bool("update", false, "write the golden tables")

const base = 0xe0000

func machine(n int) Machine {
	m := Machine{
		VCPUs: 2, LocalAPIC: 0xfee00000, IOAPIC: 0xfec00000, GenID: 0xf0000, EventGSI: 23,
		PanicPort: 0x505, SleepPort: 0x600, ResetPort: 0x602, SerialPort: 0x3f8, SerialGSI: 4,
	}
	for i := range n {
		m.Devices = append(m.Devices, Device{Base: 0xd0000000 + uint32(i)*0x1000, Size: 0x1000, GSI: 5 + uint32(i)})
	}
	return m
}

func build(t *testing.T, m Machine) []byte {
	t.Helper()
	b, err := Build(m, base, 0x10000)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestGolden(t *testing.T) {
	path := filepath.Join("testdata", "tables.bin")
	got := build(t, machine(3))
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("tables differ from %s: look at what changed, then run with -update", path)
	}
}

// tables follows the pointers as a guest does and returns the tables by signature.
func tables(t *testing.T, b []byte) map[string][]byte {
	t.Helper()
	le := binary.LittleEndian
	sum := func(what string, b []byte) {
		if checksum(b) != 0 {
			t.Errorf("%s: bad checksum", what)
		}
	}
	sum("RSDP, first part", b[:20])
	sum("RSDP", b[:rsdpSize])
	at := func(gpa uint64) []byte {
		b := b[gpa-base:]
		b = b[:le.Uint32(b[4:])]
		sum(string(b[:4]), b)
		return b
	}
	out := map[string][]byte{}
	xsdt := at(le.Uint64(b[24:]))
	for p := xsdt[headerSize:]; len(p) > 0; p = p[8:] {
		table := at(le.Uint64(p))
		out[string(table[:4])] = table
	}
	out["DSDT"] = at(le.Uint64(out["FACP"][offFADTXDSDT:]))
	return out
}

func TestPointersAndChecksums(t *testing.T) {
	for _, n := range []int{0, 1, 18} {
		got := tables(t, build(t, machine(n)))
		for _, signature := range []string{"DSDT", "FACP", "APIC"} {
			if len(got[signature]) < headerSize {
				t.Errorf("%d devices: no %s", n, signature)
			}
		}
		if c := bytes.Count(got["DSDT"], []byte("LNRO0005")); c != n {
			t.Errorf("%d devices in the DSDT, want %d", c, n)
		}
	}
}

func TestIdentifiers(t *testing.T) {
	m := machine(3)
	m.Devices[2].HID = "SPOR0001"
	dsdt := tables(t, build(t, m))["DSDT"]
	if virtio, other := bytes.Count(dsdt, []byte(VirtioMMIO)), bytes.Count(dsdt, []byte("SPOR0001")); virtio != 2 || other != 1 {
		t.Errorf("%d devices as virtio-mmio and %d as the other, want 2 and 1", virtio, other)
	}
	for id, want := range map[string]bool{
		VirtioMMIO: true, "SPOR0001": true, "ABCDABCF": true,
		"": false, "SPOR001": false, "SPOR00010": false, "spor0001": false, "SPOR000G": false, "SP0R0001": false, "SPOR00a1": false,
	} {
		if ValidHID(id) != want {
			t.Errorf("%q: valid %v, want %v", id, !want, want)
		}
	}
}

func TestBuildKeepsToItsLimit(t *testing.T) {
	if _, err := Build(machine(18), base, 512); err == nil {
		t.Error("18 devices fit into 512 bytes")
	}
}

func TestPackageLength(t *testing.T) {
	for _, test := range []struct{ body, prefix int }{{0, 1}, {62, 1}, {63, 2}, {4093, 2}, {4094, 3}} {
		got := pkgLength(make([]byte, test.body))
		if len(got) != test.body+test.prefix {
			t.Errorf("%d bytes: prefix of %d, want %d", test.body, len(got)-test.body, test.prefix)
		}
		n := int(got[0] & 0x3f)
		if extra := int(got[0] >> 6); extra > 0 {
			n = int(got[0] & 0xf)
			for i := range extra {
				n |= int(got[1+i]) << (4 + 8*i)
			}
		}
		if n != len(got) {
			t.Errorf("%d bytes: length says %d, want %d", test.body, n, len(got))
		}
	}
}

// TestDisassembles lets ACPICA's own disassembler read the DSDT.
func TestDisassembles(t *testing.T) {
	testenv.Require(t, testenv.Need{Name: "iasl", Probe: func() error { _, err := exec.LookPath("iasl"); return err }})
	dir := t.TempDir()
	for name, b := range tables(t, build(t, machine(3))) {
		path := filepath.Join(dir, name+".aml")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("iasl", "-d", path).CombinedOutput()
		if err != nil || bytes.Contains(out, []byte("Error")) {
			t.Errorf("iasl -d %s: %v\n%s", name, err, out)
		}
	}
	dsl, err := os.ReadFile(filepath.Join(dir, "DSDT.dsl"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`Name (_HID, "LNRO0005")`, `"VMGENCTR"`, `Notify (VGEN, 0x80)`, "Memory32Fixed (ReadWrite,", "0xD0002000", "Name (_S5"} {
		if !strings.Contains(string(dsl), want) {
			t.Errorf("DSDT lacks %s:\n%s", want, dsl)
		}
	}
}
