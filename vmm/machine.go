// Package vmm is one microVM in one process: guest memory, vCPUs, devices and their life. It reads top to
// bottom as a machine starts: New builds it paused, Resume lets it run, Wait says how it ended.
package vmm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"spore/internal/timing"
	"spore/kvm"
	"spore/virtio/balloon"
	"spore/virtio/block"
	"spore/virtio/net"
	"spore/vmm/api"
	"spore/vmm/boot"
	"spore/vmm/snapshot"
)

// Env is what the process gives the machine beside its Config.
type Env struct {
	Files []*os.File   // Config's File indexes into it; the machine takes over all but the first, api.KVMFile
	Shell *Shell       // the VM to use; nil makes one of Files[api.KVMFile]
	Log   *slog.Logger // nil is silent

	// Confine narrows what the calling thread may do, for good. It is called on the thread of each vCPU before that
	// enters the guest for the first time; the thread then lives as long as the process. nil is none.
	Confine func() error

	// Lead says that the caller's own goroutine will be the first vCPU's: it calls Machine.Lead. Between its last step here and the
	// guest's first instruction no other thread has to be woken.
	Lead bool

	// LogTable is where the table of kvm.LogSwitch has to be, because a filter names it; 0 is anywhere.
	LogTable uintptr

	Clock *timing.Clock // collects the steps of New; nil is none

	filling bool // the VM is there already
}

// Exit is how a machine ended.
type Exit struct {
	Reason api.ExitReason
	Detail string // one line for a person
}

// Machine is one microVM. Resume, Pause, Stats, SetBalloon, Stop, Wait and Close may be called by any goroutine.
type Machine struct {
	cfg      api.Config
	log      *slog.Logger
	vm       *kvm.VM
	ram      *ram
	image    *boot.Image
	saved    *snapshot.State // that the machine is made from, while it is made; nil for one that boots
	mmio     bus
	ports    bus
	cpus     []*vcpu
	tscKHz   uint32 // of the host; 0 if it does not say
	devs     []*device
	modelled int // how many of devs have their model

	written   map[string]*block.WriteLog // of writable disks, by their ID
	balloon   *balloon.Device            // nil without one
	net       *net.Device                // likewise
	serialIRQ *os.File                   // nil without a UART
	filled    pageSet                    // blocks of memory that the snapshot has, in the order of its file
	woke      bool                       // from a snapshot; it was booted otherwise
	base      *os.File                   // the memory file that it woke from
	copied    []pageSet                  // by region, pages that were copied from it beforehand; nil for none
	logs      *kvm.LogSwitch             // of the RAM
	logging   bool                       // who writes what to the RAM, for a live snapshot

	confine func() error // for the thread of each vCPU; nil is none
	lead    bool         // the first vCPU's goroutine is the one that calls Lead

	gate    *gate
	running sync.WaitGroup // vCPU goroutines

	mu    sync.Mutex // one change of state at a time
	state State
	empty bool      // made by NewEmpty and not filled yet
	since time.Time // of the last pause

	firstExit atomic.Int64 // when one of them came back
	firstRun  atomic.Int64 // when the vCPUs were let run
	stopped   atomic.Int64 // how long the last pause was, in nanoseconds

	ending atomic.Bool   // the machine has ended or is about to
	once   sync.Once     // the first end is the one that counts
	exit   Exit          // valid once ended is closed
	ended  chan struct{} // closed by the first end
}

// New builds the machine of cfg: memory, VM, interrupt controllers, vCPUs, devices, kernel, registers. It is
// paused. On error everything New made is undone; files it took over may be closed.
func New(cfg api.Config, env Env) (*Machine, error) {
	if err := check(&cfg, env); err != nil {
		return nil, errors.Join(err, env.Shell.Close())
	}
	m := newMachine(cfg, env)
	if err := m.carryOut(append(m.emptying(), m.filling()...), env); err != nil {
		return nil, errors.Join(err, m.release(), env.Shell.Close())
	}
	m.start()
	return m, nil
}

// NewEmpty builds an empty machine of cfg's shape, with cfg.Wait. It can do nothing but be filled, once, and be closed.
func NewEmpty(cfg api.Config, env Env) (*Machine, error) {
	if err := check(&cfg, env); err != nil {
		return nil, errors.Join(err, env.Shell.Close())
	}
	m := newMachine(cfg, env)
	if err := m.carryOut(m.emptying(), env); err != nil {
		return nil, errors.Join(err, m.release(), env.Shell.Close())
	}
	m.empty = true
	m.start()
	return m, nil
}

