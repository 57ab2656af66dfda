package vmm

import (
	"errors"
	"fmt"
	"sync/atomic"

	"spore/internal/timing"
	"spore/kvm"
	"spore/vmm/api"
	"spore/vmm/snapshot"
)

// exitKinds bounds the exit reasons that are counted by number; all others share the last place.
const exitKinds = 32

// vcpu is one virtual processor and the goroutine that runs it.
type vcpu struct {
	id    int
	kvm   *kvm.VCPU
	fresh *snapshot.VCPU // its state before it was given one, if that is known
	cpuid []kvm.CPUIDEntry
	exits [exitKinds]atomic.Uint64
	kicks atomic.Uint64 // returns because of a signal, wanted or not
}

// loop is the life of a vCPU's goroutine.
func (m *Machine) loop(c *vcpu) {
	c.kvm.Bind() // and never unlocked: the thread ends with the goroutine
	m.turns(c)
	m.running.Done()
	if m.confine != nil {
		select {} // a confined thread may not even end
	}
}

// turns runs the guest whenever the gate is open, until the machine ends.
func (m *Machine) turns(c *vcpu) {
	for confined := m.confine == nil; m.gate.pass(); {
		var reason api.ExitReason
		var detail string
		if !confined {
			confined = true
			if err := m.confine(); err != nil {
				reason, detail = api.ExitInternal, fmt.Sprintf("vCPU %d: confine its thread: %v", c.id, err)
			}
		}
		if reason == "" {
			reason, detail = m.enter(c)
		}
		if reason != "" {
			m.end(reason, detail) // before it leaves: who waits for that must see that the machine has ended
		}
		m.gate.leave()
	}
}

// enter runs the guest until the gate closes or the machine must end, in which case it returns why.
func (m *Machine) enter(c *vcpu) (reason api.ExitReason, detail string) {
	for {
		exit, err := c.kvm.Run()
		if err != nil {
			if !errors.Is(err, kvm.ErrInterrupted) {
				return api.ExitInternal, fmt.Sprintf("vCPU %d: %v", c.id, err)
			}
			c.kicks.Add(1)
			c.kvm.ClearKick()
			if m.gate.want.Load() == wantRun {
				continue
			}
			if err := c.kvm.Finish(); err != nil {
				return api.ExitInternal, fmt.Sprintf("vCPU %d: %v", c.id, err)
			}
			return "", ""
		}
		c.exits[min(exit.Reason, exitKinds-1)].Add(1)
		if m.firstExit.Load() == 0 {
			m.firstExit.CompareAndSwap(0, timing.Monotonic())
		}
		switch exit.Reason {
		case kvm.ExitIO:
			m.portAccess(exit)
		case kvm.ExitMMIO:
			m.memoryAccess(exit)
		default:
			if reason, detail := fatal(c.id, exit); reason != "" {
				return reason, detail
			}
		}
		if m.ending.Load() {
			return "", "" // a register write of this vCPU ended the machine
		}
	}
}

// FirstExit is when a vCPU of the machine first came back from the guest to be answered, by CLOCK_MONOTONIC in nanoseconds;
// 0 if none has.
func (m *Machine) FirstExit() int64 { return m.firstExit.Load() }

// FirstRun is when the vCPUs were first let run, by the same clock; 0 if they never were.
func (m *Machine) FirstRun() int64 { return m.firstRun.Load() }

func (m *Machine) memoryAccess(e kvm.Exit) {
	if e.Write {
		m.mmio.write(e.Addr, e.Data)
	} else {
		m.mmio.read(e.Addr, e.Data)
	}
}

// portAccess handles IN, OUT and their string forms: every element goes to the same port.
func (m *Machine) portAccess(e kvm.Exit) {
	for d := e.Data; len(d) >= e.Size && len(d) > 0; d = d[e.Size:] {
		if e.Write {
			m.ports.write(e.Addr, d[:e.Size])
		} else {
			m.ports.read(e.Addr, d[:e.Size])
		}
	}
}

// fatal judges an exit that is no register access. An empty reason means: go on.
func fatal(id int, e kvm.Exit) (api.ExitReason, string) {
	switch e.Reason {
	case kvm.ExitHLT, kvm.ExitInterrupted, kvm.ExitUnknown:
		return "", "" // the in-kernel irqchip handles HLT; the others are spurious
	case kvm.ExitShutdown:
		return api.ExitTripleFault, fmt.Sprintf("vCPU %d: triple fault", id)
	case kvm.ExitInternalError:
		return api.ExitInternal, fmt.Sprintf("vCPU %d: KVM internal error %d (%#x)", id, e.Detail[0], e.Detail[1:])
	case kvm.ExitFailEntry:
		return api.ExitInternal, fmt.Sprintf("vCPU %d: entry failed, hardware reason %#x", id, e.Detail[0])
	case kvm.ExitSystemEvent:
		return api.ExitTripleFault, fmt.Sprintf("vCPU %d: system event %d", id, e.Detail[0])
	}
	return api.ExitInternal, fmt.Sprintf("vCPU %d: unexpected exit %v", id, e.Reason)
}

// counters adds this vCPU's counts.
func (c *vcpu) counters() map[string]uint64 {
	out := map[string]uint64{"kicks": c.kicks.Load()}
	for i := range c.exits {
		if n := c.exits[i].Load(); n > 0 {
			out[kvm.ExitReason(i).String()] = n
		}
	}
	return out
}
