package vmm

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"spore/virtio"
	"spore/virtio/balloon"
	"spore/virtio/block"
	"spore/virtio/console"
	"spore/virtio/mmio"
	"spore/virtio/net"
	"spore/virtio/pmem"
	"spore/virtio/rate"
	"spore/virtio/rng"
	"spore/virtio/vsock"
	"spore/vmm/api"
	"spore/vmm/boot"
)

// makeDevices makes the devices in the order in which the guest finds them.
func (m *Machine) makeDevices(env Env) error {
	if err := m.addPower(); err != nil {
		return err
	}
	for _, add := range []func(Env) error{m.addDisks, m.addPmem, m.addVsock, m.addConsole, m.addRNG, m.addBalloon, m.addNet} {
		if err := add(env); err != nil {
			return err
		}
	}
	return nil
}

// line is a device as KVM sees it.
type line struct {
	name     string
	queues   int
	ownKicks bool // its model is a virtio.KickListener
	late     bool // the guest can do without it until it has booted: api.Boot.Late
}

// lines are the devices of a configuration, in the order in which the guest finds them.
func lines(cfg *api.Config) []line {
	var all []line
	for i := range cfg.Disks {
		all = append(all, line{name: fmt.Sprintf("disk%d", i), queues: 1})
	}
	for i := range cfg.Pmem {
		all = append(all, line{name: fmt.Sprintf("pmem%d", i), queues: 1})
	}
	if cfg.Vsock != nil {
		all = append(all, line{name: "vsock", queues: 3})
	}
	if !cfg.Test { // a bare-metal guest has ports to speak through
		all = append(all, line{name: "console", queues: 2})
	}
	if cfg.Entropy >= 0 {
		all = append(all, line{name: "rng", queues: 1, late: true})
	}
	if cfg.Balloon {
		all = append(all, line{name: "balloon", queues: 5, late: true})
	}
	if cfg.Net != nil {
		all = append(all, line{name: "net", queues: 2, ownKicks: true})
	}
	return all
}

// makeLines makes what KVM has of the devices: it takes longest, and needs nothing but their number.
func (m *Machine) makeLines(Env) error {
	for _, l := range lines(&m.cfg) {
		if err := m.newDevice(l); err != nil {
			return err
		}
	}
	return nil
}

// add gives the next device of makeLines its model and its registers.
func (m *Machine) add(name string, model virtio.Device) error {
	d := m.devs[m.modelled]
	if d.name != name || len(d.kicks) != len(model.QueueSizes()) {
		panic(fmt.Sprintf("bug: %s with %d queues in the place of %s with %d", name, len(model.QueueSizes()), d.name, len(d.kicks)))
	}
	m.modelled++
	t := mmio.New(mmio.Config{
		Device:    model,
		Mem:       m.ram.mem,
		Interrupt: d.interrupt,
		Kick:      func(q int) *os.File { return d.kicks[q] },
		Log:       m.log.With("device", name),
	})
	// It may not run before the machine does, whatever the order in which the guest's first writes arrive.
	if err := t.Pause(context.Background()); err != nil {
		return err
	}
	d.regs, d.counters = t, t.Counters
	return m.mmio.add(uint64(d.base), boot.DeviceStride, d.regs)
}

func (m *Machine) addDisks(env Env) error {
	for i, c := range m.cfg.Disks {
		image, err := block.NewFile(env.Files[c.File], c.ReadOnly)
		if err != nil {
			return fmt.Errorf("disk %d: %w", i, err)
		}
		var backend block.Backend = image
		if !c.ReadOnly {
			log := block.NewWriteLog(image)
			backend, m.written[c.ID] = log, log
		}
		model, err := block.New(block.Config{Backend: backend, ID: c.ID, ReadOnly: c.ReadOnly, Rate: rate.Rate(c.Rate)})
		if err != nil {
			return fmt.Errorf("disk %d: %w", i, err)
		}
		if err := m.add(fmt.Sprintf("disk%d", i), model); err != nil {
			return err
		}
	}
	return nil
}

