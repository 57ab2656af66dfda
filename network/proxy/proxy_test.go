package proxy_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"spore/network/policy"
	"spore/network/proxy"
)

const patience = time.Minute

// bench is a Proxy between a guest and a server.
type bench struct {
	*proxy.Proxy
	names *policy.Names
	flow  policy.Flow
	rules *policy.Policy

	mu     sync.Mutex
	events []policy.Event
	dialed int
	server string // host and port; "" refuses
}

const destination = "203.0.113.5"

// newBench allows api.example.org, which resolves to destination.
func newBench(t *testing.T, port uint16, change func(*proxy.Config)) *bench {
	t.Helper()
	p, err := policy.Parse(policy.Source{Allow: []string{"api.example.org", "other.example.org", "unresolved.example.org"}})
	if err != nil {
		t.Fatal(err)
	}
	// TEST-NET-3 is no public address, unless a test says so.
	b := &bench{names: policy.NewNames(time.Now), rules: p, flow: policy.Flow{Protocol: policy.TCP, Destination: netip.AddrPortFrom(netip.MustParseAddr("93.184.216.34"), port)}}
	for _, name := range []string{"api.example.org", "other.example.org", "denied.example.org"} {
		b.names.Learn(name, b.flow.Destination.Addr(), time.Hour)
	}
	c := proxy.Config{Policy: p, Names: b.names, Sniff: 5 * time.Second, Record: func(e policy.Event) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.events = append(b.events, e)
	}}
	if change != nil {
		change(&c)
	}
	if b.Proxy, err = proxy.New(c); err != nil {
		t.Fatal(err)
	}
	return b
}

// pair is two ends of a TCP connection.
func pair(t *testing.T) (a, b *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); s.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c.(*net.TCPConn), s.(*net.TCPConn)
}

// serve has the proxy serve a new connection, and returns the guest's end and what will have come of it.
func (b *bench) serve(t *testing.T, v policy.Verdict) (*net.TCPConn, <-chan proxy.Outcome) {
	guest, theirs := pair(t)
	done := make(chan proxy.Outcome, 1)
	go func() {
		out := b.Serve(context.Background(), proxy.Connection{Flow: b.flow, Verdict: v, Guest: theirs,
			Dial: func(ctx context.Context) (*net.TCPConn, error) {
				b.mu.Lock()
				b.dialed++
				b.mu.Unlock()
				c, err := new(net.Dialer).DialContext(ctx, "tcp", b.server)
				if err != nil {
					return nil, err
				}
				return c.(*net.TCPConn), nil
			},
			Join: func(outside *net.TCPConn, head []byte) {
				outside.Write(head)
				go func() { io.Copy(outside, theirs); outside.CloseWrite() }()
				io.Copy(theirs, outside)
				outside.Close()
			},
		})
		if out.Err != nil {
			theirs.SetLinger(0)
		}
		theirs.Close()
		done <- out
	}()
	return guest, done
}

var inspect = policy.Verdict{Action: policy.Inspect}

// said is what a server was asked, one line each.
type said struct {
	mu    sync.Mutex
	lines []string
}

func (s *said) note(r *http.Request, body []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lines = append(s.lines, fmt.Sprintf("%s %s %s %s", r.Method, r.Host, r.RequestURI, body))
}

func (s *said) all() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.lines)
}

// webServer answers requests with what they were.
func webServer(t *testing.T, b *bench) *said {
	var asked said
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		asked.note(r, body)
		w.Write([]byte("hello " + r.Host + string(body)))
	}))
	t.Cleanup(s.Close)
	b.server = s.Listener.Addr().String()
	return &asked
}

