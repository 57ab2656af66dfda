// Command spore-net forwards for one mediated guest. The supervisor starts it in its jail with one descriptor:
//
//	3      a SOCK_STREAM socket that brings the configuration, one internal/wire frame that holds an api.Config, and with its first
//	       byte the files that it names (SCM_RIGHTS): api.File 0 is the first
//
// It may be started ahead: it waits for the configuration, and ends without a word if the socket closes first. It takes no arguments but
// -unjailed, for tests and measurements, which skips the jail and the filter. It serves until the control socket closes, and exits with 0
// then; with 1 when it could not do its job, which is then on standard error too.

//go:debug containermaxprocs=0
//go:debug decoratemappings=0
//go:debug updatemaxprocs=0
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"spore/jailer"
	"spore/jailer/seccomp"
	"spore/network/api"
	"spore/network/syscalls"
)

func main() {
	if err := run(len(os.Args) == 2 && os.Args[1] == "-unjailed"); err != nil {
		fmt.Fprintln(os.Stderr, "spore-net:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func run(unjailed bool) error {
	if !unjailed {
		if err := jailer.Enter(); err != nil {
			return err
		}
	}
	time.Local = time.UTC // or the first log line would open /etc/localtime
	cfg, files, err := receive()
	if errors.Is(err, io.EOF) {
		return nil // nobody wanted it
	}
	if err != nil {
		return err
	}
	control := newControl(files[cfg.Control])
	m, err := newMediation(cfg, files)
	if err != nil {
		control.fail(err)
		return err
	}
	if !unjailed {
		if err := seccomp.Install(syscalls.ServingProgram); err != nil {
			control.fail(err)
			return err
		}
	}
	if err := m.start(); err != nil {
		control.fail(err)
		return err
	}
	if err := control.event(api.Event{Kind: api.EventReady, CA: m.proxy.CA()}); err != nil {
		return errors.Join(fmt.Errorf("report that it is ready: %w", err), m.close())
	}
	err = control.serve(m)
	return errors.Join(err, m.close())
}
