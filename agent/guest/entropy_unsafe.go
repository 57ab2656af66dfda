package guest

import (
	"encoding/binary"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// addEntropy mixes the host's random bytes into the kernel's generator and credits them in full
// (RNDADDENTROPY, random(4)), so that nothing in the guest ever waits for entropy.
func addEntropy(seed []byte) error {
	if len(seed) == 0 {
		return nil
	}
	f, err := os.OpenFile("/dev/urandom", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	// struct rand_pool_info: bits, bytes, data.
	b := binary.LittleEndian.AppendUint32(nil, uint32(8*len(seed)))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(seed)))
	b = append(b, seed...)
	const addEntropyRequest = 0x40085203 // RNDADDENTROPY
	// SAFETY: b holds the structure and all its data, and lives until after the call.
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), addEntropyRequest, uintptr(unsafe.Pointer(&b[0]))); errno != 0 {
		return fmt.Errorf("RNDADDENTROPY: %w", errno)
	}
	return nil
}

// reseed adds entropy and makes the kernel's generator start anew from it at once (RNDRESEEDCRNG, random(4)): otherwise
// it would give the same bytes as in every other guest of this memory until its next turn, up to a minute later.
func reseed(seed []byte) error {
	if len(seed) == 0 {
		return nil
	}
	if err := addEntropy(seed); err != nil {
		return err
	}
	f, err := os.OpenFile("/dev/urandom", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	const reseedRequest = 0x5207 // RNDRESEEDCRNG
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), reseedRequest, 0); errno != 0 {
		return fmt.Errorf("RNDRESEEDCRNG: %w", errno)
	}
	return nil
}
