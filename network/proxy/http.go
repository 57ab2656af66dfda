package proxy

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"spore/network/policy"
)

// Bounds of an exchange.
const (
	maxHeader    = 64 << 10 // bytes of a request's or a response's head
	headPatience = 30 * time.Second
	keptAlive    = 5 * time.Minute // between requests
	maxInterim   = 16              // responses of 1xx before the last
)

// hostCharacters are those of names, addresses and ports.
const hostCharacters = "-._:[]0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

// tokens are the characters of a header's name (RFC 9110 §5.6.2).
const tokens = "!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

var errOdd = errors.New("a request that servers may read in more than one way")

// plain refuses what package http would let through, or drop: another version, a target that is no path, a host that is none, a header whose name is none.
func plain(q *http.Request) error {
	scheme := q.URL.Scheme == "" || q.URL.Host != "" && (strings.EqualFold(q.URL.Scheme, "http") || strings.EqualFold(q.URL.Scheme, "https"))
	if q.ProtoMajor != 1 || q.URL.Opaque != "" || !scheme || strings.Trim(q.Host, hostCharacters) != "" {
		return errOdd
	}
	for name := range q.Header {
		if strings.Trim(name, tokens) != "" {
			return errOdd
		}
	}
	return nil
}

var errTooLong = errors.New("the head is too long")

// reader reads messages, whose heads are bounded.
type reader struct {
	*bufio.Reader
	from io.Reader
	left int
}

func newReader(from io.Reader) *reader {
	r := &reader{from: from, left: maxHeader}
	r.Reader = bufio.NewReaderSize(readerFunc(r.fill), 8<<10)
	return r
}

// readerFunc is a function as an io.Reader.
type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func (r *reader) fill(p []byte) (int, error) {
	if r.left <= 0 {
		return 0, errTooLong
	}
	n, err := r.from.Read(p[:min(len(p), r.left)])
	r.left -= n
	return n, err
}

// head bounds what is read next; body does not.
func (r *reader) head() { r.left = maxHeader }
func (r *reader) body() { r.left = 1 << 62 }

// request reads the head of the guest's next request.
func (r *reader) request(guest net.Conn, by time.Time) (*http.Request, error) {
	r.head()
	if err := guest.SetReadDeadline(by); err != nil {
		return nil, err
	}
	q, err := http.ReadRequest(r.Reader)
	r.body()
	if err != nil {
		return nil, err
	}
	if err := plain(q); err != nil {
		return nil, err
	}
	return q, guest.SetReadDeadline(time.Time{})
}

// exchange is an HTTP connection of a guest's.
type exchange struct {
	proxy   *Proxy
	flow    policy.Flow
	guest   Conn
	in      *reader
	out     *bufio.Writer
	secure  string // the host's name, if the connection is opened for its secrets
	outside net.Conn
	dial    func() (net.Conn, error)
	back    *reader       // from outside
	forth   *bufio.Writer // to outside

	served bool // at least one request
	first  Outcome
}

// serveHTTP has every request of a connection judged.
func (p *Proxy) serveHTTP(ctx context.Context, c Connection, head []byte) Outcome {
	guest := &replay{c.Guest, head}
	x := &exchange{proxy: p, flow: c.Flow, guest: c.Guest, in: newReader(guest), out: bufio.NewWriterSize(c.Guest, 16<<10)}
	x.dial = func() (net.Conn, error) {
		tcp, err := c.Dial(ctx)
		if err != nil {
			return nil, err
		}
		return tcp, nil
	}
	x.run()
	return x.first
}

// interrupt ends waits for the guest.
func (x *exchange) interrupt() {
	_ = x.guest.SetDeadline(time.Unix(1, 0)) // closed already if it fails
}

// run serves requests, one after another, until one side has had enough.
func (x *exchange) run() {
	defer func() {
		if x.outside != nil {
			x.outside.Close()
		}
	}()
	patience := headPatience
	for {
		r, err := x.in.request(x.guest, time.Now().Add(patience))
		if err != nil {
			if !x.served {
				x.first = Outcome{Verdict: policy.Verdict{Rule: "default:http", Reason: "the request is not one of HTTP/1"}}
			}
			if x.in.Buffered() > 0 || !errors.Is(err, io.EOF) && !x.served {
				x.fail(http.StatusBadRequest, Denial{Code: RequestCode, Destination: x.flow.Destination.String(), Reason: "the request is not one of HTTP/1"})
			}
			return
		}
		patience = keptAlive
		if !x.judge(r) || !x.carry(r) {
			return
		}
	}
}

