package net

import (
	"bytes"
	"runtime"
	"testing"
	"time"

	"spore/guestmem"
	"spore/virtio"
	"spore/virtio/net/nettest"
	"spore/virtio/rate"
	"spore/virtio/virtiotest"
)

// TestNET01_HostileFrames sends what no driver should. Nothing of it reaches the network, and the device goes on.
func TestNET01_HostileFrames(t *testing.T) {
	ip := frame(1000, 0)
	for _, c := range []struct {
		name    string
		header  []byte
		frame   []byte
		counter string
	}{
		{"no header", nil, nil, "malformed"},
		{"a short header", plain[:11], nil, "malformed"},
		{"no frame", plain, nil, "oversized"},
		{"a short frame", plain, ip[:13], "oversized"},
		{"a frame above the MTU", plain, frame(1519, 0), "oversized"},
		{"a frame of 64 KiB and more", hdr(needsCsum, gsoTCPv4, 54, 1448, 34, 16), frame(maxFrame+1, 0), "oversized"},
		{"a checksum that starts past the end", hdr(needsCsum, 0, 0, 0, 1001, 0), ip, "bad_offload"},
		{"a checksum that ends past the end", hdr(needsCsum, 0, 0, 0, 983, 16), ip, "bad_offload"},
		{"a checksum offset that would wrap", hdr(needsCsum, 0, 0, 0, 65535, 65535), ip, "bad_offload"},
		{"a checksum of the Ethernet header", hdr(needsCsum, 0, 0, 0, 13, 6), ip, "bad_offload"},
		{"segments of no size", hdr(needsCsum, gsoTCPv4, 54, 0, 34, 16), ip, "bad_offload"},
		{"segments of a byte", hdr(needsCsum, gsoTCPv4, 54, 1, 34, 16), ip, "bad_offload"},
		{"segments without a checksum", hdr(0, gsoTCPv4, 54, 1448, 34, 16), ip, "bad_offload"},
		{"headers longer than the frame", hdr(needsCsum, gsoTCPv6, 1001, 1448, 34, 16), ip, "bad_offload"},
		{"a TCP header past the end", hdr(needsCsum, gsoTCPv4, 54, 1448, 981, 16), ip, "bad_offload"},
		{"UDP fragments", hdr(needsCsum, 3, 54, 1448, 34, 6), ip, "bad_offload"},
		{"UDP segments", hdr(needsCsum, 5, 54, 1448, 34, 6), ip, "bad_offload"},
		{"an unknown kind of segments", hdr(needsCsum, 0x7f, 54, 1448, 34, 16), ip, "bad_offload"},
		{"congestion marks on nothing", hdr(needsCsum, gsoECN, 54, 1448, 34, 16), ip, "bad_offload"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := start(t, Config{Offload: true, MTU: 1500}, virtiotest.All)
			m.transmit(with(c.header, c.frame))
			if n := m.count(c.counter); n != 1 {
				t.Errorf("%s is %d, want 1; %v", c.counter, n, m.dev.Counters())
			}
			if _, _, sent := m.tap.Next(); sent {
				t.Error("the frame was sent")
			}
			use(t, m)
		})
	}
	t.Run("a writable descriptor", func(t *testing.T) {
		m := start(t, Config{}, virtiotest.All)
		m.Submit(transmitQueue, virtiotest.Buffer{Data: with(plain, ip)}, virtiotest.Buffer{Len: 64})
		m.WaitUsed(transmitQueue, 1)
		if _, _, sent := m.tap.Next(); sent || m.count("malformed") != 1 {
			t.Error("the frame was sent")
		}
		use(t, m)
	})
}

