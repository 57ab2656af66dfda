package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"spore/network/api"
	"spore/network/policy"
	"spore/network/proxy"
	"spore/network/resolver"
	"spore/network/stack"
)

// mediation is all that stands between one guest and its network.
type mediation struct {
	cfg    api.Config
	files  []*os.File
	log    *slog.Logger
	policy *policy.Policy
	names  *policy.Names
	proxy  *proxy.Proxy
	ports  []port
	lines  *bounded
	audit  *policy.Audit
	denied atomic.Uint64

	resolver *resolver.Server // from start on, as is stack
	stack    *stack.Stack
	work     sync.WaitGroup
	end      chan struct{}
}

// port is a published port.
type port struct {
	tcp   *net.TCPListener
	udp   *net.UDPConn
	guest uint16
}

// flushEvery is how often audit lines are written that were held back to be counted together.
const flushEvery = time.Second

// newMediation judges the configuration and makes what must be there before the last filter.
func newMediation(cfg api.Config, files []*os.File) (m *mediation, err error) {
	cfg.Limits = cfg.Limits.WithDefaults()
	debug.SetMemoryLimit(memoryFloor + cfg.Limits.Memory)
	debug.SetGCPercent(gcPercent)
	m = &mediation{cfg: cfg, files: files, log: logger(cfg.Sandbox, files, cfg.Log), end: make(chan struct{})}
	rules, err := policy.Parse(cfg.Rules)
	if err != nil {
		return nil, err
	}
	m.policy = rules.In(cfg.Surroundings)
	m.names = policy.NewNames(time.Now)
	if m.lines, err = newBounded(files, cfg.Audit, cfg.Limits.Audit); err != nil {
		return nil, err
	}
	m.audit = policy.NewAudit(m.lines, cfg.Sandbox, time.Now)
	var secrets []proxy.Secret
	for _, s := range cfg.Secrets {
		if err := m.policy.CheckSecret(s.Secret); err != nil {
			return nil, err
		}
		secrets = append(secrets, proxy.Secret{Secret: s.Secret, Placeholder: s.Placeholder, Value: string(s.Value)})
	}
	m.proxy, err = proxy.New(proxy.Config{
		Policy: m.policy, Names: m.names, Secrets: secrets, Roots: cfg.Roots, Sniff: cfg.Limits.Sniff, Record: m.record, Clock: time.Now,
	})
	if err != nil {
		return nil, err
	}
	m.cfg.Secrets, m.cfg.Roots = nil, nil // the proxy has them, and nobody else is to
	for _, p := range cfg.Published {
		opened, err := open(files, p)
		if err != nil {
			return nil, err
		}
		m.ports = append(m.ports, opened)
	}
	return m, nil
}

// open makes what package net has of a published port's socket.
func open(files []*os.File, p api.Published) (port, error) {
	if p.File < 0 || p.Port == 0 {
		return port{}, errors.New("a published port has no socket, or no port of the guest's")
	}
	f := files[p.File]
	defer f.Close() // package net has a duplicate
	if p.Protocol == policy.UDP {
		c, err := net.FilePacketConn(f)
		if err != nil {
			return port{}, fmt.Errorf("published port: %w", err)
		}
		if udp, ok := c.(*net.UDPConn); ok {
			return port{udp: udp, guest: p.Port}, nil
		}
		return port{}, errors.Join(errors.New("published port: no UDP socket"), c.Close())
	}
	l, err := net.FileListener(f)
	if err != nil {
		return port{}, fmt.Errorf("published port: %w", err)
	}
	if tcp, ok := l.(*net.TCPListener); ok {
		return port{tcp: tcp, guest: p.Port}, nil
	}
	return port{}, errors.Join(errors.New("published port: no TCP socket"), l.Close())
}

// start begins to serve the guest.
func (m *mediation) start() error {
	static := map[string][]netip.Addr{}
	for _, n := range m.cfg.Names {
		static[n.Name] = append(static[n.Name], n.Addresses...)
	}
	if m.cfg.Hostname != "" {
		for _, p := range m.cfg.Guest {
			static[m.cfg.Hostname] = append(static[m.cfg.Hostname], p.Addr())
		}
	}
	var err error
	m.resolver, err = resolver.New(resolver.Config{
		Policy: m.policy, Names: m.names, Upstreams: m.cfg.DNS, Static: static, Record: m.record, Clock: time.Now, Log: m.log,
	})
	if err != nil {
		return err
	}
	l := m.cfg.Limits
	m.stack, err = stack.New(stack.Config{
		Frames: m.files[m.cfg.Frames], GuestMAC: m.cfg.GuestMAC, GatewayMAC: m.cfg.GatewayMAC, Guest: m.cfg.Guest, Gateways: m.cfg.Gateways, MTU: m.cfg.MTU,
		Policy: m.policy, Names: m.names, Resolver: m.resolver, Proxy: m.proxy, Record: m.record, Log: m.log,
		Limits: stack.Limits{Flows: l.Flows, Opening: l.Opening, Memory: l.Memory, DialTimeout: l.DialTimeout, TCPIdle: l.TCPIdle, UDPIdle: l.UDPIdle},
	})
	if err != nil {
		return err
	}
	for _, p := range m.ports {
		if p.tcp != nil {
			m.stack.PublishTCP(p.tcp, p.guest)
		} else {
			m.stack.PublishUDP(p.udp, p.guest)
		}
	}
	m.work.Go(m.flush)
	return nil
}

// flush writes audit lines until the end.
func (m *mediation) flush() {
	tick := time.NewTicker(flushEvery)
	defer tick.Stop()
	for {
		select {
		case <-m.end:
			return
		case <-tick.C:
			m.flushed(m.audit.Flush(false))
		}
	}
}

// flushed counts lines that could not be written: there is nobody else to tell.
func (m *mediation) flushed(err error) {
	if err != nil {
		m.lines.lost.Add(1)
	}
}

// close ends all flows, and writes what is left to be said of them.
func (m *mediation) close() error {
	err := m.stack.Close()
	close(m.end)
	m.work.Wait()
	m.flushed(m.audit.Flush(true))
	return err
}

// record writes an audit line, or counts it.
func (m *mediation) record(e policy.Event) {
	if e.Action == policy.Deny {
		m.denied.Add(max(e.Count, 1))
	}
	m.audit.Record(e)
}

// reset forgets the guest that was.
func (m *mediation) reset() {
	m.stack.Reset() // first, so that nothing of the old guest's is learnt afterwards
	m.resolver.Forget()
	m.names.Forget()
}

// What the process may have of memory in all, as far as the collector can see to it: the limit of the data on the way, and what all
// else takes.
const (
	memoryFloor = 24 << 20
	gcPercent   = 50
)

func (m *mediation) stats() api.Stats {
	s := m.stack.Stats()
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	return api.Stats{
		FromGuest: api.Traffic(s.FromGuest), ToGuest: api.Traffic(s.ToGuest), Sent: s.Sent, Received: s.Received,
		Malformed: s.Malformed, Spoofed: s.Spoofed, Unwanted: s.Unwanted, Overload: s.Overload, Dropped: s.Dropped,
		Denied: m.denied.Load(), Failed: s.Failed, Open: s.Open, Flows: s.Flows, Queries: s.Queries,
		Substitutions: m.proxy.Substitutions(), AuditLost: m.lines.lost.Load(), Memory: mem.Sys - mem.HeapReleased, Goroutines: runtime.NumGoroutine(),
	}
}
