package emuhost

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// metaPackage depends on Debian's current kernel. Its generic flavour has the
// 9p modules, which the cloud flavour lacks.
const metaPackage = "linux-image-amd64"

// kernel is an unpacked kernel package in the cache.
type kernel struct {
	Package string `json:"package"` // name_version
	Release string `json:"release"` // as uname -r
	Dir     string `json:"dir"`     // holds vmlinux and lib/modules
}

func (k kernel) vmlinux() string { return filepath.Join(k.Dir, "vmlinux") }
func (k kernel) modules() string { return filepath.Join(k.Dir, "lib/modules", k.Release) }

// kernel returns the cached kernel, fetching it the first time.
func (h *Host) kernel(ctx context.Context) (kernel, error) {
	record := filepath.Join(h.cfg.CacheDir, "kernel.json")
	if h.cfg.Suite != "" {
		record = filepath.Join(h.cfg.CacheDir, "kernel-"+h.cfg.Suite+".json")
	}
	var k kernel
	if b, err := os.ReadFile(record); err == nil && json.Unmarshal(b, &k) == nil {
		if _, err := os.Stat(k.vmlinux()); err == nil {
			return k, nil
		}
	}
	k, err := h.fetchKernel(ctx)
	if err != nil {
		return kernel{}, err
	}
	b, err := json.Marshal(k)
	if err != nil {
		return kernel{}, err
	}
	return k, replaceFile(record, b)
}

// fetchKernel downloads and unpacks the kernel package.
func (h *Host) fetchKernel(ctx context.Context) (kernel, error) {
	h.cfg.Progress("download kernel")
	dir, err := os.MkdirTemp(h.cfg.CacheDir, "kernel-")
	if err != nil {
		return kernel{}, fmt.Errorf("create directory: %w", err)
	}
	defer os.RemoveAll(dir)
	apt, err := h.aptOptions(dir)
	if err != nil {
		return kernel{}, err
	}
	name, err := h.kernelPackage(ctx, apt)
	if err != nil {
		return kernel{}, err
	}
	if _, err := h.tool(ctx, dir, "apt", "apt-get", append(apt, "-q", "download", name)...); err != nil {
		return kernel{}, fmt.Errorf("download %s: %w", name, err)
	}
	debs, _ := filepath.Glob(filepath.Join(dir, "*.deb")) // only a bad pattern is an error
	if len(debs) != 1 {
		return kernel{}, fmt.Errorf("download %s: %d packages arrived", name, len(debs))
	}
	h.cfg.Progress("unpack kernel")
	tree := filepath.Join(dir, "tree")
	if _, err := h.tool(ctx, dir, "dpkg", "dpkg-deb", "-x", debs[0], tree); err != nil {
		return kernel{}, fmt.Errorf("unpack kernel: %w", err)
	}
	k := kernel{Package: strings.TrimSuffix(filepath.Base(debs[0]), ".deb")}
	k.Dir = filepath.Join(h.cfg.CacheDir, "kernel", k.Package)
	if err := h.finishKernel(ctx, tree, &k); err != nil {
		return kernel{}, err
	}
	if err := os.MkdirAll(filepath.Dir(k.Dir), 0o700); err != nil {
		return kernel{}, fmt.Errorf("store kernel: %w", err)
	}
	if err := os.RemoveAll(k.Dir); err != nil {
		return kernel{}, fmt.Errorf("store kernel: %w", err)
	}
	if err := os.Rename(tree, k.Dir); err != nil {
		return kernel{}, fmt.Errorf("store kernel: %w", err)
	}
	return k, nil
}

// aptOptions make apt look at nothing but the configured suite, with lists of its own below dir.
func (h *Host) aptOptions(dir string) ([]string, error) {
	if h.cfg.Suite == "" {
		return nil, nil
	}
	own := filepath.Join(dir, "apt")
	if err := os.MkdirAll(filepath.Join(own, "lists", "partial"), 0o755); err != nil {
		return nil, fmt.Errorf("create directory: %w", err)
	}
	mirror := os.Getenv("DEBIAN_MIRROR")
	if mirror == "" {
		mirror = "http://deb.debian.org/debian"
	}
	source := fmt.Sprintf("deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s %s main\n", mirror, h.cfg.Suite)
	list := filepath.Join(own, "sources.list")
	if err := os.WriteFile(list, []byte(source), 0o644); err != nil {
		return nil, err
	}
	return []string{
		"-o", "Dir::Etc::SourceList=" + list, "-o", "Dir::Etc::SourceParts=-", "-o", "Dir::State::Lists=" + filepath.Join(own, "lists"),
		"-o", "Dir::Cache=" + own, "-o", "APT::Sandbox::User=root", // whom nothing of ours is closed to
	}, nil
}

