package stack

import (
	"net/netip"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"spore/network/policy"
)

// sessionKey names a run of datagrams: the guest's port, or the identifier of its echo requests, and the other end.
type sessionKey struct {
	protocol policy.Protocol
	guest    uint16
	remote   netip.AddrPort
}

// session is one run of datagrams. It is a flow with a goroutine of its own, which waits for what comes back.
type session struct {
	*flow
	key     sessionKey
	verdict policy.Verdict
	raw     syscall.RawConn                  // of a socket of its own, if it has one
	out     func(n *session, payload []byte) // sends what the guest said
	quote   []byte                           // the beginning of the guest's first packet, for errors about it
}

// over reports whether the session has ended, or is about to.
func (n *session) over() bool {
	select {
	case <-n.done:
		return true
	default:
		return false
	}
}

// sessions are all that are open, by key.
type sessions struct {
	mu  sync.Mutex
	all map[sessionKey]*session
}

func (t *sessions) init() { t.all = map[sessionKey]*session{} }

func (t *sessions) get(k sessionKey) *session {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.all[k]
}

// start opens a session on a socket, which it closes. It returns nil when there are too many, or one of that key.
func (s *Stack) start(k sessionKey, v policy.Verdict, socket Socket, quote []byte, receive func(*session)) *session {
	raw, err := socket.SyscallConn()
	if err != nil {
		panic("bug: a new socket is no socket: " + err.Error())
	}
	// A second close is an error that says nothing.
	n := s.open(&session{key: k, verdict: v, raw: raw, out: s.sendOut, quote: quote}, func() { _ = socket.Close() }, receive)
	if n == nil {
		socket.Close()
	}
	return n
}

// open makes n one of the sessions, and runs receive in its goroutine. It ends when receive returns, which abort sees to.
func (s *Stack) open(n *session, abort func(), receive func(*session)) *session {
	f := policy.Flow{Protocol: n.key.protocol, Destination: n.key.remote}
	t := &s.sessions
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.all[n.key] != nil {
		return nil
	}
	if n.flow = s.flows.add(f, s.cfg.Limits.UDPIdle, abort); n.flow == nil {
		return nil
	}
	t.all[n.key] = n
	s.count.flows.Add(1)
	go func() { // flows.wait waits for it
		defer s.flows.remove(n.flow)
		receive(n)
		t.mu.Lock()
		delete(t.all, n.key)
		t.mu.Unlock()
		s.ended(n.flow, n.verdict, "")
	}()
	return n
}

// sendOut sends what the guest said. A datagram that the socket has no room for is lost, as on any network.
func (s *Stack) sendOut(n *session, payload []byte) {
	var err error
	if n.raw.Write(func(fd uintptr) bool {
		_, err = unix.Write(int(fd), payload)
		return true
	}) != nil {
		return // it has just ended
	}
	if err == nil {
		s.flows.moved(n.flow, len(payload), 0)
	}
}

// scratch is the size of what one datagram is read into.
const scratch = 64 << 10

// scratches are for sessions that have something to read at the moment.
var scratches = sync.Pool{New: func() any { return new([scratch]byte) }}

// receiveAll reads datagrams until the session ends, and hands each on. refused is called when the other end said that nobody is there.
func (s *Stack) receiveAll(n *session, give func(payload []byte), refused func()) {
	var b *[scratch]byte
	var size int
	var result error
	once := func(fd uintptr) bool {
		b = scratches.Get().(*[scratch]byte)
		size, result = unix.Read(int(fd), b[:])
		if result == unix.EAGAIN || result == unix.EINTR {
			scratches.Put(b)
			return false
		}
		return true
	}
	for n.raw.Read(once) == nil {
		switch result {
		case nil:
			s.flows.moved(n.flow, 0, size)
			give(b[:size])
		case unix.ECONNREFUSED:
			refused()
		}
		scratches.Put(b)
		switch result {
		case nil, unix.ECONNREFUSED, unix.EHOSTUNREACH, unix.ENETUNREACH, unix.EMSGSIZE:
		default:
			return
		}
	}
}
