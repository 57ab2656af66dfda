// Package seccomp is a system-call policy as data, and the installation of its compiled form. A policy is a
// table with a reason per rule; it is compiled to BPF by libseccomp when the project is built (see
// vmm/policy), so the process that installs it needs neither cgo nor a compiler.
//
// The default action of every policy is to kill the process. There is no way to say otherwise.
package seccomp

import "fmt"

// Policy is the list of what is allowed. Rules for the same call add up: any of them that matches allows it.
type Policy []Rule

// Rule allows one system call, for a reason.
type Rule struct {
	Call string // name as in the manual
	Args []Arg  // all must match; none means any arguments
	Why  string // who calls it and when; empty is a test failure
}

// Arg is a condition on one argument of a call: (argument & Mask) == Value. A zero Mask means all 64 bits.
type Arg struct {
	Index uint   // 0 to 5
	Mask  uint64 // bits compared
	Value uint64 // must have no bit outside Mask
}

// Equal matches when argument i is exactly v.
func Equal(i uint, v uint64) Arg { return Arg{Index: i, Value: v} }

// Lacks matches when argument i has none of the bits.
func Lacks(i uint, bits uint64) Arg { return Arg{Index: i, Mask: bits} }

// Masked matches when the bits of argument i under mask are v.
func Masked(i uint, mask, v uint64) Arg { return Arg{Index: i, Mask: mask, Value: v} }

// Match reports whether the argument values satisfy a.
func (a Arg) Match(args [6]uint64) bool {
	if a.Mask == 0 {
		return args[a.Index] == a.Value
	}
	return args[a.Index]&a.Mask == a.Value
}

// Allows reports whether p allows a call by that name with these arguments. It is the meaning that the
// compiled program is tested against.
func (p Policy) Allows(call string, args [6]uint64) bool {
next:
	for _, r := range p {
		if r.Call != call {
			continue
		}
		for _, a := range r.Args {
			if !a.Match(args) {
				continue next
			}
		}
		return true
	}
	return false
}

// Calls returns the distinct names, in order of first mention.
func (p Policy) Calls() []string {
	var names []string
	seen := map[string]bool{}
	for _, r := range p {
		if !seen[r.Call] {
			seen[r.Call] = true
			names = append(names, r.Call)
		}
	}
	return names
}

// Validate reports the first rule without a name or a reason, or with an impossible condition.
func (p Policy) Validate() error {
	for i, r := range p {
		switch {
		case r.Call == "":
			return fmt.Errorf("rule %d: no system call", i)
		case r.Why == "":
			return fmt.Errorf("rule %d, %s: no reason", i, r.Call)
		}
		for _, a := range r.Args {
			if a.Index > 5 || a.Mask != 0 && a.Value&^a.Mask != 0 {
				return fmt.Errorf("rule %d, %s: argument %d: mask %#x, value %#x can never match", i, r.Call, a.Index, a.Mask, a.Value)
			}
		}
	}
	return nil
}
