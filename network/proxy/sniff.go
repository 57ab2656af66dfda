package proxy

import (
	"bytes"
	"io"
	"net"
	"time"

	"spore/network/policy"
)

// maxHead is how much of a guest's first bytes is read to find out what it speaks, at most. A ClientHello with post-quantum keys has
// some 2 KiB.
const maxHead = 16 << 10

// speech is what a guest's first bytes are.
type speech struct {
	spoken policy.Spoken
	name   string // of TLS: the server's
	http2  bool   // HTTP/2 without an upgrade: its names are compressed, and not looked for
}

// sniff reads what the guest says first, until it is clear what that is. A guest that says nothing, or too much, speaks something else.
func sniff(c net.Conn, limit time.Duration) ([]byte, speech) {
	head := make([]byte, 0, 2<<10)
	if c.SetReadDeadline(time.Now().Add(limit)) != nil {
		return nil, speech{}
	}
	defer c.SetReadDeadline(time.Time{}) // closed if it fails
	for {
		s, more := classify(head)
		if !more || len(head) >= maxHead {
			return head, s
		}
		if len(head) == cap(head) {
			head = append(make([]byte, 0, min(4*cap(head), maxHead)), head...)
		}
		n, err := c.Read(head[len(head):cap(head)])
		head = head[:len(head)+n]
		if err != nil && n == 0 {
			s, _ = classify(head)
			return head, s
		}
	}
}

// classify says what the bytes are, and whether more of them could say it better.
func classify(b []byte) (s speech, more bool) {
	switch {
	case len(b) == 0:
		return speech{}, true
	case b[0] == recordHandshake:
		hello, more := readHello(b)
		s.spoken, s.name = policy.SpokenTLS, hello.name
		if hello.encrypted {
			s.spoken = policy.SpokenTLSEncrypted
		}
		return s, more
	}
	return classifyHTTP(b)
}

// preface is how HTTP/2 begins (RFC 9113 §3.4).
const preface = "PRI * HTTP/2.0\r\n"

// maxRequestLine bounds the line that a request begins with, in bytes.
const maxRequestLine = 8 << 10

// classifyHTTP knows a request line: a method in capitals, a target, and a version of HTTP.
func classifyHTTP(b []byte) (speech, bool) {
	for i, c := range b {
		if c == ' ' && i > 0 {
			break
		}
		if (c < 'A' || c > 'Z') && c != '-' || i >= 32 {
			return speech{}, false
		}
	}
	line, _, complete := bytes.Cut(b[:min(len(b), maxRequestLine)], []byte("\n"))
	switch {
	case len(b) >= len(preface) && string(b[:len(preface)]) == preface:
		return speech{spoken: policy.SpokenHTTP, http2: true}, false
	case !complete:
		return speech{}, len(b) < maxRequestLine
	}
	line = bytes.TrimSuffix(line, []byte("\r"))
	version := line[bytes.LastIndexByte(line, ' ')+1:]
	if bytes.HasPrefix(version, []byte("HTTP/")) {
		return speech{spoken: policy.SpokenHTTP}, false
	}
	return speech{}, false
}

// replay is a connection of whose bytes some were read already.
type replay struct {
	Conn
	head []byte
}

func (r *replay) Read(p []byte) (int, error) {
	if len(r.head) > 0 {
		n := copy(p, r.head)
		r.head = r.head[n:]
		return n, nil
	}
	return r.Conn.Read(p)
}

// drain reads what the guest still says, so that it reads our last words before it hears that nobody listens.
func drain(c Conn, limit time.Duration) {
	_ = c.CloseWrite() // it has gone if this fails
	if c.SetReadDeadline(time.Now().Add(limit)) == nil {
		_, _ = io.CopyN(io.Discard, c, maxDrain) // it ends in one way or another
	}
}

// maxDrain bounds what is read from a guest that is not listened to any more, in bytes.
const maxDrain = 1 << 20
