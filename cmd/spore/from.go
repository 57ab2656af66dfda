package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"

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

// waking is a snapshot that something is about to wake from.
type waking struct {
	from    *snapshot.Dormant
	cfg     sandbox.Config // of what it was taken of, as another sandbox's
	discard func() error   // to be called once that has woken, or will not
}

// prepareWake verifies a snapshot, and decrypts it where that is needed.
func prepareWake(c *cli.Context, store *snapshot.Store, m *snapshot.Manifest) (_ *waking, err error) {
	if err := checkUnlock(c, m); err != nil {
		return nil, err
	}
	w := &waking{discard: func() error { return nil }}
	if err := json.Unmarshal(m.Origin, &w.cfg); err != nil {
		return nil, fmt.Errorf("snapshot %s: %w", m.Ref(), err)
	}
	w.cfg.ID, w.cfg.MemoryDisk = "", m.Encryption != nil
	if w.cfg.JailWithout, err = allowedMissing(c); err != nil {
		return nil, err
	}
	if err := ownImage(c, &w.cfg); err != nil {
		return nil, err
	}
	if m.Encryption == nil {
		w.from, err = store.Admit(c.Context, m)
	} else {
		w.from, w.discard, err = unlock(c, store, m)
	}
	if err != nil {
		return nil, err
	}
	return w, nil
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

// networkFrom is the network of a sandbox that wakes from a snapshot with that one. What it may reach was said by whoever took the
// snapshot; if that was not this installation, it is for the user here to say (SNAP-08).
func networkFrom(c *cli.Context, store *snapshot.Store, m *snapshot.Manifest, had *sandbox.Network) (*sandbox.Network, error) {
	asked := false
	for _, f := range networkFlags() {
		asked = asked || c.IsSet(f.Names()[0])
	}
	if asked {
		n, err := networkOf(c)
		if err != nil {
			return nil, err
		}
		if n.SameDevice(had) {
			n.KeepPlaceholders(had)
			return n, nil
		}
		return nil, usagef(c, "--network %s does not go with this snapshot: its guest was on %s, and has the network device for that", c.String("network"), had)
	}
	own, err := store.Keys().Public()
	if err != nil || had == nil || m.Signer == own {
		return had, err
	}
	return nil, usagef(c, "the snapshot comes from another installation, and its guest was on network %s: say what it may reach here, with --network %s and --allow", had, had)
}

// createFrom makes the sandbox of run --from: what the snapshot was taken of, under the flags that make sense for it.
func createFrom(c *cli.Context, args []string, program *os.File) (_ *sandbox.Sandbox, discard func() error, err error) {
	for _, name := range notFrom {
		if c.IsSet(name) {
			return nil, nil, usagef(c, "--%s does not go with --from: it is as it was in the sandbox that the snapshot is of", name)
		}
	}
	store, err := openSnapshots(c)
	if err != nil {
		return nil, nil, err
	}
	m, err := store.Find(c.String("from"))
	if err != nil {
		return nil, nil, err
	}
	w, err := prepareWake(c, store, m)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.discard())
		}
	}()
	cfg, main := w.cfg, w.from.Spec.Main
	cfg.Hostname, cfg.Name = c.String("hostname"), c.String("name")
	cfg.AutoRemove, cfg.Stdin, cfg.Prepare, cfg.Cold = c.Bool("rm"), c.Bool("interactive"), nil, false
	if cfg.Network, err = networkFrom(c, store, m, cfg.Network); err != nil {
		return nil, nil, err
	}
	cfg.Env = mergeEnv(cfg.Env, cfg.Network.Placeholders())
	if c.IsSet("timeout") {
		cfg.Timeout = c.Duration("timeout")
	}
	if cfg.Labels, err = parseLabels(c.StringSlice("label")); err != nil {
		return nil, nil, err
	}
	if len(args) > 0 {
		cfg.Args, cfg.TTY, main = args, c.Bool("tty"), 0
	}
	sandboxes, err := openSandboxes(c)
	if err != nil {
		return nil, nil, err
	}
	origin := originOf(c, w.from, main, m.ID)
	origin.Program = program
	sb, err := sandboxes.Create(cfg, origin)
	return sb, w.discard, err
}
