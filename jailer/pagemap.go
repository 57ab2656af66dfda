package jailer

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Pagemap opens the page table of a jailed process as the kernel shows it (Documentation/admin-guide/mm/pagemap.rst): which pages of its
// memory are its own and which are a file's, but not where in the host's memory they are. The process has no /proc and is not dumpable, so
// only the maker of its user namespace and root can; it may be given the descriptor, which stays the caller's to close. A process that has
// ended, even if another has its number by now, cannot use it.
//
// The kernel shows the numbers of page frames to who opens the file with CAP_SYS_ADMIN, whoever reads it then. They are what an attack
// on the host's memory begins with (rowhammer, physmap), so the file is opened without.
func Pagemap(pid int) (*os.File, error) {
	type result struct {
		file *os.File
		err  error
	}
	opened := make(chan result)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine, and what it lacks with it
		if err := dropSysAdmin(); err != nil {
			opened <- result{err: err}
			return
		}
		f, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", pid))
		opened <- result{f, err}
	}()
	r := <-opened
	if r.err != nil {
		return nil, fmt.Errorf("page table of a jailed process: %w", r.err)
	}
	return r.file, nil
}

// dropSysAdmin takes CAP_SYS_ADMIN away from the calling thread.
func dropSysAdmin() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData // 32 capabilities each
	if err := unix.Capget(&header, &sets[0]); err != nil {
		return os.NewSyscallError("capget", err)
	}
	sets[0].Effective &^= 1 << unix.CAP_SYS_ADMIN
	return os.NewSyscallError("capset", unix.Capset(&header, &sets[0]))
}
