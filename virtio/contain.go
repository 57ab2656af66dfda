package virtio

import (
	"fmt"
	"runtime/debug"
)

// PanicError is a panic of a device model, caught: a mistake of ours that costs the guest this device until it
// resets it, and not the process its other work.
type PanicError struct {
	Value any    // what was given to panic
	Stack []byte // of the goroutine that panicked
}

func (e *PanicError) Error() string { return fmt.Sprintf("device model panicked: %v", e.Value) }

// Contain calls f and returns its error, or a *PanicError when it panics. A device model wraps every goroutine it
// starts in it and lets Run return the error; the transport does so for Run itself, and counts it.
func Contain(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = &PanicError{p, debug.Stack()}
		}
	}()
	return f()
}