// TestHeaderIsMadeAnew sends headers that are fine: the network gets what was understood of them and zeros for the rest.
func TestHeaderIsMadeAnew(t *testing.T) {
	le := func(h []byte) []byte { h[10], h[11] = 0x34, 0x12; return h }
	m := start(t, Config{Offload: true, MTU: 1500}, virtiotest.All)
	for _, c := range []struct {
		name     string
		in, want []byte
		n        int
	}{
		{"nothing asked for", le(hdr(0, 0, 99, 99, 99, 99)), hdr(0, 0, 0, 0, 0, 0), 60},
		{"flags that are not the driver's", hdr(0xfe, 0, 0, 0, 0, 0), hdr(0, 0, 0, 0, 0, 0), 60},
		{"a checksum", le(hdr(0xff, 0, 99, 99, 34, 16)), hdr(needsCsum, 0, 0, 0, 34, 16), 60},
		{"a large segment", le(hdr(needsCsum, gsoTCPv4, 54, 1448, 34, 16)), hdr(needsCsum, gsoTCPv4, 54, 1448, 34, 16), 60000},
		{"a marked one", hdr(needsCsum, gsoTCPv6|gsoECN, 74, 1428, 54, 16), hdr(needsCsum, gsoTCPv6|gsoECN, 74, 1428, 54, 16), 65549},
	} {
		out := frame(c.n, 3)
		m.transmit(with(c.in, out), 12, 100, 4096)
		h, f := m.tap.Receive()
		if !bytes.Equal(h, c.want) || !bytes.Equal(f, out) {
			t.Errorf("%s: header %x, want %x; %d bytes", c.name, h, c.want, len(f))
		}
	}
}

// TestNET02_NegotiatedFeaturesOnly leaves out one feature after the other: the header stays 12 bytes long, and what was not
// negotiated is not done.
func TestNET02_NegotiatedFeaturesOnly(t *testing.T) {
	large := func(gso byte) []byte { return hdr(needsCsum, gso, 54, 1448, 34, 16) }
	for _, c := range []struct {
		name    string
		without uint64
		header  []byte
	}{
		{"the device's checksum", featureCsum, hdr(needsCsum, 0, 0, 0, 34, 16)},
		{"the device's segments", featureHostTSO4, large(gsoTCPv4)},
		{"the device's segments of IPv6", featureHostTSO6, large(gsoTCPv6)},
		{"the device's marked segments", featureHostECN, large(gsoTCPv4 | gsoECN)},
	} {
		m := start(t, Config{Offload: true}, virtiotest.All&^c.without)
		m.transmit(with(c.header, frame(1000, 0)))
		if _, _, sent := m.tap.Next(); sent || m.count("bad_offload") != 1 {
			t.Errorf("%s: sent although it was not negotiated", c.name)
		}
		use(t, m)
	}
	for _, c := range []struct {
		name    string
		without uint64
		header  []byte
	}{
		{"the guest's checksum", featureGuestCsum, hdr(needsCsum, 0, 0, 0, 34, 16)},
		{"the guest's segments", featureGuestTSO4, large(gsoTCPv4)},
		{"the guest's segments of IPv6", featureGuestTSO6, large(gsoTCPv6)},
		{"the guest's marked segments", featureGuestECN, large(gsoTCPv4 | gsoECN)},
		{"what nobody offered", 0, large(5)},
	} {
		m := start(t, Config{Offload: true}, virtiotest.All&^c.without)
		m.tap.Send(c.header, frame(1000, 0))
		use(t, m)
		if n := m.count("bad_offload"); n != 1 {
			t.Errorf("%s: %d frames dropped, want 1", c.name, n)
		}
	}
	m := start(t, Config{}, virtiotest.All&^featureMergeable)
	use(t, m)
	_, at := m.Submit(receiveQueue, virtiotest.Buffer{Len: headerSize}, virtiotest.Buffer{Len: 1514})
	m.tap.Send(hdr(dataValid, 0, 0, 0, 0, 0), frame(1514, 4))
	m.WaitUsed(receiveQueue, 1)
	if got := m.Bytes(at[0], headerSize); !bytes.Equal(got, []byte{10: 1, 11: 0}) {
		t.Errorf("header %x: a valid checksum that was not negotiated", got)
	}
	if !bytes.Equal(m.Bytes(at[1], 1514), frame(1514, 4)) {
		t.Error("received another frame than was sent")
	}
}

