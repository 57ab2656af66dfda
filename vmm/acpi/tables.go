// Package acpi writes the ACPI tables of a machine: hardware-reduced, with a DSDT that lists the virtio-mmio
// devices, the VM generation identifier and the panic device, and registers for power-off and reset.
// It produces bytes and touches no guest memory.
package acpi

import (
	"cmp"
	"encoding/binary"
	"fmt"
)

// Device is one virtio-mmio transport.
type Device struct {
	Base uint32 // guest physical address of its registers
	Size uint32 // bytes
	GSI  uint32
	HID  string // hardware identifier (§6.1.5); empty is VirtioMMIO
}

// VirtioMMIO is the hardware identifier by which drivers know a virtio-mmio transport.
const VirtioMMIO = "LNRO0005"

// ValidHID reports whether id has the form of an ACPI identifier: four upper-case letters and four hexadecimal digits.
func ValidHID(id string) bool {
	for i, c := range []byte(id) {
		letter, digit := c >= 'A' && c <= 'Z', c >= '0' && c <= '9'
		if i < 4 && !letter || i >= 4 && !digit && !(letter && c <= 'F') {
			return false
		}
	}
	return len(id) == 8
}

// Machine is what the tables describe.
type Machine struct {
	VCPUs      int
	LocalAPIC  uint32 // guest physical address of the local APICs
	IOAPIC     uint32 // guest physical address of the IOAPIC
	Devices    []Device
	GenID      uint64 // guest physical address of the generation identifier; 0 leaves out it and its event device
	EventGSI   uint32 // of the generic event device that announces a new identifier
	PanicPort  uint16 // pvpanic; 0 leaves it out
	SleepPort  uint16 // sleep control register, then the sleep status register; power-off writes SleepOff
	ResetPort  uint16 // ResetValue is written to it
	SerialPort uint16 // 16550A; 0 leaves it out
	SerialGSI  uint32
}

// What the guest writes to SleepPort for S5 and to ResetPort.
const (
	SleepOff   = SleepType<<2 | 1<<5 // SLP_TYP and SLP_EN (ACPI 6.5 §4.8.3.7)
	SleepType  = 5
	ResetValue = 1
)

const (
	headerSize = 36
	rsdpSize   = 36
	oemID      = "SPORE "
	oemTable   = "SPOREVMM"
	creator    = "SPOR"
	alignment  = 16
)

// Build lays the tables out from base on and returns them with the address of the RSDP, which is base.
// An error means that they are longer than limit bytes.
func Build(m Machine, base uint64, limit int) ([]byte, error) {
	out := make([]byte, rsdpSize) // filled in last
	place := func(table []byte) uint64 {
		for len(out)%alignment != 0 {
			out = append(out, 0)
		}
		at := base + uint64(len(out))
		out = append(out, table...)
		return at
	}
	dsdt := place(table("DSDT", 2, dsdtBody(m)))
	fadt := place(table("FACP", 6, fadtBody(m, dsdt)))
	madt := place(table("APIC", 5, madtBody(m)))
	le := binary.LittleEndian
	xsdt := place(table("XSDT", 1, le.AppendUint64(le.AppendUint64(nil, fadt), madt)))
	copy(out, rsdp(xsdt))
	if len(out) > limit {
		return nil, fmt.Errorf("lay out ACPI tables: %d bytes, at most %d", len(out), limit)
	}
	return out, nil
}

// table puts the common header (§5.2.6) before body.
func table(signature string, revision byte, body []byte) []byte {
	le := binary.LittleEndian
	t := make([]byte, headerSize, headerSize+len(body))
	copy(t, signature)
	le.PutUint32(t[4:], uint32(headerSize+len(body)))
	t[8] = revision
	copy(t[10:], oemID)
	copy(t[16:], oemTable)
	le.PutUint32(t[24:], 1)
	copy(t[28:], creator)
	le.PutUint32(t[32:], 1)
	t = append(t, body...)
	t[9] = checksum(t)
	return t
}

// checksum is the byte that makes b sum to zero, given that it is zero in b.
func checksum(b []byte) byte {
	var sum byte
	for _, c := range b {
		sum += c
	}
	return -sum
}

// rsdp is the root pointer, revision 2 (§5.2.5.3).
func rsdp(xsdt uint64) []byte {
	r := make([]byte, rsdpSize)
	copy(r, "RSD PTR ")
	copy(r[9:], oemID)
	r[15] = 2
	binary.LittleEndian.PutUint32(r[20:], rsdpSize)
	binary.LittleEndian.PutUint64(r[24:], xsdt)
	r[8] = checksum(r[:20])
	r[32] = checksum(r)
	return r
}

