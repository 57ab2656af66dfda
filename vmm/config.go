package vmm

import (
	"errors"
	"fmt"

	"spore/vmm/acpi"
	"spore/vmm/api"
	"spore/vmm/boot"
)

// ErrConfig is matched by every error about a configuration that cannot be a machine.
var ErrConfig = errors.New("invalid machine")

const hugePage = 2 << 20

// check judges a configuration against the files that came with it. It trusts nothing: the sender may be
// older, newer or mistaken.
func check(cfg *api.Config, env Env) error {
	switch {
	case cfg.Version != api.Version:
		return fmt.Errorf("%w: version %d, want %d", ErrConfig, cfg.Version, api.Version)
	case cfg.VCPUs < 1 || cfg.VCPUs > api.MaxVCPUs:
		return fmt.Errorf("%w: %d vCPUs, want 1 to %d", ErrConfig, cfg.VCPUs, api.MaxVCPUs)
	case cfg.Memory < api.MinMemory || cfg.Memory > api.MaxMemory || cfg.Memory%hugePage != 0:
		return fmt.Errorf("%w: %d bytes of memory, want %d to %d in steps of 2 MiB", ErrConfig, cfg.Memory, api.MinMemory, int64(api.MaxMemory))
	case len(cfg.Disks) > api.MaxDisks:
		return fmt.Errorf("%w: %d disks, at most %d", ErrConfig, len(cfg.Disks), api.MaxDisks)
	case len(cfg.Pmem) > api.MaxPmem:
		return fmt.Errorf("%w: %d pmem devices, at most %d", ErrConfig, len(cfg.Pmem), api.MaxPmem)
	case len(env.Files) > api.MaxFiles:
		return fmt.Errorf("%w: %d files, at most %d", ErrConfig, len(env.Files), api.MaxFiles)
	case len(cfg.Boot.Cmdline) > boot.MaxCmdline:
		return fmt.Errorf("%w: command line of %d bytes, at most %d", ErrConfig, len(cfg.Boot.Cmdline), boot.MaxCmdline)
	case cfg.Boot.Late != "" && !acpi.ValidHID(cfg.Boot.Late):
		return fmt.Errorf("%w: %q is no ACPI identifier for late devices, want one like SPOR0001", ErrConfig, cfg.Boot.Late)
	}
	for i, p := range cfg.Pmem {
		if p.Size <= 0 || p.Size > api.MaxMemory {
			return fmt.Errorf("%w: pmem %d of %d bytes", ErrConfig, i, p.Size)
		}
	}
	if cfg.Wait {
		return nil // what its files are comes later
	}
	if n := cfg.Net; n != nil {
		switch {
		case !n.MAC.Individual():
			return fmt.Errorf("%w: network address %s is no interface's", ErrConfig, n.MAC)
		case n.MTU != 0 && n.MTU < api.MinMTU:
			return fmt.Errorf("%w: an MTU of %d bytes, want %d to %d", ErrConfig, n.MTU, api.MinMTU, api.MaxMTU)
		}
	}
	return checkFiles(cfg, env)
}

// checkFiles demands that every File that must be there is.
func checkFiles(cfg *api.Config, env Env) error {
	files := env.Files
	needed := map[string]api.File{}
	if cfg.Restore != nil {
		needed["state"], needed["memory"] = cfg.Restore.State, cfg.Restore.Memory
		if cfg.Restore.Hot > api.KVMFile {
			needed["hot pages"] = cfg.Restore.Hot
		}
	} else {
		needed["kernel"] = cfg.Boot.Kernel
	}
	if env.Shell == nil && !env.filling {
		needed["kvm"] = api.KVMFile
	}
	optional := map[string]api.File{"initrd": cfg.Boot.Initrd, "console output": cfg.Console.Output, "console input": cfg.Console.Input, "entropy": cfg.Entropy}
	for i, d := range cfg.Disks {
		needed[fmt.Sprintf("disk %d", i)] = d.File
	}
	for i, p := range cfg.Pmem {
		needed[fmt.Sprintf("pmem %d", i)] = p.File
	}
	if cfg.Vsock != nil {
		needed["vsock broker"] = cfg.Vsock.Broker
	}
	if cfg.Net != nil {
		needed["network"] = cfg.Net.File
	}
	for what, f := range needed {
		if f < 0 {
			return fmt.Errorf("%w: %s has no file", ErrConfig, what)
		}
		optional[what] = f
	}
	for what, f := range optional {
		if f == api.KVMFile && what != "kvm" {
			return fmt.Errorf("%w: %s is file %d, which is /dev/kvm", ErrConfig, what, f)
		}
		if int(f) >= len(files) || f >= 0 && files[f] == nil {
			return fmt.Errorf("%w: %s is file %d of %d", ErrConfig, what, f, len(files))
		}
	}
	return nil
}
