package guest

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"spore/agent"
)

// Where the parts of the root file system are mounted before it becomes /. All are in the initramfs, which
// no process of the guest can reach afterwards.
const (
	lowerDir = "/lower"
	upperDir = "/upper"
	newRoot  = "/newroot"
)

// mount is one file system to mount.
type mount struct {
	source, target, kind string
	flags                uintptr
	options              string
}

func (m mount) do() error {
	if err := unix.Mount(m.source, m.target, m.kind, m.flags, m.options); err != nil {
		return fmt.Errorf("mount %s on %s: %w", m.kind, m.target, err)
	}
	return nil
}

// mountRoot puts the image, read-only, under the writable layer, fills in what programs expect, and makes it /.
func (a *server) mountRoot(s agent.Setup) error {
	options := ""
	if s.DAX {
		options = "dax=always"
	}
	if err := awaitDevice("/dev/" + s.Lower); err != nil {
		return err
	}
	if err := (mount{"/dev/" + s.Lower, lowerDir, "erofs", unix.MS_RDONLY | unix.MS_NODEV, options}).do(); err != nil {
		return err
	}
	upper := mount{"tmpfs", upperDir, "tmpfs", unix.MS_NODEV, "mode=0755"}
	if s.Upper != "" {
		upper = mount{"/dev/" + s.Upper, upperDir, "ext4", unix.MS_NODEV | unix.MS_NOATIME, "errors=continue"}
	}
	if err := upper.do(); err != nil {
		return err
	}
	if s.Upper != "" {
		var err error
		if a.upper, err = os.Open(upperDir); err != nil {
			return err
		}
	}
	for _, d := range []string{upperDir + "/root", upperDir + "/work"} {
		if err := os.Mkdir(d, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	overlay := mount{"overlay", newRoot, "overlay", unix.MS_NODEV,
		"lowerdir=" + lowerDir + ",upperdir=" + upperDir + "/root,workdir=" + upperDir + "/work"}
	if err := overlay.do(); err != nil {
		return err
	}
	if err := populate(s); err != nil {
		return err
	}
	return switchRoot()
}

// populate mounts the kernel's file systems in the new root. A hostile image may have links in these places;
// all that it can mislead is its own guest.
func populate(s agent.Setup) error {
	const plain = unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NODEV
	for _, d := range []string{"/proc", "/sys", "/dev", "/tmp", "/run", "/var/tmp"} {
		// An image may lack them, and /var.
		_ = os.MkdirAll(newRoot+d, 0o755)
	}
	_ = os.Chmod(newRoot+"/tmp", 0o1777)
	_ = os.Chmod(newRoot+"/var/tmp", 0o1777)
	mounts := []mount{
		{"proc", newRoot + "/proc", "proc", plain, ""},
		{"sysfs", newRoot + "/sys", "sysfs", plain | unix.MS_RDONLY, ""},
		{"cgroup2", newRoot + "/sys/fs/cgroup", "cgroup2", plain, ""},
		{"tmpfs", newRoot + "/dev", "tmpfs", unix.MS_NOSUID | unix.MS_NOEXEC, "mode=0755,size=64k"},
	}
	if s.ReadOnly {
		for _, d := range []string{"/tmp", "/var/tmp"} {
			mounts = append(mounts, mount{"tmpfs", newRoot + d, "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"})
		}
		mounts = append(mounts, mount{"tmpfs", newRoot + "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755"})
	}
	for _, m := range mounts {
		if err := m.do(); err != nil {
			return err
		}
	}
	if err := makeDevices(newRoot + "/dev"); err != nil {
		return err
	}
	if s.ReadOnly && s.Network != nil {
		if err := placeNames(newRoot); err != nil {
			return err
		}
	}
	if s.ReadOnly {
		return mount{"", newRoot, "", unix.MS_REMOUNT | unix.MS_BIND | unix.MS_RDONLY | unix.MS_NODEV, ""}.do()
	}
	return nil
}

// devices are the nodes every program expects, and no disk among them.
var devices = []struct {
	name         string
	mode         uint32
	major, minor uint32
}{
	{"null", 0o666, 1, 3}, {"zero", 0o666, 1, 5}, {"full", 0o666, 1, 7}, {"random", 0o666, 1, 8},
	{"urandom", 0o666, 1, 9}, {"tty", 0o666, 5, 0}, {"fuse", 0o666, 10, 229},
}

func makeDevices(dev string) error {
	for _, d := range devices {
		path := dev + "/" + d.name
		if err := unix.Mknod(path, unix.S_IFCHR|d.mode, int(unix.Mkdev(d.major, d.minor))); err != nil {
			return &os.PathError{Op: "mknod", Path: path, Err: err}
		}
		if err := os.Chmod(path, os.FileMode(d.mode)); err != nil {
			return err
		}
	}
	for name, target := range map[string]string{
		"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2", "ptmx": "pts/ptmx",
	} {
		if err := os.Symlink(target, dev+"/"+name); err != nil {
			return err
		}
	}
	const plain = unix.MS_NOSUID | unix.MS_NOEXEC
	for _, m := range []mount{
		{"devpts", dev + "/pts", "devpts", plain, "newinstance,ptmxmode=0666,mode=0620,gid=5"},
		{"tmpfs", dev + "/shm", "tmpfs", plain | unix.MS_NODEV, "mode=1777"},
		{"mqueue", dev + "/mqueue", "mqueue", plain | unix.MS_NODEV, ""},
	} {
		if err := os.Mkdir(m.target, 0o755); err != nil {
			return err
		}
		if err := m.do(); err != nil && m.kind != "mqueue" { // a kernel may lack that one
			return err
		}
	}
	return nil
}

// switchRoot makes newRoot the root of this process and all that it starts. The initramfs stays underneath,
// out of reach: it holds little but our own binary, which has to be somewhere.
func switchRoot() error {
	if err := unix.Chdir(newRoot); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("chroot: %w", err)
	}
	return unix.Chdir("/")
}

// freeze writes everything back and leaves the writable layer as an unmount would: it cannot be unmounted while
// we run from above it. dir may be nil.
func freeze(dir *os.File) {
	unix.Sync()
	if dir != nil {
		const freezeRequest = 0xc0045877 // FIFREEZE, linux/fs.h
		_ = unix.IoctlSetInt(int(dir.Fd()), freezeRequest, 0)
	}
}
