// Package cleanup is an undo stack for set-up in several steps: each step pushes its undo, a failure runs
// them newest first, success releases them.
package cleanup

import "errors"

// Stack holds undo steps. The zero value is empty and ready.
type Stack struct{ steps []func() error }

// Push adds a step to run before those pushed earlier.
func (s *Stack) Push(undo func() error) { s.steps = append(s.steps, undo) }

// Release forgets every step: the set-up succeeded and its owner takes over.
func (s *Stack) Release() { s.steps = nil }

// Run undoes everything, newest first, and joins the errors. A second call does nothing.
func (s *Stack) Run() error {
	var errs []error
	for i := len(s.steps) - 1; i >= 0; i-- {
		errs = append(errs, s.steps[i]())
	}
	s.steps = nil
	return errors.Join(errs...)
}
