package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"spore/guest"
	"spore/rootfs"
	"spore/sandbox"
)

func runCommand() *cli.Command {
	return &cli.Command{
		Name: "run", Usage: "run a command in a new sandbox", ArgsUsage: "IMAGE [--] [CMD [ARG...]]", UseShortOptionHandling: true,
		Description: "With --from there is no IMAGE: the sandbox goes on where the snapshot was taken, or runs CMD there.\n" +
			"The exit code is the command's own; 124 after a timeout, 125 when Spore failed, 126 when the command\n" +
			"cannot be invoked, 127 when it is not found, 128+N for signal N. The third interrupt ends the sandbox.",
		Flags: append(sandboxFlags(),
			rawFlag(),
			&cli.BoolFlag{Name: "detach", Aliases: []string{"d"}, Usage: "go on in the background and print the id"},
			&cli.BoolFlag{Name: "json", Usage: "print the outcome and the captured output as JSON when the command has ended"},
			&cli.BoolFlag{Name: "report", Usage: "print the outcome as one line of JSON on standard error at the end"},
			&cli.BoolFlag{Name: "timing", Usage: "print where the time went on standard error at the end"},
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "print nothing of Spore's own but errors"},
		),
		Action: afterPreparing(prepareRun, runAction),
	}
}

func createCommand() *cli.Command {
	return &cli.Command{
		Name: "create", Usage: "make a sandbox without starting it", ArgsUsage: "IMAGE [--] [CMD [ARG...]]", UseShortOptionHandling: true,
		Flags: append(sandboxFlags(), &cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "print nothing of Spore's own but errors"}),
		Action: afterPreparing(prepareRun, func(c *cli.Context) error {
			sb, discard, err := create(c)
			if err != nil {
				return err
			}
			defer discard()
			if sb.Config.MemoryDisk {
				return errors.Join(errors.New("an encrypted snapshot is open only while a sandbox wakes from it: use 'spore run --from'"), sb.Remove())
			}
			_, err = fmt.Fprintln(c.App.Writer, sb.Config.ID)
			return err
		}),
	}
}

// prepareRun does what needs this machine's network, disk and standard input before the emulated host takes over.
func prepareRun(c *cli.Context) (args []string, done func() error, err error) {
	if args, done, err = carryProgram(c); err != nil {
		return nil, nil, err
	}
	if err := prepareImage(c); err != nil {
		return nil, nil, errors.Join(err, done())
	}
	return args, done, nil
}

func prepareImage(c *cli.Context) error {
	if c.IsSet("from") {
		return nil
	}
	image, err := pull(c)
	if err != nil {
		return err
	}
	cfg, err := sandboxConfig(c, image, commandArgs(c))
	if err != nil {
		return err
	}
	store, err := openImages(c)
	if err != nil {
		return err
	}
	// The first writable layer of a size makes the template that later ones are copied from; it must not be made
	// on the emulated host, which forgets it.
	dir, err := os.MkdirTemp("", "spore-")
	if err != nil {
		return err
	}
	return errors.Join(store.NewWritable(c.Context, filepath.Join(dir, "layer"), cfg.Disk), os.RemoveAll(dir))
}

// pull returns the image named first on the command line, from the store or a registry as --pull says.
func pull(c *cli.Context) (rootfs.Image, error) {
	ref := c.Args().First()
	if ref == "" {
		return rootfs.Image{}, usagef(c, "name an image")
	}
	policy := rootfs.Policy(c.String("pull"))
	store, err := openImages(c)
	if err != nil {
		return rootfs.Image{}, err
	}
	show := newProgress(os.Stderr, c.Bool("quiet") || c.Bool("json"))
	image, err := store.Pull(c.Context, ref, rootfs.PullOptions{Policy: policy, Progress: show})
	show.finish()
	if err != nil {
		return image, imageError(ref, err)
	}
	return image, nil
}

// create writes the record and the writable layer of a new sandbox. discard is called once it has started, or will not.
func create(c *cli.Context) (_ *sandbox.Sandbox, discard func() error, err error) {
	program, err := openProgram(c)
	if err != nil {
		return nil, nil, err
	}
	if program != nil {
		defer program.Close()
	}
	if c.IsSet("from") {
		return createFrom(c, commandArgs(c), program)
	}
	if c.IsSet("unlock") {
		return nil, nil, usagef(c, "--unlock opens the snapshot of --from, and there is none: leave it out")
	}
	sb, err := createOfImage(c, program)
	return sb, func() error { return nil }, err
}

func createOfImage(c *cli.Context, program *os.File) (*sandbox.Sandbox, error) {
	image, err := pull(c)
	if err != nil {
		return nil, err
	}
	cfg, err := sandboxConfig(c, image, commandArgs(c))
	if err != nil {
		return nil, err
	}
	store, err := openSandboxes(c)
	if err != nil {
		return nil, err
	}
	images, err := openImages(c)
	if err != nil {
		return nil, err
	}
	origin := sandbox.Origin{Writable: func(path string) error { return images.NewWritable(c.Context, path, cfg.Disk) }}
	if !cfg.Cold {
		host, err := sandboxHost(c)
		if err != nil {
			return nil, err
		}
		from, err := host.Templates.Find(cfg, host)
		if err != nil {
			return nil, err
		}
		if from != nil {
			origin = sandbox.Origin{From: from.Dir(), Writable: func(path string) error { return from.NewDisk(c.Context, path) }}
		}
	}
	origin.Program = program
	return store.Create(cfg, origin)
}

