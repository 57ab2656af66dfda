package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"spore/internal/rights"
	"spore/internal/timing"
	"spore/jailer"
	"spore/sandbox"
	"spore/vmm/api"
)

// shell is a jailed VMM that waits for a snapshot.
type shell struct {
	process *sandbox.Jailed
	control *os.File
}

// shape is the configuration of a bare-metal guest's machine without its files, with a network interface if wired.
func shape(memory int64, wired bool) api.Config {
	c := api.Config{
		Version: api.Version, ID: "bench", VCPUs: 1, Memory: memory, Log: api.NoFile, Entropy: api.NoFile, Test: true,
		Boot: api.Boot{Kernel: api.NoFile, Initrd: api.NoFile}, Console: api.Console{Output: api.NoFile, Input: api.NoFile},
		Vsock: &api.Vsock{CID: 3, Broker: api.NoFile},
	}
	if wired {
		c.Net = &api.Net{File: api.NoFile}
	}
	return c
}

// startShell starts one of that shape and waits until it is ready.
func startShell(s settings, memory int64, wired bool, without []jailer.Layer) (*shell, error) {
	config, theirConfig, err := rights.Pair(unix.SOCK_STREAM)
	if err != nil {
		return nil, err
	}
	defer config.Close()
	defer theirConfig.Close()
	control, theirControl, err := rights.Pair(unix.SOCK_STREAM)
	if err != nil {
		return nil, err
	}
	defer theirControl.Close()
	kvm, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer kvm.Close()
	c := shape(memory, wired)
	c.Wait, c.Control = true, 1
	if err := api.Send(config, &c); err != nil {
		return nil, err
	}
	sh := &shell{control: control}
	sh.process, err = sandbox.Jail{
		VMM: s.ours.vmm, ID: fmt.Sprintf("bench-shell-%d", os.Getpid()), Files: []*os.File{theirConfig, kvm, theirControl}, CPUs: 1, Memory: memory, Without: without,
	}.Start()
	if err != nil {
		return nil, err
	}
	return sh, sh.await(api.EventWaiting)
}

// await reads the next event, which must be of that kind.
func (sh *shell) await(kind api.EventKind) error {
	_, err := sh.next(kind)
	return err
}

func (sh *shell) next(kind api.EventKind) (api.Event, error) {
	sh.control.SetReadDeadline(time.Now().Add(runLimit))
	var msg api.Message
	if err := api.Receive(sh.control, &msg); err != nil {
		return api.Event{}, fmt.Errorf("wait for %s: %w", kind, err)
	}
	if msg.Event == nil || msg.Event.Kind != kind {
		return api.Event{}, fmt.Errorf("wait for %s: got %+v", kind, msg.Event)
	}
	return *msg.Event, nil
}

func (sh *shell) stop() error {
	sh.control.Close()
	sh.process.Kill()
	_, err := sh.process.Wait()
	return errors.Join(err, sh.process.Release())
}

// wake gives the shell a snapshot, and a network interface's other end if it has one.
func (sh *shell) wake(d dormant, memory int64, on *cable) error {
	var files []*os.File
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	for _, path := range []string{d.state, d.memory} {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		files = append(files, f)
	}
	ours, theirs, err := rights.Pair(unix.SOCK_SEQPACKET)
	if err != nil {
		return err
	}
	defer ours.Close()
	files = append(files, theirs)
	c := shape(memory, false)
	c.Restore, c.Vsock.Broker, c.Control = &api.Restore{State: 1, Memory: 2}, 3, api.NoFile
	if on != nil {
		if c.Net, err = on.device(func(f *os.File) api.File { files = append(files, f); return api.File(len(files)) }); err != nil {
			return err
		}
	}
	return api.Send(&rights.Writer{Socket: sh.control, Files: files}, &api.Request{ID: 1, Op: api.OpWake, Config: &c})
}

// measurePool times t0 → t3 from a shell that stands ready, and the restore call alone for sizes from 64 MiB to 4 GiB.
func measurePool(s settings, r *results) error {
	without, where := noCgroup(), here()
	for _, size := range []int64{bootMemory, 64 << 20, 1 << 30, 4 << 30} {
		d, err := putToSleep(s, size, without)
		if err != nil {
			return fmt.Errorf("put to sleep: %w", err)
		}
		n := s.wakes
		if size != bootMemory {
			n = max(1, n/10)
		}
		var running, first, restore []float64
		for i := range n + 5 {
			sh, err := startShell(s, size, false, without)
			if err != nil {
				return err
			}
			began := timing.Monotonic()
			err = sh.wake(d, size, nil)
			var e, end api.Event
			if err == nil {
				e, err = sh.next(api.EventStarted)
			}
			t2 := float64(timing.Monotonic()-began) / 1e6
			if err == nil {
				end, err = sh.next(api.EventExit)
			}
			t3 := float64(end.First-began) / 1e6
			if err := errors.Join(err, sh.stop()); err != nil {
				return err
			}
			if i < 5 {
				continue
			}
			running, first = append(running, t2), append(first, t3)
			var sum float64
			for _, step := range e.Steps {
				if step.Name == "state" || step.Name == "restore" {
					sum += float64(step.Nanos) / 1e6
				}
			}
			restore = append(restore, sum)
		}
		if size == bootMemory {
			r.add("wake, shell from the pool: t0 → t2, vCPUs running", where, "ms", running, "", nil, nil)
			r.add("wake, shell from the pool: t0 → t3, first instruction", where, "ms", first, "", nil, &bar{value: 0.6})
		}
		r.add(fmt.Sprintf("restore call alone, mapping and state, %d MiB", size>>20), where, "ms", restore, "", nil, &bar{value: 0.3})
	}
	return nil
}
