package net

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"spore/virtio"
	"spore/virtio/net/nettest"
	"spore/virtio/rate"
	"spore/virtio/virtiotest"
)

var testMAC = [6]byte{2, 0, 0, 0, 0, 1}

// machine is a device with its network.
type machine struct {
	*virtiotest.Driver
	dev *Device
	tap *nettest.Tap
}

func newDevice(t testing.TB, cfg Config) (*Device, *nettest.Tap) {
	t.Helper()
	file, tap := nettest.New(t)
	cfg.File, cfg.MAC = file, testMAC
	d, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d, tap
}

// start makes a device and brings it to DRIVER_OK with the features in mask.
func start(t *testing.T, cfg Config, mask uint64) machine {
	t.Helper()
	dev, tap := newDevice(t, cfg)
	m := machine{virtiotest.NewDriver(t, dev), dev, tap}
	m.Negotiate(mask)
	return m
}

func (m machine) count(name string) uint64 { return m.dev.Counters()[name] }

// frame is an Ethernet frame of n bytes that look like no other's of another seed.
func frame(n int, seed byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i)*3 + byte(i>>8)*5 + seed
	}
	return b
}

// hdr is a virtio_net_hdr.
func hdr(flags, gso byte, hdrLen, gsoSize, csumStart, csumOffset uint16) []byte {
	le := binary.LittleEndian
	b := []byte{flags, gso}
	for _, v := range []uint16{hdrLen, gsoSize, csumStart, csumOffset, 0} {
		b = le.AppendUint16(b, v)
	}
	return b
}

var plain = hdr(0, 0, 0, 0, 0, 0)

// transmit sends a packet, in pieces of these lengths and the rest, and waits until it comes back.
func (m machine) transmit(packet []byte, pieces ...int) {
	m.T.Helper()
	var buffers []virtiotest.Buffer
	for _, n := range append(pieces, len(packet)) {
		n = min(n, len(packet))
		buffers = append(buffers, virtiotest.Buffer{Data: packet[:n:n]})
		packet = packet[n:]
	}
	m.Submit(transmitQueue, buffers...)
	if u := m.WaitUsed(transmitQueue, 1); u[0].Len != 0 {
		m.T.Errorf("a transmitted frame came back with %d bytes", u[0].Len)
	}
}

func with(header, frame []byte) []byte { return append(append([]byte(nil), header...), frame...) }

func TestSuite(t *testing.T) {
	taps := map[virtio.Device]*nettest.Tap{}
	virtiotest.Suite(t, virtiotest.Case{
		New: func(t *testing.T) virtio.Device {
			d, tap := newDevice(t, Config{Offload: true, MTU: 1500})
			taps[d] = tap
			return d
		},
		Use: func(t *testing.T, d *virtiotest.Driver) {
			t.Helper()
			use(t, machine{d, d.Dev.(*Device), taps[d.Dev]})
		},
		Eager: []int{transmitQueue},
	})
}

// use moves one frame each way.
func use(t *testing.T, m machine) {
	t.Helper()
	_, at := m.Submit(receiveQueue, virtiotest.Buffer{Len: 5}, virtiotest.Buffer{Len: 2000})
	in := frame(700, 1)
	m.tap.Send(plain, in)
	u := m.WaitUsed(receiveQueue, 1)
	if int(u[0].Len) != headerSize+len(in) {
		t.Fatalf("received %d bytes", u[0].Len)
	}
	got := append(m.Bytes(at[0], 5), m.Bytes(at[1], int(u[0].Len)-5)...)
	if !bytes.Equal(got[headerSize:], in) || !bytes.Equal(got[:headerSize], []byte{10: 1, 11: 0}) {
		t.Errorf("received another frame than was sent, behind %x", got[:headerSize])
	}
	out := frame(900, 2)
	m.transmit(with(plain, out), 7, 20)
	for { // what the suite made of the ring before may have been a frame
		if _, f := m.tap.Receive(); bytes.Equal(f, out) {
			return
		}
	}
}

