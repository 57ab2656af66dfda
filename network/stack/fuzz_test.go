package stack_test

import (
	"encoding/binary"
	"testing"
	"time"

	"spore/network/policy"
	"spore/network/stack"
	"spore/network/stack/stacktest"
)

// FuzzFrame gives a stack frames, each behind its length. It must live, keep its bounds, and dial nothing that the policy does not allow.
func FuzzFrame(f *testing.F) {
	g := &stacktest.Guest{}
	us, us6 := stacktest.Guest4.Addr(), stacktest.Guest6.Addr()
	for _, frames := range [][][]byte{
		{ipv4(g, us, allowedAt, 6, 0, nil, tcpSegment(443, syn, ""))},
		{ipv4(g, us, otherAt, 17, 0x2000, nil, udpDatagram(53, "01234567")[:8]), ipv4(g, us, otherAt, 17, 1, nil, []byte("01234567"))},
		{ipv4(g, us, allowedAt, 1, 0, nil, []byte("\x08\x00\x00\x000123"))},
		{ipv6(g, us6, stacktest.Gateway6, 58, []byte("\x80\x00\x00\x000123"))},
		{ipv6(g, us6, stacktest.Gateway6, 44, append([]byte{17, 0, 0, 1, 0, 0, 0, 1}, udpDatagram(53, "0123456")[:16]...))},
		{ipv4(g, us, stacktest.Gateway4, 17, 0, nil, udpDatagram(53, "query"))},
	} {
		var b []byte
		for _, frame := range frames {
			b = append(binary.LittleEndian.AppendUint16(b, uint16(len(frame))), frame...)
		}
		f.Add(b)
	}
	r := setUp(f, policy.Source{Allow: []string{"93.184.216.34/32", "udp://93.184.216.34/32", "icmp://93.184.216.34/32"}}, func(c *stack.Config) {
		c.Limits = stack.Limits{Flows: 16, Opening: 8, Memory: 1 << 20, DialTimeout: time.Second, TCPIdle: time.Second, UDPIdle: time.Second}
		c.Resolver = fakeResolver{}
		c.Record = func(policy.Event) {} // nobody looks, and there are millions
	})
	f.Fuzz(func(t *testing.T, b []byte) {
		n := uint64(0)
		before := r.Stats().FromGuest.Packets
		for len(b) > 2 && n < 64 {
			size := min(int(binary.LittleEndian.Uint16(b)), len(b)-2)
			if size > 0 {
				r.guest.Send(t, b[2:2+size])
				n++
			}
			b = b[2+size:]
		}
		// The guest's own stack may answer what comes back.
		for end := time.Now().Add(patience); r.Stats().FromGuest.Packets < before+n; time.Sleep(10 * time.Microsecond) {
			if time.Now().After(end) {
				t.Fatal("the stack does not read any more")
			}
		}
		if s := r.Stats(); s.Open > 16 {
			t.Errorf("%d flows", s.Open)
		}
		for _, a := range r.world.TakeAsked() {
			if a.Addr() != allowedAt {
				t.Errorf("dialled %v", a)
			}
		}
	})
}
