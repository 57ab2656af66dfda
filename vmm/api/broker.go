package api

import (
	"encoding/binary"
	"fmt"
)

// BrokerOp is the verb of a BrokerMessage.
type BrokerOp uint32

// The verbs of the vsock broker. Dial and Accept carry exactly one descriptor, a connected SOCK_STREAM socket;
// the others carry none.
const (
	BrokerDial    BrokerOp = 1 // supervisor → VMM: connect the descriptor to the guest's port GuestPort
	BrokerRequest BrokerOp = 2 // VMM → supervisor: the guest, from GuestPort, wants the host's port HostPort
	BrokerAccept  BrokerOp = 3 // supervisor → VMM: the answer to request ID
	BrokerRefuse  BrokerOp = 4 // supervisor → VMM: the answer to request ID
)

// BrokerMessageSize is the length in bytes of every encoded BrokerMessage.
const BrokerMessageSize = 16

// BrokerMessage is one datagram on the SOCK_SEQPACKET socket between the vsock device and the supervisor.
// Through it the VMM gets connected sockets without ever calling socket(2) or connect(2).
type BrokerMessage struct {
	Op        BrokerOp
	ID        uint32 // chosen by the VMM in a BrokerRequest; 0 in BrokerDial
	GuestPort uint32
	HostPort  uint32
}

// AppendTo appends the encoding, four little-endian words, to b.
func (m BrokerMessage) AppendTo(b []byte) []byte {
	for _, w := range [4]uint32{uint32(m.Op), m.ID, m.GuestPort, m.HostPort} {
		b = binary.LittleEndian.AppendUint32(b, w)
	}
	return b
}

// ParseBrokerMessage decodes one datagram. Any length but BrokerMessageSize and any unknown verb is an error.
func ParseBrokerMessage(b []byte) (BrokerMessage, error) {
	if len(b) != BrokerMessageSize {
		return BrokerMessage{}, fmt.Errorf("parse broker message: %d bytes, want %d", len(b), BrokerMessageSize)
	}
	w := func(i int) uint32 { return binary.LittleEndian.Uint32(b[4*i:]) }
	m := BrokerMessage{Op: BrokerOp(w(0)), ID: w(1), GuestPort: w(2), HostPort: w(3)}
	if m.Op < BrokerDial || m.Op > BrokerRefuse {
		return BrokerMessage{}, fmt.Errorf("parse broker message: unknown verb %d", m.Op)
	}
	return m, nil
}
