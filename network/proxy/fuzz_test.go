package proxy

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"spore/network/policy"
)

// FuzzClientHello holds what is read of first bytes against what Go's own TLS server reads of them: where that finds a name, ours is the same or
// none; and more bytes never change a name that was found.
func FuzzClientHello(f *testing.F) {
	f.Add([]byte{22, 3, 1, 0, 0})
	f.Add([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"))
	for _, name := range []string{"", "api.example.org"} {
		var b bytes.Buffer
		_ = tls.Client(&halfConn{w: &b}, &tls.Config{ServerName: name, InsecureSkipVerify: true}).Handshake() // ends at EOF
		f.Add(b.Bytes())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > maxHead {
			return
		}
		s, more := classify(b)
		if longer, _ := classify(append(b[:len(b):len(b)], 0)); !more && longer != s {
			t.Errorf("%+v became %+v", s, longer)
		}
		if s.spoken != policy.SpokenTLS && s.name != "" {
			t.Errorf("%+v", s)
		}
		if len(b) == 0 || b[0] != recordHandshake || s.name == "" {
			return
		}
		var theirs string
		server := tls.Server(&halfConn{r: bytes.NewReader(b), w: io.Discard}, &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			theirs = h.ServerName
			return nil, errors.New("enough")
		}})
		if err := server.Handshake(); err != nil && err.Error() == "enough" && !strings.EqualFold(strings.TrimSuffix(s.name, "."), strings.TrimSuffix(theirs, ".")) {
			t.Errorf("we read %q, crypto/tls %q", s.name, theirs)
		}
	})
}

// halfConn is a connection that ends.
type halfConn struct {
	net.Conn
	r io.Reader
	w io.Writer
}

func (h *halfConn) Read(p []byte) (int, error) {
	if h.r == nil {
		return 0, io.EOF
	}
	return h.r.Read(p)
}
func (h *halfConn) Write(p []byte) (int, error)    { return h.w.Write(p) }
func (*halfConn) Close() error                     { return nil }
func (*halfConn) SetDeadline(time.Time) error      { return nil }
func (*halfConn) SetReadDeadline(time.Time) error  { return nil }
func (*halfConn) SetWriteDeadline(time.Time) error { return nil }
func (*halfConn) CloseWrite() error                { return nil }

// FuzzRequestHead holds that what is sent on is one request, to the host that was judged, whatever the guest said.
func FuzzRequestHead(f *testing.F) {
	for _, s := range []string{
		"GET / HTTP/1.1\r\nHost: api.example.org\r\n\r\n", "GET http://a/ HTTP/1.1\r\nHost: b\r\n\r\n", "POST / HTTP/1.0\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcd",
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: b\r\n\r\n", "GET /?k=SPORE-0123456789abcdef HTTP/1.1\r\nHost: a\r\nA: b\r\n c\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	secrets := []Secret{{Secret: policy.Secret{Name: "X", Hosts: []string{"api.example.org"}}, Placeholder: "SPORE-0123456789abcdef", Value: "v a/l&u=e"}}
	f.Fuzz(func(t *testing.T, b []byte) {
		guest := &halfConn{r: bytes.NewReader(b), w: io.Discard}
		in := newReader(guest)
		r, err := in.request(guest, time.Time{})
		if err != nil {
			return
		}
		for _, secure := range []string{"", "api.example.org"} {
			host := r.Host
			// A destination for requests without a host.
			x := &exchange{flow: policy.Flow{Destination: netip.MustParseAddrPort("192.0.2.1:80")}, proxy: &Proxy{cfg: Config{Secrets: secrets, Record: func(policy.Event) {}}}, secure: secure}
			x.stray(r, hostOf(r))
			x.prepare(r)
			var sent bytes.Buffer
			if r.Write(&sent) != nil {
				return // nothing that could be sent
			}
			out := bufio.NewReader(&sent)
			again, err := http.ReadRequest(out)
			if err != nil {
				t.Fatalf("what was sent cannot be read: %v", err)
			}
			if host != "" && again.Host != host {
				t.Fatalf("judged %q, sent to %q", host, again.Host)
			}
			if _, err := io.Copy(io.Discard, again.Body); err != nil {
				t.Fatalf("the body that was sent cannot be read: %v", err)
			}
			if out.Buffered() > 0 {
				t.Fatalf("there is more behind the request: %q", sent.Bytes())
			}
			if r.Body != http.NoBody {
				return // it has been read
			}
		}
	})
}
