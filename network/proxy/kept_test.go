package proxy_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"testing"
	"time"

	"spore/network/policy"
	"spore/network/proxy"
)

// TestKeptConnectionOutlivesItsName: an HTTP connection may be kept for longer than its host's name stands for the address, and goes on for
// that name; no other name profits.
func TestKeptConnectionOutlivesItsName(t *testing.T) {
	var mu sync.Mutex
	now := time.Now()
	clock := func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	rules, err := policy.Parse(policy.Source{Allow: []string{"example.org", "www.example.org"}})
	if err != nil {
		t.Fatal(err)
	}
	names, addr := policy.NewNames(clock), netip.MustParseAddr("93.184.216.34")
	names.Learn("example.org", addr, time.Minute)
	names.Learn("www.example.org", addr, time.Minute)
	p, err := proxy.New(proxy.Config{Policy: rules, Names: names, Sniff: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	server := listen(t)
	go http.Serve(server, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "hello "+r.Host) }))
	l := listen(t)
	guest, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	f := policy.Flow{Protocol: policy.TCP, Destination: netip.AddrPortFrom(addr, 80)}
	done := make(chan proxy.Outcome, 1)
	go func() {
		done <- p.Serve(context.Background(), proxy.Connection{Flow: f, Verdict: rules.Connect(f, names), Guest: accepted.(*net.TCPConn),
			Dial: func(ctx context.Context) (*net.TCPConn, error) {
				c, err := (&net.Dialer{}).DialContext(ctx, "tcp", server.Addr().String())
				if err != nil {
					return nil, err
				}
				return c.(*net.TCPConn), nil
			}})
	}()
	in := bufio.NewReader(guest)
	ask := func(host string) int {
		fmt.Fprintf(guest, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", host)
		r, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			t.Fatal(err)
		}
		return r.StatusCode
	}
	if code := ask("example.org"); code != http.StatusOK {
		t.Errorf("at first: %d", code)
	}
	mu.Lock()
	now = now.Add(time.Hour)
	mu.Unlock()
	if code := ask("EXAMPLE.org:80"); code != http.StatusOK {
		t.Errorf("an hour later: %d", code)
	}
	if code := ask("www.example.org"); code != http.StatusForbidden {
		t.Errorf("another name: %d", code)
	}
	guest.Close()
	if o := <-done; o.Verdict.Action != policy.Allow || o.Name != "example.org" {
		t.Errorf("%+v", o)
	}
	accepted.Close()
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}
