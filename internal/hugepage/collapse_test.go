package hugepage

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"spore/internal/testenv"
)

// TestCollapse keeps what is in a block, a last one that is not whole too, and touches no other.
func TestCollapse(t *testing.T) {
	testenv.Require(t, testenv.HugePages)
	page := os.Getpagesize()
	for name, c := range map[string]struct {
		off  int64
		want int64 // bytes allocated afterwards
	}{
		"whole":     {0, Size + int64(page)},
		"not whole": {Size, int64(page) + Size},
	} {
		t.Run(name, func(t *testing.T) {
			fd, err := unix.MemfdCreate("file", unix.MFD_CLOEXEC)
			if err != nil {
				t.Fatal(err)
			}
			f := os.NewFile(uintptr(fd), "file")
			defer f.Close()
			want := make([]byte, Size+5*page)
			for _, at := range []int{7 * page, Size + page} {
				copy(want[at:], bytes.Repeat([]byte{byte(at>>12) + 1}, page))
				if _, err := f.WriteAt(want[at:at+page], int64(at)); err != nil {
					t.Fatal(err)
				}
			}
			if err := f.Truncate(int64(len(want))); err != nil {
				t.Fatal(err)
			}
			if err := Collapse(f, c.off); err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(fmt.Sprintf("/proc/self/fd/%d", fd))
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("the file is another, %v", err)
			}
			var st unix.Stat_t
			if err := unix.Fstat(fd, &st); err != nil || st.Blocks*512 != c.want {
				t.Errorf("%d bytes are allocated, want %d, %v", st.Blocks*512, c.want, err)
			}
		})
	}
}

// TestCollapseRefusal says what it was about.
func TestCollapseRefusal(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if err := Collapse(r, 0); !errors.Is(err, unix.ENODEV) || !strings.Contains(err.Error(), r.Name()) {
		t.Errorf("a pipe: %v", err)
	}
}
