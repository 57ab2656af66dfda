package sandbox

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"spore/internal/flock"
	"spore/internal/rights"
	"spore/jailer"
	"spore/jailer/cgroup"
	"spore/network"
	"spore/network/mediator"
	"spore/vmm/api"
)

// Class is the shape of a shell: what must be known before there is a sandbox for it.
type Class struct {
	CPUs    int    `json:"cpus"`
	Memory  int64  `json:"memory_bytes"`
	Disk    int64  `json:"disk_bytes"`        // of the largest writable layer it may write
	Without string `json:"without,omitempty"` // layers that its jail may lack, by commas
	Net     bool   `json:"net,omitempty"`     // it has a network interface
}

// ClassOf is the class of shell that a sandbox can wake in.
func ClassOf(cfg Config) Class {
	var without []string
	for _, l := range cfg.JailWithout {
		without = append(without, string(l))
	}
	slices.Sort(without)
	return Class{CPUs: cfg.CPUs, Memory: cfg.Memory, Disk: max(cfg.Disk, DefaultDisk), Without: strings.Join(without, ","), Net: cfg.Network != nil}
}

// fitsShell reports whether a sandbox's machine is one that shells are made for.
func fitsShell(cfg Config) bool {
	return cfg.Root == RootBlock && !cfg.DebugConsole
}

// shape is what a shell of the class is told: the machine that describe would make, without its files.
func (c Class) shape(id string) api.Config {
	out := api.Config{
		Version: api.Version, ID: id, VCPUs: c.CPUs, Memory: c.Memory, Balloon: true, Wait: true, Log: api.NoFile,
		Boot: api.Boot{Kernel: api.NoFile, Initrd: api.NoFile}, Console: api.Console{Output: api.NoFile, Input: api.NoFile},
		Disks: []api.Disk{{File: api.NoFile, ID: "image", ReadOnly: true}, {File: api.NoFile, ID: writableID}},
		Vsock: &api.Vsock{CID: guestCID, Broker: api.NoFile},
	}
	if c.Net {
		out.Net = &api.Net{File: api.NoFile}
	}
	return out
}

// PoolConfig bounds a pool.
type PoolConfig struct {
	Depth int           // shells that stand ready in each class; at least 1
	Max   int           // in all classes together; the class that was wanted last comes first
	Idle  time.Duration // after which a class that nobody wants is given up; 0 keeps it
}

// Pool keeps shells: jailed VMMs with an empty machine, which a sandbox that wakes takes one of, uses once and throws away.
// It is their parent: it takes away what is left of them, whoever has used them.
type Pool struct {
	host Host
	dir  string // that it serves in
	cfg  PoolConfig

	places     *network.Pool // nil without networks
	forwarders *forwarders   // that wait in them

	mu      sync.Mutex
	classes map[Class]*shelf
	filling sync.Mutex // one shell is started at a time: those who wait for one have the processors
	closed  bool

	over chan struct{} // closed when Serve has given everything back
}

// shelf is the shells of a class.
type shelf struct {
	ready  []*shellProcess
	wanted time.Time
	hits   uint64
	misses uint64
}

// shellProcess is a shell.
type shellProcess struct {
	*Jailed
	control *os.File
	ended   chan struct{} // closed when nothing of it is left; how is then final
	how     string        // it ended, if not well
}

// giveUp ends a shell that nobody has been handed: it takes the end of its control socket for its own. Whoever took it off
// its shelf calls this, once.
func (sh *shellProcess) giveUp() {
	sh.control.Close()
	unix.Close(sh.PidFD)
}

// NewPool makes an empty pool, to serve in dir. What a class needs is started when it is wanted first.
func NewPool(dir string, host Host, cfg PoolConfig) *Pool {
	p := &Pool{host: host, dir: dir, cfg: cfg, classes: map[Class]*shelf{}, over: make(chan struct{})}
	if host.Networks != nil {
		p.forwarders = &forwarders{Attacher: host.Networks, host: host, prefix: shellPrefix(dir), ready: map[string]*mediator.Waiting{}}
		p.places = network.NewPool(p.forwarders, network.PoolConfig{Depth: cfg.Depth, Max: cfg.Max, Idle: cfg.Idle, Rest: placeRest, Log: host.Log})
	}
	return p
}

