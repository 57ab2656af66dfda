package vmm

import (
	"fmt"

	"golang.org/x/sys/unix"

	"spore/kvm"
	"spore/vmm/acpi"
	"spore/vmm/api"
	"spore/vmm/boot"
)

// makeVM makes the VM in the order that KVM is fast with: memory slots, interrupt controllers, vCPUs. Whatever
// touches the I/O bus comes later.
func (m *Machine) makeVM(env Env) error {
	shell := env.Shell
	if shell == nil {
		var err error
		if shell, err = duplicate(env.Files[api.KVMFile]); err != nil {
			return err
		}
	}
	sys, vm := shell.take()
	m.vm = vm
	defer sys.Close()
	if err := m.ram.install(m.vm); err != nil {
		return err
	}
	var err error
	if m.logs, err = m.vm.NewLogSwitch(env.LogTable, m.ram.slots[:len(m.ram.layout)]); err != nil {
		return err
	}
	if err := m.vm.SetTSSAddress(uint64(boot.TSSBase)); err != nil {
		return err
	}
	if err := m.vm.CreateIRQChip(); err != nil {
		return err
	}
	if err := maskPICs(m.vm); err != nil {
		return err
	}
	return m.makeVCPUs(sys)
}

// maskPICs closes the 8259 pair: the guest is told that there is none and would not do it, and every GSI below 16
// reaches it too.
func maskPICs(vm *kvm.VM) error {
	const maskRegister = 2 // struct kvm_pic_state.imr
	for _, id := range []uint32{kvm.ChipPICMaster, kvm.ChipPICSlave} {
		c := kvm.IRQChip{ID: id}
		c.State[maskRegister] = 0xff
		if err := vm.SetIRQChip(&c); err != nil {
			return err
		}
	}
	return nil
}

func (m *Machine) makeVCPUs(sys *kvm.System) error {
	supported, err := kvm.ParseCPUID(m.cfg.Processor)
	if len(supported) == 0 && err == nil {
		supported, err = sys.SupportedCPUID()
	}
	if err != nil {
		return err
	}
	cpu := boot.CPU{Count: m.cfg.VCPUs, TSCDeadline: sys.Check(kvm.CapTSCDeadline) > 0}
	for id := range m.cfg.VCPUs {
		v, err := m.vm.CreateVCPU(id)
		if err != nil {
			return fmt.Errorf("vCPU %d: %w", id, err)
		}
		m.cpus = append(m.cpus, &vcpu{id: id, kvm: v})
		if cpu.TSCKHz == 0 && sys.Check(kvm.CapGetTSCKHz) > 0 {
			if cpu.TSCKHz, err = v.TSCKHz(); err != nil {
				return err
			}
		}
		cpu.ID = id
		leaves := boot.CPUID(supported, cpu)
		if err := v.SetCPUID(leaves); err != nil {
			return fmt.Errorf("vCPU %d: %w", id, err)
		}
		m.cpus[id].cpuid = leaves
	}
	m.tscKHz = cpu.TSCKHz
	return nil
}

// loadKernel puts the kernel, the initramfs and what they are told into guest memory.
func (m *Machine) loadKernel(env Env) error {
	kernel := env.Files[m.cfg.Boot.Kernel]
	defer kernel.Close()
	st, err := kernel.Stat()
	if err != nil {
		return fmt.Errorf("look at kernel: %w", err)
	}
	parse := boot.Parse
	if m.cfg.Test {
		parse = boot.Flat
	}
	if m.image, err = parse(kernel, st.Size()); err != nil {
		return err
	}
	if err := m.image.Load(m.ram.mem, kernel); err != nil {
		return err
	}
	mapped := 1 // GiB; the kernel makes its own page tables at once
	if m.cfg.Test {
		mapped = 4
	}
	if err := boot.WriteTables(m.ram.mem, mapped); err != nil || m.cfg.Test {
		return err
	}
	params := boot.Params{Cmdline: m.cfg.Boot.Cmdline, RAM: m.ram.layout, RSDP: boot.ACPIBase}
	if m.cfg.Boot.Initrd >= 0 {
		initrd := env.Files[m.cfg.Boot.Initrd]
		defer initrd.Close()
		st, err := initrd.Stat()
		if err != nil {
			return fmt.Errorf("look at initramfs: %w", err)
		}
		if params.Initrd, err = boot.LoadInitrd(m.ram.mem, initrd, st.Size(), m.ram.layout[0], m.image); err != nil {
			return err
		}
	}
	if err := m.writeACPI(); err != nil {
		return err
	}
	return boot.WriteParams(m.ram.mem, m.image, params)
}

func (m *Machine) writeACPI() error {
	t := acpi.Machine{
		VCPUs:     m.cfg.VCPUs,
		LocalAPIC: uint32(boot.LocalAPICBase),
		IOAPIC:    uint32(boot.IOAPICBase),
		GenID:     uint64(boot.GenIDBase),
		EventGSI:  eventGSI,
		PanicPort: portPanic,
		SleepPort: portSleep,
		ResetPort: portReset,
	}
	for _, d := range m.devs {
		a := acpi.Device{Base: uint32(d.base), Size: boot.DeviceStride, GSI: uint32(d.gsi)}
		if d.late {
			a.HID = m.cfg.Boot.Late
		}
		t.Devices = append(t.Devices, a)
	}
	if m.cfg.Console.UART {
		t.SerialPort, t.SerialGSI = portSerial, uint32(serialGSI)
	}
	tables, err := acpi.Build(t, uint64(boot.ACPIBase), int(boot.ACPIEnd-boot.ACPIBase))
	if err != nil {
		return err
	}
	if err := m.ram.mem.WriteAt(tables, boot.ACPIBase); err != nil {
		return fmt.Errorf("write ACPI tables: %w", err)
	}
	return m.newGeneration()
}

// newGeneration gives the guest a fresh identifier, by which its kernel knows that it is not the copy that another
// guest may have been made from.
func (m *Machine) newGeneration() error {
	var id [16]byte
	if _, err := unix.Getrandom(id[:], 0); err != nil {
		return fmt.Errorf("make generation identifier: %w", err)
	}
	if err := m.ram.mem.WriteAt(id[:], boot.GenIDBase); err != nil {
		return fmt.Errorf("write generation identifier: %w", err)
	}
	return nil
}

// setRegisters makes the first vCPU enter the kernel. The others wait for the guest to start them.
func (m *Machine) setRegisters(Env) error {
	for _, c := range m.cpus {
		if err := c.kvm.SetMSRs(boot.EntryMSRs()); err != nil {
			return fmt.Errorf("vCPU %d: %w", c.id, err)
		}
	}
	first := m.cpus[0].kvm
	sregs, err := first.Sregs()
	if err != nil {
		return err
	}
	boot.EnterLongMode(&sregs)
	if err := first.SetSregs(&sregs); err != nil {
		return err
	}
	regs := boot.EntryRegs(m.image.Entry)
	return first.SetRegs(&regs)
}
