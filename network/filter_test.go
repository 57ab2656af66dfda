package network

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the golden files")

// golden compares text with a file of testdata.
func golden(t *testing.T, name, text string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(want) != text {
		t.Errorf("%s differs: go test ./network -update, and look at the difference\n%s", path, text)
	}
}

func addrOf(s string) netip.Addr { return netip.MustParseAddr(s) }

func prefixes(list ...string) (all []netip.Prefix) {
	for _, s := range list {
		all = append(all, netip.MustParsePrefix(s))
	}
	return all
}

func TestGuestRulesGolden(t *testing.T) {
	mac := MAC{0x02, 0x42, 0, 1, 2, 3}
	golden(t, "guest-dual.nft", guestRules(mac, prefixes("10.213.0.2/22", "fd01:2345:6789::2/64")))
	golden(t, "guest-ipv6.nft", guestRules(mac, prefixes("fd01:2345:6789::2/64", "2001:db8::2/64")))
}

// wire is two guests on one segment, seen from their taps.
type wire struct {
	t    *testing.T
	n    *Networks
	a, b *Attachment
	mark int
}

func newWire(t *testing.T) *wire {
	n := testNetworks(t)
	w := &wire{t: t, n: n}
	for _, to := range []**Attachment{&w.a, &w.b} {
		*to = mustAttach(t, n, Request{Choice: Choice{KindInternal, "wire"}})
	}
	return w
}

// own returns an attachment's address of a family.
func own(a *Attachment, v4 bool) string {
	i := slices.IndexFunc(a.Addresses, func(p netip.Prefix) bool { return p.Addr().Is4() == v4 })
	return a.Addresses[i].Addr().String()
}

// send writes a frame to a's tap, behind a header that leaves nothing out.
func (w *wire) send(frame []byte) {
	w.t.Helper()
	if _, err := w.a.Tap.Write(join(make([]byte, vnetHeader), frame)); err != nil {
		w.t.Fatalf("write to tap: %v", err)
	}
}

// received sends a marker, and returns what b gets before that: everything that was sent earlier and let through.
func (w *wire) received() (frames [][]byte) {
	w.t.Helper()
	w.mark++
	marker := fmt.Sprintf("marker %d", w.mark)
	w.send(ether(w.b.MAC, w.a.MAC, 0x0800, ipv4(own(w.a, true), own(w.b, true), 17, nil, udp(9, 9, marker))))
	w.b.Tap.SetReadDeadline(time.Now().Add(30 * time.Second))
	for {
		buf := make([]byte, 70<<10)
		n, err := w.b.Tap.Read(buf)
		if err != nil {
			w.t.Fatalf("read from tap: %v", err)
		}
		if bytes.HasSuffix(buf[:n], []byte(marker)) {
			return frames
		}
		// Only what a wrote: interfaces that come up have things to say too.
		if src := MAC(buf[vnetHeader+6 : vnetHeader+12]).String(); slices.Contains([]string{w.a.MAC.String(), w.b.MAC.String(), stranger.String(), broadcast.String()}, src) {
			frames = append(frames, buf[vnetHeader:n])
		}
	}
}

// A trial is one frame and what becomes of it.
type trial struct {
	name  string
	frame []byte
}

// passes wants every frame to come out at b as it went in.
func (w *wire) passes(trials []trial) {
	w.t.Helper()
	for _, tr := range trials {
		w.send(tr.frame)
		if got := w.received(); len(got) != 1 || !bytes.HasPrefix(got[0], tr.frame) {
			w.t.Errorf("%s: b received %x, want %x", tr.name, got, tr.frame)
		}
	}
}

