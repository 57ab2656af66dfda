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
)

// settled is how long after its start a guest is left alone.
const settled = 500 * time.Millisecond

func main() {
	if err := run(len(os.Args) == 2 && os.Args[1] == "-unjailed"); err != nil {
		fmt.Fprintln(os.Stderr, "spore-vmm:", err)
		os.Exit(1)
	}
	os.Exit(0) // without waiting for the kernel to free the VM in an orderly Close
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
	runtime.GOMAXPROCS(cfg.VCPUs + 1)
	if cfg.Control < 0 {
		return errors.New("configuration names no control socket")
	}
	env := vmm.Env{Files: files, Shell: shell, Log: logger(cfg.ID, files, cfg.Log), Clock: clock}
	if !unjailed {
		env.Confine = confineVCPU
	}
	conn, err := control.NewSocket(files[cfg.Control])
	if err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	server := control.New(conn, env.Log)
	if err := serve(cfg, env, server, unjailed); err != nil {
		server.Event(api.Event{Kind: api.EventExit, Reason: api.ExitInternal, Detail: err.Error()})
		return err
	}
	return nil
}

// serve runs the machine from its making to its end.
func serve(cfg api.Config, env vmm.Env, server *control.Server, unjailed bool) error {
	var m *vmm.Machine
	var err error
	if cfg.Wait {
		if m, err = awaken(cfg, &env, server); m == nil {
			return err // nil: nobody wanted the shell
		}
	} else {
		m, err = vmm.New(cfg, env)
	}
	if err != nil {
		return err
	}
	if !unjailed {
		if err := installFilter(); err != nil {
			return err
		}
		env.Clock.Done("filter")
	}
	ctx := context.Background()
	if err := m.Resume(ctx); err != nil {
		return err
	}
	if err := server.Event(api.Event{Kind: api.EventStarted, Steps: vmm.Steps(env.Clock)}); err != nil {
		return fmt.Errorf("report start: %w", err)
	}
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