// Fill makes an empty machine one that continues from the snapshot of cfg.Restore. cfg must be of its shape. Of env only Files,
// Log and Clock count; Files[0] is nil, for the VM is there. After an error the machine can only be closed.
func (m *Machine) Fill(cfg api.Config, env Env) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	env.Shell, env.filling = nil, true
	if err := check(&cfg, env); err != nil {
		return err
	}
	switch {
	case !m.empty:
		return fmt.Errorf("fill machine: it is not empty: %w", ErrState)
	case cfg.Restore == nil || cfg.Wait || len(cfg.Pmem) > 0:
		return fmt.Errorf("%w: only a snapshot without pmem devices fills an empty machine", ErrConfig)
	case cfg.VCPUs != m.cfg.VCPUs || cfg.Memory != m.cfg.Memory || cfg.Test != m.cfg.Test || !slices.Equal(lines(&cfg), lines(&m.cfg)):
		return fmt.Errorf("%w: the empty machine has another shape", ErrConfig)
	}
	m.empty, m.cfg = false, cfg
	if env.Log != nil {
		m.log = env.Log
	}
	return m.carryOut(m.filling(), env)
}

func newMachine(cfg api.Config, env Env) *Machine {
	m := &Machine{
		cfg: cfg, log: env.Log, confine: env.Confine, lead: env.Lead, gate: newGate(), ended: make(chan struct{}), written: map[string]*block.WriteLog{},
		mmio:  bus{name: "memory"},
		ports: bus{name: "port", fill: 0xff}, // an undriven bus reads as ones
	}
	if m.log == nil {
		m.log = slog.New(slog.DiscardHandler)
	}
	return m
}

// start lets the vCPUs wait at the gate.
func (m *Machine) start() {
	cpus := m.cpus
	if m.lead {
		cpus = cpus[1:]
	}
	for _, c := range cpus {
		m.running.Add(1)
		go m.loop(c)
	}
}

// Lead makes the calling goroutine the first vCPU's, of a machine with Env.Lead, and its thread with it. It returns when the machine
// has ended, or never if the machine has an Env.Confine.
func (m *Machine) Lead() {
	m.running.Add(1)
	m.loop(m.cpus[0])
}

// step is one part of making a machine.
type step struct {
	name string
	do   func(Env) error
}

// emptying are the steps to an empty machine, for which nothing has to be known but its shape.
func (m *Machine) emptying() []step {
	return []step{{"memory", m.makeMemory}, {"vm", m.makeVM}, {"lines", m.makeLines}}
}

// filling are the steps from there to one that boots, or to one that wakes.
func (m *Machine) filling() []step {
	if m.cfg.Restore != nil {
		return []step{{"state", m.readState}, {"devices", m.makeDevices}, {"restore", m.restore}}
	}
	return []step{{"devices", m.makeDevices}, {"kernel", m.loadKernel}, {"registers", m.setRegisters}}
}

func (m *Machine) carryOut(steps []step, env Env) error {
	for _, step := range steps {
		if err := step.do(env); err != nil {
			return fmt.Errorf("build machine: %s: %w", step.name, err)
		}
		if env.Clock != nil {
			env.Clock.Done(step.name)
		}
	}
	return nil
}

func (m *Machine) makeMemory(env Env) (err error) {
	m.ram, err = newRAM(&m.cfg, env)
	return err
}

// end records why the machine ended and sends its vCPUs home. Only the first call counts. It may be called by
// a vCPU's own goroutine, so it waits for nothing.
func (m *Machine) end(reason api.ExitReason, detail string) {
	m.once.Do(func() {
		m.exit = Exit{reason, detail}
		m.ending.Store(true)
		m.gate.set(wantStop)
		m.kick()
		close(m.ended)
	})
}

func (m *Machine) kick() {
	for _, c := range m.cpus {
		if err := c.kvm.Kick(); err != nil {
			m.log.Warn("kick vCPU", "vcpu", c.id, "error", err)
		}
	}
}

// Resume lets a paused machine run: devices first, then vCPUs.
func (m *Machine) Resume(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	defer m.endLog()
	return m.resume(ctx)
}

