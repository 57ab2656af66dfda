// Package vsock is the virtio socket device (virtio 1.2 §5.10), stream sockets only: connections between programs in
// the guest and programs of the host.
//
// The device makes no socket and opens no path. Its connections to the host are descriptors of connected stream
// sockets that the supervisor hands over through the broker socket (package vmm/api, BrokerMessage): with the order to
// join one to a port of the guest, or as the answer to a guest that wants a port of the host.
//
// Bytes go from a host's socket straight into the guest's receive buffers, and from the guest's transmit buffers
// straight to the socket. Only what a socket does not take at once is copied, into a buffer that is bounded by the
// credit that the guest was given; the guest's own numbers bound nothing and size nothing here.
//
// At most Config.Connections exist at a time, those counted that are over but not forgotten: connections that the
// guest was told are closed and has not confirmed, and connections that the guest has closed and whose last bytes the
// host has not taken. When there is no room the oldest of these is forgotten; if there is none, the new connection is
// refused.
package vsock

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"spore/virtio"
)

// featureStream says that stream sockets are supported, virtio 1.2 §5.10.3.
const featureStream = 1 << 0

// The queues, virtio 1.2 §5.10.2.
const (
	receiveQueue  = 0
	transmitQueue = 1
	eventQueue    = 2

	queueSize      = 256
	eventQueueSize = 16
)

// configSize is struct virtio_vsock_config, virtio 1.2 §5.10.4.
const configSize = 8

// Defaults and limits of Config.
const (
	DefaultConnections = 256
	MaxConnections     = 4096
	DefaultBuffer      = 256 << 10
	MinBuffer          = 64 << 10
	MaxBuffer          = 4 << 20
	DefaultTimeout     = 10 * time.Second
)

// Config is what a Device is made of.
type Config struct {
	CID         CID           // the guest's, MinGuestCID or more, below 2³²-1
	Broker      *os.File      // this side's end of the broker socket; taken over. nil: every connection is refused
	Connections int           // at most so many at a time, at most MaxConnections; 0 is DefaultConnections
	Buffer      uint32        // bytes the guest may be ahead of the host on each, MinBuffer to MaxBuffer; 0 is DefaultBuffer
	Timeout     time.Duration // for the answer to a new connection, of the guest or the supervisor; 0 is DefaultTimeout
	Log         *slog.Logger  // nil is silent
}

// Device is a virtio socket device. It implements virtio.Device.
type Device struct {
	cid      CID
	broker   socket // zero: none
	buffer   uint32
	timeout  time.Duration
	log      *slog.Logger
	counters counters
	table    *table
	rx       *receiver

	spawn spawner // of the present Run

	mu    sync.Mutex
	last  [2]queueMark // where the last Run left the queues
	event bool         // the guest is to be told of the transport's reset
}

// New makes a Device and takes over cfg.Broker, also on error.
func New(cfg Config) (*Device, error) {
	if cfg.Connections == 0 {
		cfg.Connections = DefaultConnections
	}
	if cfg.Buffer == 0 {
		cfg.Buffer = DefaultBuffer
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = DefaultTimeout
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	d := &Device{cid: cfg.CID, buffer: cfg.Buffer, timeout: cfg.Timeout, log: cfg.Log, table: newTable(cfg.Connections)}
	d.rx = newReceiver(d)
	if cfg.Broker != nil {
		var err error
		if d.broker, err = adopt(cfg.Broker); err != nil {
			return nil, fmt.Errorf("make vsock device: take over broker: %w", err)
		}
	}
	var err error
	switch {
	case cfg.CID < MinGuestCID || cfg.CID >= 0xffff_ffff:
		err = fmt.Errorf("make vsock device: CID %d is reserved", cfg.CID)
	case cfg.Connections < 0 || cfg.Connections > MaxConnections:
		err = fmt.Errorf("make vsock device: %d connections, at most %d", cfg.Connections, MaxConnections)
	case cfg.Buffer < MinBuffer || cfg.Buffer > MaxBuffer:
		err = fmt.Errorf("make vsock device: buffer of %d bytes, not between %d and %d", cfg.Buffer, MinBuffer, MaxBuffer)
	case cfg.Timeout < 0:
		err = fmt.Errorf("make vsock device: timeout of %v", cfg.Timeout)
	}
	if err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

// Type is virtio.TypeVsock.
func (d *Device) Type() virtio.Type { return virtio.TypeVsock }

// Features is that of stream sockets.
func (d *Device) Features() uint64 { return featureStream }

// QueueSizes are those of the receive, transmit and event queues.
func (d *Device) QueueSizes() []uint16 { return []uint16{queueSize, queueSize, eventQueueSize} }

// ReadConfig reads struct virtio_vsock_config: the guest's CID.
func (d *Device) ReadConfig(p []byte, off uint32) {
	clear(p)
	var config [configSize]byte
	binary.LittleEndian.PutUint64(config[:], uint64(d.cid))
	if off < configSize {
		copy(p, config[off:])
	}
}

// WriteConfig does nothing: no field is writable.
func (d *Device) WriteConfig([]byte, uint32) {}

// Counters are the device's counters, readable while it runs, and the number of its connections.
func (d *Device) Counters() map[string]uint64 {
	m := d.counters.snapshot()
	m["connections"] = uint64(d.table.size())
	return m
}

// Reset drops all connections: their sockets are closed. Call it while Run does not run, after the driver has reset
// the device. A Run that begins with queues other than where the last one left them does it too.
func (d *Device) Reset() {
	d.drop()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.event = false
}

// drop ends all connections and forgets what was to be sent.
func (d *Device) drop() {
	for _, c := range d.table.list() {
		d.end(c, endSilently)
	}
	d.rx.clear()
}

// Close drops all connections and closes the broker socket. Call it after the last Run.
func (d *Device) Close() error {
	d.Reset()
	if d.broker.file == nil {
		return nil
	}
	if err := d.broker.file.Close(); err != nil {
		return fmt.Errorf("close vsock device: %w", err)
	}
	return nil
}

// state is what a snapshot keeps. Connections are not in it: their sockets belong to this process and its peers.
type deviceState struct {
	NextPort uint32 `json:"next_port"` // where the next host port is looked for; ports of dead connections are not reused soon
}

// SaveState leaves the connections out; those of this device stay as they are.
func (d *Device) SaveState() (json.RawMessage, error) {
	b, err := json.Marshal(deviceState{NextPort: uint32(d.table.port())})
	if err != nil {
		return nil, fmt.Errorf("save vsock state: %w", err)
	}
	return b, nil
}

// LoadState drops all connections. The next Run tells the guest that the transport was reset before anything else
// (VIRTIO_VSOCK_EVENT_TRANSPORT_RESET, virtio 1.2 §5.10.6.7): the guest ends its connections and reads its CID again.
func (d *Device) LoadState(raw json.RawMessage) error {
	var s deviceState
	if err := decode(raw, &s); err != nil {
		return fmt.Errorf("load vsock state: %w", err)
	}
	if !d.table.setPort(Port(s.NextPort)) {
		return fmt.Errorf("load vsock state: next port %#x is out of range", s.NextPort)
	}
	d.Reset()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.event = true
	return nil
}