// kernelPackage asks apt which package the meta package stands for.
func (h *Host) kernelPackage(ctx context.Context, apt []string) (string, error) {
	for attempt := range 2 {
		out, err := h.tool(ctx, "", "apt", "apt-cache", append(apt, "depends", "--important", metaPackage)...)
		for line := range strings.Lines(string(out)) {
			if name, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: "); ok && strings.HasPrefix(name, "linux-image-") {
				return name, nil
			}
		}
		if attempt == 0 {
			if _, updateErr := h.tool(ctx, "", "apt", "apt-get", append(apt, "-q", "update")...); updateErr != nil {
				return "", fmt.Errorf("find kernel package: %w", errors.Join(err, updateErr))
			}
		}
	}
	return "", fmt.Errorf("find kernel package: apt knows no %s; is this Debian with its package lists?", metaPackage)
}

// finishKernel extracts vmlinux in an unpacked package and indexes its modules.
func (h *Host) finishKernel(ctx context.Context, tree string, k *kernel) error {
	images, _ := filepath.Glob(filepath.Join(tree, "boot/vmlinuz-*"))
	if len(images) != 1 {
		return fmt.Errorf("unpack kernel: %d kernel images in %s", len(images), k.Package)
	}
	k.Release = strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-")
	image, err := os.ReadFile(images[0])
	if err != nil {
		return err
	}
	vmlinux, err := h.extractVMLinux(ctx, image)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(tree, "vmlinux"), vmlinux, 0o644); err != nil {
		return err
	}
	if _, err := h.tool(ctx, "", "kmod", "depmod", "-b", tree, k.Release); err != nil {
		return fmt.Errorf("index modules: %w", err)
	}
	return nil
}

// decompressors are the programs for a bzImage's payload by its first bytes.
var decompressors = [...]struct {
	magic, program, pkg string
	args                []string
}{
	{"\xfd7zXZ\x00", "xz", "xz-utils", []string{"-dc"}},
	{"\x28\xb5\x2f\xfd", "zstd", "zstd", []string{"-dc"}},
	{"\x02\x21\x4c\x18", "lz4", "lz4", []string{"-dc"}},
	{"\x1f\x8b", "gzip", "gzip", []string{"-dc"}},
}

// extractVMLinux takes the ELF kernel out of a bzImage (Linux
// Documentation/x86/boot.rst, protocol 2.08: payload_offset, payload_length).
func (h *Host) extractVMLinux(ctx context.Context, image []byte) ([]byte, error) {
	if len(image) < 0x250 || string(image[0x202:0x206]) != "HdrS" {
		return nil, errors.New("extract vmlinux: not a bzImage")
	}
	setup := (uint64(max(image[0x1f1], 4)) + 1) * 512
	start := setup + uint64(binary.LittleEndian.Uint32(image[0x248:]))
	length := uint64(binary.LittleEndian.Uint32(image[0x24c:]))
	if length < 8 || start+length > uint64(len(image)) {
		return nil, errors.New("extract vmlinux: payload outside of the image")
	}
	payload := image[start : start+length]
	for _, d := range decompressors {
		if !bytes.HasPrefix(payload, []byte(d.magic)) {
			continue
		}
		if d.program != "gzip" {
			payload = payload[:len(payload)-4] // the size is appended
		}
		h.cfg.Progress("extract kernel")
		cmd := exec.CommandContext(ctx, d.program, d.args...)
		cmd.Stdin = bytes.NewReader(payload)
		out, err := output(cmd, d.pkg)
		if err != nil {
			return nil, fmt.Errorf("extract vmlinux: %w", err)
		}
		if !bytes.HasPrefix(out, []byte("\x7fELF")) {
			return nil, errors.New("extract vmlinux: payload is not an ELF file")
		}
		return out, nil
	}
	return nil, fmt.Errorf("extract vmlinux: unknown compression %x", payload[:6])
}

// tool runs a program of a Debian package in dir and returns its output.
func (h *Host) tool(ctx context.Context, dir, pkg, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	return output(cmd, pkg)
}

// output runs cmd. When its program is missing, the error names the package.
func output(cmd *exec.Cmd, pkg string) ([]byte, error) {
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if errors.Is(cmd.Err, exec.ErrNotFound) {
		return nil, missingProgram(filepath.Base(cmd.Path), pkg)
	}
	out, err := cmd.Output()
	if err != nil {
		text := strings.TrimSpace(stderr.String())
		return out, fmt.Errorf("%s: %w: %s", filepath.Base(cmd.Path), err, text[max(0, len(text)-500):])
	}
	return out, nil
}

func missingProgram(program, pkg string) error {
	return fmt.Errorf("%s is missing; install it with: apt-get install %s", program, pkg)
}

// replaceFile writes a file so that readers see the old or the new content.
func replaceFile(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".tmp-")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return os.Rename(f.Name(), path)
}
