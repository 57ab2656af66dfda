// Package world is what a guest's network leads to in tests: a namespace of this machine's that has public addresses, servers on
// them, and a record of every packet that reached it. It stands for the Internet; nothing of it leaves the machine.
package world

import (
	"bufio"
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// The addresses of the world, by what is there. They are public ones, of a range that is told as an example everywhere.
var (
	Allowed    = netip.MustParseAddr("93.184.216.34") // allowed.test, and other.test as on any content network
	Forbidden  = netip.MustParseAddr("93.184.216.35") // forbidden.test
	Wild       = netip.MustParseAddr("93.184.216.36") // a.wild.test, and wild.test itself
	Port       = netip.MustParseAddr("93.184.216.40") // has no name
	DNS        = netip.MustParseAddr("93.184.216.53") // the host's name server
	OtherDNS   = netip.MustParseAddr("93.184.216.54")
	Private    = netip.MustParseAddr("10.77.0.5")       // rebind.test
	Metadata   = netip.MustParseAddr("169.254.169.254") // meta.test
	Allowed6   = netip.MustParseAddr("2606:2800:220:1::34")
	Forbidden6 = netip.MustParseAddr("2606:2800:220:1::35")
)

// addresses are all of them.
var addresses = []netip.Addr{Allowed, Forbidden, Wild, Port, DNS, OtherDNS, Private, Metadata, Allowed6, Forbidden6}

// ends of the link between this machine and the world.
const (
	hostEnd4, worldEnd4 = "192.0.2.1/30", "192.0.2.2/30"
	hostEnd6, worldEnd6 = "2001:db8:77::1/64", "2001:db8:77::2/64"
)

// Reached is one thing that reached the world. A packet has Protocol and Destination; what a server understood of it has the rest too.
type Reached struct {
	Kind        string         `json:"kind"` // packet, tls, http, dns, tcp, udp; ready when the servers are there
	Protocol    string         `json:"protocol,omitempty"`
	Destination netip.AddrPort `json:"destination,omitzero"`
	Name        string         `json:"name,omitempty"` // SNI, Host, the question
	Text        string         `json:"text,omitempty"` // the path, the body, the data
	Header      string         `json:"header,omitempty"`
}

// World is a running one.
type World struct {
	name, veth string
	cmd        *exec.Cmd
	dir        string
	mu         sync.Mutex
	reached    []Reached
	read       sync.WaitGroup
}

// variable marks the process that serves in the namespace.
const variable = "SPORE_WORLD"

// Main serves the world if this process was started for that, and then does not return. TestMain calls it first.
func Main() {
	if dir := os.Getenv(variable); dir != "" {
		if err := serve(context.Background(), dir, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, "world:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
}

// Start makes a world and has this machine route to it. dir is for its files; the caller calls Close.
func Start(dir string) (_ *World, err error) {
	id := fmt.Sprintf("%x", os.Getpid())
	w := &World{name: "world-" + id, veth: "w" + id, dir: dir}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.Close())
		}
	}()
	steps := []string{
		"netns add " + w.name,
		"link add " + w.veth + " type veth peer name out netns " + w.name,
		"addr add " + hostEnd4 + " dev " + w.veth, "addr add " + hostEnd6 + " dev " + w.veth + " nodad", "link set " + w.veth + " up",
		"-n " + w.name + " link set lo up", "-n " + w.name + " addr add " + worldEnd4 + " dev out",
		"-n " + w.name + " addr add " + worldEnd6 + " dev out nodad", "-n " + w.name + " link set out up",
		"-n " + w.name + " route add default via " + address(hostEnd4), "-n " + w.name + " route add default via " + address(hostEnd6),
	}
	for _, a := range addresses {
		via := address(worldEnd4)
		if a.Is6() {
			via = address(worldEnd6)
		}
		steps = append(steps, fmt.Sprintf("-n %s addr add %s dev lo nodad", w.name, netip.PrefixFrom(a, a.BitLen())), fmt.Sprintf("route replace %s via %s", a, via))
	}
	for _, s := range steps {
		if out, err := exec.Command("ip", strings.Fields(s)...).CombinedOutput(); err != nil {
			return w, fmt.Errorf("ip %s: %w: %s", s, err, out)
		}
	}
	return w, w.serve()
}

// readyLimit bounds the wait for the servers.
const readyLimit = time.Minute

func (w *World) serve() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	w.cmd = exec.Command("ip", "netns", "exec", w.name, self)
	w.cmd.Env = append(os.Environ(), variable+"="+w.dir)
	w.cmd.Stderr = os.Stderr
	w.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := w.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := w.cmd.Start(); err != nil {
		return err
	}
	ready := make(chan bool, 1)
	w.read.Go(func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			var r Reached
			if json.Unmarshal(lines.Bytes(), &r) != nil {
				continue
			}
			if r.Kind == "ready" {
				ready <- true
				continue
			}
			w.mu.Lock()
			w.reached = append(w.reached, r)
			w.mu.Unlock()
		}
		close(ready)
	})
	select {
	case ok := <-ready:
		if !ok {
			return errors.New("the world's servers did not start")
		}
		return nil
	case <-time.After(readyLimit):
		return fmt.Errorf("the world's servers were not there within %s", readyLimit)
	}
}

// Reached returns all that has reached the world so far.
func (w *World) Reached() []Reached {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]Reached(nil), w.reached...)
}

// Forget begins the record anew.
func (w *World) Forget() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.reached = nil
}

// CA is the file of the certificate that the world's servers are certified by.
func (w *World) CA() string { return filepath.Join(w.dir, caFile) }

// Namespace is the name of the world's network namespace.
func (w *World) Namespace() string { return w.name }

// Close ends the servers and takes the world away.
func (w *World) Close() error {
	if w.cmd != nil && w.cmd.Process != nil {
		w.cmd.Process.Kill()
		w.read.Wait()
		w.cmd.Wait() // it was killed
	}
	var errs []error
	for _, args := range [][]string{{"link", "del", w.veth}, {"netns", "del", w.name}} {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil && !strings.Contains(string(out), "Cannot find") && !strings.Contains(string(out), "No such file") {
			errs = append(errs, fmt.Errorf("ip %v: %w: %s", args, err, out))
		}
	}
	return errors.Join(errs...)
}

func address(prefix string) string { return netip.MustParsePrefix(prefix).Addr().String() }

// caFile is where the certificate is.
const caFile = "world-ca.pem"

func writePEM(path, kind string, der []byte) error {
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o644)
}
