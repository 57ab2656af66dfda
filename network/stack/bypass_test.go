package stack_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/netip"
	"testing"
	"time"

	"spore/network/policy"
	"spore/network/proxy"
	"spore/network/stack"
	"spore/network/stack/stacktest"
)

const (
	allowedHost = "api.example.org"
	otherHost   = "other.example.org"
)

var (
	allowedAt = netip.MustParseAddr("93.184.216.34") // what allowedHost was resolved to
	otherAt   = netip.MustParseAddr("93.184.216.35") // another server
)

// strict is a rig that lets allowedHost be reached, and nothing else, with servers everywhere.
func strict(t testing.TB) *rig {
	var r *rig
	r = setUp(t, policy.Source{Allow: []string{allowedHost}}, func(c *stack.Config) {
		c.Names.Learn(allowedHost, allowedAt, time.Hour)
		p, err := proxy.New(proxy.Config{Policy: c.Policy, Names: c.Names, Sniff: 500 * time.Millisecond, Record: func(e policy.Event) { r.record(e) }})
		if err != nil {
			t.Fatal(err)
		}
		c.Proxy = p
	})
	return r
}

// tcpSegment is a TCP header, with a payload.
func tcpSegment(port uint16, flags byte, payload string) []byte {
	return append([]byte{0x99, 0x99, byte(port >> 8), byte(port), 0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0}, payload...)
}

func udpDatagram(port uint16, payload string) []byte {
	n := 8 + len(payload)
	return append([]byte{0x99, 0x99, byte(port >> 8), byte(port), byte(n >> 8), byte(n), 0, 0}, payload...)
}

const syn = 2