// fail answers in the server's place and ends the connection.
func (x *exchange) fail(status int, d Denial) {
	if x.out.Flush() == nil && x.guest.SetWriteDeadline(time.Now().Add(farewell)) == nil {
		x.proxy.answer(x.guest, status, d)
	}
	drain(x.guest, farewell)
}

// judge has a request judged, and answers one that is denied.
func (x *exchange) judge(r *http.Request) bool {
	host := hostOf(r)
	v := x.proxy.cfg.Policy.Named(x.flow, x.proxy.cfg.Names, host, policy.SpokenHTTP)
	status := http.StatusForbidden
	switch {
	case r.Method == http.MethodConnect:
		v = policy.Verdict{Rule: "default:http", Reason: "CONNECT asks for a proxy, and there is none here", Remedy: "connect without a proxy"}
	case x.secure != "" && !same(host, x.secure):
		v = policy.Verdict{Rule: "default:name", Reason: "the connection was made to " + x.secure + ", and the request is to another host"}
		status = http.StatusMisdirectedRequest
	case x.secure != "":
		v = x.first.Verdict // by the server name, which is the same
	case x.served && x.first.Verdict.Action == policy.Allow && same(host, x.first.Name):
		v = x.first.Verdict // the address was the name's when the connection was made, and a connection outlives what the name server said
	}
	if !x.served {
		x.first = Outcome{Verdict: v, Name: host}
	}
	x.served = true
	if v.Action == policy.Allow {
		x.stray(r, host)
		return true
	}
	if x.outside != nil || x.secure != "" {
		x.proxy.cfg.Record(policy.Event{Action: policy.Deny, Protocol: policy.TCP, Destination: x.flow.Destination, Name: host, Rule: v.Rule, Reason: v.Reason})
	}
	x.fail(status, denial(x.flow, v, host))
	return false
}

// hostOf is the host that a request is to, without a port. ReadRequest has made one of the target and the only Host there may be.
func hostOf(r *http.Request) string {
	host := r.Host
	if at := strings.LastIndexByte(host, ':'); at >= 0 && !strings.HasSuffix(host, "]") {
		host = host[:at]
	}
	return host
}

func same(a, b string) bool {
	a, errA := policy.CanonicalName(a)
	b, errB := policy.CanonicalName(b)
	return errA == nil && errB == nil && a == b
}

// carry sends a request on and its response back. It reports whether the connection goes on.
func (x *exchange) carry(r *http.Request) bool {
	if x.outside == nil {
		outside, err := x.dial()
		if err != nil {
			x.fail(http.StatusBadGateway, Denial{Code: UnreachableCode, Host: hostOf(r), Destination: x.flow.Destination.String(), Reason: "no connection to the destination: " + cause(err)})
			return false
		}
		x.outside, x.back, x.forth = outside, newReader(outside), bufio.NewWriterSize(outside, 16<<10)
	}
	old := !r.ProtoAtLeast(1, 1)
	upgrade := x.prepare(r)
	sent := make(chan error, 1)
	body := r.Body
	var ended atomic.Bool
	if ended.Store(body == http.NoBody); body != http.NoBody {
		r.Body = &flushing{body, x.forth, &ended, r.ContentLength}
	}
	go func() { // this function waits for it
		err := r.Write(writer{x.forth})
		sent <- errors.Join(err, x.forth.Flush())
	}()
	goesOn, switched := x.respond(r, upgrade, old)
	if switched {
		<-sent
		x.tunnel()
		return false
	}
	if ended.Load() && x.outside.SetWriteDeadline(time.Now().Add(farewell)) == nil {
		err := errors.Join(<-sent, x.outside.SetWriteDeadline(time.Time{}))
		return goesOn && err == nil && !r.Close && !old
	}
	// The answer came before the whole request was sent: nobody may be there to take the rest.
	x.outside.Close()
	x.interrupt()
	<-sent
	_ = body.Close() // there is nothing behind it
	x.guest.SetDeadline(time.Time{})
	drain(x.guest, farewell)
	return false
}

