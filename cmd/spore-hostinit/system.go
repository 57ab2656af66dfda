package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// mount is one file system to mount below a root.
type mount struct {
	source, target, kind string
	flags                uintptr
	options              string
}

// kernelMounts are the file systems the kernel itself offers. Those after
// required are mounted where the kernel has them.
var kernelMounts = [...]mount{
	{"proc", "proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
	{"sysfs", "sys", "sysfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
	{"devtmpfs", "dev", "devtmpfs", unix.MS_NOSUID, "mode=0755"},
	{"devpts", "dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "gid=5,mode=0620,ptmxmode=0666"},
	{"tmpfs", "dev/shm", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
	{"cgroup2", "sys/fs/cgroup", "cgroup2", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, "nsdelegate,favordynmods"},
	{"mqueue", "dev/mqueue", "mqueue", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
	{"securityfs", "sys/kernel/security", "securityfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
	{"debugfs", "sys/kernel/debug", "debugfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
	{"bpf", "sys/fs/bpf", "bpf", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, "mode=0700"},
}

const required = 6

// mountKernel mounts the kernel's file systems below root.
func mountKernel(root string) error {
	for i, m := range kernelMounts {
		target := filepath.Join(root, m.target)
		err := os.MkdirAll(target, 0o755)
		if err == nil || i >= required {
			err = unix.Mount(m.source, target, m.kind, m.flags, m.options)
		}
		if err != nil && i < required {
			return fmt.Errorf("mount %s on %s: %w", m.source, target, err)
		}
	}
	return nil
}

// loadModules loads the modules a list names, in its order. A module that
// cannot be loaded is logged: which of them matter shows later.
func loadModules(log *slog.Logger, list string) {
	names, err := os.ReadFile(list)
	if err != nil {
		log.Error("read module list", "err", err)
		return
	}
	for _, name := range strings.Fields(string(names)) {
		if err := loadModule(name); err != nil && !errors.Is(err, unix.EEXIST) {
			log.Warn("load module", "module", name, "err", err)
		}
	}
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.FinitModule(int(f.Fd()), "", 0)
}

// settle sets what a distribution's start-up would have set.
func settle(log *slog.Logger) error {
	for link, target := range map[string]string{
		"/dev/fd": "/proc/self/fd", "/dev/stdin": "/proc/self/fd/0",
		"/dev/stdout": "/proc/self/fd/1", "/dev/stderr": "/proc/self/fd/2",
	} {
		if err := os.Symlink(target, link); err != nil {
			log.Warn("link device", "err", err)
		}
	}
	for _, dev := range []string{"kvm", "fuse", "net/tun", "vhost-net", "vhost-vsock", "vsock"} {
		_ = os.Chmod(filepath.Join("/dev", dev), 0o666) // absent ones stay absent
	}
	controllers, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
	if err != nil {
		return err
	}
	for _, c := range strings.Fields(string(controllers)) {
		if err := os.WriteFile("/sys/fs/cgroup/cgroup.subtree_control", []byte("+"+c), 0); err != nil {
			log.Warn("enable cgroup controller", "controller", c, "err", err)
		}
	}
	for _, r := range []struct {
		resource int
		value    uint64
	}{{unix.RLIMIT_NOFILE, 1 << 20}, {unix.RLIMIT_MEMLOCK, unix.RLIM_INFINITY}, {unix.RLIMIT_NPROC, 1 << 17}} {
		if err := syscall.Setrlimit(r.resource, &syscall.Rlimit{Cur: r.value, Max: r.value}); err != nil {
			log.Warn("set limit", "resource", r.resource, "err", err)
		}
	}
	unix.Umask(0o022)
	if err := connectOut(); err != nil {
		log.Warn("no way out to the outer machine's network", "err", err)
	}
	return interfaceUp("lo")
}