// TestPOLICY_Frames sends frames that try to get to somewhere that they may not, or to be forwarded for what they are. None of them
// may have anything dialled.
func TestPOLICY_Frames(t *testing.T) {
	us4, us6 := stacktest.Guest4.Addr(), stacktest.Guest6.Addr()
	public6 := netip.MustParseAddr("2606:4700::1111")
	r := strict(t)
	g := r.guest
	fragmented := func(payload []byte, protocol byte) [][]byte {
		return [][]byte{ipv4(g, us4, otherAt, protocol, 0x2000, nil, payload[:8]), ipv4(g, us4, otherAt, protocol, 1, nil, payload[8:])}
	}
	overlapping := func() [][]byte { // the second says that the port is another
		first, second := tcpSegment(443, syn, "0123"), tcpSegment(22, syn, "0123")
		return [][]byte{ipv4(g, us4, allowedAt, 6, 0x2000, nil, first[:16]), ipv4(g, us4, otherAt, 6, 0, nil, second)}
	}
	extension := func(kind byte, header []byte) [][]byte {
		return [][]byte{ipv6(g, us6, public6, kind, append(append([]byte{6}, header...), tcpSegment(22, syn, "")...))}
	}
	tagged := ipv4(g, us4, allowedAt, 6, 0, nil, tcpSegment(22, syn, ""))
	tagged = append(append(append([]byte(nil), tagged[:24]...), 0x81, 0, 0, 1), tagged[24:]...)
	stranger := ipv4(g, us4, allowedAt, 6, 0, nil, tcpSegment(443, syn, ""))
	stranger[23] ^= 1
	elsewhere := ipv4(g, us4, allowedAt, 6, 0, nil, tcpSegment(443, syn, ""))
	elsewhere[17] ^= 1
	badChecksum := ipv4(g, us4, otherAt, 6, 0, nil, tcpSegment(22, syn, ""))
	badChecksum[0], badChecksum[6], badChecksum[8] = 1, 0xff, 0xff
	for name, frames := range map[string][][]byte{
		"TCP":                       {ipv4(g, us4, otherAt, 6, 0, nil, tcpSegment(22, syn, ""))},
		"TCP without a SYN":         {ipv4(g, us4, allowedAt, 6, 0, nil, tcpSegment(443, 0x18, "data"))},
		"TCP SYN with data":         {ipv4(g, us4, otherAt, 6, 0, nil, tcpSegment(22, syn, "data"))},
		"UDP":                       {ipv4(g, us4, otherAt, 17, 0, nil, udpDatagram(4000, "x"))},
		"second resolver":           {ipv4(g, us4, netip.MustParseAddr("8.8.8.8"), 17, 0, nil, udpDatagram(53, "x"))},
		"second resolver by TCP":    {ipv4(g, us4, netip.MustParseAddr("8.8.8.8"), 6, 0, nil, tcpSegment(53, syn, ""))},
		"DNS over TLS":              {ipv4(g, us4, netip.MustParseAddr("1.1.1.1"), 6, 0, nil, tcpSegment(853, syn, ""))},
		"QUIC":                      {ipv4(g, us4, allowedAt, 17, 0, nil, udpDatagram(443, "\xc0\x00\x00\x00\x01"))},
		"QUIC over IPv6":            {ipv6(g, us6, public6, 17, udpDatagram(443, "\xc0\x00\x00\x00\x01"))},
		"echo request":              {r.echoRequest(otherAt, 1, 1, "x"), r.echoRequest(public6, 1, 1, "x")},
		"fragments of TCP":          fragmented(tcpSegment(22, syn, ""), 6),
		"fragments of UDP":          fragmented(udpDatagram(53, "0123456789"), 17),
		"fragments of ICMP":         fragmented([]byte("\x08\x00\x00\x000123456789"), 1),
		"fragments that overlap":    overlapping(),
		"source route":              {ipv4(g, us4, allowedAt, 6, 0, []byte{131, 7, 4, 8, 8, 8, 8, 0}, tcpSegment(443, syn, ""))},
		"hop-by-hop options":        extension(0, []byte{0, 1, 4, 0, 0, 0, 0}),
		"destination options":       extension(60, []byte{0, 1, 4, 0, 0, 0, 0}),
		"routing header":            extension(43, []byte{0, 4, 0, 0, 0, 0, 0}),
		"fragment header of 6":      extension(44, []byte{0, 0, 0, 0, 0, 0, 1}),
		"nested fragment headers":   {ipv6(g, us6, public6, 44, append([]byte{44, 0, 0, 0, 0, 0, 0, 1, 6, 0, 0, 0, 0, 0, 0, 2}, tcpSegment(22, syn, "")...))},
		"IPv4 in IPv6's clothes":    {ipv6(g, us6, netip.AddrFrom16(otherAt.As16()), 6, tcpSegment(22, syn, ""))},
		"by NAT64":                  {ipv6(g, us6, netip.MustParseAddr("64:ff9b::a9fe:a9fe"), 6, tcpSegment(80, syn, ""))},
		"by 6to4":                   {ipv6(g, us6, netip.MustParseAddr("2002:a9fe:a9fe::1"), 6, tcpSegment(80, syn, ""))},
		"metadata":                  {ipv4(g, us4, netip.MustParseAddr("169.254.169.254"), 6, 0, nil, tcpSegment(8080, syn, ""))},
		"metadata by IPv6":          {ipv6(g, us6, netip.MustParseAddr("fd00:ec2::254"), 6, tcpSegment(8080, syn, ""))},
		"loopback":                  {ipv4(g, us4, netip.MustParseAddr("127.0.0.1"), 6, 0, nil, tcpSegment(22, syn, "")), ipv6(g, us6, netip.MustParseAddr("::1"), 6, tcpSegment(22, syn, ""))},
		"this host":                 {ipv4(g, us4, netip.MustParseAddr("0.0.0.0"), 6, 0, nil, tcpSegment(22, syn, ""))},
		"private":                   {ipv4(g, us4, netip.MustParseAddr("10.0.0.1"), 6, 0, nil, tcpSegment(22, syn, ""))},
		"link-local":                {ipv6(g, us6, netip.MustParseAddr("fe80::1"), 6, tcpSegment(22, syn, ""))},
		"gateway":                   {ipv4(g, us4, stacktest.Gateway4, 6, 0, nil, tcpSegment(22, syn, ""))},
		"broadcast":                 {ipv4(g, us4, netip.MustParseAddr("255.255.255.255"), 17, 0, nil, udpDatagram(67, "x"))},
		"multicast":                 {ipv4(g, us4, netip.MustParseAddr("224.0.0.251"), 17, 0, nil, udpDatagram(5353, "x")), ipv6(g, us6, netip.MustParseAddr("ff02::fb"), 17, udpDatagram(5353, "x"))},
		"spoofed source":            {ipv4(g, allowedAt, otherAt, 17, 0, nil, udpDatagram(53, "x")), ipv6(g, public6, public6, 17, udpDatagram(53, "x"))},
		"a stranger's MAC":          {stranger},
		"to another MAC":            {elsewhere},
		"VLAN tag":                  {tagged},
		"GRE":                       {ipv4(g, us4, allowedAt, 47, 0, nil, []byte("\x00\x00\x08\x00xxxxxxxxxxxxxxxxxxxxxxxx"))},
		"IP in IP":                  {ipv4(g, us4, allowedAt, 4, 0, nil, ipv4(g, us4, otherAt, 6, 0, nil, tcpSegment(443, syn, ""))[stacktest.Header:])},
		"SCTP":                      {ipv4(g, us4, allowedAt, 132, 0, nil, make([]byte, 32))},
		"IGMP":                      {ipv4(g, us4, netip.MustParseAddr("224.0.0.22"), 2, 0, []byte{0x94, 4, 0, 0}, make([]byte, 16))},
		"router advertisement":      {ipv6(g, us6, netip.MustParseAddr("ff02::1"), 58, append([]byte{134}, make([]byte, 15)...))},
		"redirect":                  {ipv4(g, us4, stacktest.Gateway4, 1, 0, nil, append([]byte{5, 1}, make([]byte, 26)...))},
		"DHCP":                      {ipv4(g, netip.IPv4Unspecified(), netip.MustParseAddr("255.255.255.255"), 17, 0, nil, udpDatagram(67, "x"))},
		"nothing":                   {g.Head(0x0800), g.Head(0x86dd), g.Head(0x0806)},
		"less than a header":        {make([]byte, 1), make([]byte, 12), make([]byte, 25)},
		"a checksum out of bounds":  {badChecksum},
		"UDP longer than it is":     {ipv4(g, us4, allowedAt, 17, 0, nil, []byte{1, 1, 1, 187, 0xff, 0xff, 0, 0})},
		"UDP shorter than a header": {ipv4(g, us4, allowedAt, 17, 0, nil, []byte{1, 1, 1, 187, 0, 2, 0, 0})},
		"TCP header out of bounds":  {ipv4(g, us4, otherAt, 6, 0, nil, []byte("\x99\x99\x00\x16\x00\x00\x00\x01\x00\x00\x00\x00\xf0\x02\xff\xff\x00\x00\x00\x00"))},
	} {
		t.Run(name, func(t *testing.T) {
			before := r.Stats().FromGuest.Packets
			for _, f := range frames {
				g.Send(t, f)
			}
			// An echo of the gateway's comes when all before it has been judged.
			r.ping(t, stacktest.Gateway4)
			if n := r.Stats().FromGuest.Packets - before; n < uint64(len(frames)) {
				t.Errorf("%d frames of %d were read", n, len(frames))
			}
			if asked := r.world.Asked(); len(asked) > 0 {
				t.Errorf("dialled %v", asked)
			}
		})
	}
	if s := r.Stats(); s.Open != 0 && len(r.world.Asked()) > 0 {
		t.Errorf("%+v", s)
	}
}