// TestHTTP sends bytes as they are, and says what is to come of them: the statuses that come back, and what the server hears.
func TestHTTP(t *testing.T) {
	for name, c := range map[string]struct {
		send  string
		want  []int
		hears []string
	}{
		"one":                  {"GET / HTTP/1.1\r\nHost: api.example.org\r\nConnection: close\r\n\r\n", []int{200}, []string{"GET api.example.org / "}},
		"port in host":         {"GET / HTTP/1.1\r\nHost: api.example.org:80\r\nConnection: close\r\n\r\n", []int{200}, []string{"GET api.example.org:80 / "}},
		"HTTP/1.0":             {"GET / HTTP/1.0\r\nHost: api.example.org\r\n\r\n", []int{200}, []string{"GET api.example.org / "}},
		"kept alive":           {"GET /1 HTTP/1.1\r\nHost: api.example.org\r\n\r\nGET /2 HTTP/1.1\r\nHost: other.example.org\r\nConnection: close\r\n\r\n", []int{200, 200}, []string{"GET api.example.org /1 ", "GET other.example.org /2 "}},
		"body":                 {"POST / HTTP/1.1\r\nHost: api.example.org\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbody", []int{200}, []string{"POST api.example.org / body"}},
		"empty body":           {"POST / HTTP/1.1\r\nHost: api.example.org\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", []int{200}, []string{"POST api.example.org / "}},
		"chunks":               {"POST / HTTP/1.1\r\nHost: api.example.org\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n2\r\nbo\r\n2\r\ndy\r\n0\r\n\r\n", []int{200}, []string{"POST api.example.org / body"}},
		"expect":               {"POST / HTTP/1.1\r\nHost: api.example.org\r\nExpect: 100-continue\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbody", []int{100, 200}, []string{"POST api.example.org / body"}},
		"head":                 {"HEAD / HTTP/1.1\r\nHost: api.example.org\r\nConnection: close\r\n\r\n", []int{200}, []string{"HEAD api.example.org / "}},
		"another host":         {"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", []int{403}, nil},
		"no host":              {"GET / HTTP/1.1\r\n\r\n", []int{403}, nil},
		"no host 1.0":          {"GET / HTTP/1.0\r\n\r\n", []int{403}, nil},
		"an address":           {"GET / HTTP/1.1\r\nHost: 93.184.216.34\r\n\r\n", []int{403}, nil},
		"not what it is at":    {"GET / HTTP/1.1\r\nHost: unresolved.example.org\r\n\r\n", []int{403}, nil},
		"two hosts":            {"GET / HTTP/1.1\r\nHost: api.example.org\r\nHost: evil.example\r\n\r\n", []int{400}, nil},
		"folded host":          {"GET / HTTP/1.1\r\nHost: api.example.org\r\n evil.example\r\n\r\n", []int{400}, nil},
		"space before colon":   {"GET / HTTP/1.1\r\nHost : evil.example\r\nHost: api.example.org\r\n\r\n", []int{400}, nil},
		"absolute":             {"GET http://api.example.org/x HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n", []int{200}, []string{"GET api.example.org /x "}},
		"absolute elsewhere":   {"GET http://evil.example/x HTTP/1.1\r\nHost: api.example.org\r\n\r\n", []int{403}, nil},
		"user in absolute":     {"GET http://api.example.org@evil.example/ HTTP/1.1\r\nHost: api.example.org\r\n\r\n", []int{403}, nil},
		"connect":              {"CONNECT api.example.org:443 HTTP/1.1\r\nHost: api.example.org\r\n\r\n", []int{403}, nil},
		"pipelined elsewhere":  {"GET /1 HTTP/1.1\r\nHost: api.example.org\r\n\r\nGET /2 HTTP/1.1\r\nHost: evil.example\r\n\r\n", []int{200, 403}, []string{"GET api.example.org /1 "}},
		"smuggled by length":   {"POST /1 HTTP/1.1\r\nHost: api.example.org\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /2 HTTP/1.1\r\nHost: evil.example\r\n\r\n", []int{200, 403}, []string{"POST api.example.org /1 "}},
		"smuggled by encoding": {"POST /1 HTTP/1.1\r\nHost: api.example.org\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\nGET /2 HTTP/1.1\r\nHost: evil.example\r\n\r\n", []int{400}, nil},
		"two lengths":          {"POST /1 HTTP/1.1\r\nHost: api.example.org\r\nContent-Length: 1\r\nContent-Length: 50\r\n\r\nxGET /2 HTTP/1.1\r\nHost: evil.example\r\n\r\n", []int{400}, nil},
		"h2c":                  {"GET / HTTP/1.1\r\nHost: api.example.org\r\nConnection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n", []int{200}, []string{"GET api.example.org / "}},
		"rubbish":              {"GET / HTTP/1.1\r\nno colon\r\n\r\n", []int{400}, nil},
		"endless head":         {"GET / HTTP/1.1\r\nHost: api.example.org\r\nX: " + strings.Repeat("x", 1<<17) + "\r\n\r\n", []int{400}, nil},
		"wild host":            {"GET / HTTP/1.1\r\nHost: api.example.org\x00.evil.example\r\n\r\n", []int{400}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, 80, nil)
			asked := webServer(t, b)
			guest, done := b.serve(t, inspect)
			go guest.Write([]byte(c.send))
			in := bufio.NewReader(guest)
			var got []int
			method := &http.Request{Method: strings.SplitN(c.send, " ", 2)[0]}
			for {
				r, err := http.ReadResponse(in, method)
				if err != nil {
					break
				}
				body, err := io.ReadAll(r.Body)
				if err != nil {
					t.Errorf("body: %v", err)
				}
				got = append(got, r.StatusCode)
				if r.StatusCode == 403 {
					var d proxy.Denial
					if err := json.Unmarshal(body, &d); err != nil || d.Code != proxy.DenialCode || d.Rule == "" || d.Reason == "" || d.Destination != b.flow.Destination.String() {
						t.Errorf("denial %s: %v", body, err)
					}
				}
			}
			guest.Close()
			out := <-done
			if !slices.Equal(got, c.want) || !slices.Equal(asked.all(), c.hears) {
				t.Errorf("statuses %v, want %v; the server heard %q, not %q", got, c.want, asked.all(), c.hears)
			}
			if c.hears == nil && b.dialed > 0 {
				t.Error("the destination was dialled")
			}
			if (c.hears != nil) != (out.Verdict.Action == policy.Allow) {
				t.Errorf("outcome %+v", out)
			}
		})
	}
}

