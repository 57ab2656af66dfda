package main

import (
	"fmt"
	"log/slog"
	"os"

	"golang.org/x/sys/unix"

	"spore/internal/lossy"
	"spore/vmm/api"
)

// configFile is the descriptor that the configuration is read from; api.File 0 is the one after it.
const configFile = 3

func descriptor(f api.File) int { return configFile + 1 + int(f) }

// receive reads the configuration and gathers the files it names.
func receive() (api.Config, []*os.File, error) {
	var cfg api.Config
	in := os.NewFile(configFile, "config")
	defer in.Close()
	if err := api.Receive(in, &cfg); err != nil {
		return cfg, nil, fmt.Errorf("read configuration from descriptor %d: %w", configFile, err)
	}
	count := 0
	for _, f := range cfg.Files() {
		count = max(count, int(f)+1)
	}
	if count > api.MaxFiles {
		return cfg, nil, fmt.Errorf("configuration names file %d, at most %d", count-1, api.MaxFiles)
	}
	for _, f := range []api.File{cfg.Control, cfg.Log} {
		if f < 0 {
			continue
		}
		// Before os.NewFile, which then gives the descriptor to the network poller. That also starts the poller,
		// which must not happen after the filter is in place.
		if err := unix.SetNonblock(descriptor(f), true); err != nil {
			return cfg, nil, fmt.Errorf("descriptor %d of the configuration: %w", descriptor(f), os.NewSyscallError("fcntl", err))
		}
	}
	files := make([]*os.File, count)
	for _, f := range cfg.Files() {
		if f < 0 || f == api.KVMFile { // that one is the shell's
			continue
		}
		fd := descriptor(f)
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, unix.FD_CLOEXEC); err != nil {
			return cfg, nil, fmt.Errorf("descriptor %d of the configuration: %w", fd, os.NewSyscallError("fcntl", err))
		}
		files[f] = os.NewFile(uintptr(fd), fmt.Sprintf("file %d", f))
	}
	return cfg, files, nil
}

// logger writes JSON lines to the log file, if there is one.
func logger(id string, files []*os.File, log api.File) *slog.Logger {
	if log < 0 {
		return lossy.Logger(nil, "")
	}
	return lossy.Logger(files[log], id)
}
