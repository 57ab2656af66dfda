package virtiotest

import (
	"encoding/binary"

	"spore/guestmem"
)

// programStep is the bytes of a program that make one descriptor.
const programStep = 8

// maxProgram bounds the descriptors of a program.
const maxProgram = 16

// Fuzz makes a chain of what program says and submits it to a queue of a negotiated device, which must be one that
// takes its chains at once. Every 8 bytes of program are one descriptor: a byte that chooses where the buffer lies,
// one of flags, a 16-bit next (0 is the following one), a 32-bit length; at most 16 descriptors. content fills the
// readable buffers in low memory. It fails the test when the device model panics, writes memory that is not
// writable in the chain, or claims to have written more than it could. It returns what came back; nothing when the
// device asked for a reset.
func (d *Driver) Fuzz(q int, program, content []byte) []Used {
	d.T.Helper()
	descs := d.compile(program, content)
	if len(descs) == 0 {
		return nil
	}
	d.Pause()
	d.SubmitRaw(q, descs...)
	var writable []span
	for _, desc := range descs {
		if desc.Flags&Write != 0 {
			writable = append(writable, span{desc.Addr, desc.Addr + guestmem.GPA(desc.Len)})
		}
	}
	before := d.shadow(writable...)
	d.resume()
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
	d.resume()
	return used
}

// compile makes descriptors of a program, as Fuzz describes.
func (d *Driver) compile(program, content []byte) []Desc {
	places := []guestmem.GPA{
		bufferBase, bufferBase + 1, somewhere, lowSize - 512, highBase, highBase + highSize - 64, // fine, if short enough
		lowSize, ^guestmem.GPA(0) - 7, 0xd0000000, ringBase, // not fine
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
		if desc.Flags&Write == 0 {
			n := min(len(content), int(min(desc.Len, 1<<16)))
			if d.Mem.WriteAt(content[:n], desc.Addr) == nil {
				content = content[n:]
			}
		}
		descs = append(descs, desc)
	}
	return descs
}
