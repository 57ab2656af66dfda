package snapshot

import (
	"fmt"
	"os"

	"spore/internal/hugepage"
	"spore/internal/sparse"
)

// CollapseMemory is Collapse of this machine's memory. Nobody may have it open for writing.
func (d *Dormant) CollapseMemory() error {
	f, err := d.OpenMemory()
	if err != nil {
		return err
	}
	defer f.Close()
	return Collapse(f)
}

// Collapse asks the kernel to keep the filled blocks of a memory file in huge pages, as hugepage.Collapse does: a guest that wakes from it
// then maps such a block, while it only reads it, as one. A block at the end that is not whole is left alone. Nothing depends on it.
func Collapse(f *os.File) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	done := int64(0)
	for e, err := range sparse.Extents(f, st.Size()) {
		if err != nil {
			return fmt.Errorf("collapse memory: %w", err)
		}
		first := max(done, e.Offset&^(hugepage.Size-1))
		for ; first < e.Offset+e.Length && first+hugepage.Size <= st.Size(); first += hugepage.Size {
			if err := hugepage.Collapse(f, first); err != nil {
				return err
			}
		}
		done = first
	}
	return nil
}