// dropped wants none of the frames to come out at b, and each to be counted.
func (w *wire) dropped(counter func(Counters) Traffic, trials []trial) {
	w.t.Helper()
	before, err := w.n.Counters(w.a.Sandbox)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, tr := range trials {
		w.send(tr.frame)
		if got := w.received(); len(got) != 0 {
			w.t.Errorf("%s: b received %x", tr.name, got)
		}
	}
	after, err := w.n.Counters(w.a.Sandbox)
	if err != nil {
		w.t.Fatal(err)
	}
	if got := counter(after).Packets - counter(before).Packets; got != uint64(len(trials)) {
		w.t.Errorf("counted %d of %d frames: %+v, then %+v", got, len(trials), before, after)
	}
}

func spoofed(c Counters) Traffic { return c.Spoofed }
func denied(c Counters) Traffic  { return c.Denied }

func TestSwitchedGuestIsHeard(t *testing.T) {
	w := newWire(t)
	a, b := w.a.MAC, w.b.MAC
	a4, b4, a6, b6, ll := own(w.a, true), own(w.b, true), own(w.a, false), own(w.b, false), linkLocal(w.a.MAC).String()
	w.passes([]trial{
		{"ARP request", ether(broadcast, a, 0x0806, arp(1, a, a4, MAC{0, 0, 0, 0, 0, 0}, b4))},
		{"ARP reply", ether(b, a, 0x0806, arp(2, a, a4, b, b4))},
		{"ARP probe", ether(broadcast, a, 0x0806, arp(1, a, "0.0.0.0", MAC{0, 0, 0, 0, 0, 0}, a4))},
		{"UDP", ether(b, a, 0x0800, ipv4(a4, b4, 17, nil, udp(1000, 2000, "hello")))},
		{"UDP to a DHCP server's port", ether(b, a, 0x0800, ipv4(a4, b4, 17, nil, udp(68, 67, "hello")))},
		{"multicast", ether(MAC{1, 0, 0x5e, 0, 0, 0xfb}, a, 0x0800, ipv4(a4, "224.0.0.251", 17, nil, udp(5353, 5353, "hello")))},
		{"ping", ether(b, a, 0x0800, ipv4(a4, b4, 1, nil, []byte{8, 0, 0xf7, 0xfd, 0, 1, 0, 1}))},
		{"UDP over IPv6", ether(b, a, 0x86dd, ipv6(a6, b6, 17, 64, udp(1000, 2000, "hello")))},
		{"link-local UDP", ether(b, a, 0x86dd, ipv6(ll, b6, 17, 64, udp(1000, 2000, "hello")))},
		{"ping over IPv6", ether(b, a, 0x86dd, ipv6(a6, b6, 58, 64, icmp6(a6, b6, 128, 0, []byte{0, 1, 0, 1})))},
		{"neighbour solicitation", ether(MAC{0x33, 0x33, 0xff, 0, 0, 3}, a, 0x86dd, ipv6(a6, "ff02::1:ff00:3", 58, 255, icmp6(a6, "ff02::1:ff00:3", 135, 0, make([]byte, 4), addr(b6), linkOption(1, a))))},
		{"neighbour advertisement", ether(b, a, 0x86dd, ipv6(a6, b6, 58, 255, icmp6(a6, b6, 136, 0, []byte{0x60, 0, 0, 0}, addr(a6), linkOption(2, a))))},
		{"neighbour advertisement without option", ether(b, a, 0x86dd, ipv6(ll, b6, 58, 255, icmp6(ll, b6, 136, 0, []byte{0x60, 0, 0, 0}, addr(ll))))},
		{"duplicate address detection", ether(MAC{0x33, 0x33, 0xff, 0, 0, 2}, a, 0x86dd, ipv6("::", "ff02::1:ff00:2", 58, 255, icmp6("::", "ff02::1:ff00:2", 135, 0, make([]byte, 4), addr(a6), nonce())))},
		{"multicast listener report", ether(MAC{0x33, 0x33, 0, 0, 0, 0x16}, a, 0x86dd, ipv6("::", "ff02::16", 0, 1, routerAlert(58), []byte{5, 2, 0, 0, 1, 0, 0, 0}[:0], icmp6("::", "ff02::16", 143, 0, make([]byte, 4))))},
		{"first fragment", ether(b, a, 0x86dd, ipv6(a6, b6, 44, 64, fragment(17, 0, 7, true), udp(1, 2, "0123456789abcdef")))},
		{"later fragment", ether(b, a, 0x86dd, ipv6(a6, b6, 44, 64, fragment(17, 3, 7, false), []byte("rest")))},
		{"fragment of a ping", ether(b, a, 0x86dd, ipv6(a6, b6, 44, 64, fragment(58, 3, 8, false), []byte("rest")))},
	})
}

