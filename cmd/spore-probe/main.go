// Command spore-probe is what "spore lab attest" puts into the jail in place of spore-vmm: it tries one thing that the
// jail must defeat, and reports what the kernel said. See package lab/probe.

//go:debug containermaxprocs=0
//go:debug updatemaxprocs=0
//go:debug decoratemappings=0
package main

import (
	"fmt"
	"os"
	"runtime"

	"spore/lab/probe"
)

func main() {
	runtime.LockOSThread() // some filters are the thread's
	if err := probe.Main(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "spore-probe:", err)
		os.Exit(1)
	}
	os.Exit(0)
}
