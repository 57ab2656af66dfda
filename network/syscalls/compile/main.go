// Command compile turns the tables of network/syscalls into the BPF programs that are embedded beside them. It runs when the project is
// built.
package main

import (
	"fmt"
	"os"

	"spore/jailer/seccomp/export"
	"spore/network/syscalls"
)

func main() {
	for _, s := range syscalls.Stages() {
		if err := export.Export(s.Policy, s.Name+"_amd64.bpf"); err != nil {
			fmt.Fprintf(os.Stderr, "compile %s: %v\n", s.Name, err)
			os.Exit(1)
		}
	}
}
