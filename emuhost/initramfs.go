package emuhost

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// bootModules are loaded before the snapshot is taken, so that they cost
// nothing later. Others are loaded on demand from the kernel package. Those
// the kernel has built in or does not know are left out.
var bootModules = [...]string{
	"virtio_pci", "virtio_net", "virtio_console", "9p", "9pnet_virtio", "overlay", "virtio_rng",
	"crc32c_generic", "crc32c_intel", "libcrc32c", // wanted by ext4 and nf_tables, which do not say so
	"kvm", "kvm-amd",
	"loop", "ext4", "erofs", "fuse", "squashfs", "dm-mod",
	"tun", "tap", "bridge", "veth", "macvlan", "af_packet", "unix_diag", "inet_diag", "tcp_diag",
	"nf_tables", "nft_ct", "nft_nat", "nft_masq", "nft_chain_nat", "nft_reject_inet", "nft_limit", "nft_compat",
	"nft_fib_inet", "nft_counter", "nft_log", "nft_objref", "nft_fwd_netdev", "nf_conntrack_netlink", "nf_conntrack", "nf_nat", "nf_dup_netdev", "nft_fwd_netdev", "nft_reject_netdev",
	"xt_MASQUERADE", "xt_conntrack", "xt_comment", "xt_addrtype", "xt_mark", "xt_multiport",
	"sch_ingress", "cls_u32", "act_mirred", "sch_tbf",
	"vsock", "vhost_net", "vhost_vsock", "vsock_loopback", "vsock_diag",
}

// initramfs returns the path of the initramfs for a kernel and the configured
// init, named by its content.
func (h *Host) initramfs(k kernel) (string, error) {
	init, err := os.ReadFile(h.cfg.InitBinary)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read init of the emulated host: %w; build it with: make build", err)
	}
	if err != nil {
		return "", fmt.Errorf("read init of the emulated host: %w", err)
	}
	sum := sha256.New()
	fmt.Fprintf(sum, "1\n%s\n%q\n", k.Package, bootModules)
	sum.Write(init)
	dir := filepath.Join(h.cfg.CacheDir, "initramfs")
	path := filepath.Join(dir, hex.EncodeToString(sum.Sum(nil)[:16])+".cpio")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	modules, err := resolveModules(k.modules(), bootModules[:])
	if err != nil {
		return "", err
	}
	archive, err := packInitramfs(init, k.modules(), modules)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	return path, replaceFile(path, archive)
}

// resolveModules returns the files of the named modules and of what they
// depend on, relative to dir, each after its dependencies.
func resolveModules(dir string, names []string) ([]string, error) {
	b, err := os.ReadFile(filepath.Join(dir, "modules.dep"))
	if err != nil {
		return nil, fmt.Errorf("read module index: %w", err)
	}
	files := make(map[string]string)   // by name
	needs := make(map[string][]string) // by file
	for line := range strings.Lines(string(b)) {
		file, deps, ok := strings.Cut(strings.TrimSpace(line), ":")
		if !ok {
			return nil, fmt.Errorf("read module index: line %q", line)
		}
		files[moduleName(file)] = file
		needs[file] = strings.Fields(deps)
	}
	var order []string
	seen := make(map[string]bool)
	add := func(file string) {
		if !seen[file] {
			seen[file] = true
			order = append(order, file)
		}
	}
	for _, name := range names {
		file, ok := files[moduleName(name)]
		if !ok {
			continue
		}
		// modules.dep lists every dependency, the deepest last.
		deps := needs[file]
		for i := len(deps) - 1; i >= 0; i-- {
			add(deps[i])
		}
		add(file)
	}
	return order, nil
}

// moduleName is a module's name as the kernel spells it.
func moduleName(file string) string {
	name, _, _ := strings.Cut(filepath.Base(file), ".")
	return strings.ReplaceAll(name, "-", "_")
}

// packInitramfs returns an uncompressed cpio archive: unpacking a compressed
// one costs the emulated processor more than reading it.
func packInitramfs(init []byte, dir string, modules []string) ([]byte, error) {
	var a cpio
	a.add("dev", 0o040755, 0, 0, nil)
	a.add("dev/console", 0o020600, 5, 1, nil)
	a.add("dev/null", 0o020666, 1, 3, nil)
	a.add("init", 0o100755, 0, 0, init)
	a.add("modules", 0o040755, 0, 0, nil)
	var list strings.Builder
	for _, m := range modules {
		b, err := readModule(filepath.Join(dir, m))
		if err != nil {
			return nil, fmt.Errorf("pack module: %w", err)
		}
		name := "modules/" + strings.TrimSuffix(filepath.Base(m), xzSuffix)
		a.add(name, 0o100644, 0, 0, b)
		fmt.Fprintf(&list, "/%s\n", name)
	}
	a.add("modules.list", 0o100644, 0, 0, []byte(list.String()))
	a.add("TRAILER!!!", 0, 0, 0, nil)
	return a.buf.Bytes(), nil
}

const xzSuffix = ".xz"

// readModule reads a module, and unpacks one that is compressed: xz costs the emulated processor a second.
func readModule(path string) ([]byte, error) {
	if !strings.HasSuffix(path, xzSuffix) {
		return os.ReadFile(path)
	}
	return output(exec.Command("xz", "-dc", path), "xz-utils")
}

// cpio builds an archive in the "newc" format (Linux
// Documentation/driver-api/early-userspace/buffer-format.rst).
type cpio struct {
	buf   bytes.Buffer
	inode int
}

func (a *cpio) add(name string, mode, major, minor int, content []byte) {
	a.inode++
	fmt.Fprintf(&a.buf, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		a.inode, mode, 0, 0, 1, 0, len(content), 0, 0, major, minor, len(name)+1, 0)
	a.buf.WriteString(name)
	a.buf.WriteByte(0)
	a.pad()
	a.buf.Write(content)
	a.pad()
}

func (a *cpio) pad() {
	for a.buf.Len()%4 != 0 {
		a.buf.WriteByte(0)
	}
}
