package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Every program that starts looks up the same few names, and each look-up in
// the outer machine's file system is several round trips. What follows puts
// these names into the writable layer in memory, as they are at the start.

// hotLinks are the links of a merged /usr.
var hotLinks = [...]string{"bin", "sbin", "lib", "lib32", "lib64", "libx32"}

// hotFiles are read by the dynamic linker and the C library.
var hotFiles = [...]string{"etc/ld.so.cache", "etc/passwd", "etc/group", "etc/nsswitch.conf"}

// hotPrograms are what most commands begin with.
var hotPrograms = [...]string{
	"/lib64/ld-linux-x86-64.so.2", "/lib/x86_64-linux-gnu/libc.so.6", "/lib/x86_64-linux-gnu/libtinfo.so.6",
	"/lib/x86_64-linux-gnu/libselinux.so.1", "/lib/x86_64-linux-gnu/libpcre2-8.so.0", "/lib/x86_64-linux-gnu/libm.so.6",
	"/bin/dash", "/bin/bash", "/bin/cat", "/bin/ls", "/bin/env", "/bin/sleep", "/bin/mkdir", "/bin/rm", "/bin/grep",
}

// seedUpper puts hot links and files into the root's upper layer before the
// overlay is mounted. What the outer machine does not have is left out.
func seedUpper(live, upper string) error {
	for _, name := range hotLinks {
		target, err := os.Readlink(filepath.Join(live, name))
		if err != nil {
			continue // absent, or a directory
		}
		if err := os.Symlink(target, filepath.Join(upper, name)); err != nil {
			return fmt.Errorf("copy link: %w", err)
		}
	}
	for _, name := range hotFiles {
		b, err := os.ReadFile(filepath.Join(live, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("copy file: %w", err)
		}
		target := filepath.Join(upper, name)
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			return fmt.Errorf("copy file: %w", err)
		}
		if err := os.WriteFile(target, b, 0o644); err != nil {
			return fmt.Errorf("copy file: %w", err)
		}
	}
	return nil
}

// copyUpHot makes the overlay of /usr copy hot programs into memory, by giving
// them the times that they have. What fails stays where it is.
func copyUpHot() {
	for _, path := range hotPrograms {
		if st, err := os.Stat(path); err == nil {
			_ = os.Chtimes(path, st.ModTime(), st.ModTime())
		}
	}
}