// NET-06: spoofed source MAC and IP, and ARP and neighbour messages that claim what is another's.
func TestNET06Spoofed(t *testing.T) {
	w := newWire(t)
	a, b := w.a.MAC, w.b.MAC
	a4, b4, a6, b6, ll := own(w.a, true), own(w.b, true), own(w.a, false), own(w.b, false), linkLocal(w.a.MAC).String()
	other4, other6 := w.a.Addresses[0].Masked().Addr().Next().String(), w.a.Addresses[1].Masked().Addr().Next().String()
	zero := MAC{0, 0, 0, 0, 0, 0}
	w.dropped(spoofed, []trial{
		{"another's MAC", ether(b, stranger, 0x0800, ipv4(a4, b4, 17, nil, udp(1, 2, "x")))},
		{"the receiver's MAC", ether(b, b, 0x0800, ipv4(a4, b4, 17, nil, udp(1, 2, "x")))},
		{"a group's MAC", ether(b, broadcast, 0x0806, arp(1, a, a4, zero, b4))},
		{"another's IPv4 address", ether(b, a, 0x0800, ipv4(other4, b4, 17, nil, udp(1, 2, "x")))},
		{"the receiver's IPv4 address", ether(b, a, 0x0800, ipv4(b4, b4, 17, nil, udp(1, 2, "x")))},
		{"no IPv4 address: DHCP", ether(broadcast, a, 0x0800, ipv4("0.0.0.0", "255.255.255.255", 17, nil, udp(68, 67, "x")))},
		{"a fragment from another's", ether(b, a, 0x0800, ipv4(other4, b4, 17, nil, udp(1, 2, "x")))},
		{"ARP with another's IPv4 address", ether(b, a, 0x0806, arp(2, a, other4, b, b4))},
		{"ARP with another's MAC", ether(b, a, 0x0806, arp(2, stranger, a4, b, b4))},
		{"gratuitous ARP for another's", ether(broadcast, a, 0x0806, arp(1, a, other4, zero, other4))},
		{"ARP probe for another's", ether(broadcast, a, 0x0806, arp(1, a, "0.0.0.0", zero, b4))},
		{"reverse ARP", ether(broadcast, a, 0x0806, arp(3, a, a4, a, a4))},
		{"another's IPv6 address", ether(b, a, 0x86dd, ipv6(other6, b6, 17, 64, udp(1, 2, "x")))},
		{"another's link-local address", ether(b, a, 0x86dd, ipv6("fe80::1", b6, 17, 64, udp(1, 2, "x")))},
		{"no IPv6 address", ether(b, a, 0x86dd, ipv6("::", b6, 17, 64, udp(1, 2, "x")))},
		{"IPv4 in an IPv6 frame", ether(b, a, 0x86dd, ipv4(a4, b4, 17, nil, udp(1, 2, "0123456789abcdef")))},
		{"IPv6 in an IPv4 frame", ether(b, a, 0x0800, ipv6(a6, b6, 17, 64, udp(1, 2, "x")))},
		{"advertisement for another", ether(b, a, 0x86dd, ipv6(a6, b6, 58, 255, icmp6(a6, b6, 136, 0, []byte{0x20, 0, 0, 0}, addr(other6), linkOption(2, a))))},
		{"advertisement with another's MAC", ether(b, a, 0x86dd, ipv6(a6, b6, 58, 255, icmp6(a6, b6, 136, 0, []byte{0x20, 0, 0, 0}, addr(a6), linkOption(2, stranger))))},
		{"advertisement with two options", ether(b, a, 0x86dd, ipv6(a6, b6, 58, 255, icmp6(a6, b6, 136, 0, []byte{0x20, 0, 0, 0}, addr(a6), linkOption(2, a), linkOption(2, stranger))))},
		{"solicitation with another's MAC", ether(b, a, 0x86dd, ipv6(ll, b6, 58, 255, icmp6(ll, b6, 135, 0, make([]byte, 4), addr(b6), linkOption(1, stranger))))},
		{"solicitation with two options", ether(b, a, 0x86dd, ipv6(ll, b6, 58, 255, icmp6(ll, b6, 135, 0, make([]byte, 4), addr(b6), linkOption(1, a), linkOption(1, stranger))))},
		{"address detection for another's", ether(b, a, 0x86dd, ipv6("::", "ff02::1:ff00:3", 58, 255, icmp6("::", "ff02::1:ff00:3", 135, 0, make([]byte, 4), addr(b6), nonce())))},
	})
}

