package main

import (
	"spore/jailer"
	"spore/jailer/seccomp"
	"spore/vmm/policy"
)

// enterJail and installFilter are where the process gives up its powers: the jail before anything of the guest is
// looked at, the filter once every descriptor is made and before the guest's first instruction.

// enterJail is called with the number of files after the configuration's.
func enterJail(files int) error { return jailer.Enter(files + 1) }

func installFilter() error { return seccomp.Install(policy.Program) }
