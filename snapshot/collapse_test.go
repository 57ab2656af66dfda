package snapshot

import (
	"bytes"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"spore/internal/hugepage"
	"spore/internal/testenv"
)

// TestCollapse keeps what is in a block, and leaves blocks alone that are empty or at the end not whole.
func TestCollapse(t *testing.T) {
	testenv.Require(t, testenv.HugePages)
	const size = 4*hugepage.Size + page
	fd, err := unix.MemfdCreate("memory", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "memory")
	defer f.Close()
	want := make([]byte, size)
	for _, at := range []int{0, hugepage.Size - page, 3*hugepage.Size + 7*page, 4 * hugepage.Size} {
		copy(want[at:], bytes.Repeat([]byte{byte(at>>12) + 1}, page))
		if _, err := f.WriteAt(want[at:at+page], int64(at)); err != nil {
			t.Fatal(err)
		}
	}
	if err := Collapse(f); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, size)
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the memory is another: %v", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		t.Fatal(err)
	}
	if got := st.Blocks * 512; got < 2*hugepage.Size || got >= 3*hugepage.Size {
		t.Errorf("%d bytes are allocated, want two blocks and a page or so", got)
	}
}