// cause is an error of a dial without addresses that are known already.
func cause(err error) string {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err.Error()
	}
	return err.Error()
}

// flushing flushes w before it waits for more of a body.
type flushing struct {
	io.ReadCloser
	w     *bufio.Writer
	ended *atomic.Bool // set when there is no more; nil: nobody asks
	left  int64        // bytes, if that is known; negative otherwise
}

func (f *flushing) Read(p []byte) (int, error) {
	if err := f.w.Flush(); err != nil {
		return 0, err
	}
	n, err := f.ReadCloser.Read(p)
	f.left -= int64(n)
	if f.ended != nil && (err != nil || f.left == 0) { // before the last of it can be answered
		f.ended.Store(true)
	}
	return n, err
}

// writer is a bufio.Writer without ReadFrom, which would have flushing flush the buffer that is being read into.
type writer struct{ to *bufio.Writer }

func (w writer) Write(p []byte) (int, error) { return w.to.Write(p) }

// WriteByte keeps package http from putting a buffer of its own before this one.
func (w writer) WriteByte(c byte) error { return w.to.WriteByte(c) }

// prepare makes of a request what is sent. It reports whether the guest asks for a WebSocket: no other protocol may follow, for none
// else could be looked into or would stay with the host.
func (x *exchange) prepare(r *http.Request) (upgrade bool) {
	upgrade = strings.EqualFold(r.Header.Get("Upgrade"), "websocket") && r.ProtoAtLeast(1, 1)
	if !upgrade {
		r.Header.Del("Upgrade")
		r.Header.Del("Http2-Settings")
		r.Header.Del("Connection") // Close says what it said; hop by hop, what it names is not for the server
	} else {
		r.Header.Set("Connection", "Upgrade")
	}
	r.Header.Del("Proxy-Connection")
	if r.Host == "" { // of HTTP/1.0, whose connection is allowed by its address
		r.Host = x.flow.Destination.String()
	}
	if r.Header.Get("User-Agent") == "" {
		r.Header["User-Agent"] = []string{""} // or package http would say who it is
	}
	if x.secure != "" {
		r.Header.Set("Accept-Encoding", "identity") // or a secret that comes back could not be found
		x.substitute(r)
	}
	return upgrade
}

// respond reads responses until the last, and gives them to the guest.
func (x *exchange) respond(r *http.Request, upgrade, old bool) (goesOn, switched bool) {
	for range maxInterim {
		x.back.head()
		resp, err := http.ReadResponse(x.back.Reader, r)
		x.back.body()
		if err != nil {
			return false, false // what a server that hangs up looks like
		}
		if resp.StatusCode == http.StatusSwitchingProtocols && !upgrade {
			return false, false
		}
		if x.secure != "" {
			x.conceal(resp)
		}
		if old && resp.StatusCode < 200 {
			continue // no response of 1xx for HTTP/1.0 (RFC 9110 §15.2)
		}
		if old {
			resp.ProtoMinor, resp.TransferEncoding, resp.Close = 0, nil, true
		}
		last := resp.StatusCode >= 200 || resp.StatusCode == http.StatusSwitchingProtocols
		if last && resp.StatusCode != http.StatusSwitchingProtocols && r.Close {
			resp.Close = true
		}
		resp.Body = &flushing{resp.Body, x.out, nil, -1}
		err = resp.Write(writer{x.out})
		if err = errors.Join(err, x.out.Flush()); err != nil {
			return false, false
		}
		if last {
			return !resp.Close, resp.StatusCode == http.StatusSwitchingProtocols
		}
	}
	return false, false
}

// tunnel copies both ways until both have ended.
func (x *exchange) tunnel() {
	up := make(chan struct{})
	go func() { // this function waits for it
		defer close(up)
		_, err := io.Copy(x.outside, x.in)
		if half, ok := x.outside.(interface{ CloseWrite() error }); ok && err == nil {
			_ = half.CloseWrite() // it has gone if this fails
			return
		}
		x.outside.Close()
	}()
	_, err := io.Copy(x.guest, x.back)
	_ = x.guest.CloseWrite()
	if err != nil {
		x.outside.Close()
		x.interrupt()
	}
	<-up
}
