package sandbox

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"spore/agent"
	"spore/internal/cleanup"
	"spore/internal/rights"
	"spore/rootfs"
	"spore/sandbox/broker"
	"spore/snapshot"
	"spore/vmm/api"
)

// guestCID is every guest's vsock address: each guest has a vsock of its own, so nothing can collide.
const guestCID = 3

// consoleKept is how much of the guest's console is kept, in bytes.
const consoleKept = 64 << 10

// machine is the supervisor's view of one jailed VMM.
type machine struct {
	process vmmProcess
	control *os.File
	broker  *broker.Broker
	console *tail
	log     *slog.Logger

	running sync.Once
	started chan struct{} // closed once the guest is about to run
	done    chan struct{} // closed once the process is gone; end and steps are then final
	end     api.Event     // why, as the VMM said; Reason is empty if it did not
	died    error         // how the process ended, if not well
	steps   []api.Step
	runs    atomic.Int64 // when the guest began to run, as the VMM says, by CLOCK_MONOTONIC

	mu      sync.Mutex
	lastID  uint64
	waiting map[uint64]chan api.Reply
}

// resources are what a machine is given that the sandbox keeps.
type resources struct {
	writable *os.File    // layer
	net      *connection // nil without a network
}

// launch starts a VMM for cfg in its jail, whose guest boots, or wakes from a dormant machine. It
// returns as soon as the process runs; the guest may not yet.
func launch(cfg Config, host Host, own resources, from *snapshot.Dormant) (*machine, error) {
	var undo cleanup.Stack
	m := &machine{
		log: host.log(), console: &tail{limit: consoleKept},
		started: make(chan struct{}), done: make(chan struct{}), waiting: map[uint64]chan api.Reply{},
	}
	var fds files
	defer fds.close() // the process has its own copies
	sh := m.shell(cfg, host, from)
	vmCfg, pipes, err := m.describe(cfg, host, own, from, &fds, &undo)
	switch {
	case err != nil:
	case sh != nil:
		m.process = sh
		err = api.Send(&rights.Writer{Socket: sh.control, Files: fds.list[1:]}, &api.Request{Op: api.OpWake, Config: &vmCfg})
	default:
		err = m.spawn(cfg, host, own.writable, vmCfg, fds.list)
	}
	if err != nil {
		if sh != nil {
			sh.discard()
		}
		return nil, errors.Join(err, undo.Run())
	}
	undo.Release()
	go m.follow(pipes)
	return m, nil
}

// shell takes one from the pool for a guest that wakes, where there is one. The machine has its control socket then.
func (m *machine) shell(cfg Config, host Host, from *snapshot.Dormant) *shell {
	if from == nil || host.Pool == "" || !fitsShell(cfg) || cfg.MemoryDisk { // a shell's cgroup has no room for the disk
		return nil
	}
	sh, err := takeShell(host.Pool, ClassOf(cfg))
	if err != nil {
		host.log().Warn("no shell", "err", err)
	}
	if sh == nil {
		return nil
	}
	m.control = sh.control
	return sh
}

// spawn starts a VMM of our own with the files that its configuration names.
func (m *machine) spawn(cfg Config, host Host, writable *os.File, vmCfg api.Config, list []*os.File) error {
	vmCfg.Processor = Processor(list[api.KVMFile], host.Processor)
	configIn, configOut, err := rights.Pair(unix.SOCK_STREAM)
	if err != nil {
		return err
	}
	defer configIn.Close()
	defer configOut.Close()
	if err := api.Send(configIn, &vmCfg); err != nil { // it fits the socket's buffer, and the process need not wait for it
		return err
	}
	j, err := Jail{
		VMM: host.VMM, ID: cfg.ID, Files: append([]*os.File{configOut}, list...), CPUs: cfg.CPUs, Memory: cfg.Memory, Disk: cfg.Disk,
		Disks: fmt.Sprintf("/proc/self/fd/%d", writable.Fd()), Without: cfg.JailWithout,
	}.Start()
	if err != nil {
		return err
	}
	m.process = ownVMM{j}
	return nil
}

// writableID is the serial number of the writable layer's disk.
const writableID = "writable"

// pipes are the supervisor's ends of what the VMM writes.
type pipes struct{ console, log *os.File }

// describe opens everything the VMM needs and says where it is.
func (m *machine) describe(cfg Config, host Host, own resources, from *snapshot.Dormant, fds *files, undo *cleanup.Stack) (api.Config, pipes, error) {
	var p pipes
	file := func(f *os.File) api.File { return api.File(fds.add(f)) }
	out := api.Config{
		Version: api.Version, ID: cfg.ID, VCPUs: cfg.CPUs, Memory: cfg.Memory, Balloon: true,
		Boot: api.Boot{Kernel: api.NoFile, Initrd: api.NoFile}, Console: api.Console{Input: api.NoFile, UART: cfg.DebugConsole},
	}
	open := func(to *api.File, path string, flags int) error {
		f, err := openRegular(path, flags)
		if err != nil {
			return err
		}
		*to = file(f)
		if path == cfg.ImagePath {
			return rootfs.Hold(f) // for as long as the VMM has its copy
		}
		return nil
	}
	kvm, err := os.OpenFile("/dev/kvm", os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return out, p, fmt.Errorf("%w (spore doctor says what is missing)", err)
	}
	if at := file(kvm); at != api.KVMFile {
		panic(fmt.Sprintf("bug: /dev/kvm is file %d", at))
	}
	urandom, err := os.Open("/dev/urandom")
	if err != nil {
		return out, p, err
	}
	out.Entropy = file(urandom)
	if from == nil {
		err = describeBoot(cfg, host, &out, open)
	} else {
		err = describeRestore(from, &out, file)
	}
	if err != nil {
		return out, p, err
	}
	if err := describeDisks(cfg, &out, open); err != nil {
		return out, p, err
	}
	theirs, err := duplicate(own.writable)
	if err != nil {
		return out, p, fmt.Errorf("writable layer: %w", err)
	}
	out.Disks = append(out.Disks, api.Disk{ID: writableID, File: file(theirs)})
	if out.Net, err = own.net.device(file); err != nil {
		return out, p, err
	}
	if err := m.connect(&out, &p, file, undo); err != nil {
		return out, p, err
	}
	return out, p, nil
}

