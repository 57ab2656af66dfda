package soak

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"spore/internal/rights"
	"spore/jailer"
	"spore/jailer/cgroup"
	"spore/sandbox"
	"spore/sandbox/broker"
	"spore/vmm/api"
)

// scratch is a directory for as long as the tests run.
var scratch string

func TestMain(m *testing.M) {
	var err error
	if scratch, err = os.MkdirTemp("", "spore-soak"); err != nil {
		panic(err)
	}
	code := m.Run()
	os.RemoveAll(scratch)
	os.Exit(code)
}

// vmm makes spore-vmm as `make build` does, once for all tests, unless SPORE_BIN has one; guest the program of the directory of that name.
var (
	vmm = sync.OnceValues(func() (string, error) {
		if bin := os.Getenv("SPORE_BIN"); bin != "" {
			return filepath.Join(bin, "spore-vmm"), nil
		}
		return compile("spore-vmm", "go", "build", "-trimpath", "-ldflags=-s -w", "-o", "spore-vmm", "spore/cmd/spore-vmm")
	})
	guest = sync.OnceValues(func() (string, error) { return compile("guest", "guest/build.sh", "guest") })
)

// compile runs a command in this directory, whose one argument that is name becomes a path in scratch.
func compile(name string, command ...string) (string, error) {
	path := filepath.Join(scratch, name)
	for i := range command {
		if i > 0 && command[i] == name {
			command[i] = path
		}
	}
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%s: %w\n%s", strings.Join(command, " "), err, out)
	}
	return path, nil
}

// Shape of the guest.
const (
	memory      = 64 << 20
	diskSize    = 4 << 20
	balloonMost = 4 << 20 // the guest gives no more
	pageSize    = 4096
)

// machine is a jailed spore-vmm with the guest of this package, and the host's ends of all its devices.
type machine struct {
	t       *testing.T
	process *sandbox.Jailed
	ended   <-chan error // how the process did; closed after
	control *os.File
	broker  *broker.Broker
	calls   map[uint32]net.Listener // for the guest's connections, by port
	lastID  uint64
	over    atomic.Bool // the guest has been told to power off

	disk               *os.File // the same file as the guest's
	consoleOut, typing *os.File
	wire               *os.File // the other end of the network

	logs strings.Builder
	read sync.WaitGroup // of logs
}

// asleep is a snapshot of a machine, with its disk.
type asleep struct {
	state, memory *os.File
	disk          []byte
	goesOn        bool // the machine did not stop for it
}

// close gives its files back.
func (s asleep) close() { s.state.Close(); s.memory.Close() }

// again opens a file of a snapshot for another process.
func again(f *os.File) (*os.File, error) { return os.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd())) }

// start launches a machine as package sandbox does. Its devices have what lie says in place of what is right. It continues from a
// snapshot, or boots if that is nil.
func start(t *testing.T, vcpus int, lie lies, from *asleep) *machine {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	exe, err := vmm()
	must(err)
	kernel, err := guest()
	must(err)
	m := &machine{t: t, calls: map[uint32]net.Listener{}}
	dir := t.TempDir()
	var list []*os.File
	add := func(f *os.File, err error) api.File {
		t.Helper()
		must(err)
		list = append(list, f)
		return api.File(len(list) - 2) // the configuration is before the first
	}
	ours := func(f *os.File) *os.File { t.Cleanup(func() { f.Close() }); return f }
	config, theirs, err := rights.Pair(unix.SOCK_STREAM)
	ours(config)
	add(theirs, err)
	c := api.Config{
		Version: api.Version, ID: "soak", VCPUs: vcpus, Memory: memory, Balloon: true,
		Boot: api.Boot{Initrd: api.NoFile, Cmdline: fmt.Sprintf("cpus=%d", vcpus)},
	}
	add(os.OpenFile("/dev/kvm", os.O_RDWR, 0))
	content := make([]byte, diskSize)
	if from == nil {
		c.Boot.Kernel = add(os.Open(kernel))
	} else {
		c.Boot.Kernel = api.NoFile
		c.Restore = &api.Restore{State: add(again(from.state)), Memory: add(again(from.memory)), Hot: api.NoFile}
		content = from.disk
	}
	c.Entropy = add(os.Open(lie.entropy()))

	disk, image, pmem := filepath.Join(dir, "disk"), filepath.Join(dir, "image"), filepath.Join(dir, "pmem")
	must(os.WriteFile(disk, content, 0o600))
	must(os.WriteFile(image, pattern(diskSize, lie == lieImage), 0o600))
	must(os.WriteFile(pmem, pattern(2<<20, lie == liePmem), 0o600))
	c.Disks = []api.Disk{{File: add(os.OpenFile(disk, os.O_RDWR, 0)), ID: "disk"}, {File: add(os.Open(image)), ID: "image", ReadOnly: true}}
	c.Pmem = []api.Pmem{{File: add(os.Open(pmem)), Size: 2 << 20}}
	m.disk, err = os.OpenFile(disk, os.O_RDWR, 0)
	must(err)
	ours(m.disk)

	for _, s := range []struct {
		kind int
		ours **os.File
		file *api.File
	}{{unix.SOCK_STREAM, &m.control, &c.Control}, {unix.SOCK_SEQPACKET, &m.wire, nil}} {
		mine, theirs, err := rights.Pair(s.kind)
		at := add(theirs, err)
		*s.ours = ours(mine)
		if s.file != nil {
			*s.file = at
			continue
		}
		c.Net = &api.Net{File: at, MAC: api.MAC{2, 0, 0, 0, 0, 1}, MTU: 1500, Offload: true}
	}
	sock, theirs, err := rights.Pair(unix.SOCK_SEQPACKET)
	c.Vsock = &api.Vsock{CID: 3, Broker: add(theirs, err)}
	m.broker = broker.New(sock)
	t.Cleanup(func() { m.broker.Close() })
	for _, port := range []uint32{controlPort, streamPort} {
		m.calls[port], err = m.broker.Listen(port)
		must(err)
	}

	logs, log, err := os.Pipe()
	c.Log = add(log, err)
	ours(logs)
	m.consoleOut, theirs, err = os.Pipe()
	ours(m.consoleOut)
	c.Console.Output = add(theirs, err)
	theirs, m.typing, err = os.Pipe()
	ours(m.typing)
	c.Console.Input = add(theirs, err)
	c.Processor = sandbox.Processor(list[1+int(api.KVMFile)], filepath.Join(scratch, "processor"))
	must(api.Send(config, &c))
	return m.launch(exe, list, vcpus, logs)
}