// FADT flags (§5.2.9) and IA-PC boot architecture flags.
const (
	fadtPowerButton  = 1 << 4 // no fixed power button
	fadtSleepButton  = 1 << 5 // no fixed sleep button
	fadtResetReg     = 1 << 10
	fadtHWReduced    = 1 << 20
	bootNoVGA        = 1 << 2
	bootNoCMOSClock  = 1 << 5
	spaceIO          = 1
	fadtSize         = 276
	offFADTBootArch  = 109
	offFADTFlags     = 112
	offFADTReset     = 116
	offFADTResetVal  = 128
	offFADTMinor     = 131
	offFADTXDSDT     = 140
	offFADTSleep     = 244
	offFADTSleepStat = 256
	offFADTHypervis  = 268
)

func fadtBody(m Machine, dsdt uint64) []byte {
	t := make([]byte, fadtSize)
	le := binary.LittleEndian
	le.PutUint16(t[offFADTBootArch:], bootNoVGA|bootNoCMOSClock)
	le.PutUint32(t[offFADTFlags:], fadtPowerButton|fadtSleepButton|fadtResetReg|fadtHWReduced)
	ioRegister(t[offFADTReset:], m.ResetPort)
	t[offFADTResetVal] = ResetValue
	t[offFADTMinor] = 5
	le.PutUint64(t[offFADTXDSDT:], dsdt)
	ioRegister(t[offFADTSleep:], m.SleepPort)
	ioRegister(t[offFADTSleepStat:], m.SleepPort+1)
	copy(t[offFADTHypervis:], oemID)
	return t[headerSize:]
}

// ioRegister is a generic address structure (§5.2.3.2) for one 8-bit port.
func ioRegister(at []byte, port uint16) {
	const byteAccess = 1
	at[0], at[1], at[3] = spaceIO, 8, byteAccess
	binary.LittleEndian.PutUint64(at[4:], uint64(port))
}

// madtBody lists the local APICs and the IOAPIC (§5.2.12). There is no 8259 pair.
func madtBody(m Machine) []byte {
	const (
		typeLocalAPIC = 0
		typeIOAPIC    = 1
		enabled       = 1
	)
	le := binary.LittleEndian
	b := le.AppendUint32(nil, m.LocalAPIC)
	b = le.AppendUint32(b, 0) // flags: not PCAT_COMPAT
	for i := range m.VCPUs {
		b = append(b, typeLocalAPIC, 8, byte(i), byte(i))
		b = le.AppendUint32(b, enabled)
	}
	b = append(b, typeIOAPIC, 12, 0, 0)
	b = le.AppendUint32(b, m.IOAPIC)
	return le.AppendUint32(b, 0) // first GSI
}

func dsdtBody(m Machine) []byte {
	var devices [][]byte
	for i, d := range m.Devices {
		devices = append(devices, device(fmt.Sprintf("V%03d", i),
			name("_HID", text(cmp.Or(d.HID, VirtioMMIO))),
			name("_UID", integer(uint64(i))),
			name("_CCA", integer(1)),
			name("_CRS", resources(memory32(d.Base, d.Size), interrupt(d.GSI)))))
	}
	if m.GenID != 0 {
		devices = append(devices, generation(m)...)
	}
	if m.PanicPort != 0 {
		devices = append(devices, device("PEVT",
			name("_HID", text("QEMU0001")),
			name("_STA", integer(0xf)),
			name("_CRS", resources(port(m.PanicPort, 1)))))
	}
	if m.SerialPort != 0 {
		devices = append(devices, device("COM1",
			name("_HID", eisaID("PNP0501")),
			name("_UID", integer(0)),
			name("_CRS", resources(port(m.SerialPort, 8), interrupt(m.SerialGSI)))))
	}
	return join(
		scope(rooted("_SB"), devices...),
		name("_S5", packageOf(integer(SleepType), integer(0))))
}

// generation is the VM generation identifier (Microsoft's specification of that name) and the generic event
// device (§5.6.9) that notifies the guest of a change.
func generation(m Machine) [][]byte {
	const changed = 0x80
	return [][]byte{
		device("VGEN",
			name("_HID", text("VMGENCTR")),
			name("_CID", text("VM_Gen_Counter")),
			name("_DDN", text("VM_Gen_Counter")),
			name("ADDR", packageOf(integer(m.GenID&0xffffffff), integer(m.GenID>>32)))),
		device("GED",
			name("_HID", text("ACPI0013")),
			name("_UID", integer(0)),
			name("_CRS", resources(interrupt(m.EventGSI))),
			method("_EVT", 1, ifArg0(uint64(m.EventGSI), notify("VGEN", changed)))),
	}
}
