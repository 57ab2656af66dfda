package emuhost

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const (
	bootTimeout = 3 * time.Minute
	// settleTime is how long the machine runs before the snapshot, so that the
	// kernel's late work (clock refinement, deferred initialisation) is in it.
	settleTime = 2 * time.Second
	saveTry    = "saving-"
	// keepSnapshots covers a few builds of init and sizes of machine.
	keepSnapshots = 4
)

// snapshot is a machine saved when it was ready to be configured: memory and
// device state in two files of a directory named by what they depend on.
type snapshot struct{ dir string }

func (s snapshot) memory() string { return filepath.Join(s.dir, "memory") }
func (s snapshot) state() string  { return filepath.Join(s.dir, "state") }

// exists says whether the snapshot is complete.
func (s snapshot) exists() bool {
	_, err := os.Stat(s.state())
	return err == nil
}

// snapshotFor names the snapshot for a kernel and an initramfs: QEMU's
// identity, its arguments and the processor whose TSC the kernel measured.
func (h *Host) snapshotFor(k kernel, initramfs string) (snapshot, error) {
	program, err := exec.LookPath(qemuProgram)
	if err != nil {
		return snapshot{}, missingProgram(qemuProgram, qemuPackage)
	}
	st, err := os.Stat(program)
	if err != nil {
		return snapshot{}, fmt.Errorf("identify QEMU: %w", err)
	}
	sum := sha256.New()
	fmt.Fprintf(sum, "1\n%s %d %d\n%s\n", program, st.Size(), st.ModTime().UnixNano(), processor())
	for _, a := range h.arguments(launch{kernel: k, initramfs: initramfs}) {
		if !strings.HasPrefix(a, "local,") { // paths of shares are not in the state
			fmt.Fprintf(sum, "%s\n", a)
		}
	}
	return snapshot{filepath.Join(h.cfg.CacheDir, "snapshot", hex.EncodeToString(sum.Sum(nil)[:16]))}, nil
}

// processor identifies the outer machine's processor and its clock.
func processor() string {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return ""
	}
	var id strings.Builder
	for line := range strings.Lines(string(b)) {
		if strings.TrimSpace(line) == "" {
			break // the first processor speaks for all
		}
		for _, key := range []string{"model name", "stepping", "flags"} {
			if strings.HasPrefix(line, key) {
				id.WriteString(line)
			}
		}
	}
	return id.String()
}

// save boots a machine up to the point where it waits for its configuration
// and saves it as s. The machine is gone afterwards.
func (h *Host) save(ctx context.Context, k kernel, initramfs string, s snapshot) error {
	h.cfg.Progress("boot the emulated host once and save it")
	ctx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	parent := filepath.Dir(s.dir)
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(parent, saveTry)
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	try := snapshot{dir}
	m, mon, err := h.launch(ctx, dir, launch{kernel: k, initramfs: initramfs, memory: try.memory()})
	if err != nil {
		return fmt.Errorf("boot: %w", err)
	}
	defer m.kill()
	defer mon.Close()
	if err := h.awaitReady(ctx, dir, m); err != nil {
		return fmt.Errorf("boot: %w", err)
	}
	if err := pause(ctx, settleTime); err != nil {
		return err
	}
	if err := m.save(ctx, mon); err != nil {
		return err
	}
	for _, name := range []string{monitorSocket, qemuLog, consoleLog, processFile} {
		_ = os.Remove(filepath.Join(dir, name))
	}
	for i := range Ports + 1 {
		_ = os.Remove(filepath.Join(dir, fmt.Sprintf("port%d", i)))
	}
	if err := os.RemoveAll(s.dir); err != nil {
		return err
	}
	if err := os.Rename(dir, s.dir); err != nil {
		return err
	}
	h.prune(parent)
	return nil
}

// prune removes all but the newest snapshots, and what interrupted saves left.
// A machine that runs from one keeps its files.
func (h *Host) prune(parent string) {
	entries, err := os.ReadDir(parent)
	if err != nil {
		h.cfg.Log.Debug("prune snapshots", "err", err)
		return
	}
	age := func(e os.DirEntry) time.Duration {
		info, err := e.Info()
		if err != nil {
			return 0 // vanished
		}
		return time.Since(info.ModTime())
	}
	slices.SortFunc(entries, func(a, b os.DirEntry) int { return cmp.Compare(age(a), age(b)) })
	kept := 0
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), saveTry) {
			if err := endMachine(context.Background(), filepath.Join(parent, e.Name())); err != nil {
				h.cfg.Log.Debug("end an interrupted save", "err", err)
				continue
			}
		}
		if kept++; kept <= keepSnapshots && !strings.HasPrefix(e.Name(), saveTry) {
			continue
		}
		if err := os.RemoveAll(filepath.Join(parent, e.Name())); err != nil {
			h.cfg.Log.Debug("prune snapshots", "err", err)
		}
	}
}

// save writes the machine's device state beside its memory file.
func (m *machine) save(ctx context.Context, mon *monitor) error {
	if err := mon.ignoreShared(ctx); err != nil {
		return err
	}
	if _, err := mon.execute(ctx, "stop", nil); err != nil {
		return err
	}
	if _, err := mon.execute(ctx, "migrate", map[string]any{"uri": "exec:cat > state"}); err != nil {
		return err
	}
	if err := mon.waitMigrated(ctx); err != nil {
		return err
	}
	if _, err := mon.execute(ctx, "quit", nil); err != nil {
		return err
	}
	<-m.exited
	return nil
}

// awaitReady waits until the machine's init answers on the control port.
func (h *Host) awaitReady(ctx context.Context, dir string, m *machine) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-m.exited:
			cancel(errors.New("the machine ended: " + tail(filepath.Join(dir, consoleLog)) + tail(filepath.Join(dir, qemuLog))))
		case <-ctx.Done():
		}
	}()
	c, err := connect(ctx, dir, controlSocket)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		return err
	}
	c.Close()
	return nil
}

// resume starts a machine from s. Its processors run when resume returns.
func (h *Host) resume(ctx context.Context, k kernel, initramfs string, s snapshot) (*machine, error) {
	m, mon, err := h.launch(ctx, h.runDir(), launch{
		kernel: k, initramfs: initramfs, memory: s.memory(), private: true, incoming: true,
	})
	if err != nil {
		return nil, err
	}
	defer mon.Close()
	err = mon.ignoreShared(ctx)
	if err == nil {
		uri := "exec:exec cat '" + strings.ReplaceAll(s.state(), "'", `'\''`) + "'"
		_, err = mon.execute(ctx, "migrate-incoming", map[string]any{"uri": uri})
	}
	if err == nil {
		err = mon.waitIncoming(ctx)
	}
	if err == nil {
		_, err = mon.execute(ctx, "cont", nil)
	}
	if err != nil {
		m.kill()
		return nil, fmt.Errorf("resume: %w: %s", err, tail(filepath.Join(h.runDir(), qemuLog)))
	}
	return m, nil
}