func TestHTTPUnreachable(t *testing.T) {
	b := newBench(t, 80, nil)
	b.server = "127.0.0.1:1"
	guest, done := b.serve(t, inspect)
	guest.Write([]byte("GET / HTTP/1.1\r\nHost: api.example.org\r\n\r\n"))
	r, err := http.ReadResponse(bufio.NewReader(guest), nil)
	if err != nil || r.StatusCode != http.StatusBadGateway {
		t.Errorf("%+v, %v", r, err)
	}
	guest.Close()
	<-done
}

// TestWebSocket lets a connection be another protocol's after a request that was judged.
func TestWebSocket(t *testing.T) {
	b := newBench(t, 80, nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	b.server = l.Addr().String()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		r, err := http.ReadRequest(bufio.NewReader(c))
		if err != nil || r.Header.Get("Upgrade") != "websocket" {
			return
		}
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nfirst")
		io.Copy(c, c)
	}()
	guest, done := b.serve(t, inspect)
	io.WriteString(guest, "GET / HTTP/1.1\r\nHost: api.example.org\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nsecond")
	in := bufio.NewReader(guest)
	r, err := http.ReadResponse(in, nil)
	if err != nil || r.StatusCode != 101 {
		t.Fatalf("%+v, %v", r, err)
	}
	guest.CloseWrite()
	if got, err := io.ReadAll(in); string(got) != "firstsecond" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	<-done
}

// TestStreaming has a response come in pieces, each of which is to arrive before the next is sent.
func TestStreaming(t *testing.T) {
	b := newBench(t, 80, nil)
	next := make(chan bool)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for range 3 {
			w.Write([]byte("piece\n"))
			w.(http.Flusher).Flush()
			<-next
		}
	}))
	defer s.Close()
	b.server = s.Listener.Addr().String()
	guest, done := b.serve(t, inspect)
	io.WriteString(guest, "GET / HTTP/1.1\r\nHost: api.example.org\r\nConnection: close\r\n\r\n")
	r, err := http.ReadResponse(bufio.NewReader(guest), nil)
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(r.Body)
	for range 3 {
		if line, err := lines.ReadString('\n'); line != "piece\n" || err != nil {
			t.Fatalf("%q, %v", line, err)
		}
		next <- true
	}
	guest.Close()
	<-done
}

// hello makes the first bytes of a TLS connection.
func hello(t testing.TB, name string, change func(*tls.Config)) []byte {
	var out bytes.Buffer
	cfg := &tls.Config{ServerName: name, InsecureSkipVerify: true}
	if change != nil {
		change(cfg)
	}
	c := tls.Client(recorder{&out}, cfg)
	if err := c.Handshake(); err == nil || out.Len() == 0 {
		t.Fatalf("no hello: %v", err)
	}
	return out.Bytes()
}