// sandboxHost is what supervisors need of this machine: the files beside our binary, and the kernel.
func sandboxHost(c *cli.Context) (sandbox.Host, error) {
	kernel := c.String("kernel")
	if kernel == "" {
		var err error
		if kernel, err = guest.KernelPath(cacheDir(c)); err != nil {
			return sandbox.Host{}, err
		}
	}
	kernel, err := filepath.Abs(kernel)
	if err != nil {
		return sandbox.Host{}, err
	}
	networks, err := openNetworks(c)
	if err != nil {
		return sandbox.Host{}, err
	}
	return sandbox.Host{VMM: beside("spore-vmm"), Kernel: kernel, Initramfs: beside("initramfs.cpio"), Templates: openTemplates(c),
		Pool: poolDir(c), Disks: filepath.Join(stateDir(c), "sandboxes"), Net: beside("spore-net"), Processor: filepath.Join(stateDir(c), "processor"), Networks: networks, Log: logger(c),
	}, nil
}

func runAction(c *cli.Context) error {
	host, err := sandboxHost(c)
	if err != nil {
		return err
	}
	if c.Bool("detach") && (c.Bool("json") || c.Bool("report")) {
		return usagef(c, "--detach has no outcome to print: use 'spore wait --json'")
	}
	sb, discard, err := create(c)
	if err != nil {
		return err
	}
	defer discard()
	if c.Bool("detach") {
		return detach(c, sb, host)
	}
	if host.Secrets, err = secretsFromStdin(sb.Config.Network, os.Stdin); err != nil {
		return errors.Join(err, sb.Remove())
	}
	return foreground(c, sb, host)
}

// foreground supervises the sandbox in this process, with our own streams.
func foreground(c *cli.Context, sb *sandbox.Sandbox, host sandbox.Host) error {
	var captured struct{ out, err capture }
	s := sandbox.Streams{Stdout: shown(c, os.Stdout), Stderr: shown(c, os.Stderr)}
	if sb.Config.Stdin {
		s.Stdin = os.Stdin
	}
	if c.Bool("json") {
		s.Stdout, s.Stderr = &captured.out, &captured.err
	}
	restore, err := terminal(&s, sb.Config.TTY)
	if err != nil {
		return errors.Join(err, sb.Remove())
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2)
	s.Signals = signals
	outcome, err := sb.Supervise(context.WithoutCancel(c.Context), host, s, nil)
	restore()
	if err != nil {
		return err
	}
	steps, stamps := sb.Steps(), sb.Stamps()
	if sb.Config.Ephemeral() && !sb.Config.AutoRemove {
		if err := sb.Remove(); err != nil {
			return err
		}
	}
	return reportOutcome(c, outcome, steps, stamps, captured.out, captured.err)
}

// result is what run --json prints.
type result struct {
	sandbox.Outcome
	Stdout    string `json:"stdout"`
	Stderr    string `json:"stderr"`
	Truncated bool   `json:"truncated,omitempty"` // output beyond the kept part was dropped
	Steps     []step `json:"timing,omitempty"`    // how long each part took

	Stamps sandbox.Stamps `json:"stamps"` // when what had happened
}

type step struct {
	Name   string  `json:"step"`
	Millis float64 `json:"ms"`
}

func reportOutcome(c *cli.Context, o sandbox.Outcome, all []sandbox.Step, stamps sandbox.Stamps, out, errs capture) error {
	var steps []step
	for _, s := range all {
		steps = append(steps, step{s.Name, float64(s.Duration.Microseconds()) / 1e3})
	}
	if c.Bool("timing") {
		for _, s := range steps {
			fmt.Fprintf(c.App.ErrWriter, "spore: %-28s %9.2f ms\n", s.Name, s.Millis)
		}
		for _, m := range stamps.Moments() {
			fmt.Fprintf(c.App.ErrWriter, "spore: t0 → %-23s %9.2f ms\n", m.Name, float64(m.Duration.Microseconds())/1e3)
		}
	}
	switch {
	case c.Bool("json"):
		r := result{Outcome: o, Stdout: out.String(), Stderr: errs.String(), Truncated: out.cut || errs.cut, Steps: steps, Stamps: stamps}
		if err := printJSON(c.App.Writer, r); err != nil {
			return err
		}
	case c.Bool("report"):
		line, err := json.Marshal(o)
		if err != nil {
			return err
		}
		fmt.Fprintf(c.App.ErrWriter, "%s\n", line)
	case o.Kind != sandbox.Exited && !c.Bool("quiet"):
		fmt.Fprintln(c.App.ErrWriter, "spore:", printable(o.String()))
	case o.ExitCode == sandbox.CodeNotFound || o.ExitCode == sandbox.CodeCannotExec:
		if o.Detail != "" {
			fmt.Fprintln(c.App.ErrWriter, "spore:", printable(o.Detail))
		}
	}
	return outcomeError(o)
}

// maxCapture is how much of each stream run --json keeps, in bytes.
const maxCapture = 4 << 20

// capture keeps the beginning of a stream.
type capture struct {
	bytes.Buffer
	cut bool
}

func (b *capture) Write(p []byte) (int, error) {
	keep := min(len(p), maxCapture-b.Len())
	b.Buffer.Write(p[:keep])
	b.cut = b.cut || keep < len(p)
	return len(p), nil
}

var _ io.Writer = (*capture)(nil)
