// Package export compiles system-call policies with libseccomp. Programs that run when the project is built import it, and nothing else.
package export

import (
	"fmt"
	"os"

	libseccomp "github.com/seccomp/libseccomp-golang"

	"spore/jailer/seccomp"
)

// tree is SCMP_FLTATR_CTL_OPTIMIZE's value for a binary tree (seccomp_attr_set(3)).
const tree = 2

// Export compiles p and writes the program to path: an array of struct sock_filter.
func Export(p seccomp.Policy, path string) error {
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
	// A tree: to install a filter the kernel tries it with every call that there is (seccomp_cache_prepare), each by all rules of a chain.
	if err := filter.SetOptimize(tree); err != nil {
		return fmt.Errorf("order rules as a tree: %w", err)
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
		c, err := condition(a)
		if err != nil {
			return err
		}
		conditions = append(conditions, c)
	}
	return filter.AddRuleConditionalExact(call, libseccomp.ActAllow, conditions)
}

func condition(a seccomp.Arg) (libseccomp.ScmpCondition, error) {
	if a.Least {
		return libseccomp.MakeCondition(a.Index, libseccomp.CompareGreaterEqual, a.Value)
	}
	mask := a.Mask
	if mask == 0 {
		mask = ^uint64(0)
	}
	return libseccomp.MakeCondition(a.Index, libseccomp.CompareMaskedEqual, mask, a.Value)
}