// recorder is a connection to nobody.
type recorder struct{ w io.Writer }

func (r recorder) Write(p []byte) (int, error)    { return r.w.Write(p) }
func (recorder) Read([]byte) (int, error)         { return 0, io.EOF }
func (recorder) Close() error                     { return nil }
func (recorder) LocalAddr() net.Addr              { return nil }
func (recorder) RemoteAddr() net.Addr             { return nil }
func (recorder) SetDeadline(time.Time) error      { return nil }
func (recorder) SetReadDeadline(time.Time) error  { return nil }
func (recorder) SetWriteDeadline(time.Time) error { return nil }

// inRecords puts a handshake message into records of size bytes.
func inRecords(b []byte, size int) []byte {
	message := b[5:]
	var out []byte
	for len(message) > 0 {
		n := min(size, len(message))
		out = append(out, 22, 3, 1, byte(n>>8), byte(n))
		out = append(out, message[:n]...)
		message = message[n:]
	}
	return out
}

var alertAccessDenied = []byte{21, 3, 1, 0, 2, 2, 49}

// TestTLS sends a ClientHello in pieces, and says whether it gets through.
func TestTLS(t *testing.T) {
	good, evil := hello(t, "api.example.org", nil), hello(t, "evil.example", nil)
	double := append([]byte(nil), good...)
	for name, c := range map[string]struct {
		pieces  [][]byte
		allowed bool
	}{
		"whole":              {[][]byte{good}, true},
		"byte by byte":       {slices.Collect(slices.Chunk(good, 1)), true},
		"in small records":   {[][]byte{inRecords(good, 7)}, true},
		"upper case":         {[][]byte{hello(t, "API.Example.ORG", nil)}, true},
		"another name":       {[][]byte{evil}, false},
		"another in pieces":  {slices.Collect(slices.Chunk(inRecords(evil, 3), 2)), false},
		"no name":            {[][]byte{hello(t, "", nil)}, false},
		"not what it is at":  {[][]byte{hello(t, "unresolved.example.org", nil)}, false},
		"an address":         {[][]byte{hello(t, "93.184.216.34", nil)}, false},
		"cut off":            {[][]byte{good[:len(good)-10]}, false},
		"two hellos":         {[][]byte{append(double, evil...)}, true}, // the second is for the server to refuse
		"SSH":                {[][]byte{[]byte("SSH-2.0-OpenSSH\r\n")}, false},
		"HTTP/2 at once":     {[][]byte{[]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")}, false},
		"encrypted":          {[][]byte{encrypted(t)}, false},
		"an empty record":    {[][]byte{{22, 3, 1, 0, 0}, good}, false},
		"an old SSLv2 hello": {[][]byte{{0x80, 0x2e, 1, 3, 1, 0, 0x15, 0, 0, 0, 0x10}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, 443, func(c *proxy.Config) { c.Sniff = 300 * time.Millisecond })
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			b.server = l.Addr().String()
			heard := make(chan []byte, 1)
			go func() {
				c, err := l.Accept()
				if err != nil {
					return
				}
				defer c.Close()
				all, _ := io.ReadAll(c)
				heard <- all
				c.Write([]byte("served"))
			}()
			guest, done := b.serve(t, inspect)
			for _, p := range c.pieces {
				guest.Write(p)
			}
			if c.allowed {
				guest.CloseWrite()
			}
			got, err := io.ReadAll(guest)
			guest.Close()
			out := <-done
			if allowed := out.Verdict.Action == policy.Allow; allowed != c.allowed || b.dialed > 0 != c.allowed {
				t.Errorf("outcome %+v, dialled %d times", out, b.dialed)
			}
			if c.allowed {
				if all := <-heard; !bytes.Equal(all, bytes.Join(c.pieces, nil)) || string(got) != "served" {
					t.Errorf("the server heard %d bytes, the guest %q", len(all), got)
				}
			} else if c.pieces[0][0] == 22 && !bytes.Equal(got, alertAccessDenied) {
				t.Errorf("the guest heard %x, %v", got, err)
			}
		})
	}
}

// encrypted is a ClientHello whose true name is in an encrypted one.
func encrypted(t testing.TB) []byte {
	b := hello(t, "api.example.org", nil)
	ext := []byte{0xfe, 0x0d, 0, 4, 0, 0, 1, 0}
	out := append(append([]byte(nil), b...), ext...)
	add := func(at, size, by int) {
		n := 0
		for i := range size {
			n = n<<8 | int(out[at+i])
		}
		n += by
		for i := size - 1; i >= 0; i-- {
			out[at+i] = byte(n)
			n >>= 8
		}
	}
	add(3, 2, len(ext))
	add(6, 3, len(ext))
	at := 9 + 2 + 32
	at += 1 + int(out[at])
	at += 2 + int(out[at])<<8 + int(out[at+1])
	at += 1 + int(out[at])
	add(at, 2, len(ext))
	return out
}

// TestSilence has a guest say nothing: its connection is judged by its address.
func TestSilence(t *testing.T) {
	b := newBench(t, 443, func(c *proxy.Config) { c.Sniff = 50 * time.Millisecond })
	guest, done := b.serve(t, inspect)
	if _, err := guest.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("read: %v, want a reset", err)
	}
	if out := <-done; out.Verdict.Action != policy.Deny || out.Err == nil {
		t.Errorf("outcome %+v", out)
	}
}

