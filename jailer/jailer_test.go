package jailer_test

import (
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"spore/internal/testenv"
	"spore/jailer"
)

// inmate is the environment variable that makes this test binary the jailed process.
const inmate = "SPORE_TEST_INMATE"

// outside is the one that makes it a process that is in no jail.
const outside = "SPORE_TEST_OUTSIDE"

// report is what the inmate saw from inside.
type report struct {
	Enter       string
	Entries     int    // directory entries of /
	OpenErr     string // opening /etc/passwd
	WriteErr    string // creating a file in /
	MountErr    string
	Pid         int
	Caps        [6]uint32
	Bounding    int // capabilities in the bounding set
	Groups      []int
	NoNewPrivs  int
	Dumpable    int
	Descriptors []int
	SetuidErr   string
	ConnectErr  string // connecting to the port that the caller listens at
	BindErr     string // binding a TCP port
}

func TestMain(m *testing.M) {
	if os.Getenv("SPORE_TEST_EXIT") != "" {
		os.Exit(0)
	}
	if os.Getenv(inmate) != "" {
		serveTime()
	}
	os.Exit(m.Run())
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// serveTime enters the jail, tries what must fail, and writes its report to descriptor 3.
func serveTime() {
	var r report
	r.Enter = text(jailer.Enter())
	entries, err := os.ReadDir("/")
	r.Entries = len(entries)
	if err != nil {
		r.Entries = -1
	}
	_, err = os.Open("/etc/passwd")
	r.OpenErr = text(err)
	_, err = os.Create("/x")
	r.WriteErr = text(err)
	r.MountErr = text(unix.Mount("x", "/", "tmpfs", 0, ""))
	r.Pid = os.Getpid()
	r.SetuidErr = text(unix.Setresuid(1, 1, 1))
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(&head, &caps[0]); err == nil {
		r.Caps = [6]uint32{caps[0].Effective, caps[1].Effective, caps[0].Permitted, caps[1].Permitted, caps[0].Inheritable, caps[1].Inheritable}
	}
	for c := uintptr(0); c < 64; c++ {
		if in, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, c, 0, 0, 0); err == nil && in == 1 {
			r.Bounding++
		}
	}
	r.Groups, _ = unix.Getgroups()
	r.NoNewPrivs, _ = unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)
	r.Dumpable, _ = unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	for fd := 0; fd < 512; fd++ {
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
			r.Descriptors = append(r.Descriptors, fd)
		}
	}
	r.ConnectErr, r.BindErr = text(connect()), text(bind())
	out := os.NewFile(jailer.FirstFile, "report")
	json.NewEncoder(out).Encode(r)
	os.Exit(0)
}

// outsidePort is the environment variable with the port that the caller listens at.
const outsidePort = "SPORE_TEST_PORT"

func connect() error {
	port, _ := strconv.Atoi(os.Getenv(outsidePort))
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	return unix.Connect(fd, &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}})
}

func bind() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	return unix.Bind(fd, &unix.SockaddrInet4{})
}

// TestNetwork has a jail that keeps the network, and one that does not. All else is as TestEnter has it.
func TestNetwork(t *testing.T) {
	testenv.Require(t, testenv.Root)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	landlock, _, _ := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	for _, network := range []bool{false, true} {
		r := jailedIn(t, func(c *jailer.Config) {
			c.Network, c.Env = network, append(c.Env, outsidePort+"="+port)
		})
		if connected := r.ConnectErr == ""; connected != network {
			t.Errorf("network %v: connect: %q", network, r.ConnectErr)
		}
		if int(landlock) >= 4 && r.BindErr == "" {
			t.Errorf("network %v: it may bind a port", network)
		}
		if r.Enter != "" || r.OpenErr == "" || r.Caps != [6]uint32{} || r.Bounding != 0 || r.NoNewPrivs != 1 || r.Pid != 1 {
			t.Errorf("network %v: %+v", network, r)
		}
	}
}

// jailed runs this binary in a jail and returns what it reports.
func jailed(t *testing.T) report { return jailedIn(t, func(*jailer.Config) {}) }

