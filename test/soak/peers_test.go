package soak

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
)

// lies is which device of a machine has something wrong, so that the guest has to notice; noLie is none.
type lies string

const (
	noLie     lies = ""
	lieDisk   lies = "disk"
	lieImage  lies = "image"
	lieRNG    lies = "rng"
	lieTyped  lies = "console"
	lieStream lies = "streams"
	liePmem   lies = "pmem"
	lieNet    lies = "net"
)

func (l lies) entropy() string {
	if l == lieRNG {
		return "/dev/zero"
	}
	return "/dev/urandom"
}

// spoil changes a bit of what goes to the guest, if that is the lie.
func (l lies) spoil(which lies, b []byte) {
	if l == which {
		b[len(b)-2] ^= 1
	}
}

// Ports of the host and of the guest (guest/vsock.c).
const (
	controlPort = 1
	streamPort  = 2
	echoPort    = 7
)

// peers keep the host's side of every device busy until the machine is over, which each sees as an error of its own. Any other error is
// a finding.
func (m *machine) peers(ctx context.Context, lie lies, woken bool) map[string]func() error {
	all := map[string]func() error{
		"console": func() error { return m.typeLines(lie) },
		"net":     func() error { return m.reflect(lie, woken) },
		"streams": func() error { return m.serveStreams(lie) },
		"echo 1":  func() error { return m.callGuest(ctx, 1) },
		"echo 2":  func() error { return m.callGuest(ctx, 2) },
		"disk":    func() error { return m.touchDisk(lie) },
	}
	if woken { // nobody knows how far the typing came
		delete(all, "console")
	}
	return all
}

// line is one that the guest expects (expected in guest/console.c).
func line(n int) []byte {
	b := make([]byte, 16)
	for i := range b {
		b[i] = byte('a' + (n*7+i)%26)
	}
	b[len(b)-1] = '\n'
	return b
}

// typeLines types lines, one after the other, and wants each back.
func (m *machine) typeLines(lie lies) error {
	got := make([]byte, 16)
	for n := 0; ; n++ {
		sent := line(n)
		lie.spoil(lieTyped, sent)
		if _, err := m.typing.Write(sent); err != nil {
			return err
		}
		if _, err := io.ReadFull(m.consoleOut, got); err != nil {
			return err
		}
		if !bytes.Equal(got, sent) {
			return fmt.Errorf("line %d came back as %q", n, got)
		}
	}
}

// reflect sends every frame back. One of its own goes first, by which a guest that has woken up notices that it may send again.
func (m *machine) reflect(lie lies, woken bool) error {
	b := make([]byte, 1<<16)
	if woken {
		if _, err := m.wire.Write(b[:12+60]); err != nil {
			return err
		}
	}
	for {
		n, err := m.wire.Read(b)
		if err != nil {
			return err
		}
		lie.spoil(lieNet, b[:n])
		if _, err := m.wire.Write(b[:n]); err != nil {
			return err
		}
	}
}

// serveStreams sends back what the guest's connections bring.
func (m *machine) serveStreams(lie lies) error {
	for {
		c, err := m.calls[streamPort].Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			b := make([]byte, 32<<10)
			for {
				n, err := c.Read(b)
				if err != nil {
					return // the guest sees what is missing
				}
				lie.spoil(lieStream, b[:max(n, 2)])
				if _, err := c.Write(b[:n]); err != nil {
					return
				}
			}
		}()
	}
}

// callGuest connects to the guest again and again, and wants its bytes back.
func (m *machine) callGuest(ctx context.Context, seed uint64) error {
	r := rand.New(rand.NewPCG(seed, 0))
	sent, got := make([]byte, 4096), make([]byte, 4096)
	for {
		c, err := m.broker.Dial(ctx, echoPort)
		if err != nil {
			return err
		}
		for range 16 {
			n := 1 + r.IntN(len(sent))
			for i := range sent[:n] {
				sent[i] = byte(r.Uint32())
			}
			if _, err = c.Write(sent[:n]); err == nil {
				_, err = io.ReadFull(c, got[:n])
			}
			if err != nil {
				c.Close()
				return fmt.Errorf("connection to the guest: %w", err)
			}
			if !bytes.Equal(got[:n], sent[:n]) {
				c.Close()
				return fmt.Errorf("%d bytes came back changed", n)
			}
		}
		c.Close()
	}
}

// touchDisk reads the guest's disk, and writes to it if that is the lie.
func (m *machine) touchDisk(lie lies) error {
	b := make([]byte, 64<<10)
	for at := int64(0); !m.over.Load(); at = (at + int64(len(b))) % diskSize {
		if _, err := m.disk.ReadAt(b, at); err != nil {
			return err
		}
		if lie == lieDisk {
			if _, err := m.disk.WriteAt([]byte("x"), at); err != nil {
				return err
			}
		}
		if at == 0 {
			if err := m.disk.Sync(); err != nil {
				return err
			}
		}
	}
	return nil
}

// work is what the guest says of one kind (guest/guest.h).
type work struct {
	Name                                 [8]byte
	Rounds, Requests, Mismatches, Detail uint64
}

// name without its zeros.
func (w work) name() string { return string(bytes.TrimRight(w.Name[:], "\x00")) }

// reportMagic begins a report, and works is how many kinds it is of.
const (
	reportMagic = 0x6b616f7365726f70
	works       = 11
)

// report asks the guest what it did.
func report(c net.Conn, woken bool) (list [works]work, err error) {
	if _, err := c.Write([]byte("r")); err != nil {
		return list, err
	}
	var all struct {
		Magic, Count, Wakes uint64
		Works               [works]work
	}
	if err := binary.Read(c, binary.LittleEndian, &all); err != nil {
		return list, err
	}
	if all.Magic != reportMagic || all.Count != works {
		return list, fmt.Errorf("a report of %d works with %#x before it", all.Count, all.Magic)
	}
	if woken != (all.Wakes == 1) {
		return list, fmt.Errorf("woke %d times", all.Wakes)
	}
	return all.Works, nil
}