// NET-06: what is a server's or a router's to say, and the metadata addresses.
func TestNET06Denied(t *testing.T) {
	w := newWire(t)
	a, b := w.a.MAC, w.b.MAC
	a4, b4, a6, b6, ll := own(w.a, true), own(w.b, true), own(w.a, false), own(w.b, false), linkLocal(w.a.MAC).String()
	ra := icmp6(ll, "ff02::1", 134, 0, []byte{64, 0, 7, 8}, make([]byte, 8), linkOption(1, a))
	all := MAC{0x33, 0x33, 0, 0, 0, 1}
	trials := []trial{
		{"DHCP server's answer", ether(b, a, 0x0800, ipv4(a4, b4, 17, nil, udp(67, 68, "x")))},
		{"DHCPv6 server's answer", ether(b, a, 0x86dd, ipv6(ll, b6, 17, 64, udp(547, 546, "x")))},
		{"router advertisement", ether(all, a, 0x86dd, ipv6(ll, "ff02::1", 58, 255, ra))},
		{"router advertisement behind options", ether(all, a, 0x86dd, ipv6(ll, "ff02::1", 60, 255, destinationOptions(58), ra))},
		{"router advertisement behind hop-by-hop options", ether(all, a, 0x86dd, ipv6(ll, "ff02::1", 0, 255, routerAlert(58), ra))},
		{"router advertisement in a fragment", ether(all, a, 0x86dd, ipv6(ll, "ff02::1", 44, 255, fragment(58, 0, 1, true), ra))},
		{"router advertisement in one whole fragment", ether(all, a, 0x86dd, ipv6(ll, "ff02::1", 44, 255, fragment(58, 0, 1, false), ra))},
		{"router advertisement whose type is in the second fragment", ether(all, a, 0x86dd, ipv6(ll, "ff02::1", 44, 255, fragment(60, 0, 1, true), destinationOptions(58)))},
		{"fragments in fragments", ether(all, a, 0x86dd, ipv6(ll, "ff02::1", 44, 255, fragment(44, 0, 1, false), fragment(58, 0, 1, false), ra))},
		{"router solicitation", ether(all, a, 0x86dd, ipv6(ll, "ff02::2", 58, 255, icmp6(ll, "ff02::2", 133, 0, make([]byte, 4), linkOption(1, a))))},
		{"redirect", ether(b, a, 0x86dd, ipv6(ll, b6, 58, 255, icmp6(ll, b6, 137, 0, make([]byte, 4), addr(a6), addr(a6))))},
		{"listener query", ether(all, a, 0x86dd, ipv6(ll, "ff02::1", 0, 1, routerAlert(58), icmp6(ll, "ff02::1", 130, 0, make([]byte, 20))))},
		{"advertisement behind options", ether(b, a, 0x86dd, ipv6(a6, b6, 60, 255, destinationOptions(58), icmp6(a6, b6, 136, 0, []byte{0x20, 0, 0, 0}, addr(a6), linkOption(2, a))))},
		{"advertisement from afar", ether(b, a, 0x86dd, ipv6(a6, b6, 58, 64, icmp6(a6, b6, 136, 0, []byte{0x20, 0, 0, 0}, addr(a6), linkOption(2, a))))},
		{"routing header", ether(b, a, 0x86dd, ipv6(a6, b6, 43, 64, join([]byte{17, 2, 0, 1, 0, 0, 0, 0}, addr("fd00:ec2::254")), udp(1, 2, "x")))},
		{"headers that end in nothing", ether(b, a, 0x86dd, ipv6(a6, b6, 60, 64, []byte{60, 200, 1, 4, 0, 0, 0, 0}))},
		{"ICMP redirect", ether(b, a, 0x0800, ipv4(a4, b4, 1, nil, []byte{5, 1, 0, 0}, addr(a4), make([]byte, 28)))},
		{"ICMP router advertisement", ether(b, a, 0x0800, ipv4(a4, b4, 1, nil, []byte{9, 0, 0, 0, 1, 2, 7, 8}, addr(a4), make([]byte, 4)))},
		{"IGMP query", ether(MAC{1, 0, 0x5e, 0, 0, 1}, a, 0x0800, ipv4(a4, "224.0.0.1", 2, nil, []byte{0x11, 100, 0xee, 0x9b, 0, 0, 0, 0}))},
		{"loose source route", ether(b, a, 0x0800, ipv4(a4, b4, 17, join([]byte{131, 7, 4}, addr("169.254.169.254"), []byte{0}), udp(1, 2, "x")))},
		{"strict source route", ether(b, a, 0x0800, ipv4(a4, b4, 17, join([]byte{137, 7, 4}, addr("169.254.169.254"), []byte{0}), udp(1, 2, "x")))},
		{"half an IPv4 header", ether(b, a, 0x0800, []byte{0x45, 0, 0, 20})},
		{"nothing but a header", ether(b, a, 0x0800)},
		{"IPv4 packet that is longer than its frame", ether(b, a, 0x0800, ipv4(a4, b4, 17, nil, udp(67, 68, "x"))[:30])},
	}
	for _, m := range []string{"169.254.169.254", "169.254.170.2", "100.100.100.200", "168.63.129.16", "192.0.0.192"} {
		trials = append(trials, trial{"metadata at " + m, ether(b, a, 0x0800, ipv4(a4, m, 17, nil, udp(1, 80, "x")))})
	}
	for _, m := range []string{"fd00:ec2::254", "fd20:ce::254", "fe80::a9fe:a9fe"} {
		trials = append(trials, trial{"metadata at " + m, ether(b, a, 0x86dd, ipv6(a6, m, 17, 64, udp(1, 80, "x")))})
	}
	w.dropped(denied, trials)
}

