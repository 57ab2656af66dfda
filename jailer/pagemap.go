package jailer

import (
	"fmt"
	"os"
)

// Pagemap opens the page table of a jailed process as the kernel shows it (Documentation/admin-guide/mm/pagemap.rst): which pages of its
// memory are its own and which are a file's, but not where they are. The process has no /proc and is not dumpable, so only the maker of its
// user namespace and root can; it may be given the descriptor, which stays the caller's to close. A process that has ended, even if
// another has its number by now, cannot use it.
func Pagemap(pid int) (*os.File, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", pid))
	if err != nil {
		return nil, fmt.Errorf("page table of a jailed process: %w", err)
	}
	return f, nil
}
