package stack

import (
	"encoding/binary"
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// slowGuest is how long a frame waits for a guest that takes none, before it is dropped. TCP sends it once more.
const slowGuest = 200 * time.Millisecond

// copied is the size of a packet up to which it is copied out of the buffer it was read into, so that a small one does not hold 64 KiB
// for as long as somebody has not read it.
const copied = 16 << 10

// endpoint is the TCP/IP stack's end of the guest's link. It carries TCP and UDP; the rest never reaches the stack.
type endpoint struct {
	link
	mtu     uint32
	frames  *os.File
	raw     syscall.RawConn
	count   *counters
	handle  func(judgement) // what is not to be delivered; the judgement lasts until it returns
	writing sync.Mutex
	stalled bool        // the guest did not take the last frame; guarded by writing
	quiet   atomic.Bool // frames to the guest are dropped

	mu         sync.RWMutex
	dispatcher stack.NetworkDispatcher
	onClose    func()

	done chan struct{} // closed when serve has returned
}

var _ stack.LinkEndpoint = (*endpoint)(nil)

// serve reads frames until the other end closes or frames is closed.
func (e *endpoint) serve() error {
	defer close(e.done)
	head := make([]byte, linkSize)
	room := buffer.NewViewSize(buffer.MaxChunkSize)
	defer func() { room.Release() }()
	parts := make([][]byte, 2)
	for {
		parts[0], parts[1] = head, room.AsSlice()
		var n int
		var err error
		closed := e.raw.Read(func(fd uintptr) bool {
			n, err = unix.Readv(int(fd), parts)
			return err != unix.EAGAIN && err != unix.EINTR
		})
		switch {
		case closed != nil || err == nil && n == 0 || err == unix.ECONNRESET:
			return nil
		case err != nil:
			return os.NewSyscallError("readv", err)
		}
		e.count.fromGuest.add(n)
		room = e.take(head[:min(n, linkSize)], room, max(0, n-linkSize))
	}
}

// take judges the frame whose packet is the first size bytes of room, and hands it on. It returns the room for the next.
func (e *endpoint) take(head []byte, room *buffer.View, size int) *buffer.View {
	j := e.judge(head, room.AsSlice()[:size])
	if j.fate != deliver {
		e.handle(j)
		return room
	}
	number := header.IPv4ProtocolNumber
	if j.source.Is6() {
		number = header.IPv6ProtocolNumber
	}
	var b buffer.Buffer
	if n := len(j.packet); n <= copied {
		b = buffer.MakeWithView(buffer.NewViewWithData(j.packet))
	} else {
		// The headers by themselves: the stack copies what they lie in, if others hold it too.
		h := headersOf(j)
		b = buffer.MakeWithView(buffer.NewViewWithData(j.packet[:h]))
		room.CapLength(n)
		room.TrimFront(h)
		if err := b.Append(room); err != nil {
			panic("bug: a view cannot be appended: " + err.Error())
		}
		room = buffer.NewViewSize(buffer.MaxChunkSize)
	}
	e.mu.RLock()
	d := e.dispatcher
	e.mu.RUnlock()
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: b})
	if d != nil {
		d.DeliverNetworkPacket(number, pkt)
	}
	pkt.DecRef()
	return room
}

// headersOf is how long the headers of a packet are that is larger than copied.
func headersOf(j judgement) int {
	n := len(j.packet) - len(j.payload)
	switch transport := j.payload; {
	case j.protocol == uint8(header.TCPProtocolNumber):
		return n + min(max(int(header.TCP(transport).DataOffset()), header.TCPMinimumSize), len(transport))
	default:
		return n + min(header.UDPMinimumSize, len(transport))
	}
}

// WritePackets implements stack.LinkWriter.
func (e *endpoint) WritePackets(list stack.PacketBufferList) (int, tcpip.Error) {
	for _, pkt := range list.AsSlice() {
		vnet := pkt.VirtioNetHeader().Push(vnetSize)
		clear(vnet)
		leaveChecksum(vnet, pkt)
		e.send(pkt.AsSlices())
	}
	return list.Len(), nil
}

