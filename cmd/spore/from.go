package main

import (
	"encoding/json"
	"fmt"

	"github.com/urfave/cli/v2"

	"spore/sandbox"
	"spore/snapshot"
)

func originOf(c *cli.Context, from *snapshot.Dormant, main uint64, id string) sandbox.Origin {
	return sandbox.Origin{
		From: from.Dir(), Main: main, Snapshot: id,
		Writable: func(path string) error { return from.NewDisk(c.Context, path) },
	}
}

// dormantOf verifies a snapshot and returns it with the configuration of what it was taken of, as another sandbox's.
func dormantOf(c *cli.Context, store *snapshot.Store, m *snapshot.Manifest) (*snapshot.Dormant, sandbox.Config, error) {
	var cfg sandbox.Config
	from, err := store.Admit(c.Context, m)
	if err != nil {
		return nil, cfg, err
	}
	if err := json.Unmarshal(m.Origin, &cfg); err != nil {
		return nil, cfg, fmt.Errorf("snapshot %s: %w", m.Ref(), err)
	}
	cfg.ID = ""
	if cfg.JailWithout, err = allowedMissing(c); err != nil {
		return nil, cfg, err
	}
	return from, cfg, ownImage(c, &cfg)
}

// ownImage finds the image of a snapshot in the store. Which file that is, the store says and not the snapshot (SNAP-08).
func ownImage(c *cli.Context, cfg *sandbox.Config) error {
	store, err := openImages(c)
	if err != nil {
		return err
	}
	img, err := store.Get(cfg.ImageDigest)
	if err != nil || img.Digest != cfg.ImageDigest {
		return fmt.Errorf("the snapshot's image %s (%.19s) is not in the store: 'spore image pull %s'", printable(cfg.Image), printable(cfg.ImageDigest), printable(cfg.Image))
	}
	cfg.ImagePath = img.Path
	return nil
}

// notFrom are the flags of run and create that a snapshot has decided.
var notFrom = []string{
	"env", "env-file", "workdir", "user", "entrypoint", "cpus", "memory", "disk", "pids", "read-only", "root-device", "pull", "prepare", "debug-console",
}

// createFrom makes the sandbox of run --from: what the snapshot was taken of, under the flags that make sense for it.
func createFrom(c *cli.Context, args []string) (*sandbox.Sandbox, error) {
	for _, name := range notFrom {
		if c.IsSet(name) {
			return nil, usagef(c, "--%s does not go with --from: it is as it was in the sandbox that the snapshot is of", name)
		}
	}
	store, err := openSnapshots(c)
	if err != nil {
		return nil, err
	}
	m, err := store.Find(c.String("from"))
	if err != nil {
		return nil, err
	}
	from, cfg, err := dormantOf(c, store, m)
	if err != nil {
		return nil, err
	}
	cfg.Hostname, cfg.Name = c.String("hostname"), c.String("name")
	cfg.AutoRemove, cfg.Stdin, cfg.Prepare, cfg.Cold = c.Bool("rm"), c.Bool("interactive"), nil, false
	if c.IsSet("timeout") {
		cfg.Timeout = c.Duration("timeout")
	}
	if cfg.Labels, err = parseLabels(c.StringSlice("label")); err != nil {
		return nil, err
	}
	main := from.Spec.Main
	if len(args) > 0 {
		cfg.Args, cfg.TTY, main = args, c.Bool("tty"), 0
	}
	sandboxes, err := openSandboxes(c)
	if err != nil {
		return nil, err
	}
	return sandboxes.Create(cfg, originOf(c, from, main, m.ID))
}
