package sandbox

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"spore/internal/rights"
	"spore/network/policy"
)

// verb is what a client asks of a supervisor, on a unix socket in the sandbox's directory. The directory is
// 0700, so only its owner gets this far. Each request and reply is one wire frame; one request a connection.
type verb string

const (
	verbDial   verb = "dial"   // connect to a port of the guest; the reply carries the connected descriptor
	verbAttach verb = "attach" // the command's own streams; the reply carries a descriptor that speaks agent frames
	verbSignal verb = "signal" // send a signal to the command
	verbStop   verb = "stop"   // signal the command, and end the sandbox after the grace period
	verbKill   verb = "kill"   // end the sandbox now
	verbWait   verb = "wait"   // reply when it has ended
	verbStats  verb = "stats"  // counters of the VMM
	verbPause  verb = "pause"  // stand still
	verbResume verb = "resume" // go on
	verbSave   verb = "save"   // save the running machine to request.Dir
	verbAt     verb = "at"     // the sandbox is at request.Snapshot from now on

	verbExplain verb = "explain" // what the network would do with request.Address
)

type request struct {
	Verb   verb          `json:"verb"`
	Port   uint32        `json:"port,omitempty"`
	Signal int           `json:"signal,omitempty"`
	Grace  time.Duration `json:"grace_ns,omitempty"`
	Stdin  bool          `json:"stdin,omitempty"`
	Dir    string        `json:"dir,omitempty"`  // for the dormant machine; in a directory of the same user's
	Live   bool          `json:"live,omitempty"` // copy memory while the guest runs

	Snapshot string `json:"snapshot,omitempty"`
	Address  string `json:"address,omitempty"`
}

type reply struct {
	Error    string                       `json:"error,omitempty"`
	Outcome  *Outcome                     `json:"outcome,omitempty"`
	Counters map[string]map[string]uint64 `json:"counters,omitempty"`
	Saved    *Saved                       `json:"saved,omitempty"`

	Explanation *policy.Explanation `json:"explanation,omitempty"`

	File bool `json:"file,omitempty"` // a descriptor follows, beside one byte
}

// shortPath names a file in dir by a path that fits a socket address, however deep dir is. It is valid until
// the returned file is closed.
func shortPath(dir, name string) (string, *os.File, error) {
	d, err := os.Open(dir)
	if err != nil {
		return "", nil, err
	}
	return filepath.Join(fmt.Sprintf("/proc/self/fd/%d", d.Fd()), name), d, nil
}

// listen makes the sandbox's socket. A stale one of an earlier supervisor is replaced: the caller holds the lock.
func (sb *Sandbox) listen() (*net.UnixListener, error) {
	l, err := listenUnix(sb.dir, socketFile)
	if err != nil {
		return nil, fmt.Errorf("listen for clients: %w", err)
	}
	return l, nil
}

// dialSupervisor connects to the sandbox's supervisor.
func (sb *Sandbox) dialSupervisor() (*net.UnixConn, error) { return dialUnix(sb.dir, socketFile) }

// listenUnix makes a socket in dir, in the place of a stale one: the caller holds a lock.
func listenUnix(dir, name string) (*net.UnixListener, error) {
	path, d, err := shortPath(dir, name)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // the path is gone with d; the next one to listen removes the file
	return l, nil
}

func dialUnix(dir, name string) (*net.UnixConn, error) {
	path, d, err := shortPath(dir, name)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
}

// sendFiles passes them to the peer beside one byte. They stay the caller's.
func sendFiles(c *net.UnixConn, list ...*os.File) error {
	var fds []int
	for _, f := range list {
		fds = append(fds, int(f.Fd()))
	}
	_, _, err := c.WriteMsgUnix([]byte{0}, unix.UnixRights(fds...), nil)
	return err
}

// receiveFiles takes the n descriptors that the peer passed, all or none.
func receiveFiles(c *net.UnixConn, n int) ([]*os.File, error) {
	oob := make([]byte, rights.Space(n))
	_, oobn, _, _, err := c.ReadMsgUnix(make([]byte, 1), oob)
	if err != nil {
		return nil, err
	}
	var list []*os.File
	for _, fd := range rights.Take(oob[:oobn], n) {
		list = append(list, os.NewFile(uintptr(fd), "connection"))
	}
	if len(list) != n {
		for _, f := range list {
			f.Close()
		}
		return nil, fmt.Errorf("receive descriptors: %w", errNoFile)
	}
	return list, nil
}

var errNoFile = errors.New("no descriptor came, or too few")