// request sends a request from the guest and returns the status; 0 if there was none.
func (r *rig) request(t *testing.T, to netip.AddrPort, bytes string) int {
	t.Helper()
	c, err := r.dial(t, to)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, bytes)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return 0
	}
	return resp.StatusCode
}

// TestPOLICY_Names says names that are not allowed, or not those of the address.
func TestPOLICY_Names(t *testing.T) {
	r := strict(t)
	web := func(c *net.TCPConn) {
		for in := bufio.NewReader(c); ; {
			if _, err := http.ReadRequest(in); err != nil {
				return
			}
			io.WriteString(c, "HTTP/1.1 204 No Content\r\n\r\n")
		}
	}
	good, bad := netip.AddrPortFrom(allowedAt, 80), netip.AddrPortFrom(otherAt, 80)
	r.serve(t, good.String(), web)
	r.serve(t, bad.String(), web)
	if got := r.request(t, good, "GET / HTTP/1.1\r\nHost: "+allowedHost+"\r\n\r\n"); got != 204 {
		t.Errorf("what is allowed: %d", got)
	}
	n := len(r.world.Asked())
	for name, c := range map[string]struct {
		to   netip.AddrPort
		send string
	}{
		"forged host at a raw address": {bad, "GET / HTTP/1.1\r\nHost: " + allowedHost + "\r\n\r\n"},
		"another host of the address":  {good, "GET / HTTP/1.1\r\nHost: " + otherHost + "\r\n\r\n"},
		"absolute target":              {good, "GET http://" + otherHost + "/ HTTP/1.1\r\nHost: " + allowedHost + "\r\n\r\n"},
		"connect":                      {good, "CONNECT " + otherHost + ":443 HTTP/1.1\r\nHost: " + allowedHost + "\r\n\r\n"},
		"metadata":                     {netip.MustParseAddrPort("169.254.169.254:80"), "GET /latest/meta-data HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n"},
		"metadata by an allowed name":  {netip.MustParseAddrPort("169.254.169.254:80"), "GET /latest/meta-data HTTP/1.1\r\nHost: " + allowedHost + "\r\n\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := r.request(t, c.to, c.send); got != 403 {
				t.Errorf("status %d", got)
			}
			if asked := r.world.Asked()[n:]; len(asked) > 0 {
				t.Errorf("dialled %v", asked)
			}
		})
	}
	for name, to := range map[string]netip.AddrPort{"SNI at a raw address": netip.AddrPortFrom(otherAt, 443), "another SNI": netip.AddrPortFrom(allowedAt, 443)} {
		t.Run(name, func(t *testing.T) {
			server := allowedHost
			if to.Addr() == allowedAt {
				server = otherHost
			}
			c, err := r.dial(t, to)
			if err != nil {
				t.Fatal(err)
			}
			if err := tls.Client(c, &tls.Config{ServerName: server}).Handshake(); err == nil || err.Error() != "remote error: tls: access denied" {
				t.Errorf("handshake: %v", err)
			}
			if asked := r.world.Asked()[n:]; len(asked) > 0 {
				t.Errorf("dialled %v", asked)
			}
		})
	}
	t.Run("tunnel", func(t *testing.T) { // something that says no name, at the port of one that must be said
		c, err := r.dial(t, netip.AddrPortFrom(allowedAt, 443))
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, "SSH-2.0-x\r\n")
		if _, err := c.Read(make([]byte, 1)); err == nil || err == io.EOF {
			t.Errorf("read: %v", err)
		}
		if asked := r.world.Asked()[n:]; len(asked) > 0 {
			t.Errorf("dialled %v", asked)
		}
	})
}