// shellPrefix begins the names of the cgroups of a pool's shells, and of no other's.
func shellPrefix(dir string) string {
	h := fnv.New32a()
	h.Write([]byte(filepath.Clean(dir)))
	return fmt.Sprintf("shell-%08x-", h.Sum32())
}

// SweepShells removes what a pool in dir that was killed has left of its shells. Those in use are not touched.
func SweepShells(dir string) error {
	if _, err := os.Stat(dir); err != nil {
		return nil // there was never one
	}
	lock, err := flock.Open(filepath.Join(dir, poolLock), unix.LOCK_EX|unix.LOCK_NB)
	if err != nil {
		return nil // it lives
	}
	defer lock.Close()
	paths, err := cgroup.Empty(shellPrefix(dir), 0)
	if err != nil {
		return nil // then there are none of ours either
	}
	for _, path := range paths {
		_ = unix.Rmdir(path) // what has a process by now is in use
	}
	return nil
}

// take returns a shell that stands ready, or nil. Either way more are started.
func (p *Pool) take(c Class) *shellProcess {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	s := p.classes[c]
	if s == nil {
		s = &shelf{}
		p.classes[c] = s
	}
	s.wanted = time.Now()
	var sh *shellProcess
	for len(s.ready) > 0 && sh == nil {
		sh, s.ready = s.ready[0], s.ready[1:]
		select {
		case <-sh.ended: // it died while it waited
			sh.giveUp()
			sh = nil
		default:
		}
	}
	if sh != nil {
		s.hits++
	} else {
		s.misses++
	}
	time.AfterFunc(shellRest, func() { _ = p.fill(c) }) // it logs what fails; who wants the next tries again
	return sh
}

// Rests between a take and the making of another: about what the taker needs to be up, with all processors.
const (
	shellRest = 20 * time.Millisecond
	placeRest = 250 * time.Millisecond
)

// Keep starts shells of a class before anybody wants one, and returns when they stand ready.
func (p *Pool) Keep(c Class) error {
	p.mu.Lock()
	if p.classes[c] == nil {
		p.classes[c] = &shelf{wanted: time.Now()}
	}
	p.mu.Unlock()
	return p.fill(c)
}

// fill starts shells until the class has its number.
func (p *Pool) fill(c Class) error {
	p.filling.Lock()
	defer p.filling.Unlock()
	for p.lacks(c) {
		sh, err := p.start(c)
		if err != nil {
			p.host.log().Warn("start shell", "class", c, "err", err)
			return err
		}
		p.mu.Lock()
		if s := p.classes[c]; s != nil && !p.closed {
			s.ready = append(s.ready, sh)
			sh = nil
		}
		p.mu.Unlock()
		if sh != nil { // its class was given up meanwhile
			sh.giveUp()
		}
	}
	return nil
}

// lacks reports whether a class is to have one more shell, and makes room for it.
func (p *Pool) lacks(c Class) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.classes[c]
	if s == nil || p.closed || len(s.ready) >= p.cfg.Depth {
		return false
	}
	total := 0
	var oldest *shelf
	for _, other := range p.classes {
		total += len(other.ready)
		if other != s && len(other.ready) > 0 && (oldest == nil || other.wanted.Before(oldest.wanted)) {
			oldest = other
		}
	}
	if total < p.cfg.Max {
		return true
	}
	if oldest == nil {
		return false
	}
	oldest.ready[0].giveUp()
	oldest.ready = oldest.ready[1:]
	return true
}

// readyLimit is how long a shell may take to stand ready.
const readyLimit = 30 * time.Second

