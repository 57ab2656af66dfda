package guest

import (
	"os"

	"spore/internal/hugepage"
)

// collapseText has the kernel move this program's file, which lies about in the memory of the guest in whatever pages were free, into blocks of
// its own. A copy of this machine maps a block whole that it only reads, in one exit; page by page, with an exit for each, where something else in
// it is written. That the kernel cannot do it is no failure.
func collapseText() {
	f, err := os.Open("/proc/self/exe")
	if err != nil {
		return
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return
	}
	for off := int64(0); off < st.Size(); off += hugepage.Size {
		_ = hugepage.Collapse(f, off)
	}
}
