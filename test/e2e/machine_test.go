package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spore/agent"
	"spore/guest"
	"spore/internal/rights"
	"spore/jailer"
	"spore/sandbox"
	"spore/sandbox/broker"
	"spore/vmm/api"
)

// machine is a jailed VMM with a Linux guest, started without a supervisor: for what is between the two.
type machine struct {
	t       *testing.T
	process *sandbox.Jailed
	control *os.File
	broker  *broker.Broker
	calls   net.Listener // the agent's
	console string
}

// machineMemory is the memory of such a guest, in bytes.
const machineMemory = 256 << 20

// dormantFiles are a snapshot.
type dormantFiles struct{ state, memory *os.File }

// imagePath is where the file of an image is.
func (u *user) imagePath(name string) string {
	u.t.Helper()
	var v []struct{ Path string }
	if err := json.Unmarshal([]byte(u.run("image", "inspect", name).stdout), &v); err != nil {
		u.t.Fatal(err)
	}
	if len(v) != 1 {
		u.t.Fatalf("%d images are called %s", len(v), name)
	}
	return v[0].Path
}

// socketPair returns two connected sockets, ours non-blocking.
func socketPair(t *testing.T, kind int) (ours, theirs *os.File) {
	t.Helper()
	ours, theirs, err := rights.Pair(kind)
	if err != nil {
		t.Fatal(err)
	}
	return ours, theirs
}

// newMachine starts a guest of an image, with a network if there is a tap; from a snapshot if there is one.
func newMachine(t *testing.T, image string, tap *os.File, mac string, from *dormantFiles) *machine {
	t.Helper()
	m := &machine{t: t, console: filepath.Join(t.TempDir(), "console")}
	var list []*os.File
	add := func(f *os.File, err error) api.File {
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, f)
		return api.File(len(list) - 2)
	}
	dup := func(f *os.File) (*os.File, error) {
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		return os.NewFile(uintptr(fd), f.Name()), err
	}
	config, theirs := socketPair(t, unix.SOCK_STREAM)
	defer config.Close()
	add(theirs, nil)
	c := api.Config{
		Version: api.Version, ID: "e2e", VCPUs: 1, Memory: machineMemory, Log: api.NoFile, Balloon: true,
		Boot: api.Boot{Kernel: api.NoFile, Initrd: api.NoFile, Cmdline: guest.Cmdline()}, Console: api.Console{Input: api.NoFile},
	}
	add(os.OpenFile("/dev/kvm", os.O_RDWR, 0)) // api.KVMFile
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	if from != nil {
		c.Restore = &api.Restore{State: add(dup(from.state)), Memory: add(dup(from.memory)), Hot: api.NoFile}
	} else {
		kernel, err := guest.KernelPath(filepath.Join(cache, "spore"))
		if err != nil {
			t.Fatal(err)
		}
		c.Boot.Kernel, c.Boot.Initrd = add(os.Open(kernel)), add(os.Open(binary("initramfs.cpio")))
	}
	c.Entropy = add(os.Open("/dev/urandom"))
	c.Disks = []api.Disk{{File: add(os.Open(image)), ReadOnly: true, ID: "image"}}
	c.Console.Output = add(os.Create(m.console))
	m.control, theirs = socketPair(t, unix.SOCK_STREAM)
	c.Control = add(theirs, nil)
	sock, theirs := socketPair(t, unix.SOCK_SEQPACKET)
	c.Vsock = &api.Vsock{CID: 3, Broker: add(theirs, nil)}
	if tap != nil {
		address, err := api.ParseMAC(mac)
		if err != nil {
			t.Fatal(err)
		}
		c.Net = &api.Net{File: add(dup(tap)), MAC: address, MTU: 1500, Offload: true}
	}
	m.broker = broker.New(sock)
	if m.calls, err = m.broker.Listen(agent.ControlPort); err != nil {
		t.Fatal(err)
	}
	if err := api.Send(config, &c); err != nil {
		t.Fatal(err)
	}
	m.process, err = sandbox.Jail{
		VMM: binary("spore-vmm"), ID: fmt.Sprintf("e2e-%d", os.Getpid()), Files: list, CPUs: 1, Memory: machineMemory, Disk: 1 << 30, Disks: t.TempDir(),
	}.Start()
	for _, f := range list {
		f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.stop)
	return m
}

