package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"github.com/urfave/cli/v2"

	"spore/doctor"
	"spore/emuhost"
	"spore/sandbox"
)

func hostCommand() *cli.Command {
	return &cli.Command{
		Name: "host", Usage: "the emulated host, for machines whose KVM cannot run guests",
		Description: "The emulated host is a QEMU machine with AMD-V, a real kvm_amd and this machine's files. It starts by\n" +
			"itself when a sandbox needs it. What sandboxes keep there is lost when it stops. Its kernel is this machine's\n" +
			"Debian's, or that of the suite in $" + hostSuite + ", such as bookworm-backports.",
		Subcommands: []*cli.Command{
			{Name: "start", Usage: "start it, unless it runs", Action: hostStart},
			{Name: "stop", Usage: "stop it and everything on it", Action: func(c *cli.Context) error {
				h, err := openHost(c)
				if err != nil {
					return err
				}
				return h.Stop(c.Context)
			}},
			{Name: "status", Usage: "say whether it runs", Flags: []cli.Flag{jsonFlag()}, Action: hostStatus},
			{Name: "run", Usage: "run a command on it, in this directory", ArgsUsage: "-- CMD [ARG...]", Action: hostRun},
		},
	}
}

// hostSuite is the environment variable that says which suite of Debian's archive the emulated host's kernel is from.
const hostSuite = "SPORE_HOST_SUITE"

func openHost(c *cli.Context) (*emuhost.Host, error) {
	cfg := emuhost.Config{Log: logger(c), InitBinary: beside("spore-hostinit"), Suite: os.Getenv(hostSuite)}
	if c.Bool("debug") {
		cfg.Progress = func(step string) { fmt.Fprintln(c.App.ErrWriter, "spore: emulated host:", step) }
	}
	if dir := c.String("cache-dir"); dir != "" {
		cfg.CacheDir = filepath.Join(dir, "emuhost")
	}
	return emuhost.Open(cfg)
}

// beside is the path of a file in the directory of our own binary.
func beside(name string) string {
	exe, err := os.Executable()
	if err != nil {
		return name
	}
	return filepath.Join(filepath.Dir(exe), name)
}

func logger(c *cli.Context) *slog.Logger {
	level := slog.LevelWarn
	if c.Bool("debug") {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(c.App.ErrWriter, &slog.HandlerOptions{Level: level}))
}

func hostStart(c *cli.Context) error {
	h, err := openHost(c)
	if err != nil {
		return err
	}
	return h.Start(c.Context)
}

func hostStatus(c *cli.Context) error {
	h, err := openHost(c)
	if err != nil {
		return err
	}
	st, err := h.Status(c.Context)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, st)
	}
	if !st.Running {
		fmt.Fprintln(c.App.Writer, "stopped")
		return nil
	}
	fmt.Fprintf(c.App.Writer, "running (pid %d, %s, %d CPUs, %s, %s in %.1f s)\n", st.PID, st.Kernel, st.CPUs, formatSize(st.Memory), st.Started, st.StartSeconds)
	return nil
}

func hostRun(c *cli.Context) error {
	args := c.Args().Slice()
	if len(args) > 0 && args[0] == "--" {
		args = args[1:]
	}
	if len(args) == 0 {
		return usagef(c, "no command")
	}
	return runOnHost(c, emuhost.Command{Args: args, Stdout: os.Stdout, Stderr: os.Stderr})
}

// runOnHost starts the emulated host if need be and runs a command there with our streams, signals and exit code.
func runOnHost(c *cli.Context, cmd emuhost.Command) error {
	h, err := openHost(c)
	if err != nil {
		return err
	}
	if err := h.Start(c.Context); err != nil {
		return fmt.Errorf("start emulated host: %w", err)
	}
	if cmd.Dir, err = os.Getwd(); err != nil {
		return err
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, emuhost.ForwardedSignals()...)
	defer signal.Stop(signals)
	cmd.Env, cmd.Stdin, cmd.Signals = os.Environ(), os.Stdin, signals
	if cmd.TTY = emuhost.IsTerminal(os.Stdin) && emuhost.IsTerminal(os.Stdout); cmd.TTY { // then what runs there has a terminal, and filters what it shows
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	}
	code, err := h.Run(c.Context, cmd)
	if err != nil {
		return err
	}
	if code != 0 {
		return &codeError{code: code}
	}
	return nil
}

// onSandboxHost makes an action run where sandboxes run: here, or, if this host's KVM cannot run a guest, on
// the emulated host with the same arguments.
func onSandboxHost(action cli.ActionFunc) cli.ActionFunc { return afterPreparing(nil, action) }

// preparation is work that must be done on this side before the emulated host takes over, such as pulling an image. It returns
// what goes in front of the arguments there, and what to do once they have been carried out.
type preparation func(c *cli.Context) (args []string, done func() error, err error)

// afterPreparing is onSandboxHost with a preparation.
func afterPreparing(prepare preparation, action cli.ActionFunc) cli.ActionFunc {
	return func(c *cli.Context) (err error) {
		here, err := runsHere(c)
		if err != nil {
			return err
		}
		if here {
			return action(c)
		}
		self, err := os.Executable()
		if err != nil {
			return err
		}
		args := []string{self, "--native"}
		if prepare != nil {
			more, done, err := prepare(c)
			if err != nil {
				return err
			}
			defer func() {
				if left := done(); left != nil {
					err = errors.Join(err, left)
				}
			}()
			args = append(args, more...)
		}
		return runOnHost(c, emuhost.Command{Args: append(args, os.Args[1:]...), Keep: programs(self), Stdout: shown(c, os.Stdout), Stderr: shown(c, os.Stderr)})
	}
}

// programs are our binary and what it looks for beside itself.
func programs(self string) (paths []string) {
	for _, name := range []string{filepath.Base(self), "spore-vmm", "spore-net", "spore-probe", "initramfs.cpio", "cni/bridge", "cni/host-local"} {
		paths = append(paths, filepath.Join(filepath.Dir(self), name))
	}
	return paths
}

// probeLimit bounds the question whether this host can run guests.
const probeLimit = 20 * time.Second

// runsHere decides by trying, once per boot of this machine, whether guests can run natively.
func runsHere(c *cli.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(c.Context, probeLimit)
	defer cancel()
	reason := doctor.GuestsRunHere(ctx, cacheDir(c))
	if reason == nil {
		return true, nil
	}
	if c.Bool("native") {
		return false, &codeError{sandbox.CodeSpore, fmt.Errorf("this host cannot run guests: %w\nrun 'spore doctor' for the remedy, or leave out --native to use the emulated host", reason)}
	}
	sayEmulated(c, c.App.ErrWriter, reason)
	return false, nil
}

// sayEmulated is the one line that makes the slower path visible. Verbs that only look stay quiet.
func sayEmulated(c *cli.Context, w io.Writer, reason error) {
	switch c.Command.Name {
	case "run", "create", "start":
		if !c.Bool("quiet") {
			fmt.Fprintf(w, "spore: using the emulated host: %v\n", reason)
		}
	}
}
