package boot

import (
	"encoding/binary"
	"fmt"

	"spore/guestmem"
)

// Offsets of struct boot_params (arch/x86/include/uapi/asm/bootparam.h) outside the setup header.
const (
	bpRSDP        = 0x070
	bpE820Entries = 0x1e8
	bpE820Table   = 0x2d0
	bpE820Size    = 20
	loaderUnknown = 0xff
)

// Params is what the kernel is told at start.
type Params struct {
	Cmdline string
	Initrd  Range        // Size 0 is none
	RSDP    guestmem.GPA // 0 lets the kernel search
	RAM     []Range
}

// WriteParams writes the command line and boot_params for im.
func WriteParams(mem *guestmem.Memory, im *Image, p Params) error {
	if len(p.Cmdline) > MaxCmdline {
		return fmt.Errorf("kernel command line of %d bytes, at most %d", len(p.Cmdline), MaxCmdline)
	}
	if err := mem.WriteAt(append([]byte(p.Cmdline), 0), CmdlineBase); err != nil {
		return wrap("kernel command line", err)
	}
	return wrap("boot parameters", mem.WriteAt(zeroPage(im, p), ZeroPageBase))
}

func zeroPage(im *Image, p Params) []byte {
	z := make([]byte, pageSize)
	le := binary.LittleEndian
	if im.Header != nil {
		copy(z[hdrSetupSects:], im.Header)
	} else {
		le.PutUint16(z[hdrBootFlag:], bootFlagMagic)
		copy(z[hdrMagic:], "HdrS")
		le.PutUint16(z[hdrVersion:], 0x20f)
		le.PutUint32(z[hdrAlignment:], 1<<24)
	}
	z[hdrLoader] = loaderUnknown
	z[hdrLoadFlags] |= loadFlagHigh
	le.PutUint32(z[hdrCmdline:], uint32(CmdlineBase))
	le.PutUint32(z[hdrCmdlineSize:], uint32(len(p.Cmdline)))
	if p.Initrd.Size > 0 {
		le.PutUint32(z[hdrRamdisk:], uint32(p.Initrd.Base))
		le.PutUint32(z[hdrRamdiskSize:], uint32(p.Initrd.Size))
	}
	le.PutUint64(z[bpRSDP:], uint64(p.RSDP))
	entries := e820(p.RAM)
	z[bpE820Entries] = byte(len(entries))
	for i, e := range entries {
		at := z[bpE820Table+i*bpE820Size:]
		le.PutUint64(at, uint64(e.Base))
		le.PutUint64(at[8:], e.Size)
		le.PutUint32(at[16:], e.kind)
	}
	return z
}