// start starts one shell and waits until it is ready.
func (p *Pool) start(c Class) (_ *shellProcess, err error) {
	id := shellPrefix(p.dir) + newID()
	config, theirConfig, err := rights.Pair(unix.SOCK_STREAM)
	if err != nil {
		return nil, err
	}
	defer config.Close()
	control, theirControl, err := rights.Pair(unix.SOCK_STREAM)
	if err != nil {
		return nil, errors.Join(err, theirConfig.Close())
	}
	var fds files
	defer fds.close()
	fds.add(theirConfig)
	for _, device := range []struct {
		path  string
		flags int
	}{{"/dev/kvm", os.O_RDWR}, {"/dev/urandom", os.O_RDONLY}} {
		f, err := os.OpenFile(device.path, device.flags|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, errors.Join(err, control.Close(), theirControl.Close())
		}
		fds.add(f)
	}
	cfg := c.shape(id)
	cfg.Entropy, cfg.Control = 1, api.File(fds.add(theirControl)-1)
	sh := &shellProcess{control: control, ended: make(chan struct{})}
	if err = api.Send(config, &cfg); err == nil {
		sh.Jailed, err = Jail{
			VMM: p.host.VMM, ID: id, Files: fds.list, CPUs: c.CPUs, Memory: c.Memory, Disk: c.Disk, Disks: p.host.Disks, Without: c.layers(),
		}.Start()
	}
	if err != nil {
		return nil, errors.Join(err, control.Close())
	}
	go p.bury(sh)
	control.SetReadDeadline(time.Now().Add(readyLimit))
	var m api.Message
	if err := api.Receive(control, &m); err != nil || m.Event == nil || m.Event.Kind != api.EventWaiting {
		sh.Kill()
		<-sh.ended
		sh.giveUp()
		return nil, errors.Join(fmt.Errorf("start shell: it says %+v", m.Event), err)
	}
	control.SetReadDeadline(time.Time{})
	return sh, nil
}

func (c Class) layers() (list []jailer.Layer) {
	for _, l := range strings.Split(c.Without, ",") {
		if l != "" {
			list = append(list, jailer.Layer(l))
		}
	}
	return list
}

// bury waits for a shell's end and takes away what is left.
func (p *Pool) bury(sh *shellProcess) {
	defer close(sh.ended)
	st, err := sh.Wait()
	switch {
	case err != nil:
		sh.how = err.Error()
	case !st.Success():
		sh.how = st.String()
	}
	if err := sh.Release(); err != nil {
		p.host.log().Warn("release the jail of a shell", "err", err)
	}
}

// Close gives up all shells that stand ready. Those in use live on.
func (p *Pool) Close() {
	p.mu.Lock()
	p.closed = true
	for _, s := range p.classes {
		for _, sh := range s.ready {
			sh.Kill() // this process ends before it would notice
			sh.giveUp()
		}
		s.ready = nil
	}
	p.mu.Unlock()
}

// expire gives up classes that nobody has wanted for a while, until ctx ends.
func (p *Pool) expire(ctx context.Context) {
	if p.cfg.Idle <= 0 {
		return
	}
	tick := time.NewTicker(p.cfg.Idle / 4)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		p.mu.Lock()
		for c, s := range p.classes {
			if time.Since(s.wanted) < p.cfg.Idle {
				continue
			}
			for _, sh := range s.ready {
				sh.giveUp()
			}
			delete(p.classes, c)
		}
		p.mu.Unlock()
	}
}

// ShelfStats are the figures of one class.
type ShelfStats struct {
	Class
	Ready  int    `json:"ready"`
	Hits   uint64 `json:"hits"`
	Misses uint64 `json:"misses"`
}

// Stats returns the figures of all classes.
func (p *Pool) Stats() []ShelfStats {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := []ShelfStats{}
	for c, s := range p.classes {
		all = append(all, ShelfStats{c, len(s.ready), s.hits, s.misses})
	}
	slices.SortFunc(all, func(a, b ShelfStats) int { return strings.Compare(fmt.Sprint(a.Class), fmt.Sprint(b.Class)) })
	return all
}
