package virtiotest

import (
	"encoding/binary"
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"spore/guestmem"
	"spore/virtio"
)

// programStep is the bytes of a program that make one descriptor.
const programStep = 8

// maxProgram bounds the descriptors of a program.
const maxProgram = 16

// fuzzLayout is small, since all of it is hashed twice for each chain, and large enough for a chain of more bytes than a request may have.
var fuzzLayout = layout{low: 64 << 10, high: 8 << 10, rings: 0x1000, stride: 0x2000, buffers: 28 << 10}

// Fuzzer lends one small guest memory and one set of eventfds to the drivers of a fuzz target, one driver after the other:
// to make them took longer than everything else in an execution. Make one with NewFuzzer.
type Fuzzer struct {
	mem   *guestmem.Memory
	kicks []*os.File
}

// NewFuzzer makes a fuzzer that is good until the fuzz target ends.
func NewFuzzer(f *testing.F) *Fuzzer {
	f.Helper()
	return &Fuzzer{mem: newMemory(f, fuzzLayout), kicks: newKicks(f, maxQueues)}
}

// maxQueues is how many queues a device of a Fuzzer has at most; their rings lie below the buffers.
const maxQueues = 3

// Driver makes a driver for a device that is reset, and brings it to DRIVER_OK with all its features, paused. Memory is zero. The driver and
// its device have ended before the next one is made.
func (f *Fuzzer) Driver(t *testing.T, dev virtio.Device) *Driver {
	t.Helper()
	for _, region := range f.mem.Regions() {
		clear(region.Host)
	}
	d := newDriver(t, dev, f.mem, fuzzLayout, f.kicks[:len(dev.QueueSizes())])
	t.Cleanup(func() {
		d.Close()
		for _, kick := range d.kicks {
			d.drain(kick)
		}
	})
	d.Pause() // so that it starts once, with the first chain
	d.Negotiate(All)
	return d
}

// drain takes back a kick that the device has not taken.
func (d *Driver) drain(kick *os.File) {
	raw, err := kick.SyscallConn()
	if err != nil {
		d.T.Fatal(err)
	}
	raw.Control(func(fd uintptr) {
		var b [8]byte
		if _, err = unix.Read(int(fd), b[:]); errors.Is(err, unix.EAGAIN) {
			err = nil
		}
	})
	if err != nil {
		d.T.Fatal(err)
	}
}

// Fuzz makes a chain of what program says and submits it to a queue of a device of a Fuzzer's, which must be one that
// takes its chains at once. Every 8 bytes of program are one descriptor: a byte that chooses where the buffer lies,
// one of flags, a 16-bit next (0 is the following one), a 32-bit length; at most 16 descriptors. content fills the
// readable buffers in low memory. It fails the test when the device model panics, writes memory that is not
// writable in the chain, or claims to have written more than it could. It returns what came back; nothing when the
// device asked for a reset. The device is paused before and after.
func (d *Driver) Fuzz(q int, program, content []byte) []Used {
	d.T.Helper()
	descs := d.compile(program, content)
	if len(descs) == 0 {
		return nil
	}
	d.SubmitRaw(q, descs...)
	var writable []span
	for _, desc := range descs {
		if desc.Flags&Write != 0 {
			writable = append(writable, span{desc.Addr, desc.Addr + guestmem.GPA(desc.Len)})
		}
	}
	before := d.shadow(writable...)
	d.Resume()
	var used []Used
	d.Await("end of the request", func() bool {
		needsReset := d.NeedsReset()
		used = append(used, d.Completed(q)...)
		return len(used) > 0 || needsReset
	})
	d.Pause()
	if d.shadow(writable...) != before {
		d.T.Error("memory that is not the device's has changed")
	}
	if n := d.Bus.Counters()["transport_panics"]; n != 0 {
		d.T.Errorf("the device model panicked %d times", n)
	}
	return used
}

// compile makes descriptors of a program, as Fuzz describes.
func (d *Driver) compile(program, content []byte) []Desc {
	low := guestmem.GPA(d.at.low)
	places := [...]guestmem.GPA{
		d.at.buffers, d.at.buffers + 1, (d.at.buffers + low) / 2, low - 512, highBase, highBase + guestmem.GPA(d.at.high) - 64, // fine, if short enough
		low, ^guestmem.GPA(0) - 7, 0xd0000000, d.at.rings, // not fine
	}
	var descs []Desc
	for ; len(program) >= programStep && len(descs) < maxProgram; program = program[programStep:] {
		desc := Desc{
			Addr:  places[int(program[0])%len(places)] + guestmem.GPA(program[0]/16*64),
			Flags: uint16(program[1] & 7),
			Next:  binary.LittleEndian.Uint16(program[2:]),
			Len:   binary.LittleEndian.Uint32(program[4:]),
		}
		if desc.Next == 0 {
			desc.Next = uint16(len(descs) + 1)
		}
		if desc.Flags&Write == 0 && desc.Addr >= d.at.buffers { // not over its own rings: what comes of that is the suite's affair
			n := min(len(content), int(min(desc.Len, 1<<16)))
			if d.Mem.WriteAt(content[:n], desc.Addr) == nil {
				content = content[n:]
			}
		}
		descs = append(descs, desc)
	}
	return descs
}
