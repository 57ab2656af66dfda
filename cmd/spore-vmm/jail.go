package main

import (
	"spore/jailer"
	"spore/jailer/seccomp"
	"spore/vmm/policy"
)

// enterJail and installFilter are where the process gives up its powers: the jail before anything of the guest is
// looked at, the filter once every descriptor is made and before the guest's first instruction.

// enterJail takes the number of files after the configuration's descriptor.
func enterJail(files int) error { return jailer.Enter(1 + files) }

func installFilter() error { return seccomp.Install(policy.Program) }
