package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"spore/emuhost/frame"
)

const (
	stage     = "/stage"    // where the new root is put together
	outerRoot = "/run/host" // the outer machine's whole root, read-only
	share9p   = "trans=virtio,version=9p2000.L,msize=524288,access=client"
	upperSize = "size=75%,mode=0755,nr_inodes=0"
)

// host is the machine's state as far as sessions share it.
type host struct {
	log        *slog.Logger
	kept       kept
	configured atomic.Bool
	mu         sync.Mutex // one configuration, one reveal at a time
}

// configure makes the machine usable: clock, entropy, name, root. Only once.
func (h *host) configure(c frame.Configuration) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.configured.Load() {
		return errors.New("the host is configured already")
	}
	if err := setClock(time.Unix(0, c.UnixNano)); err != nil {
		return err
	}
	if err := reseed(c.Seed); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(c.Hostname)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	if err := buildRoot(stage); err != nil {
		return err
	}
	for _, s := range c.Shares {
		if err := mountBelow(stage, mount{s.Tag, s.Path, "9p", 0, share9p + ",cache=mmap"}); err != nil {
			return err
		}
	}
	if err := enterRoot(stage); err != nil {
		return err
	}
	if c.Modules != "" {
		if err := bindModules(c.Modules); err != nil {
			h.log.Warn("bind modules", "err", err) // only modprobe needs them
		}
	}
	for path, content := range c.Files {
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return fmt.Errorf("write file: %w", err)
		}
	}
	h.configured.Store(true)
	go copyUpHot()
	return nil
}

// reseed credits seed to the kernel's entropy pool and makes it use it: after
// a resume the generator's state is the snapshot's (random(4)).
func reseed(seed []byte) error {
	if len(seed) < 32 || len(seed) > 512 {
		return fmt.Errorf("reseed: seed of %d bytes", len(seed))
	}
	f, err := os.OpenFile("/dev/urandom", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("reseed: %w", err)
	}
	defer f.Close()
	// struct rand_pool_info: entropy bits, size in bytes, data.
	pool := binary.LittleEndian.AppendUint32(nil, uint32(8*len(seed)))
	pool = binary.LittleEndian.AppendUint32(pool, uint32(len(seed)))
	pool = append(pool, seed...)
	if err := addEntropy(f.Fd(), pool); err != nil {
		return fmt.Errorf("credit entropy: %w", err)
	}
	if err := unix.IoctlSetInt(int(f.Fd()), unix.RNDRESEEDCRNG, 0); err != nil {
		return fmt.Errorf("reseed: %w", err)
	}
	return nil
}

// buildRoot puts the new root together at root: the outer machine's file
// system with a writable layer in memory. /usr, which hardly changes, is
// cached; the rest is looked up anew so that what changes outside is seen.
func buildRoot(root string) error {
	steps := []mount{
		{"live", "/outer/live", "9p", unix.MS_RDONLY, share9p + ",cache=mmap"},
		{"usr", "/outer/usr", "9p", unix.MS_RDONLY, share9p + ",cache=loose"},
		{"upper", "/outer/upper", "tmpfs", 0, upperSize},
	}
	for _, m := range steps {
		if err := mountBelow("/", m); err != nil {
			return err
		}
	}
	for _, d := range []string{"root", "root-work", "usr", "usr-work"} {
		if err := os.MkdirAll(filepath.Join("/outer/upper", d), 0o755); err != nil {
			return err
		}
	}
	if err := seedUpper("/outer/live", "/outer/upper/root"); err != nil {
		return err
	}
	if err := writeBelow("/outer/upper/root", "/etc/resolv.conf", resolvConf); err != nil {
		return err
	}
	overlay := func(lower, upper string) string {
		return "lowerdir=/outer/" + lower + ",upperdir=/outer/upper/" + upper +
			",workdir=/outer/upper/" + upper + "-work,xino=off,index=off,redirect_dir=off,metacopy=off"
	}
	steps = []mount{
		{"root", "", "overlay", 0, overlay("live", "root")},
		{"usr", "usr", "overlay", 0, overlay("usr", "usr")},
		{"tmpfs", "tmp", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777,nr_inodes=0,size=75%"},
		{"tmpfs", "run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755"},
		{"/outer/live", outerRoot, "", unix.MS_BIND, ""},
	}
	for _, m := range steps {
		if err := mountBelow(root, m); err != nil {
			return err
		}
	}
	for _, d := range []string{"run/lock", "run/user"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return err
		}
	}
	for _, m := range []string{"/proc", "/sys", "/dev"} {
		if err := os.MkdirAll(root+m, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m, root+m, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("move %s: %w", m, err)
		}
	}
	return nil
}

