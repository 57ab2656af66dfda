// Command compile turns the tables of vmm/policy into the BPF programs that are embedded beside them. It runs
// when the project is built and is the only part that links libseccomp.
package main

import (
	"fmt"
	"os"

	libseccomp "github.com/seccomp/libseccomp-golang"

	"spore/jailer/seccomp"
	"spore/vmm/policy"
)

func main() {
	for _, s := range policy.Stages() {
		if err := export(s.Policy, s.Name+"_amd64.bpf"); err != nil {
			fmt.Fprintf(os.Stderr, "compile %s: %v\n", s.Name, err)
			os.Exit(1)
		}
	}
}

// export compiles p and writes the program to path, relative to the package that go generate runs in.
func export(p seccomp.Policy, path string) error {
	if err := p.Validate(); err != nil {
		return err
	}
	filter, err := libseccomp.NewFilter(libseccomp.ActKillProcess)
	if err != nil {
		return fmt.Errorf("new filter: %w", err)
	}
	defer filter.Release()
	if err := filter.SetBadArchAction(libseccomp.ActKillProcess); err != nil {
		return fmt.Errorf("foreign architecture: %w", err)
	}
	for _, r := range p {
		if err := add(filter, r); err != nil {
			return fmt.Errorf("%s: %w", r.Call, err)
		}
	}
	out, err := os.Create(path)
	if err != nil {
		return err
	}
	if err := filter.ExportBPF(out); err != nil {
		return fmt.Errorf("export %s: %w", path, err)
	}
	return out.Close()
}

func add(filter *libseccomp.ScmpFilter, r seccomp.Rule) error {
	call, err := libseccomp.GetSyscallFromName(r.Call)
	if err != nil {
		return err
	}
	if r.Errno != 0 {
		return filter.AddRuleExact(call, libseccomp.ActErrno.SetReturnCode(int16(r.Errno)))
	}
	if len(r.Args) == 0 {
		return filter.AddRuleExact(call, libseccomp.ActAllow)
	}
	var conditions []libseccomp.ScmpCondition
	for _, a := range r.Args {
		mask := a.Mask
		if mask == 0 {
			mask = ^uint64(0)
		}
		c, err := libseccomp.MakeCondition(a.Index, libseccomp.CompareMaskedEqual, mask, a.Value)
		if err != nil {
			return err
		}
		conditions = append(conditions, c)
	}
	return filter.AddRuleConditionalExact(call, libseccomp.ActAllow, conditions)
}
