package emuhost

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"spore/emuhost/frame"
)

const (
	sharedTag     = "shared"
	hostName      = "spore-host"
	resumeTimeout = time.Minute
	syncTimeout   = 10 * time.Second
	endTimeout    = time.Minute
)

// How a machine came up.
const (
	Resumed = "resumed" // from the snapshot
	Booted  = "booted"  // the snapshot could not be used
)

// Status describes the emulated host of a state directory.
type Status struct {
	Running      bool      `json:"running"`
	PID          int       `json:"pid,omitempty"`          // of QEMU
	Since        time.Time `json:"since,omitzero"`         // when it was ready
	Kernel       string    `json:"kernel,omitempty"`       // release
	Memory       int64     `json:"memory,omitempty"`       // bytes, at most
	CPUs         int       `json:"cpus,omitempty"`         //
	Started      string    `json:"started,omitempty"`      // Resumed or Booted
	StartSeconds float64   `json:"startSeconds,omitempty"` // Start, without Prepare
	Shared       string    `json:"shared,omitempty"`       // writable directory
}

// record is what the run directory says of the machine.
type record struct {
	Status
	Birth string `json:"birth"` // start time of the process, so that its id cannot mislead
}

func (h *Host) recordFile() string { return filepath.Join(h.runDir(), "host.json") }

// Status says whether the host runs, and how.
func (h *Host) Status(context.Context) (Status, error) {
	b, err := os.ReadFile(h.recordFile())
	if errors.Is(err, fs.ErrNotExist) {
		return Status{}, nil
	}
	if err != nil {
		return Status{}, fmt.Errorf("read state of the emulated host: %w", err)
	}
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return Status{}, fmt.Errorf("read state of the emulated host: %w", err)
	}
	if birth := processBirth(r.PID); birth == "" || birth != r.Birth {
		return Status{}, nil
	}
	return r.Status, nil
}

// Prepare makes everything a start needs: kernel, initramfs and snapshot. It
// is quick when they are there.
func (h *Host) Prepare(ctx context.Context) error {
	_, _, _, err := h.prepare(ctx)
	return err
}

func (h *Host) prepare(ctx context.Context) (k kernel, initramfs string, s snapshot, err error) {
	lock, err := waitLock(ctx, filepath.Join(h.cfg.CacheDir, "lock"))
	if err != nil {
		return k, "", s, err
	}
	defer lock.Close()
	if k, err = h.kernel(ctx); err != nil {
		return k, "", s, err
	}
	if initramfs, err = h.initramfs(k); err != nil {
		return k, "", s, err
	}
	if s, err = h.snapshotFor(k, initramfs); err != nil || s.exists() {
		return k, initramfs, s, err
	}
	if err = h.save(ctx, k, initramfs, s); err != nil {
		if ctx.Err() != nil {
			return k, "", s, err
		}
		h.cfg.Log.Debug("save the emulated host", "err", err)
	}
	return k, initramfs, s, nil
}

// Start starts the host unless it runs. It returns when commands can be run.
// The machine lives on after the caller.
func (h *Host) Start(ctx context.Context) error {
	lock, err := waitLock(ctx, filepath.Join(h.cfg.StateDir, "lock"))
	if err != nil {
		return err
	}
	defer lock.Close()
	if st, err := h.Status(ctx); err != nil || st.Running {
		return err
	}
	k, initramfs, s, err := h.prepare(ctx)
	if err != nil {
		return err
	}
	// A start that was interrupted may have left its QEMU behind.
	if err := endMachine(ctx, h.runDir()); err != nil {
		return err
	}
	h.cfg.Progress("start the emulated host")
	began := time.Now()
	status := Status{
		Running: true, Kernel: k.Release, Memory: h.cfg.Memory, CPUs: h.cfg.CPUs, Started: Resumed, Shared: h.SharedDir(),
	}
	m, err := h.startResumed(ctx, k, initramfs, s)
	if err != nil {
		if ctx.Err() != nil {
			return err
		}
		h.cfg.Log.Debug("resume the emulated host; boot it instead", "err", err)
		status.Started = Booted
		if m, err = h.startBooted(ctx, k, initramfs); err != nil {
			return err
		}
	}
	status.PID, status.Since, status.StartSeconds = m.process.Pid, time.Now(), time.Since(began).Seconds()
	b, err := json.Marshal(record{status, processBirth(m.process.Pid)})
	if err == nil {
		err = replaceFile(h.recordFile(), b)
	}
	if err != nil {
		m.kill()
		return fmt.Errorf("record the emulated host: %w", err)
	}
	return nil
}

func (h *Host) startResumed(ctx context.Context, k kernel, initramfs string, s snapshot) (*machine, error) {
	if !s.exists() {
		return nil, errors.New("no snapshot")
	}
	ctx, cancel := context.WithTimeout(ctx, resumeTimeout)
	defer cancel()
	m, err := h.resume(ctx, k, initramfs, s)
	if err != nil {
		return nil, err
	}
	return h.finish(ctx, m, k)
}

func (h *Host) startBooted(ctx context.Context, k kernel, initramfs string) (*machine, error) {
	ctx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	m, mon, err := h.launch(ctx, h.runDir(), launch{kernel: k, initramfs: initramfs})
	if err != nil {
		return nil, err
	}
	mon.Close()
	if err := h.awaitReady(ctx, h.runDir(), m); err != nil {
		m.kill()
		return nil, fmt.Errorf("boot: %w", err)
	}
	return h.finish(ctx, m, k)
}

// finish configures a machine whose init is waiting for it.
func (h *Host) finish(ctx context.Context, m *machine, k kernel) (*machine, error) {
	err := h.control(ctx, func(c *connection) error {
		seed := make([]byte, 64)
		rand.Read(seed) // never fails
		err := c.request(frame.TypeConfigure, frame.Configuration{
			UnixNano: time.Now().UnixNano(), Seed: seed, Hostname: hostName, Modules: k.modules(),
			Shares: []frame.Mount{{Tag: sharedTag, Path: h.SharedDir()}},
		})
		if err != nil {
			return err
		}
		return c.await(frame.TypeStarted)
	})
	if err != nil {
		m.kill()
		return nil, fmt.Errorf("configure the emulated host: %w", err)
	}
	return m, nil
}

// control does something on the control port.
func (h *Host) control(ctx context.Context, do func(*connection) error) error {
	c, err := connect(ctx, h.runDir(), controlSocket)
	if err != nil {
		return err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { _ = c.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	return do(c)
}

// Stop writes back what the host has not written yet and ends it, and with it
// everything that runs in it. It is no error when it does not run.
func (h *Host) Stop(ctx context.Context) error {
	lock, err := waitLock(ctx, filepath.Join(h.cfg.StateDir, "lock"))
	if err != nil {
		return err
	}
	defer lock.Close()
	st, err := h.Status(ctx)
	if err != nil || !st.Running {
		return err
	}
	syncing, cancel := context.WithTimeout(ctx, syncTimeout)
	defer cancel()
	if err := h.control(syncing, func(c *connection) error {
		if err := c.send(frame.TypeSync, nil); err != nil {
			return err
		}
		return c.await(frame.TypeSync)
	}); err != nil {
		h.cfg.Log.Debug("write back the emulated host's files", "err", err)
	}
	ending, cancel := context.WithTimeout(ctx, endTimeout)
	defer cancel()
	if err := endMachine(ending, h.runDir()); err != nil {
		return fmt.Errorf("stop the emulated host: %w", err)
	}
	if err := os.Remove(h.recordFile()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("stop the emulated host: %w", err)
	}
	return nil
}