// resume is Resume; mu is held.
func (m *Machine) resume(ctx context.Context) error {
	if err := m.state.to(Running); err != nil {
		return err
	}
	if m.empty {
		return fmt.Errorf("resume machine: it is empty: %w", ErrState)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	for _, d := range m.devs {
		if err := d.regs.Resume(); err != nil {
			return fmt.Errorf("resume %s: %w", d.name, err)
		}
	}
	m.state = Running
	if !m.since.IsZero() {
		m.stopped.Store(int64(time.Since(m.since)))
	}
	m.firstRun.CompareAndSwap(0, timing.Monotonic())
	m.gate.set(wantRun)
	return nil
}

// Stopped is how long the guest stood still in its last pause.
func (m *Machine) Stopped() time.Duration { return time.Duration(m.stopped.Load()) }

// Pause parks the vCPUs, then stops the devices. When it fails, because ctx ended or a device would not stop,
// the machine may be half paused; Pause may be tried again, and Stop always works.
func (m *Machine) Pause(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.pause(ctx, timing.Start())
}

// pause is Pause, by the clock; mu is held.
func (m *Machine) pause(ctx context.Context, clock *timing.Clock) error {
	if err := m.state.to(Paused); err != nil {
		return err
	}
	m.since = time.Now()
	m.gate.set(wantPause)
	m.kick()
	if err := m.quiesce(ctx, clock); err != nil {
		return err
	}
	if m.ending.Load() { // its vCPUs did not park but went home, and KVM may have reset one that did (a triple fault)
		return fmt.Errorf("machine has ended meanwhile (%s), cannot become %s: %w", m.exit.Reason, Paused, ErrState)
	}
	m.state = Paused
	return nil
}

// quiesce waits for the vCPUs to park and stops the devices.
func (m *Machine) quiesce(ctx context.Context, clock *timing.Clock) error {
	if err := m.gate.settle(ctx); err != nil {
		return fmt.Errorf("park vCPUs: %w", err)
	}
	clock.Done("vCPUs")
	for _, d := range m.devs {
		d.regs.PauseSoon()
	}
	for _, d := range m.devs {
		if err := d.regs.Pause(ctx); err != nil {
			return fmt.Errorf("pause %s: %w", d.name, err)
		}
	}
	clock.Done("devices")
	return nil
}

// Stop ends the machine now, whatever the guest does. Wait then returns ExitStopped, unless something else
// ended it before.
func (m *Machine) Stop(detail string) { m.end(api.ExitStopped, detail) }

// Wait blocks until the machine has ended and its devices are quiet, or ctx ends.
func (m *Machine) Wait(ctx context.Context) (Exit, error) {
	select {
	case <-m.ended:
	case <-ctx.Done():
		return Exit{}, ctx.Err()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.state == Running {
		if err := m.quiesce(ctx, timing.Start()); err != nil {
			return m.exit, err
		}
	}
	m.state = Stopped
	return m.exit, nil
}

// Close ends the machine and releases everything. It takes some 15 ms, which KVM needs to free a VM; a process
// that exits anyway need not call it.
func (m *Machine) Close() error {
	m.Stop("closed")
	_, err := m.Wait(context.Background())
	m.running.Wait()
	return errors.Join(err, m.release())
}

// release undoes New; no vCPU goroutine runs.
func (m *Machine) release() error {
	var errs []error
	for _, d := range m.devs {
		errs = append(errs, d.close())
	}
	if m.net != nil { // or its other side would not see the end of it
		errs = append(errs, m.net.Close())
	}
	if m.serialIRQ != nil {
		errs = append(errs, m.serialIRQ.Close())
	}
	for _, c := range m.cpus {
		errs = append(errs, c.kvm.Close())
	}
	if m.vm != nil {
		errs = append(errs, m.vm.Close())
	}
	if m.base != nil {
		errs = append(errs, m.base.Close())
	}
	if m.logs != nil {
		errs = append(errs, m.logs.Close())
	}
	if m.ram != nil {
		errs = append(errs, m.ram.close())
	}
	m.base, m.logs, m.devs, m.cpus, m.net, m.serialIRQ, m.vm, m.ram = nil, nil, nil, nil, nil, nil, nil, nil
	return errors.Join(errs...)
}
