package main

import (
	"spore/jailer/seccomp"
	"spore/vmm/policy"
)

// The process is born in its jail. The filter comes once every descriptor is made and before the guest's first
// instruction.
func installFilter() error { return seccomp.Install(policy.Program) }