func TestConfigSpace(t *testing.T) {
	d, _ := newDevice(t, Config{MTU: 9000})
	p := make([]byte, 20)
	d.ReadConfig(p, 0)
	if want := []byte{2, 0, 0, 0, 0, 1, 1, 0, 1, 0, 0x28, 0x23, 19: 0}; !bytes.Equal(p, want) {
		t.Errorf("configuration %x, want %x", p, want)
	}
	if want := uint64(featureMAC | featureStatus | featureMergeable | featureMTU); d.Features() != want {
		t.Errorf("features %#x, want %#x", d.Features(), want)
	}
	d, _ = newDevice(t, Config{Offload: true})
	if want := uint64(featureMAC | featureStatus | featureMergeable | offloads); d.Features() != want {
		t.Errorf("features %#x, want %#x", d.Features(), want)
	}
}

func TestNewRefuses(t *testing.T) {
	regular, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	socket := func() *os.File { f, _ := nettest.New(t); return f }
	for name, cfg := range map[string]Config{
		"no descriptor": {MAC: testMAC}, "a regular file": {File: regular, MAC: testMAC}, "another device": {File: null, MAC: testMAC},
		"no address": {File: socket()}, "a group's address": {File: socket(), MAC: [6]byte{1}},
		"a small MTU": {File: socket(), MAC: testMAC, MTU: 67}, "a negative rate": {File: socket(), MAC: testMAC, In: rate.Rate{OpsBurst: -1}},
	} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestLinkDown ends the network: the guest is told, its frames are dropped, and a machine that wakes with another network has a link.
func TestLinkDown(t *testing.T) {
	m := start(t, Config{}, virtiotest.All)
	use(t, m)
	m.tap.Close()
	m.Submit(receiveQueue, virtiotest.Buffer{Len: 2000})
	status := func() byte {
		p := make([]byte, 1)
		m.dev.ReadConfig(p, 6)
		return p[0]
	}
	m.Await("the link's end", func() bool { return m.dev.down.Load() })
	if status() != 0 {
		t.Error("the link is still up")
	}
	m.transmit(with(plain, frame(100, 0)))
	if n := m.count("transmitted_dropped"); n != 1 {
		t.Errorf("%d frames dropped, want 1", n)
	}
	m.Pause()
	raw, err := m.dev.SaveState()
	if err != nil || string(raw) != `{"link_up":false}` {
		t.Fatalf("state %s, %v", raw, err)
	}
	twin, tap := newDevice(t, Config{})
	if err := twin.LoadState(raw); err != nil {
		t.Fatal(err)
	}
	n := machine{virtiotest.NewDriver(t, twin), twin, tap}
	n.Negotiate(virtiotest.All)
	n.Await("word of the link", func() bool { return n.Read(virtiotest.RegConfigGeneration) > 0 })
	use(t, n)
	for _, bad := range []string{"", "[]", `{"link_up":1}`} {
		if err := twin.LoadState(json.RawMessage(bad)); err == nil {
			t.Errorf("loaded %q", bad)
		}
	}
}

// TestPauseKeepsBuffers pauses a device that holds the guest's buffers: they are the guest's again, and the next run uses them.
func TestPauseKeepsBuffers(t *testing.T) {
	m := start(t, Config{Offload: true}, virtiotest.All)
	for range 40 {
		m.Submit(receiveQueue, virtiotest.Buffer{Len: 1536})
	}
	use40 := func(n int) {
		for i := range n {
			m.tap.Send(plain, frame(200, byte(i)))
		}
		m.WaitUsed(receiveQueue, n)
	}
	use40(10)
	for range 3 {
		m.Pause()
		state, err := m.Bus.SaveState()
		if err != nil {
			t.Fatal(err)
		}
		if q := state.Queues[receiveQueue]; q.NextAvail != q.NextUsed {
			t.Fatalf("%d buffers are in nobody's hands", q.NextAvail-q.NextUsed)
		}
		if err := m.Bus.Resume(); err != nil {
			t.Fatal(err)
		}
		use40(10)
	}
}
