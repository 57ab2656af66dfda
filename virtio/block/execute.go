package block

import "golang.org/x/sys/unix"

// execute does what r says and returns its status. With nowait it may return again instead: r is then as far as it
// got without waiting for a disk, and to be executed once more without nowait.
func (d *Device) execute(r *request, g geometry, nowait bool) (status byte, again bool) {
	var err error
	switch r.kind {
	case typeIn:
		err = d.read(r, nowait)
		if err == ErrAgain {
			return 0, true
		}
	case typeOut:
		err = d.write(r)
		if err == nil && g.features&featureFlush == 0 {
			// A driver without FLUSH takes a completed write for a stable one, virtio 1.2 §5.2.5.
			err = d.backend.Flush()
		}
	case typeFlush:
		err = d.backend.Flush()
	case typeGetID:
		for r.left > 0 {
			r.advance(uint64(copy(r.bufs[0], d.id[r.done:])))
		}
	case typeDiscard:
		for _, g := range r.segments[:r.count] {
			if err = d.backend.Discard(g.offset, g.length); err != nil {
				break
			}
		}
	case typeWriteZeroes:
		for _, g := range r.segments[:r.count] {
			if err = d.backend.WriteZeroes(g.offset, g.length, g.unmap); err != nil {
				break
			}
		}
	}
	if err != nil {
		return statusIOError, false
	}
	return statusOK, false
}

func (d *Device) read(r *request, nowait bool) error {
	for r.left > 0 {
		n, err := d.backend.ReadAt(r.bufs, r.offset, nowait)
		if err != nil {
			return err
		}
		if n <= 0 || uint64(n) > r.left {
			return unix.EIO // the file has become shorter under us
		}
		r.advance(uint64(n))
	}
	return nil
}

func (d *Device) write(r *request) error {
	for r.left > 0 {
		n, err := d.backend.WriteAt(r.bufs, r.offset)
		if err != nil {
			return err
		}
		if n <= 0 || uint64(n) > r.left {
			return unix.EIO
		}
		r.advance(uint64(n))
	}
	return nil
}
