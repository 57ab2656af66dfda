// Package blocktest has a block.Backend in memory that fails and waits on command, for tests.
package blocktest

import (
	"bytes"
	"sync"
)

// Op names a method of block.Backend.
type Op string

// The methods that Disk.Before is told of.
const (
	OpRead        Op = "read"
	OpWrite       Op = "write"
	OpFlush       Op = "flush"
	OpDiscard     Op = "discard"
	OpWriteZeroes Op = "write-zeroes"
)

// Disk is a Backend over a byte slice. The zero value is an empty disk.
type Disk struct {
	Data []byte // the content; not to be touched while a device runs, which Content is for
	// Before is called before each operation, without a lock held; it may block, and its error is the answer.
	// For reads, nowait says how the device asked. Nil lets everything through.
	Before func(op Op, off, n int64, nowait bool) error
	// Short is the most bytes one read or write moves; 0 is no bound.
	Short int

	mu    sync.Mutex
	calls map[Op]int
}

// Calls returns how many operations of the kind got past Before.
func (d *Disk) Calls(op Op) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.calls[op]
}

// Content returns a copy of the n bytes at off. Any goroutine may call it, also while a device runs.
func (d *Disk) Content(off, n int) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return bytes.Clone(d.Data[off:][:n])
}

func (d *Disk) enter(op Op, off, n int64, nowait bool) error {
	if d.Before != nil {
		if err := d.Before(op, off, n, nowait); err != nil {
			return err
		}
	}
	d.mu.Lock()
	if d.calls == nil {
		d.calls = make(map[Op]int)
	}
	d.calls[op]++
	return nil
}

// ReadAt implements block.Backend.
func (d *Disk) ReadAt(bufs [][]byte, off int64, nowait bool) (int, error) {
	return d.move(OpRead, bufs, off, nowait, func(guest, disk []byte) int { return copy(guest, disk) })
}

// WriteAt implements block.Backend.
func (d *Disk) WriteAt(bufs [][]byte, off int64) (int, error) {
	return d.move(OpWrite, bufs, off, false, func(guest, disk []byte) int { return copy(disk, guest) })
}

func (d *Disk) move(op Op, bufs [][]byte, off int64, nowait bool, copyOne func(guest, disk []byte) int) (int, error) {
	want := 0
	for _, b := range bufs {
		want += len(b)
	}
	if err := d.enter(op, off, int64(want), nowait); err != nil {
		return 0, err
	}
	defer d.mu.Unlock()
	if d.Short > 0 {
		want = min(want, d.Short)
	}
	done := 0
	for _, b := range bufs {
		if want == done {
			break
		}
		done += copyOne(b[:min(len(b), want-done)], d.Data[off+int64(done):])
	}
	return done, nil
}

// Flush implements block.Backend.
func (d *Disk) Flush() error {
	if err := d.enter(OpFlush, 0, 0, false); err != nil {
		return err
	}
	d.mu.Unlock()
	return nil
}

// Discard implements block.Backend: discarded bytes read as 0xdd.
func (d *Disk) Discard(off, n int64) error { return d.fill(OpDiscard, off, n, 0xdd) }

// WriteZeroes implements block.Backend.
func (d *Disk) WriteZeroes(off, n int64, _ bool) error { return d.fill(OpWriteZeroes, off, n, 0) }

func (d *Disk) fill(op Op, off, n int64, v byte) error {
	if err := d.enter(op, off, n, false); err != nil {
		return err
	}
	defer d.mu.Unlock()
	for i := range d.Data[off : off+n] {
		d.Data[off+int64(i)] = v
	}
	return nil
}

// Size implements block.Backend.
func (d *Disk) Size() int64 { return int64(len(d.Data)) }
