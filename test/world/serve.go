package world

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// recorder writes what reached, a line each.
type recorder struct {
	mu sync.Mutex
	to *json.Encoder
}

func (r *recorder) add(x Reached) {
	r.mu.Lock()
	defer r.mu.Unlock()
	_ = r.to.Encode(x) // whoever reads has gone, and the process is about to be killed
}

// tcpPorts are served on every address; each takes TLS and HTTP, and echoes what is neither.
var tcpPorts = []int{22, 80, 443, 853, 7777, 8080}

// udpPorts are echoed on every address.
var udpPorts = []int{443, 7777}

// serve is the process in the namespace: servers on all addresses, until it is killed.
func serve(ctx context.Context, dir string, out io.Writer) error {
	r := &recorder{to: json.NewEncoder(out)}
	if err := sniff(r); err != nil {
		return err
	}
	certify, err := authority(filepath.Join(dir, caFile))
	if err != nil {
		return err
	}
	for _, port := range tcpPorts {
		l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			return err
		}
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go handle(r, c, certify)
			}
		}()
	}
	for _, port := range udpPorts {
		for _, a := range addresses { // each its own socket, or answers would come from another address
			c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, uint16(port))))
			if err != nil {
				return err
			}
			go echo(r, c)
		}
	}
	for _, a := range []netip.Addr{DNS, OtherDNS} {
		for _, network := range []string{"udp", "tcp"} {
			at := netip.AddrPortFrom(a, 53)
			s := &dns.Server{Addr: at.String(), Net: network, Handler: zone{r, at}}
			started := make(chan struct{})
			s.NotifyStartedFunc = func() { close(started) }
			failed := make(chan error, 1)
			go func() { failed <- s.ListenAndServe() }()
			select {
			case <-started:
			case err := <-failed:
				return err
			}
		}
	}
	r.add(Reached{Kind: "ready"})
	<-ctx.Done()
	return nil
}

// zone answers for the names of the world.
type zone struct {
	*recorder
	at netip.AddrPort
}

// records are the world's names.
var records = map[string][]netip.Addr{
	"allowed.test.": {Allowed, Allowed6}, "other.test.": {Allowed, Allowed6}, "forbidden.test.": {Forbidden, Forbidden6},
	"a.wild.test.": {Wild}, "wild.test.": {Wild}, "rebind.test.": {Private}, "meta.test.": {Metadata}, "mixed.test.": {Allowed, Private},
}

// ttl is what answers are good for, in seconds.
const ttl = 60

func (z zone) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	m := new(dns.Msg)
	m.SetReply(q)
	if len(q.Question) != 1 {
		m.Rcode = dns.RcodeFormatError
		_ = w.WriteMsg(m)
		return
	}
	asked := q.Question[0]
	z.add(Reached{Kind: "dns", Destination: z.at, Name: asked.Name})
	name := strings.ToLower(asked.Name)
	if name == "alias.test." { // an allowed name that leads to one that is not
		m.Answer = append(m.Answer, &dns.CNAME{Hdr: dns.RR_Header{Name: asked.Name, Rrtype: dns.TypeCNAME, Class: dns.ClassINET, Ttl: ttl}, Target: "forbidden.test."})
		name = "forbidden.test."
	}
	all, ok := records[name]
	if !ok {
		m.Rcode = dns.RcodeNameError
	}
	for _, a := range all {
		switch {
		case a.Is4() && asked.Qtype == dns.TypeA:
			m.Answer = append(m.Answer, &dns.A{Hdr: dns.RR_Header{Name: dns.Fqdn(name), Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: ttl}, A: a.AsSlice()})
		case a.Is6() && asked.Qtype == dns.TypeAAAA:
			m.Answer = append(m.Answer, &dns.AAAA{Hdr: dns.RR_Header{Name: dns.Fqdn(name), Rrtype: dns.TypeAAAA, Class: dns.ClassINET, Ttl: ttl}, AAAA: a.AsSlice()})
		}
	}
	_ = w.WriteMsg(m) // the one who asked may have gone
}

func echo(r *recorder, c *net.UDPConn) {
	b := make([]byte, 64<<10)
	for {
		n, from, err := c.ReadFromUDPAddrPort(b)
		if err != nil {
			return
		}
		r.add(Reached{Kind: "udp", Destination: c.LocalAddr().(*net.UDPAddr).AddrPort(), Text: clip(b[:n])})
		_, _ = c.WriteToUDPAddrPort(b[:n], from) // as above
	}
}

// handle is one TCP connection: TLS if it begins so, then HTTP if that is what follows, or an echo.
func handle(r *recorder, c net.Conn, certify func(*tls.ClientHelloInfo) (*tls.Certificate, error)) {
	defer c.Close()
	at := c.LocalAddr().(*net.TCPAddr).AddrPort()
	at = netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
	in := bufio.NewReader(c)
	first, err := in.Peek(1)
	if err != nil {
		return
	}
	if first[0] == 0x16 {
		t := tls.Server(buffered{c, in}, &tls.Config{GetCertificate: certify})
		err := t.Handshake()
		r.add(Reached{Kind: "tls", Destination: at, Name: t.ConnectionState().ServerName})
		if err != nil {
			return
		}
		c, in = t, bufio.NewReader(t)
	}
	for {
		line, err := in.Peek(4)
		if err != nil {
			return
		}
		if !strings.Contains("GET POSTPUT HEADCONNPRI ", string(line)) {
			b := make([]byte, 4<<10)
			n, err := in.Read(b)
			if err != nil {
				return
			}
			r.add(Reached{Kind: "tcp", Destination: at, Text: clip(b[:n])})
			if _, err := c.Write(b[:n]); err != nil {
				return
			}
			continue
		}
		q, err := http.ReadRequest(in)
		if err != nil {
			r.add(Reached{Kind: "tcp", Destination: at, Text: "not HTTP: " + err.Error()})
			return
		}
		body, _ := io.ReadAll(io.LimitReader(q.Body, 1<<20))
		var header strings.Builder
		_ = q.Header.Write(&header) // to memory
		r.add(Reached{Kind: "http", Destination: at, Name: q.Host, Text: q.URL.String() + " " + clip(body), Header: header.String()})
		answer := fmt.Sprintf("world %s %s\n%s", q.Host, q.URL, header.String())
		if _, err := fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(answer), answer); err != nil {
			return
		}
	}
}

func clip(b []byte) string { return string(b[:min(len(b), 512)]) }

// buffered is a connection some of which was read already.
type buffered struct {
	net.Conn
	in *bufio.Reader
}

func (b buffered) Read(p []byte) (int, error) { return b.in.Read(p) }

// authority makes a certificate authority, writes its certificate to path, and returns what certifies any name.
func authority(path string) (func(*tls.ClientHelloInfo) (*tls.Certificate, error), error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "the world's"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, key.Public(), key)
	if err != nil {
		return nil, err
	}
	if err := writePEM(path, "CERTIFICATE", der); err != nil {
		return nil, err
	}
	return func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
		leaf := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), DNSNames: []string{h.ServerName}, NotBefore: ca.NotBefore, NotAfter: ca.NotAfter}
		if h.ServerName == "" {
			leaf.DNSNames = []string{"nameless.test"}
		}
		der, err := x509.CreateCertificate(rand.Reader, leaf, ca, key.Public(), key)
		return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
	}, nil
}
