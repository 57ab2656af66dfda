package mediator_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"spore/network/api"
	"spore/network/mediator"
	"spore/network/policy"
	"spore/network/stack/stacktest"
)

const host = "api.example.org"

// listen listens at a port there.
func (p *place) listen(t *testing.T, address string) net.Listener {
	t.Helper()
	var l net.Listener
	var err error
	p.in(func() { l, err = net.Listen("tcp", address) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func (p *place) packet(t *testing.T, address string) net.PacketConn {
	t.Helper()
	var c net.PacketConn
	var err error
	p.in(func() { c, err = net.ListenPacket("udp", address) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// nameServer answers that host is at server.
func nameServer(t *testing.T, p *place) netip.AddrPort {
	c, l := p.packet(t, server+":0"), net.Listener(nil)
	at := c.LocalAddr().(*net.UDPAddr).AddrPort()
	l = p.listen(t, at.String())
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg)
		m.SetReply(q)
		if q.Question[0].Qtype == dns.TypeA {
			m.Answer = append(m.Answer, &dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: net.ParseIP(server)})
		}
		w.WriteMsg(m)
	})
	for _, s := range []*dns.Server{{PacketConn: c, Handler: handler}, {Listener: l, Handler: handler}} {
		go s.ActivateAndServe()
		t.Cleanup(func() { s.Shutdown() })
	}
	return at
}

// certificate is one for host, which certifies itself.
func certificate(t *testing.T) (tls.Certificate, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature, DNSNames: []string{host}}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// lookUp asks our name server from the guest.
func lookUp(t *testing.T, guest *stacktest.Guest, network, name string) *dns.Msg {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var c net.Conn
	var err error
	if at := netip.AddrPortFrom(stacktest.Gateway4, 53); network == "udp" {
		c, err = guest.DialUDP(at)
	} else {
		c, err = guest.DialTCP(ctx, at)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	q := new(dns.Msg)
	q.SetQuestion(dns.Fqdn(name), dns.TypeA)
	if network == "udp" {
		b, err := q.Pack()
		if err != nil {
			t.Fatal(err)
		}
		c.Write(b)
		b = make([]byte, 4096)
		n, err := c.Read(b)
		m := new(dns.Msg)
		if err != nil || m.Unpack(b[:n]) != nil {
			t.Fatal(err)
		}
		return m
	}
	conn := &dns.Conn{Conn: c}
	if err := conn.WriteMsg(q); err != nil {
		t.Fatal(err)
	}
	m, err := conn.ReadMsg()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestEveryPathInTheJail goes every way that there is through one spore-net in its jail: a system call that its filter does not have would
// end it.
func TestEveryPathInTheJail(t *testing.T) {
	p := newPlace(t)
	names := nameServer(t, p)
	cert, roots := certificate(t)
	authorized := make(chan string, 10)
	web := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS != nil {
			authorized <- r.Header.Get("Authorization")
		}
		io.WriteString(w, "hello")
	})
	for _, l := range []net.Listener{p.listen(t, server+":80"), tls.NewListener(p.listen(t, server+":443"), &tls.Config{Certificates: []tls.Certificate{cert}})} {
		s := &http.Server{Handler: web}
		go s.Serve(l)
		t.Cleanup(func() { s.Close() })
	}
	udp := p.packet(t, server+":4000")
	go func() {
		b := make([]byte, 1<<16)
		for {
			n, from, err := udp.ReadFrom(b)
			if err != nil {
				return
			}
			udp.WriteTo(b[:n], from)
		}
	}()
	cfg := network(policy.Source{Allow: []string{host + "@" + server + "/32", "udp://" + server + "/32:4000", "icmp://" + server + "/32", "tcp://[2001:db8::10]:4000"}})
	cfg.DNS = []netip.AddrPort{names}
	cfg.Hostname = "box"
	cfg.Roots = roots
	cfg.Secrets = []api.Secret{{Secret: policy.Secret{Name: "TOKEN", Hosts: []string{host}}, Placeholder: "SPORE-0123456789abcdef", Value: []byte("the value")}}
	outsideTCP, outsideUDP := publish(t, &cfg)
	audit, err := os.Create(filepath.Join(t.TempDir(), "audit"))
	if err != nil {
		t.Fatal(err)
	}
	m, guest := start(t, p, cfg, mediator.Files{Audit: audit, Published: []*os.File{outsideTCP.file, outsideUDP.file}})

	if a := lookUp(t, guest, "udp", host); len(a.Answer) != 1 {
		t.Fatalf("%v", a)
	}
	if a := lookUp(t, guest, "tcp", host); len(a.Answer) != 1 {
		t.Errorf("%v", a)
	}
	if a := lookUp(t, guest, "udp", "box"); len(a.Answer) != 1 || a.Answer[0].(*dns.A).A.String() != "198.18.0.2" {
		t.Errorf("%v", a)
	}
	if a := lookUp(t, guest, "udp", "evil.example"); len(a.Answer) != 0 {
		t.Errorf("%v", a)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(m.CA()) {
		t.Fatal("no CA")
	}
	client := &http.Client{Timeout: patience, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool},
		DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			_, port, _ := net.SplitHostPort(address)
			return guest.DialTCP(ctx, netip.MustParseAddrPort(server+":"+port))
		}}}
	defer client.CloseIdleConnections()
	get := func(url, authorization string) int {
		t.Helper()
		q, err := http.NewRequestWithContext(t.Context(), "GET", url, nil)
		if err != nil {
			t.Fatal(err)
		}
		q.Header.Set("Authorization", authorization)
		r, err := client.Do(q)
		if err != nil {
			t.Errorf("%s: %v", url, err)
			return 0
		}
		defer r.Body.Close()
		io.Copy(io.Discard, r.Body)
		return r.StatusCode
	}
	if got := get("http://"+host+"/", ""); got != 200 {
		t.Errorf("HTTP: %d", got)
	}
	if got := get("http://evil.example/", ""); got != 403 {
		t.Errorf("HTTP to another host: %d", got)
	}
	if got := get("https://"+host+"/", "Bearer SPORE-0123456789abcdef"); got != 200 || <-authorized != "Bearer the value" {
		t.Errorf("HTTPS with a secret: %d", got)
	}
	ping(t, guest)
	exchange(t, guest)
	through(t, guest, outsideTCP.at, outsideUDP.at)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if c, err := guest.DialTCP(ctx, netip.MustParseAddrPort(server+":4001")); err == nil {
		c.Close()
		t.Error("a port that no rule allows")
	}
	if c, err := guest.DialTCP(ctx, netip.MustParseAddrPort("[2001:db8::10]:4000")); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("a port where nobody listens: %v, %v", c, err)
	}
	s, err := m.Stats(ctx)
	t.Logf("%+v, %v; %s", s, err, status(t, m.PID))
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(audit.Name())
	if err != nil || bytes.Contains(text, []byte("the value")) || !bytes.Contains(text, []byte("evil.example")) {
		t.Errorf("%s, %v", text, err)
	}
}

