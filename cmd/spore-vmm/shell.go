package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"spore/internal/timing"
	"spore/vmm"
	"spore/vmm/api"
	"spore/vmm/control"
)

// awaken makes an empty machine and waits until it is told what to wake from. It returns nil and no error when the control
// socket closes first: a shell is thrown away by hanging up.
func awaken(cfg api.Config, env *vmm.Env, server *control.Server) (*vmm.Machine, error) {
	m, err := vmm.NewEmpty(cfg, *env)
	if err != nil {
		return nil, err
	}
	if err := m.Rehearse(); err != nil {
		return nil, err
	}
	if err := server.Event(api.Event{Kind: api.EventWaiting, Steps: vmm.Steps(env.Clock)}); err != nil {
		return nil, fmt.Errorf("report that the shell waits: %w", err)
	}
	r, files, err := server.Await()
	if errors.Is(err, io.EOF) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	env.Clock = timing.Start()
	env.Files = append([]*os.File{nil}, files...) // /dev/kvm is the VM's by now
	if r.Config.Log >= 0 && int(r.Config.Log) < len(env.Files) && env.Files[r.Config.Log] != nil {
		if err := unix.SetNonblock(int(env.Files[r.Config.Log].Fd()), true); err != nil {
			return nil, os.NewSyscallError("fcntl", err)
		}
		env.Log = logger(r.Config.ID, env.Files, r.Config.Log)
	}
	return m, m.Fill(*r.Config, *env)
}