// mountBelow makes the target directory below root and mounts m there.
func mountBelow(root string, m mount) error {
	target := filepath.Join(root, m.target)
	if err := os.MkdirAll(target, 0o755); err != nil {
		return fmt.Errorf("mount %s: %w", m.source, err)
	}
	if err := unix.Mount(m.source, target, m.kind, m.flags, m.options); err != nil {
		return fmt.Errorf("mount %s on %s: %w", m.source, target, err)
	}
	return nil
}

// enterRoot makes root the root of this process and those it starts.
func enterRoot(root string) error {
	if err := unix.Chdir(root); err != nil {
		return fmt.Errorf("enter root: %w", err)
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("enter root: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return fmt.Errorf("enter root: %w", err)
	}
	// As on a host with systemd: what sessions mount, others see.
	return unix.Mount("", "/", "", unix.MS_SHARED|unix.MS_REC, "")
}

// bindModules makes the running kernel's modules available to modprobe.
func bindModules(dir string) error {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return err
	}
	release := unix.ByteSliceToString(name.Release[:])
	return mountBelow("/", mount{outerRoot + dir, "/lib/modules/" + release, "", unix.MS_BIND, ""})
}

// refresh makes changes of the outer machine's files visible: it drops what
// the root overlay remembers of names, so that they are looked up again.
// (A remount shrinks the file system's dentry cache.)
func (h *host) refresh() {
	if err := unix.Mount("", "/", "", unix.MS_REMOUNT, ""); err != nil {
		h.log.Warn("refresh root", "err", err)
	}
}

// reveal makes what the outer machine has at path, which a fresh file system (/tmp, /run) hides inside, visible
// read-only: with all of the directory below that file system that it is in.
func (h *host) reveal(path string) {
	if !filepath.IsAbs(path) || strings.HasPrefix(path, outerRoot) {
		return
	}
	path = filepath.Clean(path)
	st, err := os.Stat(outerRoot + path)
	if err != nil {
		return
	}
	if st.IsDir() {
		path += "/"
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for end := 1; end < len(path); {
		next := strings.IndexByte(path[end:], '/')
		if next < 0 {
			return // a file in a directory that is there
		}
		end += next
		dir := path[:end]
		end++
		if _, err := os.Stat(dir); err == nil {
			continue
		}
		if err := mountBelow("/", mount{outerRoot + dir, dir, "", unix.MS_BIND, ""}); err != nil {
			h.log.Warn("reveal directory", "dir", dir, "err", err)
		}
		return
	}
}

// prepare readies the machine for a process: clock and files up to date.
func (h *host) prepare(req *frame.Start) {
	if req.UnixNano != 0 {
		correctClock(time.Unix(0, req.UnixNano))
	}
	h.refresh()
	h.reveal(req.Dir)
	for _, arg := range req.Args {
		_, value, _ := strings.Cut(arg, "=")
		h.reveal(arg)
		h.reveal(value)
	}
	for _, variable := range req.Env {
		_, value, _ := strings.Cut(variable, "=")
		h.reveal(value)
	}
	if err := h.kept.run(req); err != nil {
		h.log.Warn("a program is read from outside", "err", err) // which takes longer, and no more
	}
}
