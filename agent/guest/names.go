package guest

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"spore/agent"
)

// runDir is where the agent keeps what programs of the guest read.
const runDir = "/run/spore"

// Files that programs find names by.
const (
	resolvConf = "/etc/resolv.conf"
	hostsFile  = "/etc/hosts"
)

// setNames writes resolv.conf and hosts.
func (a *server) setNames(n *agent.Network) error {
	var resolv strings.Builder
	if len(n.Search) > 0 {
		resolv.WriteString("search " + strings.Join(n.Search, " ") + "\n")
	}
	for _, s := range n.DNS {
		resolv.WriteString("nameserver " + s + "\n")
	}
	own := ""
	if len(n.Addresses) > 0 {
		if p, err := netip.ParsePrefix(n.Addresses[0]); err == nil {
			own = p.Addr().String()
		}
	}
	return errors.Join(
		a.replace(resolvConf, resolv.String()),
		a.replace(hostsFile, hosts(a.setup.Hostname, own, n.Hosts)),
	)
}

// hosts is the content of /etc/hosts. Without an address of its own the machine's name is one of the loopback's.
func hosts(hostname, address string, more []string) string {
	if address == "" {
		address = "127.0.1.1"
	}
	s := "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n" + address + "\t" + hostname + "\n"
	for _, line := range more {
		s += line + "\n"
	}
	return s
}

// replace makes path, whatever the image has there, a file of this content. Where the root file system is read-only it is a mount: see
// placeNames.
func (a *server) replace(path, text string) error {
	if !a.setup.ReadOnly {
		return a.overwrite(path, text)
	}
	ours := runDir + "/" + filepath.Base(path)
	mounted := false
	if st, err := os.Stat(path); err == nil {
		own, err := os.Stat(ours)
		mounted = err == nil && os.SameFile(st, own)
	}
	if err := writeOwn(ours, text); err != nil || mounted {
		return err
	}
	return unix.Mount(ours, path, "", unix.MS_BIND, "")
}

// overwrite writes a file, in place of a link if there is one: its target may be anywhere, and not exist.
func (a *server) overwrite(path, text string) error {
	st, err := os.Lstat(path)
	if err == nil && !st.Mode().IsRegular() {
		err = os.Remove(path)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return rewrite(path, text)
}

// rewrite makes text the content of a file, in the blocks that it has. Cut to nothing first it would lose them, take others and, on ext4, be
// written to the disk when it is closed (auto_da_alloc), and whoever wakes a guest waits for that.
func rewrite(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err == nil {
		_, err = f.WriteString(text)
	}
	if err == nil && st.Size() > int64(len(text)) {
		err = f.Truncate(int64(len(text)))
	}
	return errors.Join(err, f.Close())
}

// writeOwn writes a file in runDir.
func writeOwn(path, text string) error {
	if err := os.MkdirAll(runDir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(text), 0o644)
}

// placeNames makes places to mount the files of names on, in a root that is about to be read-only.
func placeNames(root string) error {
	for _, path := range []string{resolvConf, hostsFile} {
		if st, err := os.Lstat(root + path); err == nil && st.Mode().IsRegular() {
			continue
		}
		if err := (&server{}).overwrite(root+path, ""); err != nil {
			return err
		}
	}
	return nil
}