// opened is a published port on this side.
type opened struct {
	at   string
	file *os.File
}

// publish opens a TCP and a UDP port for the guest's 7000.
func publish(t *testing.T, cfg *api.Config) (tcp, udp opened) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	tcp.at, udp.at = l.Addr().String(), c.LocalAddr().String()
	if tcp.file, err = l.(*net.TCPListener).File(); err != nil {
		t.Fatal(err)
	}
	if udp.file, err = c.File(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tcp.file.Close(); udp.file.Close() })
	cfg.Published = []api.Published{{Protocol: policy.TCP, Port: 7000}, {Protocol: policy.UDP, Port: 7000}}
	return tcp, udp
}

// exchange sends a datagram out and has it come back.
func exchange(t *testing.T, guest *stacktest.Guest) {
	t.Helper()
	c, err := guest.DialUDP(netip.MustParseAddrPort(server + ":4000"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	c.Write([]byte("datagram"))
	b := make([]byte, 100)
	if n, err := c.Read(b); err != nil || string(b[:n]) != "datagram" {
		t.Errorf("UDP: %q, %v", b[:n], err)
	}
}

// through goes to published ports from outside.
func through(t *testing.T, guest *stacktest.Guest, tcp, udp string) {
	t.Helper()
	l, err := guest.ListenTCP(7000)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		io.Copy(c, c)
		c.Close()
	}()
	inside, err := guest.ListenUDP(7000)
	if err != nil {
		t.Fatal(err)
	}
	defer inside.Close()
	go func() {
		b := make([]byte, 100)
		n, from, err := inside.ReadFrom(b)
		if err == nil {
			inside.WriteTo(b[:n], from)
		}
	}()
	for network, at := range map[string]string{"tcp": tcp, "udp": udp} {
		c, err := net.Dial(network, at)
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(patience))
		c.Write([]byte("from outside"))
		b := make([]byte, 12)
		if _, err := io.ReadFull(c, b); err != nil || string(b) != "from outside" {
			t.Errorf("published %s: %q, %v", network, b, err)
		}
		c.Close()
	}
}