// TestNET03_ReceiveBuffers posts buffers that are too small or too few.
func TestNET03_ReceiveBuffers(t *testing.T) {
	t.Run("smaller than a header", func(t *testing.T) {
		m := start(t, Config{}, virtiotest.All)
		for _, n := range []int{1, 2, 11} {
			m.Submit(receiveQueue, virtiotest.Buffer{Len: n})
			if u := m.WaitUsed(receiveQueue, 1); u[0].Len != 0 {
				t.Errorf("%d bytes written to a buffer of %d", u[0].Len, n)
			}
		}
		m.SubmitRaw(receiveQueue, virtiotest.Desc{Addr: 1 << 20, Flags: virtiotest.Write})
		m.WaitUsed(receiveQueue, 1)
		if n := m.count("malformed"); n != 4 {
			t.Errorf("%d malformed, want 4", n)
		}
		use(t, m)
	})
	t.Run("many for one frame", func(t *testing.T) {
		m := start(t, Config{Offload: true}, virtiotest.All)
		in := frame(400, 9)
		type posted struct {
			at []guestmem.GPA
			n  []int
		}
		var all []posted
		for i := range 30 { // as small as they may be, in pieces of a byte, or a few bytes more
			n := []int{1, 11 + i%7}
			buffers := []virtiotest.Buffer{{Len: n[0]}, {Len: n[1]}}
			_, at := m.Submit(receiveQueue, buffers...)
			all = append(all, posted{at, n})
		}
		m.tap.Send(plain, in)
		var got []byte
		used := m.WaitUsed(receiveQueue, 1)
		for i, u := range used {
			b := append(m.Bytes(all[i].at[0], all[i].n[0]), m.Bytes(all[i].at[1], all[i].n[1])...)
			got = append(got, b[:u.Len]...)
		}
		if int(got[10]) != len(used) || !bytes.Equal(got[headerSize:], in) {
			t.Errorf("%d buffers, of which the header says %d; %d bytes", len(used), got[10], len(got))
		}
	})
	t.Run("too few at first", func(t *testing.T) {
		m := start(t, Config{Offload: true}, virtiotest.All)
		in := frame(3000, 9)
		_, a := m.Submit(receiveQueue, virtiotest.Buffer{Len: 1000})
		m.tap.Send(hdr(needsCsum, gsoTCPv4, 54, 1448, 34, 16), in)
		m.Await("a wait for more", func() bool {
			if m.count("starved") > 0 { // by luck the frame had not been there when the buffer was
				return true
			}
			return len(m.Completed(receiveQueue)) == 0
		})
		_, b := m.Submit(receiveQueue, virtiotest.Buffer{Len: 1500})
		_, c := m.Submit(receiveQueue, virtiotest.Buffer{Len: 1500})
		if u := m.WaitUsed(receiveQueue, 3); u[2].Len != 512 {
			t.Errorf("%d bytes in the last", u[2].Len)
		}
		got := append(append(m.Bytes(a[0], 1000), m.Bytes(b[0], 1500)...), m.Bytes(c[0], 512)...)
		if got[10] != 3 || !bytes.Equal(got[headerSize:], in) {
			t.Error("received another frame than was sent")
		}
		use(t, m)
	})
	t.Run("too few for good", func(t *testing.T) {
		m := start(t, Config{Offload: true}, virtiotest.All)
		m.Submit(receiveQueue, virtiotest.Buffer{Len: 1000})
		m.tap.Send(plain, frame(3000, 9))
		m.tap.Send(plain, frame(300, 8))
		if u := m.WaitUsed(receiveQueue, 1); u[0].Len != 312 {
			t.Errorf("%d bytes: not the frame that has room", u[0].Len)
		}
		if n := m.count("oversized"); n != 1 {
			t.Errorf("%d frames too large, want 1", n)
		}
	})
	t.Run("too small without merging", func(t *testing.T) {
		m := start(t, Config{}, virtiotest.All&^featureMergeable)
		m.Submit(receiveQueue, virtiotest.Buffer{Len: 1000})
		m.Submit(receiveQueue, virtiotest.Buffer{Len: 1000})
		m.tap.Send(plain, frame(1500, 9))
		m.tap.Send(plain, frame(300, 8))
		if u := m.WaitUsed(receiveQueue, 1); u[0].Len != 312 || m.count("oversized") != 1 {
			t.Errorf("%d bytes; %v", u[0].Len, m.dev.Counters())
		}
	})
	t.Run("a bad one after good ones", func(t *testing.T) {
		m := start(t, Config{Offload: true}, virtiotest.All)
		m.Pause()
		m.Submit(receiveQueue, virtiotest.Buffer{Len: 1000})
		m.Submit(receiveQueue, virtiotest.Buffer{Len: 3})
		if err := m.Bus.Resume(); err != nil {
			t.Fatal(err)
		}
		m.tap.Send(plain, frame(3000, 9)) // more than there is room for, and nothing comes after the bad one
		m.tap.Send(plain, frame(300, 8))
		if u := m.WaitUsed(receiveQueue, 2); u[0].Len != 312 || u[1].Len != 0 {
			t.Errorf("used %+v", u)
		}
		use(t, m)
	})
	t.Run("nothing but bytes", func(t *testing.T) {
		m := start(t, Config{Offload: true}, virtiotest.All)
		for range 2 { // fills the ring's 64 descriptors with buffers that hold less than a frame
			var buffers []virtiotest.Buffer
			for range 32 {
				buffers = append(buffers, virtiotest.Buffer{Len: 1})
			}
			m.Submit(receiveQueue, buffers...)
		}
		m.tap.Send(plain, frame(300, 9))
		m.tap.Send(plain, frame(20, 8))
		if u := m.WaitUsed(receiveQueue, 1); u[0].Len != 32 {
			t.Errorf("used %+v", u)
		}
	})
}

