package sandbox

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"spore/jailer"
)

// Kind is how a sandbox's command ended, in one word: the same in the CLI's JSON, the logs and the record.
type Kind string

// Every end has one of these kinds.
const (
	Exited    Kind = "exited"     // by itself, with an exit code
	Signalled Kind = "signalled"  // by a signal that nobody below explains
	Timeout   Kind = "timeout"    // it ran longer than --timeout
	OOM       Kind = "oom"        // it, or a part of it, was killed for want of memory
	Pids      Kind = "pids"       // it failed after running into --pids
	DiskFull  Kind = "disk-full"  // it failed with the writable layer full
	Policy    Kind = "policy"     // Spore ended it for breaking a rule
	VMMCrash  Kind = "vmm-crash"  // the machine under it ended first: guest panic, triple fault, a killed VMM
	HostError Kind = "host-error" // Spore could not start it, or lost it
)

// Exit codes that are Spore's own.
const (
	CodeTimeout    = 124
	CodeSpore      = 125
	CodeCannotExec = 126
	CodeNotFound   = 127
	codeSignal     = 128
)

// Outcome is how a sandbox's command ended. The zero value is no outcome: it has not ended.
type Outcome struct {
	Kind      Kind          `json:"outcome"`
	ExitCode  int           `json:"exit_code"`           // what the spore process exits with
	Signal    string        `json:"signal,omitempty"`    // SIGKILL, …; with Signalled, OOM
	Detail    string        `json:"detail,omitempty"`    // one line for a person
	StartedAt time.Time     `json:"started_at,omitzero"` // of the command, host time
	Duration  time.Duration `json:"duration_ns"`         // of the command
	UserTime  time.Duration `json:"user_ns,omitempty"`   // CPU time in the guest
	SysTime   time.Duration `json:"system_ns,omitempty"`
	MaxRSS    int64         `json:"max_rss_bytes,omitempty"` // of the largest process

	Denied uint64 `json:"denied,omitempty"` // connections and names that the egress rules denied

	JailMissing []jailer.Layer `json:"jail_missing,omitempty"` // what the jail lacked on this host
}

// Ended reports whether there is an outcome.
func (o Outcome) Ended() bool { return o.Kind != "" }

// String is the line that a person reads after a bad end.
func (o Outcome) String() string {
	s := string(o.Kind)
	switch {
	case o.Kind == Exited:
		s = fmt.Sprintf("exited with code %d", o.ExitCode)
	case o.Kind == Signalled:
		s = "ended by " + o.Signal
	}
	if o.Detail != "" {
		s += ": " + o.Detail
	}
	return s
}

// hostError is the outcome of a sandbox that Spore failed.
func hostError(err error) Outcome {
	return Outcome{Kind: HostError, ExitCode: CodeSpore, Detail: err.Error()}
}

// signalName spells signal n as a shell user knows it.
func signalName(n int) string {
	if name := unix.SignalName(unix.Signal(n)); name != "" {
		return name
	}
	return fmt.Sprintf("signal %d", n)
}