func (m *Machine) addPmem(Env) error {
	for i, r := range m.ram.pmem {
		model, err := pmem.New(pmem.Config{Start: r.Base, Size: r.Size})
		if err != nil {
			return fmt.Errorf("pmem %d: %w", i, err)
		}
		if err := m.add(fmt.Sprintf("pmem%d", i), model); err != nil {
			return err
		}
	}
	return nil
}

func (m *Machine) addVsock(env Env) error {
	c := m.cfg.Vsock
	if c == nil {
		return nil
	}
	model, err := vsock.New(vsock.Config{CID: vsock.CID(c.CID), Broker: env.Files[c.Broker], Log: m.log})
	if err != nil {
		return err
	}
	return m.add("vsock", model)
}

func (m *Machine) addConsole(env Env) error {
	var c console.Config
	if f := m.cfg.Console.Output; f >= 0 {
		out, err := newUnblocking(env.Files[f])
		if err != nil {
			return fmt.Errorf("console output: %w", err)
		}
		c.Output = out
		if m.cfg.Console.UART {
			if err := m.addSerial(out); err != nil {
				return err
			}
		}
	}
	if f := m.cfg.Console.Input; f >= 0 {
		c.Input = env.Files[f]
	}
	if m.cfg.Test {
		return nil
	}
	return m.add("console", console.New(c))
}

func (m *Machine) addSerial(out *unblocking) error {
	irq, err := eventfd("serial interrupt", 0)
	if err != nil {
		return err
	}
	m.serialIRQ = irq
	s := &serial{out: out, interrupt: func() { irq.Write(one[:]) }}
	if err := m.ports.add(portSerial, serialPorts, s); err != nil {
		return err
	}
	return m.vm.IRQFD(irq, serialGSI)
}

func (m *Machine) addRNG(env Env) error {
	if m.cfg.Entropy < 0 {
		return nil
	}
	return m.add("rng", rng.New(entropy{env.Files[m.cfg.Entropy]}))
}

func (m *Machine) addBalloon(Env) error {
	if !m.cfg.Balloon {
		return nil
	}
	model, err := balloon.New(balloon.Config{Backend: balloon.NewMemory(m.ram.mem, false), RAM: uint64(m.cfg.Memory)})
	if err != nil {
		return err
	}
	m.balloon = model
	return m.add("balloon", model)
}

func (m *Machine) addNet(env Env) error {
	c := m.cfg.Net
	if c == nil {
		return nil
	}
	model, err := net.New(net.Config{
		File: env.Files[c.File], MAC: c.MAC, MTU: c.MTU, Offload: c.Offload, In: rate.Rate(c.RateIn), Out: rate.Rate(c.RateOut),
	})
	if err != nil {
		return err
	}
	m.net = model
	return m.add("net", model)
}

// SetBalloon asks the guest to make the balloon that many bytes big. It does not wait for it.
func (m *Machine) SetBalloon(bytes int64) error {
	if m.balloon == nil {
		return errors.New("set balloon: the machine has none")
	}
	if bytes < 0 || bytes > m.cfg.Memory {
		return fmt.Errorf("set balloon to %d bytes: want 0 to %d", bytes, m.cfg.Memory)
	}
	return m.balloon.SetTarget(uint64(bytes))
}

// entropy reads random bytes from /dev/urandom.
type entropy struct{ file *os.File }

func (e entropy) Read(p []byte) (int, error) { return e.file.Read(p) }

// unblocking writes to a file whose writes fail instead of waiting: what the guest prints must not stop it, and a
// reader that is gone must not either.
type unblocking struct{ file *os.File }

func newUnblocking(f *os.File) (*unblocking, error) {
	if err := unix.SetNonblock(int(f.Fd()), true); err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	return &unblocking{f}, nil
}

func (u *unblocking) Write(p []byte) (n int, err error) {
	raw, err := u.file.SyscallConn()
	if err != nil {
		return 0, err
	}
	outer := raw.Write(func(fd uintptr) bool {
		n, err = unix.Write(int(fd), p)
		return true // never wait
	})
	return max(n, 0), errors.Join(err, outer)
}