// TestBounds opens more than there may be, of everything.
func TestBounds(t *testing.T) {
	r := setUp(t, everything, func(c *stack.Config) { c.Limits.Flows, c.Limits.Opening = 8, 4 })
	at := r.serve(t, "8.8.8.8:22", echoServer)
	server, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	for port := range uint16(100) {
		r.world.Place(netip.AddrPortFrom(at.Addr(), 1000+port), server.LocalAddr().(*net.UDPAddr).AddrPort())
		r.guest.Send(t, ipv4(r.guest, stacktest.Guest4.Addr(), at.Addr(), 17, 0, nil, udpDatagram(1000+port, "x")))
	}
	r.ping(t, stacktest.Gateway4)
	if s := r.Stats(); s.Open != 8 || s.Overload != 92 {
		t.Errorf("%+v", s)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if _, err := r.guest.DialTCP(ctx, at); err == nil {
		t.Error("one more TCP connection was made")
	}
	r.Reset()
	for r.Stats().Open > 0 {
		time.Sleep(time.Millisecond)
	}
	if _, err := r.dial(t, at); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// TestNothingIsLeft has goroutines and flows end with Close.
func TestNothingIsLeft(t *testing.T) {
	r := strict(t)
	at := r.serve(t, netip.AddrPortFrom(allowedAt, 80).String(), echoServer)
	for range 4 {
		if _, err := r.dial(t, at); err != nil { // it says nothing, and is being looked at
			t.Fatal(err)
		}
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if s := r.Stats(); s.Open != 0 {
		t.Errorf("%+v", s)
	}
	left(t)
}
