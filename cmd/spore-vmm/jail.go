package main

import (
	"spore/jailer/seccomp"
	"spore/vmm/policy"
)

// The process is born in its jail, with the filter of the building stage. The next comes once every descriptor is made
// and before the guest's first instruction.
func installFilter() error { return seccomp.Install(policy.RunningProgram) }

// confineVCPU is for the thread of a vCPU, after installFilter.
func confineVCPU() error { return seccomp.InstallThread(policy.VCPUProgram) }
