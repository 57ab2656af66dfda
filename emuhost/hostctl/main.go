// Command hostctl drives the emulated host without the rest of Spore:
//
//	hostctl start|stop|status|prepare
//	hostctl run [--] COMMAND [ARGUMENT...]
//
// run starts the host if need be. On a terminal the command gets a terminal.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/signal"

	"spore/emuhost"
)

func main() {
	code, err := run(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "hostctl:", err)
	}
	os.Exit(code)
}

func run(args []string) (int, error) {
	cfg := emuhost.Config{Progress: func(step string) { fmt.Fprintln(os.Stderr, "hostctl:", step) }}
	if os.Getenv("HOSTCTL_DEBUG") != "" {
		cfg.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	h, err := emuhost.Open(cfg)
	if err != nil || len(args) == 0 {
		return 2, err
	}
	ctx := context.Background()
	switch args[0] {
	case "start":
		err = h.Start(ctx)
	case "stop":
		err = h.Stop(ctx)
	case "prepare":
		err = h.Prepare(ctx)
	case "status":
		var st emuhost.Status
		if st, err = h.Status(ctx); err == nil {
			err = json.NewEncoder(os.Stdout).Encode(st)
		}
	case "run":
		return runCommand(ctx, h, args[1:])
	default:
		err = fmt.Errorf("unknown command %q", args[0])
	}
	if err != nil {
		return 1, err
	}
	return 0, nil
}

func runCommand(ctx context.Context, h *emuhost.Host, args []string) (int, error) {
	if len(args) > 0 && args[0] == "--" {
		args = args[1:]
	}
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, emuhost.ForwardedSignals()...)
	if err := h.Start(ctx); err != nil {
		return emuhost.ExitLost, err
	}
	return h.Run(ctx, emuhost.Command{
		Args: args, Env: os.Environ(), Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		TTY: emuhost.IsTerminal(os.Stdin) && emuhost.IsTerminal(os.Stdout), Signals: signals,
	})
}
