package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/urfave/cli/v2"

	"spore/sandbox"
)

func programFlag() cli.Flag {
	return &cli.StringFlag{Name: "program", Usage: "put `FILE`, or standard input if it is -, into the guest and run that with ARG...: a script with a #! line, or a static binary", TakesFile: true}
}

// carriedFlag names the program that this machine's side of a command has brought to the emulated host: there, FILE and standard
// input may be something else.
func carriedFlag() cli.Flag { return &cli.StringFlag{Name: "carried-program", Hidden: true} }

// openProgram opens the program that --program names, nil if it names none: a regular file of 1 to sandbox.MaxProgram bytes.
// What is no regular file, standard input above all, is read to its end.
func openProgram(c *cli.Context) (*os.File, error) {
	name := c.String("program")
	if !c.IsSet("program") {
		return nil, nil
	}
	if err := checkProgram(c, name); err != nil {
		return nil, err
	}
	f, err := openSource(firstOf(c.String("carried-program"), name))
	if err != nil {
		return nil, fmt.Errorf("--program: %w", err)
	}
	st, err := f.Stat()
	switch {
	case err != nil:
	case st.Size() == 0:
		err = fmt.Errorf("%s is empty", quoted(name))
	case st.Size() > sandbox.MaxProgram:
		err = fmt.Errorf("%s has more than %s, the most that is put into a guest", quoted(name), formatSize(sandbox.MaxProgram))
	default:
		return f, nil
	}
	return nil, errors.Join(fmt.Errorf("--program: %w", err), f.Close())
}

// checkProgram refuses flags that do not go together.
func checkProgram(c *cli.Context, name string) error {
	switch {
	case name == "":
		return usagef(c, "--program: name a file, or - for standard input")
	case c.IsSet("entrypoint"):
		return usagef(c, "--program and --entrypoint: the program is run instead of any other, leave one of them out")
	case name != "-":
		return nil
	case c.Bool("interactive") || c.Bool("tty"):
		return usagef(c, "--program -: standard input is the program, and the guest's is empty: leave out -i and -t, or name a file")
	}
	n, err := networkOf(c)
	if err != nil || n == nil {
		return err
	}
	for _, s := range n.Secrets {
		if s.FromStdin() {
			return usagef(c, "--program - and --secret %s=-: standard input cannot be both, name a file for one of them", s.Name)
		}
	}
	return nil
}

// openSource opens what can be read more than once: the file itself, or a copy of a stream.
func openSource(name string) (*os.File, error) {
	f := os.Stdin
	if name != "-" {
		var err error
		if f, err = os.Open(name); err != nil {
			return nil, err
		}
		st, err := f.Stat()
		switch {
		case err == nil && st.IsDir():
			err = fmt.Errorf("%s is a directory", quoted(name))
		case err == nil && st.Mode().IsRegular():
			return f, nil
		}
		defer f.Close()
		if err != nil {
			return nil, err
		}
	}
	copied, err := os.CreateTemp("", "spore-program-*")
	if err != nil {
		return nil, err
	}
	_, err = io.Copy(copied, io.LimitReader(f, sandbox.MaxProgram+1))
	if err == nil {
		_, err = copied.Seek(0, io.SeekStart)
	}
	if err = errors.Join(err, os.Remove(copied.Name())); err != nil { // what is open stays
		return nil, errors.Join(err, copied.Close())
	}
	return copied, nil
}

func quoted(name string) string {
	if name == "-" {
		return "standard input"
	}
	return printable(name)
}

// carryProgram puts the program where the emulated host sees it, and returns the arguments that say so.
func carryProgram(c *cli.Context) (args []string, drop func() error, err error) {
	program, err := openProgram(c)
	if err != nil || program == nil {
		return nil, func() error { return nil }, err
	}
	defer program.Close()
	h, err := openHost(c)
	if err != nil {
		return nil, nil, err
	}
	to, err := os.CreateTemp(h.SharedDir(), "program-*")
	if err != nil {
		return nil, nil, err
	}
	_, err = io.Copy(to, program)
	if err = errors.Join(err, to.Close()); err != nil {
		return nil, nil, errors.Join(err, os.Remove(to.Name()))
	}
	return []string{"--carried-program", to.Name()}, func() error { return os.Remove(to.Name()) }, nil
}
