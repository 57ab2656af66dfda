// Command spore runs untrusted code in microVMs. The reading order is the flow of "spore run": run.go turns
// flags into a sandbox.Config, package sandbox does the rest, and exit.go turns its outcome into an exit code.
package main

import (
	"context"
	"os"

	"github.com/urfave/cli/v2"

	"spore/doctor"
)

// version is set by the release build.
var version = "0.1.0-dev"

func main() {
	doctor.Hello()
	os.Exit(run(context.Background(), os.Args))
}

// run is main without the process: it returns the exit code.
func run(ctx context.Context, args []string) int {
	return exitCode(newApp().RunContext(ctx, args), os.Stderr)
}

func newApp() *cli.App {
	cli.VersionFlag = &cli.BoolFlag{Name: "version", Usage: "print the version", DisableDefaultText: true}
	return &cli.App{
		Name:                 "spore",
		Usage:                "run untrusted code in microVMs",
		Description:          "A sandbox is a microVM with one image, one command, limits and an outcome.\nTry: spore run debian:12 -- echo hello",
		Version:              version,
		EnableBashCompletion: true,
		// A comma is part of what is given: ports of a rule, values of a variable.
		DisableSliceFlagSeparator: true,
		Suggest:                   true,
		HideHelpCommand:           true,
		ExitErrHandler:            func(*cli.Context, error) {}, // exitCode prints, once
		OnUsageError:              usageError,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "debug", Usage: "log what Spore does to standard error", EnvVars: []string{"SPORE_DEBUG"}},
			&cli.BoolFlag{Name: "native", Usage: "never use the emulated host; fail if this host cannot run guests", EnvVars: []string{"SPORE_NATIVE"}},
			&cli.StringFlag{Name: "state-dir", Usage: "where sandboxes live", EnvVars: []string{"SPORE_STATE_DIR"}, DefaultText: "$XDG_STATE_HOME/spore"},
			&cli.StringFlag{Name: "cache-dir", Usage: "where images, kernels and downloads live", EnvVars: []string{"SPORE_CACHE_DIR"}, DefaultText: "$XDG_CACHE_HOME/spore"},
			carriedFlag(),
		},
		Commands: []*cli.Command{
			runCommand(), createCommand(), startCommand(), execCommand(), attachCommand(), stopCommand(), killCommand(),
			rmCommand(), pauseCommand(), resumeCommand(), forkCommand(), cloneCommand(), snapshotCommand(), networkCommand(), poolCommand(), lsCommand(), inspectCommand(), logsCommand(), waitCommand(), cpCommand(), statsCommand(),
			imageCommand(), hostCommand(), doctorCommand(), labCommand(), versionCommand(), completionCommand(), superviseCommand(),
		},
	}
}

// usageError makes a mistake on the command line say where help is.
func usageError(c *cli.Context, err error, _ bool) error {
	return usagef(c, "%v", err)
}
