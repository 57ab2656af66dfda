package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"spore/jailer"
	"spore/rootfs"
	"spore/sandbox"
)

// sandboxFlags are what run and create share.
func sandboxFlags() []cli.Flag {
	return append([]cli.Flag{
		&cli.StringFlag{Name: "name", Usage: "give the sandbox a name; a named sandbox keeps what it wrote"},
		&cli.BoolFlag{Name: "interactive", Aliases: []string{"i"}, Usage: "keep standard input open"},
		&cli.BoolFlag{Name: "tty", Aliases: []string{"t"}, Usage: "give the command a terminal"},
		programFlag(),
		&cli.BoolFlag{Name: "rm", Usage: "remove the sandbox when its command ends"},
		&cli.StringSliceFlag{Name: "env", Aliases: []string{"e"}, Usage: "set `NAME=VALUE` in the command's environment; NAME alone takes it from here"},
		&cli.StringSliceFlag{Name: "env-file", Usage: "read variables from `FILE`, one a line"},
		&cli.StringFlag{Name: "workdir", Aliases: []string{"w"}, Usage: "working `DIR` of the command"},
		&cli.StringFlag{Name: "user", Aliases: []string{"u"}, Usage: "`NAME|UID[:GID]` that the command runs as", DefaultText: "the image's, else 65534 (nobody)"},
		&cli.StringFlag{Name: "entrypoint", Usage: "run `CMD` instead of the image's entrypoint"},
		&cli.StringFlag{Name: "hostname", Usage: "the guest's host `NAME`", DefaultText: "the sandbox's name or id"},
		&cli.StringSliceFlag{Name: "label", Aliases: []string{"l"}, Usage: "attach `NAME=VALUE` to the sandbox"},
		&cli.IntFlag{Name: "cpus", Usage: "`N` virtual CPUs, 1 to 16", Value: sandbox.DefaultCPUs},
		&cli.StringFlag{Name: "memory", Aliases: []string{"m"}, Usage: "guest memory in `BYTES`, or with k, m, g", Value: "512m"},
		&cli.StringFlag{Name: "disk", Usage: "size of the writable layer in `BYTES`, or with m, g", Value: "1g"},
		&cli.IntFlag{Name: "pids", Usage: "at most `N` processes and threads", Value: sandbox.DefaultPids},
		&cli.DurationFlag{Name: "timeout", Usage: "end the command after `TIME` (0: never)", Value: sandbox.DefaultTimeout},
		&cli.BoolFlag{Name: "read-only", Usage: "make the command's root file system read-only; /tmp and /run stay writable"},
		&cli.StringFlag{Name: "root-device", Usage: "how the guest sees the image: `block` or pmem (shares the host's page cache)", Value: string(sandbox.RootBlock)},
		&cli.StringFlag{Name: "pull", Usage: "`missing`, always or never pull the image first", Value: "missing"},
		&cli.StringFlag{Name: "kernel", Usage: "guest kernel `FILE`, a vmlinux or bzImage", EnvVars: []string{"SPORE_KERNEL"}, DefaultText: "Spore's own"},
		&cli.StringFlag{Name: "from", Usage: "wake from `SNAPSHOT` instead of booting an image"},
		unlockFlag(),
		&cli.BoolFlag{Name: "cold", Usage: "boot the guest instead of waking it from a template, and leave none", EnvVars: []string{"SPORE_COLD"}},
		&cli.StringFlag{Name: "prepare", Usage: "run the shell command `CMD` in the template before it is taken; what it leaves in memory is there when the sandbox starts"},
		withoutFlag(),
		&cli.BoolFlag{Name: "debug-console", Usage: "add a serial port to the guest and log its console"},
	}, networkFlags()...)
}

func withoutFlag() cli.Flag {
	return &cli.StringSliceFlag{Name: "jail-without", Usage: "go on even if the host cannot offer this `LAYER` of the jail: landlock, cgroup", EnvVars: []string{"SPORE_JAIL_WITHOUT"}}
}

// allowedMissing returns the layers that --jail-without names.
func allowedMissing(c *cli.Context) ([]jailer.Layer, error) {
	var layers []jailer.Layer
	// The variable can hold one value only, so that several are separated by commas.
	for _, name := range strings.FieldsFunc(strings.Join(c.StringSlice("jail-without"), ","), func(r rune) bool { return r == ',' }) {
		if !slices.Contains(jailer.Optional(), jailer.Layer(name)) {
			return nil, usagef(c, "--jail-without %s: no layer that may be missing; there are %v", name, jailer.Optional())
		}
		layers = append(layers, jailer.Layer(name))
	}
	return layers, nil
}

// defaultPath is the command's PATH when the image sets none.
const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// nobody is who a command runs as when neither the user nor the image says.
const nobody = "65534:65534"