func describeBoot(cfg Config, host Host, out *api.Config, open func(*api.File, string, int) error) error {
	if err := open(&out.Boot.Kernel, host.Kernel, os.O_RDONLY); err != nil {
		return fmt.Errorf("guest kernel: %w", err)
	}
	if err := open(&out.Boot.Initrd, host.Initramfs, os.O_RDONLY); err != nil {
		return fmt.Errorf("initramfs: %w", err)
	}
	out.Boot.Cmdline, out.Boot.Late = cmdline(cfg), agent.LateHID
	return nil
}

// describeRestore checks the shape before anything is started: the VMM would refuse it too.
func describeRestore(from *snapshot.Dormant, out *api.Config, file func(*os.File) api.File) error {
	if from.Spec.CPUs != out.VCPUs || from.Spec.Memory != out.Memory {
		return fmt.Errorf("%s is of %d CPUs and %d bytes of memory, not %d and %d", from.Dir(), from.Spec.CPUs, from.Spec.Memory, out.VCPUs, out.Memory)
	}
	state, err := from.OpenState()
	if err != nil {
		return err
	}
	out.Restore = &api.Restore{State: file(state)}
	memory, err := from.OpenMemory()
	if err != nil {
		return err
	}
	out.Restore.Memory, out.Restore.Hot = file(memory), api.NoFile
	if hot, err := from.OpenHot(); err == nil {
		out.Restore.Hot = file(hot)
	}
	return nil
}

// describeDisks adds the image. Its descriptor is read-only, so nothing in the
// VMM can write it either (BLK-03).
func describeDisks(cfg Config, out *api.Config, open func(*api.File, string, int) error) error {
	if cfg.Root == RootPmem {
		st, err := os.Stat(cfg.ImagePath)
		if err != nil {
			return fmt.Errorf("image: %w", err)
		}
		out.Pmem = append(out.Pmem, api.Pmem{Size: st.Size()})
		if err := open(&out.Pmem[0].File, cfg.ImagePath, os.O_RDONLY); err != nil {
			return fmt.Errorf("image: %w", err)
		}
	} else {
		out.Disks = append(out.Disks, api.Disk{ID: "image", ReadOnly: true})
		if err := open(&out.Disks[0].File, cfg.ImagePath, os.O_RDONLY); err != nil {
			return fmt.Errorf("image: %w", err)
		}
	}
	return nil
}

// connect makes the sockets and pipes between supervisor and VMM.
func (m *machine) connect(out *api.Config, p *pipes, file func(*os.File) api.File, undo *cleanup.Stack) error {
	out.Control = api.NoFile
	if m.control == nil { // a shell has its own
		control, theirs, err := rights.Pair(unix.SOCK_STREAM)
		if err != nil {
			return err
		}
		m.control, out.Control = control, file(theirs)
		undo.Push(control.Close)
	}
	sock, theirs, err := rights.Pair(unix.SOCK_SEQPACKET)
	if err != nil {
		return err
	}
	m.broker = broker.New(sock)
	undo.Push(m.broker.Close)
	out.Vsock = &api.Vsock{CID: guestCID, Broker: file(theirs)}
	for _, end := range []struct {
		ours *(*os.File)
		to   *api.File
	}{{&p.console, &out.Console.Output}, {&p.log, &out.Log}} {
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		undo.Push(r.Close)
		*end.ours, *end.to = r, file(w)
	}
	return nil
}

// follow reads all that the VMM says until it is gone, then settles m.
func (m *machine) follow(p pipes) {
	var readers sync.WaitGroup
	readers.Go(func() { io.Copy(m.console, p.console); p.console.Close() })
	readers.Go(func() { relayLog(m.log, p.log, time.Now); p.log.Close() })
	readers.Go(m.readControl)
	m.died = m.process.wait()
	readers.Wait()
	m.control.Close()
	m.broker.Close()
	close(m.done)
}

// stopGrace is how long a VMM may take to end after it was told to, before it is killed.
const stopGrace = 3 * time.Second

// hangUp ends our direction of the control socket.
func (m *machine) hangUp() {
	raw, err := m.control.SyscallConn()
	if err != nil {
		return
	}
	// The socket may be closed already: then the VMM has ended.
	_ = raw.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_WR) })
}

// kill ends the VMM and waits until nothing of it is left.
func (m *machine) kill() {
	m.hangUp() // the VMM takes this for OpStop, and can still say how it ended
	select {
	case <-m.done:
		return
	case <-time.After(stopGrace):
	}
	m.process.kill()
	<-m.done
}