// NET-07: no way round the rules by a VLAN tag, by another encapsulation, or by IPv6.
func TestNET07OtherEncapsulations(t *testing.T) {
	w := newWire(t)
	a, b := w.a.MAC, w.b.MAC
	a4, b4, a6, b6 := own(w.a, true), own(w.b, true), own(w.a, false), own(w.b, false)
	good4, good6 := ipv4(a4, b4, 17, nil, udp(1, 2, "x")), ipv6(a6, b6, 17, 64, udp(1, 2, "x"))
	var trials []trial
	for _, tpid := range []int{0x8100, 0x88a8, 0x9100} {
		for _, vid := range []int{0, 1, 0xe000, 4094} {
			name := fmt.Sprintf("tag %#x %#x", tpid, vid)
			trials = append(trials,
				trial{name + " IPv4", ether(b, a, tpid, be16(vid), be16(0x0800), good4)},
				trial{name + " IPv6", ether(b, a, tpid, be16(vid), be16(0x86dd), good6)},
				trial{name + " ARP", ether(b, a, tpid, be16(vid), be16(0x0806), arp(1, a, a4, b, b4))},
				trial{name + " twice", ether(b, a, tpid, be16(vid), be16(0x8100), be16(1), be16(0x0800), good4)})
		}
	}
	trials = append(trials,
		trial{"LLC", ether(b, a, 38, []byte{0xaa, 0xaa, 3, 0, 0, 0, 8, 0}, good4)},
		trial{"LLDP", ether(b, a, 0x88cc, make([]byte, 46))},
		trial{"spanning tree", ether(MAC{1, 0x80, 0xc2, 0, 0, 0}, a, 38, []byte{0x42, 0x42, 3}, make([]byte, 35))},
		trial{"MPLS", ether(b, a, 0x8847, []byte{0, 0, 0x11, 64}, good4)},
		trial{"PPPoE", ether(b, a, 0x8864, []byte{0x11, 0, 0, 1}, be16(2+len(good4)), []byte{0, 0x21}, good4)},
		trial{"802.1X", ether(b, a, 0x888e, make([]byte, 46))},
	)
	w.dropped(denied, trials)
	w.send(ether(b, a, 0x8100, []byte{0})) // half a tag: the kernel itself drops it
	if got := w.received(); len(got) != 0 {
		t.Errorf("half a tag: b received %x", got)
	}
}