const (
	placeholder = "SPORE-0123456789abcdef"
	value       = "s3cr3t/with+odd=chars&more"
)

// secretBench is one with a secret for api.example.org, and that host, which answers with what it was asked.
func secretBench(t *testing.T) (*bench, *http.Client) {
	t.Helper()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("X-Authorization", r.Header.Get("Authorization"))
		user, password, _ := r.BasicAuth()
		if r.URL.Path == "/check" {
			r.ParseForm()
			fmt.Fprint(w, r.Header.Get("Authorization") == "Bearer "+value, password == value, r.URL.Query().Get("key") == value, string(body) == "token="+"s3cr3t%2Fwith%2Bodd%3Dchars%26more")
			return
		}
		fmt.Fprintf(w, "%s|%s|%s|%s|%s", r.Header.Get("Authorization"), user, password, r.URL.Query().Get("key"), body)
	}))
	ca := testAuthority(t, "api.example.org")
	s.TLS = &tls.Config{Certificates: []tls.Certificate{ca.leaf}}
	s.StartTLS()
	t.Cleanup(s.Close)
	b := newBench(t, 443, func(c *proxy.Config) {
		c.Secrets = []proxy.Secret{
			{Secret: policy.Secret{Name: "TOKEN", Hosts: []string{"api.example.org"}}, Placeholder: placeholder, Value: value},
			{Secret: policy.Secret{Name: "ELSE", Hosts: []string{"other.example.org"}}, Placeholder: "SPORE-fedcba9876543210", Value: "another value"},
		}
		c.Roots = ca.pem
	})
	b.server = s.Listener.Addr().String()
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(b.CA()) {
		t.Fatalf("CA %q", b.CA())
	}
	client := &http.Client{Transport: &http.Transport{
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			guest, _ := b.serve(t, inspect)
			return guest, nil
		},
		TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: true,
	}}
	t.Cleanup(client.CloseIdleConnections)
	return b, client
}

func TestSecretIsPutIn(t *testing.T) {
	b, client := secretBench(t)
	for name, c := range map[string]struct {
		make func() *http.Request
		want string
	}{
		"bearer": {func() *http.Request {
			r, _ := http.NewRequest("GET", "https://api.example.org/check", nil)
			r.Header.Set("Authorization", "Bearer "+placeholder)
			return r
		}, "true false false false"},
		"basic": {func() *http.Request {
			r, _ := http.NewRequest("GET", "https://api.example.org/check", nil)
			r.SetBasicAuth("user", placeholder)
			return r
		}, "false true false false"},
		"query": {func() *http.Request {
			r, _ := http.NewRequest("GET", "https://api.example.org/check?key="+placeholder, nil)
			return r
		}, "false false true false"},
		"form": {func() *http.Request {
			r, _ := http.NewRequest("POST", "https://api.example.org/check", strings.NewReader("token="+placeholder))
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			return r
		}, "false false false true"},
		"other body": {func() *http.Request {
			r, _ := http.NewRequest("POST", "https://api.example.org/", strings.NewReader(placeholder))
			return r
		}, "||||" + placeholder},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := client.Do(c.make())
			if err != nil {
				t.Fatal(err)
			}
			defer r.Body.Close()
			body, err := io.ReadAll(r.Body)
			if got := strings.ReplaceAll(strings.ReplaceAll(string(body), "true", "true "), "false", "false "); err != nil || strings.TrimSpace(strings.Join(strings.Fields(got), " ")) != c.want {
				t.Errorf("%q, %v; want %q", body, err, c.want)
			}
			if r.ProtoMajor != 1 {
				t.Errorf("%s", r.Proto)
			}
		})
	}
	if n := b.Substitutions(); n != 4 {
		t.Errorf("%d substitutions", n)
	}
}

