package snapshot

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"os"
	"slices"

	"spore/internal/sparse"
)

// Difference is what two snapshots do not have in common, in bytes of whole pages.
type Difference struct {
	Memory int64 `json:"memory_bytes"`
	Disk   int64 `json:"disk_bytes"`
}

const diffPage = 4096

// Diff compares the memories and the disks of two snapshots.
func (s *Store) Diff(ctx context.Context, a, b *Manifest) (d Difference, err error) {
	var pair [2]*Dormant
	for i, m := range []*Manifest{a, b} {
		if pair[i], err = s.Admit(ctx, m); err != nil {
			return d, err
		}
	}
	var memory [2]*os.File
	for i := range pair {
		if memory[i], err = pair[i].OpenMemory(); err != nil {
			return d, err
		}
		defer memory[i].Close()
	}
	if d.Memory, err = differing(ctx, memory[0], memory[1], max(a.Spec.Memory, b.Spec.Memory)); err != nil {
		return d, err
	}
	disks, err := unpackedDisks(ctx, pair)
	for _, f := range disks {
		if f != nil {
			defer f.Close()
		}
	}
	if err != nil {
		return d, err
	}
	d.Disk, err = differing(ctx, disks[0], disks[1], max(a.Spec.Disk, b.Spec.Disk))
	return d, err
}

// unpackedDisks are the disks as files without a name.
func unpackedDisks(ctx context.Context, pair [2]*Dormant) (disks [2]*os.File, err error) {
	for i, d := range pair {
		if disks[i], err = os.CreateTemp("", "spore-disk-*"); err != nil {
			return disks, err
		}
		if err := os.Remove(disks[i].Name()); err != nil {
			return disks, err
		}
		packed, err := d.open(diskFile)
		if err != nil {
			return disks, err
		}
		err = sparse.Unpack(ctx, disks[i], sparse.Whole(packed), d.Spec.Disk)
		if err := errors.Join(err, packed.Close()); err != nil {
			return disks, err
		}
	}
	return disks, nil
}

// differing counts the bytes of pages that differ. Only what is no hole in one of them is looked at.
func differing(ctx context.Context, a, b *os.File, size int64) (n int64, err error) {
	var seen int64 // up to where pages have been compared
	var x, y [diffPage]byte
	compare := func(at int64) error {
		clear(x[:])
		clear(y[:])
		if _, err := a.ReadAt(x[:], at); err != nil && err != io.EOF {
			return err
		}
		if _, err := b.ReadAt(y[:], at); err != nil && err != io.EOF {
			return err
		}
		if !bytes.Equal(x[:], y[:]) {
			n += diffPage
		}
		return nil
	}
	all, err := extentsOf(size, a, b)
	if err != nil {
		return 0, err
	}
	for _, e := range all {
		for at := max(seen, e.Offset/diffPage*diffPage); at < e.Offset+e.Length; at += diffPage {
			if ctx.Err() != nil {
				return n, context.Cause(ctx)
			}
			if err := compare(at); err != nil {
				return n, err
			}
			seen = at + diffPage
		}
	}
	return n, nil
}

// extentsOf are the extents of all files, by their offset; they may overlap.
func extentsOf(size int64, files ...*os.File) (all []sparse.Extent, err error) {
	for _, f := range files {
		for e, err := range sparse.Extents(f, size) {
			if err != nil {
				return nil, err
			}
			all = append(all, e)
		}
	}
	slices.SortFunc(all, func(a, b sparse.Extent) int { return cmp.Compare(a.Offset, b.Offset) })
	return all, nil
}
