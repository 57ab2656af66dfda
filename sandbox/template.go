package sandbox

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"spore/internal/flock"
	"spore/snapshot"
)

// Templates is the directory of the templates of this host: guests of a kind that are booted and set up, whose agent
// waits. The first sandbox of a kind leaves one behind; the others wake from it. A template is nothing but a saving of
// time: it may be deleted whenever nobody is looking.
type Templates struct{ dir string }

// OpenTemplates opens the directory, which need not exist.
func OpenTemplates(dir string) *Templates { return &Templates{dir} }

// templateVersion changes when templates of an older build must not be used although nothing of Kind tells.
const templateVersion = 1

// kind is what two sandboxes must have in common to wake from the same template. The identity of a file is its size and
// when it was last written: they are ours, and hashing them would take longer than waking.
type kind struct {
	Version                int
	ImageDigest            string
	Root                   RootDevice
	ReadOnly               bool
	CPUs                   int
	Memory, Disk           int64
	VMM, Kernel, Initramfs fileIdentity
	Cmdline                string
	Host                   string   // kernel and processor: a guest knows what it runs on
	Prepare                []string // what was run in it before it was saved, and how
	User                   User
	Env                    []string
	Dir                    string
	Network                nicKind // what the guest's driver agreed on with the device
}

type fileIdentity struct {
	Path        string
	Size, Mtime int64
}

// key names the template of a sandbox.
func (t *Templates) key(cfg Config, host Host) (string, error) {
	k := kind{
		Version: templateVersion, ImageDigest: cfg.ImageDigest, Root: cfg.Root, ReadOnly: cfg.ReadOnly,
		CPUs: cfg.CPUs, Memory: cfg.Memory, Disk: cfg.Disk, Cmdline: cmdline(cfg),
	}
	k.Network = nicKindOf(cfg.Network)
	if len(cfg.Prepare) > 0 {
		k.Prepare, k.User, k.Env, k.Dir = cfg.Prepare, cfg.User, cfg.Env, cfg.Dir
	}
	for path, to := range map[string]*fileIdentity{host.VMM: &k.VMM, host.Kernel: &k.Kernel, host.Initramfs: &k.Initramfs} {
		st, err := os.Stat(path)
		if err != nil {
			return "", err
		}
		*to = fileIdentity{path, st.Size(), st.ModTime().UnixNano()}
	}
	var err error
	if k.Host, err = hostIdentity(); err != nil {
		return "", err
	}
	b, err := json.Marshal(k)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:12]), nil
}

// hostIdentity is what a guest of this host can tell of it: the kernel's release, and the first processor.
func hostIdentity() (string, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", err
	}
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return "", err
	}
	defer f.Close()
	first, err := io.ReadAll(io.LimitReader(f, 4096)) // model, stepping, microcode, flags
	if err != nil {
		return "", err
	}
	text := unix.ByteSliceToString(u.Release[:]) + unix.ByteSliceToString(u.Version[:])
	for line := range strings.Lines(string(first)) {
		switch name, _, _ := strings.Cut(line, ":"); strings.TrimSpace(name) {
		case "cpu MHz", "bogomips": // differ from one look to the next, or from boot to boot
		case "": // the next processor
			return text, nil
		default:
			text += line
		}
	}
	return text, nil
}

// owns reports whether dir is a template's.
func (t *Templates) owns(dir string) bool { return filepath.Dir(dir) == filepath.Clean(t.dir) }

// Find returns the template of a sandbox, nil when there is none. One that cannot be read is removed: it costs a boot.
func (t *Templates) Find(cfg Config, host Host) (*snapshot.Dormant, error) {
	key, err := t.key(cfg, host)
	if err != nil {
		return nil, fmt.Errorf("look for a template: %w", err)
	}
	d, err := t.open(key)
	if err == nil {
		return d, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		host.log().Warn("a template cannot be read: it is removed, and the guest boots", "err", err)
		err = snapshot.Remove(filepath.Join(t.dir, key))
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = nil // or somebody else has removed it
	}
	return nil, err
}

func (t *Templates) open(key string) (*snapshot.Dormant, error) {
	return snapshot.Open(filepath.Join(t.dir, key))
}

// errBusy says that somebody else makes the template already.
var errBusy = errors.New("the template is being made")

// begin starts the draft of a template. Only one process at a time makes one; the others get errBusy.
func (t *Templates) begin(cfg Config, host Host) (*snapshot.Draft, *os.File, error) {
	key, err := t.key(cfg, host)
	if err != nil {
		return nil, nil, err
	}
	if err := os.MkdirAll(t.dir, 0o700); err != nil {
		return nil, nil, err
	}
	lock, err := flock.Open(filepath.Join(t.dir, key+".lock"), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, nil, errBusy
	}
	if err != nil {
		return nil, nil, err
	}
	if _, err := t.open(key); err == nil {
		lock.Close()
		return nil, nil, errBusy // it was made meanwhile
	}
	d, err := snapshot.NewDraft(filepath.Join(t.dir, key))
	if err != nil {
		lock.Close()
		return nil, nil, err
	}
	return d, lock, nil
}

// Sweep deletes what a killed process left: a template half made, or half removed.
func (t *Templates) Sweep() error {
	entries, err := os.ReadDir(t.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	errs := []error{err}
	for _, e := range entries {
		key, ext := strings.TrimSuffix(e.Name(), filepath.Ext(e.Name())), filepath.Ext(e.Name())
		if ext == "" || ext == ".lock" {
			continue
		}
		lock, err := flock.Open(filepath.Join(t.dir, key+".lock"), unix.LOCK_EX|unix.LOCK_NB)
		if err != nil {
			continue // it is being made
		}
		errs = append(errs, os.RemoveAll(filepath.Join(t.dir, e.Name())), lock.Close())
	}
	return errors.Join(errs...)
}

// Prune deletes all templates and returns how many bytes they took.
func (t *Templates) Prune(ctx context.Context) (freed int64, err error) {
	entries, err := os.ReadDir(t.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	var errs []error
	for _, e := range entries {
		if !e.IsDir() || filepath.Ext(e.Name()) != "" {
			continue
		}
		lock, err := flock.Open(filepath.Join(t.dir, e.Name()+".lock"), unix.LOCK_EX|unix.LOCK_NB)
		if err != nil {
			continue // it is being made
		}
		if d, err := t.open(e.Name()); err == nil {
			n, _ := d.Size()
			freed += n
		}
		errs = append(errs, snapshot.Remove(filepath.Join(t.dir, e.Name())), lock.Close())
	}
	return freed, errors.Join(append(errs, err, context.Cause(ctx))...)
}
