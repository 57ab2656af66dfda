package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/urfave/cli/v2"

	"spore/sandbox"
)

// codeError ends the process with a code. A nil err says nothing more: the message is out already.
type codeError struct {
	code int
	err  error
}

func (e *codeError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e *codeError) Unwrap() error { return e.err }

// outcomeError is the result of a command that ended in any way: nil for exit code 0.
func outcomeError(o sandbox.Outcome) error {
	if o.ExitCode == 0 {
		return nil
	}
	return &codeError{code: o.ExitCode}
}

// usagef is a mistake on the command line.
func usagef(c *cli.Context, format string, args ...any) error {
	name := c.App.Name
	if c.Command != nil && c.Command.Name != "" && c.Command.Name != name {
		name = c.Command.FullName()
		if c.Command.HelpName != "" {
			name = c.Command.HelpName
		}
	}
	return &codeError{sandbox.CodeSpore, fmt.Errorf("%s\nrun '%s --help' for its flags", fmt.Sprintf(format, args...), name)}
}

// exitCode prints err, if there is something to say, and returns what the process exits with: the command's own
// code, or 125 when Spore itself failed.
func exitCode(err error, stderr io.Writer) int {
	if err == nil {
		return 0
	}
	var ce *codeError
	if errors.As(err, &ce) {
		if ce.err != nil {
			fmt.Fprintln(stderr, "spore:", ce.err)
		}
		return ce.code
	}
	fmt.Fprintln(stderr, "spore:", err)
	return sandbox.CodeSpore
}
