package vmm

import (
	"io"
	"sync"
)

// serial is as much of a 16550A as a guest's console needs: a transmitter that is always empty, no receiver. Each
// character costs an exit, which is why it is only there for debugging.
type serial struct {
	mu        sync.Mutex
	out       io.Writer
	interrupt func()
	ier       byte
	lcr       byte
	mcr       byte
	scratch   byte
	divisor   [2]byte
	pending   bool // a transmitter-empty interrupt that IIR has not told yet
}

// Registers and bits (16550A data sheet).
const (
	serialData     = 0 // or divisor low
	serialIER      = 1 // or divisor high
	serialIIR      = 2
	serialLCR      = 3
	serialMCR      = 4
	serialLSR      = 5
	serialMSR      = 6
	serialScratch  = 7
	lcrDivisor     = 1 << 7
	ierTransmitter = 1 << 1
	iirNone        = 1
	iirTransmitter = 2
	iirFIFOs       = 3 << 6
	lsrEmpty       = 1<<5 | 1<<6
	msrConnected   = 1<<4 | 1<<5 | 1<<7
	mcrLoopback    = 1 << 4
	serialPorts    = 8
)

func (s *serial) Read(off uint64, p []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	divisor := s.lcr&lcrDivisor != 0
	switch off {
	case serialData:
		if divisor {
			p[0] = s.divisor[0]
		}
	case serialIER:
		p[0] = s.ier
		if divisor {
			p[0] = s.divisor[1]
		}
	case serialIIR:
		p[0] = iirNone | iirFIFOs
		if s.pending {
			p[0] = iirTransmitter | iirFIFOs
			s.pending = false
		}
	case serialLCR:
		p[0] = s.lcr
	case serialMCR:
		p[0] = s.mcr
	case serialLSR:
		p[0] = lsrEmpty
	case serialMSR:
		p[0] = s.modemStatus()
	case serialScratch:
		p[0] = s.scratch
	}
}

// modemStatus is the modem lines; in loopback mode they mirror MCR, by which drivers tell a real UART.
func (s *serial) modemStatus() byte {
	if s.mcr&mcrLoopback == 0 {
		return msrConnected
	}
	return (s.mcr&0x0c)<<4 | s.mcr&0x02<<3 | s.mcr&0x01<<5
}

func (s *serial) Write(off uint64, p []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	divisor := s.lcr&lcrDivisor != 0
	switch off {
	case serialData:
		if divisor {
			s.divisor[0] = p[0]
			return
		}
		if s.mcr&mcrLoopback == 0 {
			s.out.Write(p[:1]) // the writer drops what it cannot take
		}
		s.raise()
	case serialIER:
		if divisor {
			s.divisor[1] = p[0]
			return
		}
		s.ier = p[0] & 0xf
		s.raise()
	case serialLCR:
		s.lcr = p[0]
	case serialMCR:
		s.mcr = p[0] & 0x1f
	case serialScratch:
		s.scratch = p[0]
	}
}

// raise tells the guest that the transmitter is empty, if it wants to know.
func (s *serial) raise() {
	if s.ier&ierTransmitter != 0 {
		s.pending = true
		s.interrupt()
	}
}