// A segmented frame goes from tap to tap as one, with its checksum left out: nothing on the way cut it up or filled it in.
func TestSegmentedFrameStaysWhole(t *testing.T) {
	w := newWire(t)
	const size = 60000
	tcp := join(be16(1000), be16(2000), make([]byte, 8), []byte{5 << 4, 0x10}, be16(1000), make([]byte, 4), bytes.Repeat([]byte("0123456789"), size/10))
	pseudo := join(addr(own(w.a, true)), addr(own(w.b, true)), []byte{0, 6}, be16(len(tcp)))
	partial := sum16(pseudo)
	binary.BigEndian.PutUint16(tcp[16:], ^binary.BigEndian.Uint16(partial))
	frame := ether(w.b.MAC, w.a.MAC, 0x0800, ipv4(own(w.a, true), own(w.b, true), 6, nil, tcp))
	header := make([]byte, vnetHeader)
	header[0], header[1] = 1, 1 // VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_TCPV4
	binary.LittleEndian.PutUint16(header[2:], 14+20+20)
	binary.LittleEndian.PutUint16(header[4:], 1448)
	binary.LittleEndian.PutUint16(header[6:], 14+20)
	binary.LittleEndian.PutUint16(header[8:], 16)
	if _, err := w.a.Tap.Write(join(header, frame)); err != nil {
		t.Fatal(err)
	}
	got := w.received()
	if len(got) != 1 || !bytes.Equal(got[0], frame) {
		t.Errorf("%d frames arrived", len(got))
	}
}

// What is on the wire and not for the guest does not get to it.
func TestGuestHearsOnlyItsOwn(t *testing.T) {
	w := newWire(t)
	c := mustAttach(t, w.n, Request{Choice: Choice{KindInternal, "wire"}})
	before, err := w.n.Counters(w.b.Sandbox)
	if err != nil {
		t.Fatal(err)
	}
	// a speaks to one whose place the bridge does not know: it floods
	w.send(ether(stranger, w.a.MAC, 0x0800, ipv4(own(w.a, true), own(c, true), 17, nil, udp(1, 2, "to nobody"))))
	if got := w.received(); len(got) != 0 {
		t.Errorf("b received %x", got)
	}
	after, err := w.n.Counters(w.b.Sandbox)
	if err != nil {
		t.Fatal(err)
	}
	if n := after.Foreign.Packets - before.Foreign.Packets; n != 1 {
		t.Errorf("%d foreign frames, want 1", n)
	}
	if err := w.n.Detach(context.Background(), c.Sandbox); err != nil {
		t.Error(err)
	}
	if _, err := w.n.Counters(c.Sandbox); err == nil || errors.Is(err, ErrNotFound) {
		t.Errorf("counters of a sandbox that is on no network: %v", err)
	}
}