// made counts the machines: each has an identity and a cgroup of its own.
var made atomic.Int64

// launch starts the process with the files, which it then has alone.
func (m *machine) launch(exe string, list []*os.File, vcpus int, logs *os.File) *machine {
	m.t.Helper()
	jail := sandbox.Jail{
		VMM: exe, ID: fmt.Sprintf("soak-%d-%d", os.Getpid(), made.Add(1)), Files: list, CPUs: vcpus, Memory: memory, Disk: diskSize, Disks: scratch,
	}
	if _, err := cgroup.Root(); err != nil {
		jail.Without = []jailer.Layer{jailer.Cgroup}
	}
	var err error
	if m.process, err = jail.Start(); err != nil {
		m.t.Fatal(err)
	}
	for _, f := range list {
		f.Close()
	}
	ended := make(chan error, 1)
	go func() {
		st, err := m.process.Wait()
		if err == nil && !st.Success() {
			err = errors.New(st.String())
		}
		ended <- err
		close(ended)
	}()
	m.ended = ended
	m.read.Go(func() { io.Copy(&m.logs, logs) })
	m.t.Cleanup(func() {
		m.process.Kill()
		for range m.ended {
		}
		if err := m.process.Release(); err != nil {
			m.t.Error(err)
		}
		m.read.Wait()
		if m.t.Failed() {
			m.t.Logf("the VMM's log:\n%s", m.logs.String())
		}
	})
	return m
}

// next reads the next message of the VMM.
func (m *machine) next() (msg api.Message) {
	m.t.Helper()
	if err := api.Receive(m.control, &msg); err != nil {
		m.process.Kill()
		m.t.Fatalf("the VMM says no more (%v); its process: %v", err, <-m.ended)
	}
	return msg
}

// event waits for one, of that kind.
func (m *machine) event(kind api.EventKind) api.Event {
	m.t.Helper()
	msg := m.next()
	if msg.Event == nil || msg.Event.Kind != kind {
		m.t.Fatalf("got %+v %+v, want the event %s", msg.Event, msg.Reply, kind)
	}
	return *msg.Event
}

// ask makes a control request and waits for its answer.
func (m *machine) ask(r api.Request, files ...*os.File) api.Reply {
	m.t.Helper()
	m.lastID++
	r.ID = m.lastID
	if err := api.Send(&rights.Writer{Socket: m.control, Files: files}, &r); err != nil {
		m.t.Fatalf("%s: %v; process: %v", r.Op, err, <-m.ended)
	}
	msg := m.next()
	if msg.Reply == nil || msg.Reply.ID != r.ID || msg.Reply.Error != "" {
		m.t.Fatalf("%s: answered %+v %+v", r.Op, msg.Reply, msg.Event)
	}
	return *msg.Reply
}

// pattern is a file whose pages each hold the words that follow from their number (fill in guest/virtio.c). A spoiled one has a wrong bit
// in its second page.
func pattern(size int, spoiled bool) []byte {
	b := make([]byte, 0, size)
	for page := range uint64(size / pageSize) {
		x := page
		for range pageSize / 8 {
			x = x*6364136223846793005 + 1442695040888963407
			b = binary.LittleEndian.AppendUint64(b, x)
		}
	}
	if spoiled {
		b[pageSize+100] ^= 1
	}
	return b
}