// TestNET04_NoControlQueue writes to the configuration and kicks a queue that is not there.
func TestNET04_NoControlQueue(t *testing.T) {
	m := start(t, Config{}, virtiotest.All)
	for off := uint32(0); off < 64; off++ {
		m.dev.WriteConfig([]byte{0xff, 0xff, 0xff, 0xff}, off)
	}
	m.Write(virtiotest.RegConfig, 0xffffffff)
	m.Write(virtiotest.RegQueueNotify, 2)
	p := make([]byte, 6)
	if m.dev.ReadConfig(p, 0); !bytes.Equal(p, testMAC[:]) {
		t.Errorf("the address has become %x", p)
	}
	if m.Features&(1<<17) != 0 || len(m.dev.QueueSizes()) != 2 {
		t.Error("a control queue is offered")
	}
	use(t, m)
}

// TestNET05_FloodWithoutBuffers fills the descriptor while the guest has no buffers (CVE-2020-16843), then gives it some: traffic goes on.
func TestNET05_FloodWithoutBuffers(t *testing.T) {
	for _, f := range []struct {
		name string
		mask uint64
	}{{"event index", virtiotest.All}, {"flags", virtiotest.All &^ virtio.FeatureEventIdx}} {
		t.Run(f.name, func(t *testing.T) {
			m := start(t, Config{Offload: true}, f.mask)
			packet := with(plain, frame(1400, 5))
			for round := range 20 {
				sent := 0
				for m.tap.TrySend(packet) {
					sent++
				}
				if sent == 0 && round == 0 {
					t.Fatal("no packet waits")
				}
				for got := 0; got < sent; {
					n := min(8, sent-got)
					for range n {
						m.Submit(receiveQueue, virtiotest.Buffer{Len: 2048})
					}
					got += len(m.WaitUsed(receiveQueue, n))
				}
			}
			if m.count("starved") == 0 {
				t.Error("the device never lacked a buffer")
			}
			use(t, m)
		})
	}
}

// TestTransmitWaits fills the descriptor from the guest: the device waits, a pause keeps the frame, and nothing is lost or reordered.
func TestTransmitWaits(t *testing.T) {
	m := start(t, Config{Offload: true}, virtiotest.All)
	const frames = 48
	for i := range frames {
		m.Submit(transmitQueue, virtiotest.Buffer{Data: with(hdr(needsCsum, gsoTCPv4, 54, 1448, 34, 16), frame(20000, byte(i)))})
	}
	for began := time.Now(); m.count("waited") == 0; runtime.Gosched() {
		if time.Since(began) > virtiotest.Limit {
			t.Fatal("the device never waited")
		}
	}
	m.Pause()
	state, err := m.Bus.SaveState()
	if err != nil {
		t.Fatal(err)
	}
	if q := state.Queues[transmitQueue]; q.NextAvail != q.NextUsed || q.NextUsed == 0 || q.NextUsed == frames {
		t.Fatalf("paused with %d taken, %d given back", q.NextAvail, q.NextUsed)
	}
	if err := m.Bus.Resume(); err != nil {
		t.Fatal(err)
	}
	for i := range frames {
		if _, f := m.tap.Receive(); !bytes.Equal(f, frame(20000, byte(i))) {
			t.Fatalf("frame %d is another", i)
		}
	}
	m.WaitUsed(transmitQueue, frames)
}

