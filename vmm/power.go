package vmm

import (
	"spore/vmm/acpi"
	"spore/vmm/api"
)

// I/O ports of the machine.
const (
	portKeyboard = 0x64  // i8042 command and status: only its reset line exists
	portSerial   = 0x3f8 // 16550A, with Console.UART
	portPanic    = 0x505 // pvpanic
	portSleep    = 0x600 // ACPI sleep control, then sleep status
	portReset    = 0x602 // ACPI reset register
)

// power is the registers by which a guest ends its machine. Reads give zero.
type power struct {
	end func(api.ExitReason, string)
}

const (
	panicPanicked    = 1 << 0 // the guest kernel panicked and does nothing more
	panicCrashLoaded = 1 << 1 // it panicked and will start a crash kernel
	keyboardReset    = 0xfe   // pulse the reset line
)

type sleepPort struct{ power }

func (sleepPort) Read(uint64, []byte) {}

func (s sleepPort) Write(off uint64, p []byte) {
	if off == 0 && p[0] == acpi.SleepOff {
		s.end(api.ExitPowerOff, "ACPI S5")
	}
}

type resetPort struct{ power }

func (resetPort) Read(uint64, []byte) {}

func (r resetPort) Write(_ uint64, p []byte) {
	if p[0] == acpi.ResetValue {
		r.end(api.ExitReset, "ACPI reset register")
	}
}

type keyboardPort struct{ power }

func (keyboardPort) Read(uint64, []byte) {}

func (k keyboardPort) Write(_ uint64, p []byte) {
	if p[0] == keyboardReset {
		k.end(api.ExitReset, "keyboard controller reset")
	}
}

type panicPort struct{ power }

func (panicPort) Read(_ uint64, p []byte) { p[0] = panicPanicked | panicCrashLoaded }

func (r panicPort) Write(_ uint64, p []byte) {
	if p[0]&panicPanicked != 0 {
		r.end(api.ExitPanic, "guest kernel panic")
	}
}

// addPower claims the ports.
func (m *Machine) addPower() error {
	p := power{m.end}
	for _, w := range []struct {
		base, size uint64
		regs       register
	}{
		{portSleep, 2, sleepPort{p}},
		{portReset, 1, resetPort{p}},
		{portKeyboard, 1, keyboardPort{p}},
		{portPanic, 1, panicPort{p}},
	} {
		if err := m.ports.add(w.base, w.size, w.regs); err != nil {
			return err
		}
	}
	return nil
}
