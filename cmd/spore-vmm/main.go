// Command spore-vmm runs one microVM. The supervisor starts it in its jail with nothing but descriptors:
//
//	3      the configuration: one internal/wire frame that holds an api.Config
//	4 …    the files that the configuration names: api.File 0 is descriptor 4
//
// It takes no arguments but -unjailed, for tests and measurements, which skips the jail and the filter. It exits with
// 0 when the machine's end has been reported on the control socket, whatever the end was, and with 1 when it could not
// do its job; the reason is then on standard error too.

//go:debug containermaxprocs=0
//go:debug decoratemappings=0
//go:debug updatemaxprocs=0
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"time"

	"spore/internal/timing"
	"spore/jailer"
	"spore/vmm"
	"spore/vmm/api"
	"spore/vmm/control"
	"spore/vmm/policy"
)

// settled is how long after its start a guest is left alone: until it has booted, left a template and begun its command. One that
// ends before needs no collection.
const settled = 4 * time.Second

func main() {
	runtime.LockOSThread() // this thread becomes that of the first vCPU
	growStack()
	finish(run(len(os.Args) == 2 && os.Args[1] == "-unjailed"))
}

// growStack makes the stack as large as the start needs it, once instead of three times: each time costs more than all of it here.
//
//go:noinline
func growStack() {
	var room [24 << 10]byte
	touch(&room)
}

//go:noinline
func touch(*[24 << 10]byte) {}

// finish ends the process without waiting for the kernel to free the VM in an orderly Close.
func finish(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "spore-vmm:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func run(unjailed bool) error {
	clock := timing.Start()
	if !unjailed {
		if err := jailer.Enter(); err != nil {
			return err
		}
		clock.Done("jail")
	}
	shell, err := vmm.NewShell(descriptor(api.KVMFile))
	if err != nil {
		return err
	}
	clock.Done("empty VM")
	cfg, files, err := receive()
	if err != nil {
		return err
	}
	clock.Done("config")
	time.Local = time.UTC // or the first log line would open /etc/localtime
	if cfg.Control < 0 {
		return errors.New("configuration names no control socket")
	}
	env := vmm.Env{Files: files, Shell: shell, Log: logger(cfg.ID, files, cfg.Log), Lead: true, Clock: clock}
	if !unjailed {
		env.Confine, env.LogTable = confineVCPU, policy.LogTable
	}
	conn, err := control.NewSocket(files[cfg.Control])
	if err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	server := control.New(conn, env.Log)
	m, err := start(cfg, &env, server, unjailed)
	if err != nil {
		return giveUp(server, err)
	}
	if m == nil {
		return nil // nobody wanted the shell
	}
	go func() {
		if err := attend(m, env, server); err != nil {
			finish(giveUp(server, err))
		}
		finish(nil)
	}()
	m.Lead()
	select {} // attend ends the process
}

// giveUp reports an error of ours, and returns it.
func giveUp(server *control.Server, err error) error {
	server.Event(api.Event{Kind: api.EventExit, Reason: api.ExitInternal, Detail: err.Error()})
	return err
}

// start makes the machine, or has a shell filled, and lets it run as soon as its first vCPU does.
func start(cfg api.Config, env *vmm.Env, server *control.Server, unjailed bool) (m *vmm.Machine, err error) {
	if cfg.Wait {
		m, err = awaken(cfg, env, server)
	} else {
		m, err = vmm.New(cfg, *env)
	}
	if err != nil || m == nil {
		return nil, err
	}
	if !unjailed {
		if err := installFilter(); err != nil {
			return nil, err
		}
		env.Clock.Done("filter")
	}
	return m, m.Resume(context.Background())
}

// attend speaks for the machine until its end.
func attend(m *vmm.Machine, env vmm.Env, server *control.Server) error {
	if err := server.Event(api.Event{Kind: api.EventStarted, Steps: vmm.Steps(env.Clock), First: m.FirstRun()}); err != nil {
		return fmt.Errorf("report start: %w", err)
	}
	ctx := context.Background()
	go func() {
		if err := server.Serve(ctx, m); err != nil {
			env.Log.Warn("control socket", "error", err)
		}
	}()
	time.AfterFunc(settled, debug.FreeOSMemory) // the start's garbage, when the guest no longer waits for a processor
	exit, err := m.Wait(ctx)
	if err != nil {
		return err
	}
	env.Log.Info("machine ended", "reason", exit.Reason, "detail", exit.Detail, "counters", m.Stats())
	return server.Event(api.Event{Kind: api.EventExit, Reason: exit.Reason, Detail: exit.Detail, First: m.FirstExit()})
}
