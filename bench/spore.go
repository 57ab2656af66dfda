package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"spore/agent"
	"spore/internal/rights"
	"spore/jailer"
	"spore/sandbox"
	"spore/sandbox/broker"
	"spore/vmm/api"
)

// files are what every guest here boots from.
type files struct {
	vmm, kernel, initramfs string
	image, writable        string // "" is none
	scratch                string // a raw disk for fio, vdc; "" is none
	console                string // where the guest's console goes; "" is nowhere
	cable                  *cable // nil is no network
	state, memory, hot     string // a snapshot to wake from, in place of the kernel, and its hot pages; "" boots, or has none
	without                []jailer.Layer
	processor              string // what KVM said of it; "" is asked for every time
	cid                    uint32 // of QEMU's guest; 0 is a new one
}

// machine is a running guest of either kind.
type machine interface {
	// agentReady waits for the agent's call and returns the connection.
	agentReady(ctx context.Context) (net.Conn, error)
	dial(ctx context.Context, port uint32) (agent.Conn, error)
	pid() int
	// ended waits, that long at most, for a machine that ends by itself, and says why it did.
	ended(limit time.Duration) (string, error)
	// stop ends the machine and waits for its process.
	stop()
}

// sporeMachine is a jailed spore-vmm, launched as package sandbox does it.
type sporeMachine struct {
	process  *sandbox.Jailed
	control  *os.File
	broker   *broker.Broker
	listener net.Listener
}

// openAll opens what the guest boots from and its disks.
func openAll(c *api.Config, f files, test bool, open func(string, int) (api.File, error)) error {
	var errs []error
	must := func(path string, flags int) api.File {
		g, err := open(path, flags)
		errs = append(errs, err)
		return g
	}
	must("/dev/kvm", os.O_RDWR) // api.KVMFile
	if f.state != "" {
		c.Boot.Kernel = api.NoFile
		c.Restore = &api.Restore{State: must(f.state, os.O_RDONLY), Memory: must(f.memory, os.O_RDONLY), Hot: api.NoFile}
		if f.hot != "" {
			c.Restore.Hot = must(f.hot, os.O_RDONLY)
		}
	} else {
		c.Boot.Kernel = must(f.kernel, os.O_RDONLY)
	}
	if !test {
		c.Entropy = must("/dev/urandom", os.O_RDONLY)
		if f.state == "" {
			c.Boot.Initrd = must(f.initramfs, os.O_RDONLY)
		}
	}
	if f.image != "" {
		c.Disks = append(c.Disks, api.Disk{File: must(f.image, os.O_RDONLY), ReadOnly: true, ID: "image"},
			api.Disk{File: must(f.writable, os.O_RDWR), ID: "writable"})
	}
	if f.scratch != "" {
		c.Disks = append(c.Disks, api.Disk{File: must(f.scratch, os.O_RDWR), ID: "scratch"})
	}
	return errors.Join(errs...)
}

// startSpore starts a machine with one vCPU. test is a flat bare-metal guest in place of the kernel.
func startSpore(f files, memory int64, test bool) (*sporeMachine, error) {
	var list []*os.File
	defer func() {
		for _, g := range list {
			g.Close()
		}
	}()
	add := func(g *os.File) api.File { list = append(list, g); return api.File(len(list) - 2) }
	open := func(path string, flags int) (api.File, error) {
		g, err := os.OpenFile(path, flags, 0)
		if err != nil {
			return 0, err
		}
		return add(g), nil
	}
	config, theirs, err := rights.Pair(unix.SOCK_STREAM)
	if err != nil {
		return nil, err
	}
	defer config.Close()
	list = append(list, theirs)
	m := &sporeMachine{}
	c := api.Config{
		Version: api.Version, ID: "bench", VCPUs: 1, Memory: memory, Log: api.NoFile, Entropy: api.NoFile, Balloon: !test, Test: test,
		Boot: api.Boot{Initrd: api.NoFile, Cmdline: cmdline, Late: agent.LateHID}, Console: api.Console{Output: api.NoFile, Input: api.NoFile},
	}
	errs := []error{openAll(&c, f, test, open)}
	if f.console != "" {
		g, err := os.Create(f.console)
		errs = append(errs, err)
		c.Console.Output = add(g)
	}
	control, theirs, err := rights.Pair(unix.SOCK_STREAM)
	errs = append(errs, err)
	m.control, c.Control = control, add(theirs)
	sock, theirs, err := rights.Pair(unix.SOCK_SEQPACKET)
	errs = append(errs, err)
	c.Vsock = &api.Vsock{CID: 3, Broker: add(theirs)}
	if f.cable != nil {
		c.Net, err = f.cable.device(add)
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	m.broker = broker.New(sock)
	if m.listener, err = m.broker.Listen(agent.ControlPort); err != nil {
		return nil, err
	}
	c.Processor = sandbox.Processor(list[1+int(api.KVMFile)], f.processor)
	if err := api.Send(config, &c); err != nil {
		return nil, err
	}
	m.process, err = sandbox.Jail{
		VMM: f.vmm, ID: fmt.Sprintf("bench-%d", os.Getpid()), Files: list, CPUs: 1, Memory: memory, Disk: 1 << 30, Disks: filepath.Dir(f.vmm),
		Without: f.without,
	}.Start()
	return m, err
}

func (m *sporeMachine) agentReady(ctx context.Context) (net.Conn, error) {
	defer context.AfterFunc(ctx, func() { m.listener.Close() })()
	conn, err := m.listener.Accept()
	if err != nil {
		return nil, fmt.Errorf("no call from the agent: %w: %w", agent.ErrLost, err)
	}
	return conn, nil
}

func (m *sporeMachine) dial(ctx context.Context, port uint32) (agent.Conn, error) {
	return m.broker.Dial(ctx, port)
}

func (m *sporeMachine) pid() int { return m.process.Pid }

func (m *sporeMachine) stop() {
	m.control.Close()
	m.process.Kill()
	m.process.Wait()
	if err := m.process.Release(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
	}
	m.broker.Close()
}

// ended waits until the machine says that it has ended, and why.
func (m *sporeMachine) ended(limit time.Duration) (string, error) {
	e, err := m.end(limit)
	return fmt.Sprintf("%s: %s", e.Reason, e.Detail), err
}

func (m *sporeMachine) end(limit time.Duration) (api.Event, error) {
	m.control.SetReadDeadline(time.Now().Add(limit))
	for {
		var msg api.Message
		if err := api.Receive(m.control, &msg); err != nil {
			return api.Event{}, fmt.Errorf("wait for the machine's end: %w", err)
		}
		if msg.Event != nil && msg.Event.Kind == api.EventExit {
			return *msg.Event, nil
		}
	}
}