func jailedIn(t *testing.T, change func(*jailer.Config)) report {
	t.Helper()
	exe, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer exe.Close()
	pr, pw, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pr.Close()
	uid, gid := jailer.Identity(7)
	cfg := jailer.Config{Exe: exe, Env: []string{inmate + "=1"}, UID: uid, GID: gid, Files: []*os.File{pw}, Stderr: os.Stderr, Without: jailer.Optional()}
	change(&cfg)
	p, err := jailer.Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	pw.Close()
	var r report
	decodeErr := json.NewDecoder(pr).Decode(&r)
	if st, err := p.Wait(); err != nil || !st.Success() {
		t.Fatalf("inmate: %v, %v", st, err)
	}
	if decodeErr != nil {
		t.Fatalf("read report: %v", decodeErr)
	}
	if p.PidFD < 0 {
		t.Error("no pidfd")
	}
	unix.Close(p.PidFD)
	return r
}

func TestEnter(t *testing.T) {
	testenv.Require(t, testenv.Root)
	// JAIL-04: the parent holds descriptors of a host directory that are not close-on-exec.
	dir, err := unix.Open("/etc", unix.O_DIRECTORY|unix.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(dir)
	high, err := unix.FcntlInt(uintptr(dir), unix.F_DUPFD, 300)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(high)

	r := jailed(t)
	if r.Enter != "" {
		t.Fatalf("enter: %s", r.Enter)
	}
	if r.Entries > 0 { // with Landlock it cannot even be listed
		t.Errorf("root has %d entries, want an empty directory", r.Entries)
	}
	for what, got := range map[string]string{"open /etc/passwd": r.OpenErr, "create /x": r.WriteErr, "mount": r.MountErr, "setuid": r.SetuidErr} {
		if got == "" {
			t.Errorf("%s succeeded in the jail", what)
		}
	}
	if r.Pid != 1 {
		t.Errorf("pid %d, want 1 of a namespace of its own", r.Pid)
	}
	if r.Caps != [6]uint32{} {
		t.Errorf("capabilities %#x, want none", r.Caps)
	}
	if r.Bounding != 0 || len(r.Groups) != 0 {
		t.Errorf("%d capabilities in the bounding set, groups %v; want none of either", r.Bounding, r.Groups)
	}
	if r.NoNewPrivs != 1 || r.Dumpable != 0 {
		t.Errorf("no_new_privs %d, dumpable %d; want 1, 0", r.NoNewPrivs, r.Dumpable)
	}
	for _, fd := range r.Descriptors {
		if fd > jailer.FirstFile {
			t.Errorf("JAIL-04: descriptor %d leaked into the jail", fd)
		}
	}
}

// A jail that cannot be put up is an error that names the step, and leaves no process and no descriptor.
func TestStartFails(t *testing.T) {
	testenv.Require(t, testenv.Root)
	text, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer text.Close()
	before := descriptors(t)
	uid, gid := jailer.Identity(7)
	_, err = jailer.Start(jailer.Config{Exe: text, UID: uid, GID: gid, Without: jailer.Optional()})
	if !errors.Is(err, unix.EACCES) || !strings.Contains(err.Error(), "execveat") {
		t.Errorf("start a file that is no program: %v", err)
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors, before %d", after, before)
	}
	if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); err != unix.ECHILD {
		t.Errorf("a child is left: %d, %v", pid, err)
	}
}

// A program that nobody jailed does not run.
func TestEnterOutside(t *testing.T) {
	if os.Getenv(outside) != "" {
		if err := jailer.Enter(); !errors.Is(err, jailer.ErrNoJail) {
			t.Errorf("error %v, want ErrNoJail", err)
		}
		return
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestEnterOutside$") // of its own: it is not dumpable afterwards
	cmd.Env = append(os.Environ(), outside+"=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func descriptors(t *testing.T) int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestConfigRefused(t *testing.T) {
	exe, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer exe.Close()
	for name, cfg := range map[string]jailer.Config{
		"no executable": {UID: 1, GID: 1},
		"uid 0":         {Exe: exe, GID: 1},
		"gid 0":         {Exe: exe, UID: 1},
		"zero byte":     {Exe: exe, UID: 1, GID: 1, Env: []string{"A=\x00"}},
		"nil file":      {Exe: exe, UID: 1, GID: 1, Files: []*os.File{nil}},
		"many files":    {Exe: exe, UID: 1, GID: 1, Files: make([]*os.File, jailer.MaxFiles+1)},
		"long argument": {Exe: exe, UID: 1, GID: 1, Args: []string{strings.Repeat("x", 64<<10)}},
		"many strings":  {Exe: exe, UID: 1, GID: 1, Env: make([]string, 4<<10+1)},
	} {
		if _, err := jailer.Start(cfg); !errors.Is(err, jailer.ErrConfig) {
			t.Errorf("%s: error %v, want ErrConfig", name, err)
		}
	}
}