// leaveChecksum leaves the transport's checksum to the guest, as a network card does: the field holds that of the pseudo header, and the
// header before the frame says where it is.
func leaveChecksum(vnet []byte, pkt *stack.PacketBuffer) {
	transport, network := pkt.TransportHeader().Slice(), pkt.NetworkHeader().Slice()
	var at int
	switch number := pkt.TransportProtocolNumber; {
	case number == header.TCPProtocolNumber && len(transport) >= header.TCPMinimumSize:
		at = header.TCPChecksumOffset
	case number == header.UDPProtocolNumber && len(transport) == header.UDPMinimumSize && header.UDP(transport).Checksum() == 0:
		at = 6
	default:
		return // a fragment, whose checksum is complete
	}
	size := uint16(len(transport) + pkt.Data().Size())
	var source, destination tcpip.Address
	if pkt.NetworkProtocolNumber == header.IPv4ProtocolNumber {
		source, destination = header.IPv4(network).SourceAddress(), header.IPv4(network).DestinationAddress()
	} else {
		source, destination = header.IPv6(network).SourceAddress(), header.IPv6(network).DestinationAddress()
	}
	checksum.Put(transport[at:], header.PseudoHeaderChecksum(pkt.TransportProtocolNumber, source, destination, size))
	vnet[0] = vnetNeedsChecksum
	binary.LittleEndian.PutUint16(vnet[vnetChecksumStart:], uint16(ethernetSize+len(network)))
	binary.LittleEndian.PutUint16(vnet[vnetChecksumAt:], uint16(at))
}

// send gives the guest a frame, header and all, or drops it.
func (e *endpoint) send(frame [][]byte) {
	if e.quiet.Load() {
		e.count.dropped.Add(1)
		return
	}
	e.writing.Lock()
	defer e.writing.Unlock()
	var n int
	var err error
	waiting := false
	waitErr := e.raw.Write(func(fd uintptr) bool {
		n, err = unix.Writev(int(fd), frame)
		if err != unix.EAGAIN && err != unix.EINTR || e.stalled || e.quiet.Load() {
			return true
		}
		if !waiting {
			waiting = true
			e.deadline(time.Now().Add(slowGuest))
		}
		return false
	})
	if waiting {
		e.deadline(time.Time{})
	}
	// A guest that takes nothing is waited for once, not by every flow in turn.
	e.stalled = waitErr != nil || err == unix.EAGAIN
	if waitErr != nil || err != nil {
		e.count.dropped.Add(1)
		return
	}
	e.count.toGuest.add(n)
}

// deadline ends the wait for room that is going on or comes next.
func (e *endpoint) deadline(t time.Time) {
	if err := e.frames.SetWriteDeadline(t); err != nil && !errors.Is(err, os.ErrClosed) {
		panic("bug: the frames are no file of the poller's: " + err.Error())
	}
}

// SetMTU implements stack.NetworkLinkEndpoint; nobody asks for another.
func (e *endpoint) SetMTU(uint32) {}

// MTU implements stack.NetworkLinkEndpoint.
func (e *endpoint) MTU() uint32 { return e.mtu }

// MaxHeaderLength implements stack.NetworkLinkEndpoint.
func (e *endpoint) MaxHeaderLength() uint16 { return linkSize }

// LinkAddress implements stack.NetworkLinkEndpoint.
func (e *endpoint) LinkAddress() tcpip.LinkAddress { return tcpip.LinkAddress(e.gatewayMAC[:]) }

// SetLinkAddress implements stack.NetworkLinkEndpoint; nobody asks for another.
func (e *endpoint) SetLinkAddress(tcpip.LinkAddress) {}

// Capabilities implements stack.NetworkLinkEndpoint. There is nobody to resolve: what leaves is for the guest.
func (e *endpoint) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityRXChecksumOffload | stack.CapabilityTXChecksumOffload
}

// Attach implements stack.NetworkLinkEndpoint.
func (e *endpoint) Attach(d stack.NetworkDispatcher) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.dispatcher = d
}

// IsAttached implements stack.NetworkLinkEndpoint.
func (e *endpoint) IsAttached() bool {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return e.dispatcher != nil
}

// Wait implements stack.NetworkLinkEndpoint. The reader is Stack's.
func (e *endpoint) Wait() {}

// ARPHardwareType implements stack.NetworkLinkEndpoint.
func (e *endpoint) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareNone }

// AddHeader implements stack.NetworkLinkEndpoint.
func (e *endpoint) AddHeader(pkt *stack.PacketBuffer) {
	ethernet := pkt.LinkHeader().Push(ethernetSize)
	copy(ethernet, e.guestMAC[:])
	copy(ethernet[6:], e.gatewayMAC[:])
	binary.BigEndian.PutUint16(ethernet[12:], uint16(pkt.NetworkProtocolNumber))
}

// ParseHeader implements stack.NetworkLinkEndpoint.
func (e *endpoint) ParseHeader(*stack.PacketBuffer) bool { return true }

// Close implements stack.NetworkLinkEndpoint.
func (e *endpoint) Close() {
	if e.onClose != nil {
		e.onClose()
	}
}

// SetOnCloseAction implements stack.NetworkLinkEndpoint.
func (e *endpoint) SetOnCloseAction(f func()) { e.onClose = f }