// stop ends the machine.
func (m *machine) stop() {
	if m.process == nil {
		return
	}
	m.control.Close()
	m.process.Kill()
	m.process.Wait()
	if err := m.process.Release(); err != nil {
		m.t.Error(err)
	}
	m.broker.Close()
	m.process = nil
	if b, err := os.ReadFile(m.console); m.t.Failed() && err == nil {
		m.t.Logf("console:\n%s", clip(string(b)))
	}
}

func (m *machine) within() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), 3*time.Minute)
}

// setUp answers the agent's call. The connection stays open as long as the machine.
func (m *machine) setUp(s agent.Setup) {
	m.t.Helper()
	ctx, cancel := m.within()
	defer cancel()
	defer context.AfterFunc(ctx, func() { m.calls.Close() })()
	conn, err := m.calls.Accept()
	if err == nil {
		_, err = agent.Handshake(ctx, conn, s)
	}
	if err != nil {
		b, _ := os.ReadFile(m.console)
		m.t.Fatalf("set up guest: %v\n%s", err, clip(string(b)))
	}
}

func (m *machine) dial(ctx context.Context, port uint32) (agent.Conn, error) {
	return m.broker.Dial(ctx, port)
}

// try runs a program as root.
func (m *machine) try(argv ...string) (string, error) {
	ctx, cancel := m.within()
	defer cancel()
	var out, errs bytes.Buffer
	p, err := agent.Start(ctx, m.dial, agent.Exec{Args: argv, Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}, Dir: "/"}, agent.Streams{Stdout: &out, Stderr: &errs})
	if err != nil {
		return "", err
	}
	exit, err := p.Wait()
	if err == nil && (exit.Code != 0 || exit.Signal != 0) {
		err = fmt.Errorf("code %d, signal %d: %s", exit.Code, exit.Signal, errs.String())
	}
	return out.String(), err
}

func (m *machine) exec(argv ...string) string {
	m.t.Helper()
	out, err := m.try(argv...)
	if err != nil {
		m.t.Fatalf("%v: %v", argv, err)
	}
	return out
}

// ask makes a control request.
func (m *machine) ask(r api.Request, files ...*os.File) api.Reply {
	m.t.Helper()
	var frame bytes.Buffer
	if err := api.Send(&frame, &r); err != nil {
		m.t.Fatal(err)
	}
	raw, err := m.control.SyscallConn()
	if err != nil {
		m.t.Fatal(err)
	}
	var rights []byte
	if len(files) > 0 {
		var fds []int
		for _, f := range files {
			fds = append(fds, int(f.Fd()))
		}
		rights = unix.UnixRights(fds...)
	}
	var sent error
	if err := raw.Control(func(fd uintptr) { sent = unix.Sendmsg(int(fd), frame.Bytes(), rights, nil, 0) }); err != nil || sent != nil {
		m.t.Fatal(errors.Join(err, sent))
	}
	m.control.SetReadDeadline(time.Now().Add(3 * time.Minute))
	for {
		var msg api.Message
		if err := api.Receive(m.control, &msg); err != nil {
			m.t.Fatalf("%s: %v", r.Op, err)
		}
		if msg.Reply == nil {
			continue // an event
		}
		if msg.Reply.Error != "" {
			m.t.Fatalf("%s: %s", r.Op, msg.Reply.Error)
		}
		return *msg.Reply
	}
}

// save takes a snapshot and leaves the machine standing.
func (m *machine) save() *dormantFiles {
	m.t.Helper()
	var list [2]*os.File
	for i, name := range []string{"state", "memory"} {
		fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
		if err != nil {
			m.t.Fatal(err)
		}
		list[i] = os.NewFile(uintptr(fd), name)
		m.t.Cleanup(func() { list[i].Close() })
	}
	pagemap, err := jailer.Pagemap(m.process.Pid)
	if err != nil {
		m.t.Fatal(err)
	}
	defer pagemap.Close()
	m.ask(api.Request{ID: 1, Op: api.OpSave}, list[0], list[1], pagemap)
	if err := list[1].Truncate(machineMemory); err != nil {
		m.t.Fatal(err)
	}
	return &dormantFiles{list[0], list[1]}
}
