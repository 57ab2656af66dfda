// Package seccomp is a system-call policy as data, and the installation of its compiled form. A policy is a
// table with a reason per rule; it is compiled to BPF by libseccomp when the project is built (see
// vmm/policy), so the process that installs it needs neither cgo nor a compiler.
//
// The default action of every policy is to kill the process. There is no way to say otherwise, but a rule may refuse a
// call with an error, for what a library tries and can do without.
package seccomp

import "fmt"

// Policy is the list of what is allowed or refused; everything else kills. Rules for the same call add up: the first
// that matches decides. A refusal has no Args, and is the only rule of its call.
type Policy []Rule

// Rule allows one system call, for a reason, or refuses it.
type Rule struct {
	Call  string // name as in the manual
	Args  []Arg  // all must match; none means any arguments
	Errno uint16 // 0 allows the call; anything else is the error it gets instead
	Why   string // who calls it and when; empty is a test failure
}

// Action is what happens to a call.
type Action uint32

// Actions, with the kernel's values (linux/seccomp.h). Refuse is combined with the error number.
const (
	Kill   Action = 0x80000000
	Refuse Action = 0x00050000
	Allow  Action = 0x7fff0000
)

// Arg is a condition on one argument of a call: (argument & Mask) == Value. A zero Mask means all 64 bits. With Least it is
// argument >= Value, and Mask is 0.
type Arg struct {
	Index uint   // 0 to 5
	Mask  uint64 // bits compared
	Value uint64 // must have no bit outside Mask
	Least bool   // at least Value, instead of equal to it
}

// Equal matches when argument i is exactly v.
func Equal(i uint, v uint64) Arg { return Arg{Index: i, Value: v} }

// Lacks matches when argument i has none of the bits.
func Lacks(i uint, bits uint64) Arg { return Arg{Index: i, Mask: bits} }

// Masked matches when the bits of argument i under mask are v.
func Masked(i uint, mask, v uint64) Arg { return Arg{Index: i, Mask: mask, Value: v} }

// AtLeast matches when argument i is v or more, both without a sign.
func AtLeast(i uint, v uint64) Arg { return Arg{Index: i, Value: v, Least: true} }

// Match reports whether the argument values satisfy a.
func (a Arg) Match(args [6]uint64) bool {
	if a.Least {
		return args[a.Index] >= a.Value
	}
	if a.Mask == 0 {
		return args[a.Index] == a.Value
	}
	return args[a.Index]&a.Mask == a.Value
}

// Decide returns what p does to a call by that name with these arguments. It is the meaning that the compiled program
// is tested against.
func (p Policy) Decide(call string, args [6]uint64) Action {
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
		if r.Errno != 0 {
			return Refuse | Action(r.Errno)
		}
		return Allow
	}
	return Kill
}

// Allowed returns the distinct names of calls that are allowed, with whatever arguments, in order of first mention.
func (p Policy) Allowed() []string { return p.names(func(r Rule) bool { return r.Errno == 0 }) }

// Calls returns the distinct names that p mentions, in order of first mention.
func (p Policy) Calls() []string { return p.names(func(Rule) bool { return true }) }

func (p Policy) names(which func(Rule) bool) []string {
	var names []string
	seen := map[string]bool{}
	for _, r := range p {
		if which(r) && !seen[r.Call] {
			seen[r.Call] = true
			names = append(names, r.Call)
		}
	}
	return names
}

// Validate reports the first rule without a name or a reason, or with an impossible condition.
func (p Policy) Validate() error {
	times := map[string]int{}
	for _, r := range p {
		times[r.Call]++
	}
	for i, r := range p {
		switch {
		case r.Errno != 0 && (len(r.Args) > 0 || times[r.Call] > 1):
			return fmt.Errorf("rule %d, %s: a refusal is for all arguments and the only rule of its call", i, r.Call)
		case r.Call == "":
			return fmt.Errorf("rule %d: no system call", i)
		case r.Why == "":
			return fmt.Errorf("rule %d, %s: no reason", i, r.Call)
		}
		for _, a := range r.Args {
			switch {
			case a.Index > 5 || a.Mask != 0 && a.Value&^a.Mask != 0:
				return fmt.Errorf("rule %d, %s: argument %d: mask %#x, value %#x can never match", i, r.Call, a.Index, a.Mask, a.Value)
			case a.Least && a.Mask != 0:
				return fmt.Errorf("rule %d, %s: argument %d: a least value has no mask", i, r.Call, a.Index)
			}
		}
	}
	return nil
}
