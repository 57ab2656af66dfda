package block

import "errors"

// ErrAgain is the answer of Backend.ReadAt with nowait: the bytes are not at hand without waiting for a disk.
var ErrAgain = errors.New("would wait")

// Backend is the storage behind a Device. The device never asks for a byte outside [0, Size). Its methods are
// called from several goroutines at once. The buffers are guest memory: their content may change at any time.
type Backend interface {
	// ReadAt fills bufs from off, scattered, and returns the bytes read; less than asked for is no error, 0 is
	// the end of the storage. With nowait it does not wait for a disk: it reads what is at hand, and returns
	// ErrAgain (and 0) if that is nothing.
	ReadAt(bufs [][]byte, off int64, nowait bool) (int, error)
	// WriteAt writes bufs at off, gathered, and returns the bytes written; less than asked for is no error.
	WriteAt(bufs [][]byte, off int64) (int, error)
	// Flush makes every completed write survive a loss of power.
	Flush() error
	// Discard says that the n bytes at off are not needed. They may read as anything of the guest's own, or zero.
	Discard(off, n int64) error
	// WriteZeroes makes the n bytes at off read as zeros; unmap allows it to give the space back.
	WriteZeroes(off, n int64, unmap bool) error
	// Size is the length in bytes; it never changes.
	Size() int64
}
