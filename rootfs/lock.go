package rootfs

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Locks are open-file-description locks on bytes of the file "lock": byte 0 guards names, records and the
// deletion of files; the others stand for the work of making one image or template, by a hash of its name, so that
// two that want the same thing do it once. The kernel drops them with the descriptor, however the process ends.
// Lock order: a work byte before byte 0.
const storeByte = 0

// heldLock is a lock until Release.
type heldLock struct{ file *os.File }

func (l *heldLock) release() { l.file.Close() }

// lockStore waits for the lock on names and records.
func (s *Store) lockStore(ctx context.Context) (*heldLock, error) { return s.lockByte(ctx, storeByte) }

// lockWork waits for the lock on making the thing called key.
func (s *Store) lockWork(ctx context.Context, key string) (*heldLock, error) {
	sum := sha256.Sum256([]byte(key))
	return s.lockByte(ctx, 1+int64(binary.LittleEndian.Uint64(sum[:])>>2))
}

func (s *Store) lockByte(ctx context.Context, at int64) (*heldLock, error) {
	f, err := os.OpenFile(filepath.Join(s.dir, "lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock store: %w", err)
	}
	flock := unix.Flock_t{Type: unix.F_WRLCK, Start: at, Len: 1}
	const longest = 100 * time.Millisecond
	for wait := time.Millisecond; ; wait = min(2*wait, longest) {
		err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &flock)
		if err == nil {
			return &heldLock{f}, nil
		}
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, fmt.Errorf("lock store: %w", err)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("lock store: %w", ctx.Err())
		case <-time.After(wait):
		}
	}
}
