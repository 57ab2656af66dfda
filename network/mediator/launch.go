package mediator

import (
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"runtime"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"spore/jailer"
	"spore/network/syscalls"
)

// environment is the process's: a small heap, which huge pages would round up.
var environment = []string{"GODEBUG=disablethp=1"}

// What the jail lets the process have.
const (
	descriptorLimit = 4096    // flows, and some
	fileLimit       = 1 << 30 // bytes of the audit file; spore-net stops long before
)

// jail starts the process in its jail, in the network namespace that c names.
func jail(c Config, exe, config, stderr *os.File) (p *jailer.Process, err error) {
	slot := fnv.New32a()
	slot.Write([]byte("net:" + c.ID))
	uid, gid := jailer.Identity(slot.Sum32())
	cfg := jailer.Config{
		Name: "spore-net", Exe: exe, Env: environment, UID: uid, GID: gid, Files: []*os.File{config}, Stderr: stderr,
		Filter: syscalls.StartingProgram, FileSize: fileLimit, Network: true, Descriptors: descriptorLimit, Cgroup: c.Cgroup, Without: c.Without,
	}
	if c.NetNS == "" {
		return jailer.Start(cfg)
	}
	netns, err := os.Open(c.NetNS)
	if err != nil {
		return nil, fmt.Errorf("network namespace: %w", err)
	}
	defer netns.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends with this goroutine, and nobody else gets it in that namespace
		if err = os.NewSyscallError("setns", unix.Setns(int(netns.Fd()), unix.CLONE_NEWNET)); err != nil {
			err = fmt.Errorf("enter network namespace %s: %w", c.NetNS, err)
			return
		}
		if err = allowPing(); err != nil {
			return
		}
		p, err = jailer.Start(cfg)
	}()
	<-done
	return p, err
}

// allowPing lets every group have ping sockets in the thread's network namespace: in a new one nobody may.
func allowPing() error {
	// What is below /proc/sys/net is of the network namespace of whoever opens it.
	err := os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 2147483647"), 0)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) || errors.Is(err, unix.EROFS) {
		return nil // echo requests fail then, and say so
	}
	return err
}

// tailSize is how much of what a process writes to standard error is kept, in bytes.
const tailSize = 4 << 10

// tail keeps the end of what it reads: of a crash, usually.
type tail struct {
	mu   sync.Mutex
	last []byte
}

func (t *tail) read(f *os.File) {
	defer f.Close()
	b := make([]byte, tailSize)
	for {
		n, err := f.Read(b)
		t.mu.Lock()
		t.last = append(t.last, b[:n]...)
		t.last = t.last[max(0, len(t.last)-tailSize):]
		t.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// quote is what was read, for an error.
func (t *tail) quote() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if text := strings.TrimSpace(string(t.last)); text != "" {
		return ": " + text
	}
	return ""
}