// clock is a Clock that waiting moves.
type clock struct{ now time.Time }

func (c *clock) Now() time.Time { return c.now }
func (c *clock) After(d time.Duration) <-chan time.Time {
	c.now = c.now.Add(d)
	ch := make(chan time.Time, 1)
	ch <- c.now
	return ch
}

func TestRate(t *testing.T) {
	for _, out := range []bool{false, true} {
		c := &clock{time.Unix(1000, 0)}
		cfg, counter := Config{Clock: c, In: rate.Rate{BytesPerSecond: 1000, BytesBurst: 1}}, "received_throttled"
		if out {
			cfg, counter = Config{Clock: c, Out: rate.Rate{OpsPerSecond: 1, OpsBurst: 1}}, "transmitted_throttled"
		}
		m := start(t, cfg, virtiotest.All)
		for i := range 11 {
			if out {
				m.transmit(with(plain, frame(1000, byte(i))))
				continue
			}
			m.Submit(receiveQueue, virtiotest.Buffer{Len: 2000})
			m.tap.Send(plain, frame(1000, byte(i)))
			m.WaitUsed(receiveQueue, 1)
		}
		m.Pause()
		if took := c.now.Sub(time.Unix(1000, 0)); took < 9900*time.Millisecond || took > 12*time.Second {
			t.Errorf("11 frames took %v, want 10s", took)
		}
		if m.count(counter) == 0 {
			t.Errorf("%s not counted", counter)
		}
	}
}

// FuzzNetTx makes a chain of anything and transmits it. Whatever reaches the network is a frame behind a header that a host's kernel may
// be given.
func FuzzNetTx(f *testing.F) {
	desc := func(place, flags byte, n uint32) []byte {
		return []byte{place, flags, 0, 0, byte(n), byte(n >> 8), byte(n >> 16), byte(n >> 24)}
	}
	two := append(desc(0, virtiotest.Next, 12), desc(2, 0, 200)...)
	f.Add(two, with(plain, frame(200, 0)))
	f.Add(two, with(hdr(needsCsum, gsoTCPv4, 54, 1448, 34, 16), frame(200, 0)))
	f.Add(two, with(hdr(needsCsum, gsoTCPv4, 54, 1, 34, 16), frame(200, 0)))
	f.Add(two, with(hdr(needsCsum, 0, 0, 0, 210, 16), frame(200, 0)))
	f.Add(desc(0, 0, 5), plain)
	f.Add(append(desc(0, virtiotest.Next, 212), desc(2, virtiotest.Write, 200)...), with(plain, frame(200, 0)))
	fuzzer := virtiotest.NewFuzzer(f)
	f.Fuzz(func(t *testing.T, program, content []byte) {
		dev, tap := newDevice(t, Config{Offload: true, MTU: 1500})
		m := machine{fuzzer.Driver(t, dev), dev, tap}
		m.Fuzz(transmitQueue, program, content)
		checkSent(t, m.tap)
		if !m.NeedsReset() {
			m.Resume()
			use(t, m)
		}
	})
}

// checkSent looks at what a host's kernel would have been given.
func checkSent(t *testing.T, tap *nettest.Tap) {
	for {
		raw, f, ok := tap.Next()
		if !ok {
			return
		}
		h := header(raw)
		n := len(f)
		if n < minFrame || n > maxFrame || h.gsoType() == gsoNone && n > 1518 || h.flags()&^needsCsum != 0 || h[10] != 0 || h[11] != 0 {
			t.Errorf("sent %d bytes behind %x", n, raw)
		}
		if h.flags() != 0 && h.csumStart()+h.csumOffset()+2 > n || h.gsoType() != 0 && (h.gsoSize() < minSegment || h.headerLen() > n || h.flags() == 0) {
			t.Errorf("sent %d bytes behind %x", n, raw)
		}
	}
}