// sandboxConfig turns the flags and the image into a configuration.
func sandboxConfig(c *cli.Context, image rootfs.Image, args []string) (sandbox.Config, error) {
	cfg := sandbox.Config{
		Name: c.String("name"), Image: c.Args().First(), ImageDigest: image.Digest, ImagePath: image.Path,
		TTY: c.Bool("tty"), Stdin: c.Bool("interactive"), Hostname: c.String("hostname"),
		CPUs: c.Int("cpus"), Pids: c.Int("pids"), Timeout: c.Duration("timeout"), ReadOnly: c.Bool("read-only"),
		Root: sandbox.RootDevice(c.String("root-device")), Cold: c.Bool("cold"), DebugConsole: c.Bool("debug-console"), AutoRemove: c.Bool("rm"),
	}
	var err error
	if cfg.JailWithout, err = allowedMissing(c); err != nil {
		return cfg, err
	}
	for _, size := range []struct {
		flag string
		to   *int64
	}{{"memory", &cfg.Memory}, {"disk", &cfg.Disk}} {
		if *size.to, err = parseSize(c.String(size.flag)); err != nil {
			return cfg, fmt.Errorf("--%s: %w", size.flag, err)
		}
	}
	if cfg.Labels, err = parseLabels(c.StringSlice("label")); err != nil {
		return cfg, err
	}
	if cfg.Env, err = environment(c, image, cfg.TTY); err != nil {
		return cfg, err
	}
	if cfg.Network, err = networkOf(c); err != nil {
		return cfg, err
	}
	cfg.Env = mergeEnv(cfg.Env, cfg.Network.Placeholders())
	cfg.Args = command(c, image, args)
	if prepare := c.String("prepare"); prepare != "" {
		cfg.Prepare = []string{"/bin/sh", "-c", prepare}
	}
	cfg.Dir = firstOf(c.String("workdir"), image.Config.WorkingDir, "/")
	spec := firstOf(c.String("user"), image.Config.User, nobody)
	if cfg.User, err = lookupUser(image, spec); err != nil {
		return cfg, err
	}
	if cfg.User.Home != "" {
		cfg.Env = mergeEnv([]string{"HOME=" + cfg.User.Home}, cfg.Env)
	}
	return cfg, nil
}

func lookupUser(image rootfs.Image, spec string) (sandbox.User, error) {
	u, err := image.LookupUser(spec)
	if err != nil {
		return sandbox.User{}, fmt.Errorf("--user %s: %w", spec, err)
	}
	return sandbox.User{UID: u.UID, GID: u.GID, Groups: u.Groups, Home: u.Home}, nil
}

// command is argv: the entrypoint and what follows it, by Docker's rules. --entrypoint drops the image's
// command along with its entrypoint; --program is instead of both.
func command(c *cli.Context, image rootfs.Image, args []string) []string {
	if c.IsSet("program") {
		return args
	}
	entrypoint := image.Config.Entrypoint
	if c.IsSet("entrypoint") {
		entrypoint = nil
		if e := c.String("entrypoint"); e != "" {
			entrypoint = []string{e}
		}
	} else if len(args) == 0 {
		args = image.Config.Cmd
	}
	return append(append([]string{}, entrypoint...), args...)
}

// environment is the image's, under the files', under the flags'.
func environment(c *cli.Context, image rootfs.Image, tty bool) ([]string, error) {
	env := append([]string{defaultPath}, image.Config.Env...)
	if tty {
		env = append(env, "TERM="+firstOf(os.Getenv("TERM"), "xterm"))
	}
	for _, path := range c.StringSlice("env-file") {
		more, err := readEnvFile(path)
		if err != nil {
			return nil, err
		}
		env = append(env, more...)
	}
	more, err := parseEnv(c.StringSlice("env"), os.LookupEnv)
	if err != nil {
		return nil, err
	}
	return mergeEnv(nil, append(env, more...)), nil
}

// commandArgs is what follows the image, or the flags of run --from, without the "--" that may stand between; it follows the program
// of --program.
func commandArgs(c *cli.Context) []string {
	args := c.Args().Tail()
	if c.IsSet("from") {
		args = c.Args().Slice()
	}
	if len(args) > 0 && args[0] == "--" {
		args = args[1:]
	}
	if c.IsSet("program") {
		args = append([]string{sandbox.ProgramPath}, args...)
	}
	return args
}

func firstOf(choices ...string) string {
	for _, s := range choices {
		if s != "" {
			return s
		}
	}
	return ""
}

// since says how long ago t was, for people.
func since(t time.Time) string {
	d := time.Since(t).Round(time.Second)
	switch {
	case t.IsZero():
		return ""
	case d < 2*time.Minute:
		return fmt.Sprintf("%d seconds ago", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%d minutes ago", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d hours ago", int(d.Hours()))
	}
	return fmt.Sprintf("%d days ago", int(d.Hours()/24))
}

// shellWords joins argv for a table, quoting what needs it.
func shellWords(argv []string) string {
	words := make([]string, len(argv))
	for i, a := range argv {
		if a == "" || strings.ContainsAny(a, " \t\n\"'\\$") {
			a = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
		words[i] = a
	}
	return strings.Join(words, " ")
}