// TestSecretIsNotGivenBack has the host say what it was told.
func TestSecretIsNotGivenBack(t *testing.T) {
	_, client := secretBench(t)
	q, _ := http.NewRequest("GET", "https://api.example.org/?key="+placeholder, nil)
	q.Header.Set("Authorization", "Bearer "+placeholder)
	r, err := client.Do(q)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil || strings.Contains(string(body), value) || strings.Contains(r.Header.Get("X-Authorization"), value) {
		t.Errorf("%v %q %v", r.Header, body, err)
	}
	if !strings.HasPrefix(string(body), "Bearer "+placeholder[:10]) || len(body) != len("Bearer "+value+"|||"+value+"|") {
		t.Errorf("%q", body)
	}
}

// TestSecretStaysWithItsHost tries to have it sent elsewhere.
func TestSecretStaysWithItsHost(t *testing.T) {
	b, client := secretBench(t)
	t.Run("another secret's placeholder", func(t *testing.T) {
		q, _ := http.NewRequest("GET", "https://api.example.org/", nil)
		q.Header.Set("Authorization", "Bearer SPORE-fedcba9876543210")
		r, err := client.Do(q)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(r.Body)
		r.Body.Close()
		if string(body) != "Bearer SPORE-fedcba9876543210||||" {
			t.Errorf("%q", body)
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		if len(b.events) != 1 || b.events[0].Rule != "secret:ELSE" {
			t.Errorf("%+v", b.events)
		}
	})
	t.Run("a request to another host", func(t *testing.T) {
		q, _ := http.NewRequest("GET", "https://api.example.org/", nil)
		q.Host = "other.example.org"
		r, err := client.Do(q)
		if err != nil {
			t.Fatal(err)
		}
		r.Body.Close()
		if r.StatusCode != http.StatusMisdirectedRequest {
			t.Errorf("%s", r.Status)
		}
	})
	t.Run("a host that cannot prove itself", func(t *testing.T) {
		dialer := client.Transport.(*http.Transport).Clone()
		dialer.TLSClientConfig.ServerName = "other.example.org" // covered by the other secret; the server is not it
		q, _ := http.NewRequest("GET", "https://other.example.org/", nil)
		q.Header.Set("Authorization", "Bearer SPORE-fedcba9876543210")
		if r, err := dialer.RoundTrip(q); err == nil || !strings.Contains(err.Error(), "bad certificate") {
			t.Errorf("%v, %v", r, err)
		}
	})
	if n := b.Substitutions(); n != 0 {
		t.Errorf("%d substitutions", n)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, e := range b.events {
		if text := fmt.Sprintf("%+v", e); strings.Contains(text, value) || strings.Contains(text, "another value") {
			t.Errorf("event %s", text)
		}
	}
}

// TestAuthorityCertifiesNoOthers has its certificate refuse what it must not be good for.
func TestAuthorityCertifiesNoOthers(t *testing.T) {
	b, _ := secretBench(t)
	block, _ := pem.Decode(b.CA())
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if !c.PermittedDNSDomainsCritical || !slices.Equal(c.PermittedDNSDomains, []string{"api.example.org", "other.example.org"}) || !c.MaxPathLenZero {
		t.Errorf("%+v", c)
	}
}

// TestSecretsAreHidden prints one in every way.
func TestSecretsAreHidden(t *testing.T) {
	s := proxy.Secret{Secret: policy.Secret{Name: "TOKEN"}, Value: value}
	for _, f := range []string{"%v", "%+v", "%#v", "%s"} {
		if text := fmt.Sprintf(f, s); strings.Contains(text, value) {
			t.Errorf("%s: %s", f, text)
		}
	}
}
