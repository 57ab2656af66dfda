package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"spore/sandbox"
	"spore/snapshot"
)

func snapshotCommand() *cli.Command {
	return &cli.Command{
		Name: "snapshot", Usage: "keep sandboxes as they are at a moment, memory included, and go back to it",
		Description: "A snapshot is the state, the memory and the disk of a running sandbox. Snapshots form a tree: each knows the one\n" +
			"that its sandbox was at before. They are signed, and verified before anything wakes from them.",
		Subcommands: []*cli.Command{
			{
				Name: "take", Usage: "take a snapshot of a running or paused sandbox", ArgsUsage: "SANDBOX [NAME]", UseShortOptionHandling: true,
				Flags: []cli.Flag{
					&cli.BoolFlag{Name: "stop", Usage: "let the sandbox stand still while its memory is copied, instead of copying while it runs"},
					&cli.StringSliceFlag{Name: "label", Aliases: []string{"l"}, Usage: "attach `NAME=VALUE` to the snapshot"},
					encryptFlag(),
					&cli.BoolFlag{Name: "plain", Usage: "do not encrypt, although the sandbox came from an encrypted snapshot"},
					jsonFlag(),
				},
				Action: onSandboxHost(snapshotTake),
			},
			{
				Name: "list", Aliases: []string{"ls"}, Usage: "list snapshots",
				Flags:  []cli.Flag{&cli.BoolFlag{Name: "tree", Usage: "show which snapshot comes from which"}, jsonFlag()},
				Action: onSandboxHost(snapshotList),
			},
			{Name: "inspect", Usage: "print all that is known of snapshots, as JSON", ArgsUsage: "SNAPSHOT...", Action: onSandboxHost(snapshotInspect)},
			{
				Name: "restore", Usage: "roll a named sandbox back to a snapshot and let it run on from there", ArgsUsage: "SANDBOX SNAPSHOT",
				Action: onSandboxHost(snapshotRestore),
			},
			{
				Name: "rm", Usage: "remove snapshots", ArgsUsage: "SNAPSHOT...",
				Flags: []cli.Flag{
					&cli.BoolFlag{Name: "children", Usage: "and all that were taken after them"},
					&cli.BoolFlag{Name: "damaged", Usage: "remove a snapshot by its id whatever is in it"},
				},
				Action: onSandboxHost(snapshotRemove),
			},
			{
				Name: "diff", Usage: "say how much of the memory and the disk two snapshots do not share", ArgsUsage: "SNAPSHOT SNAPSHOT",
				Flags: []cli.Flag{jsonFlag()}, Action: onSandboxHost(snapshotDiff),
			},
			{
				Name: "export", Usage: "write a snapshot to a file, or to standard output for '-'", ArgsUsage: "SNAPSHOT FILE",
				Action: onSandboxHost(snapshotExport),
			},
			{
				Name: "import", Usage: "read a snapshot that 'spore snapshot export' wrote; '-' is standard input", ArgsUsage: "FILE",
				Description: "The snapshot must be signed by this installation, or by one whose key was added with 'spore snapshot trust'.",
				Action:      onSandboxHost(snapshotImport),
			},
			{Name: "verify", Usage: "compare snapshots with what was signed, byte for byte", ArgsUsage: "SNAPSHOT...", Action: onSandboxHost(snapshotVerify)},
			{Name: "key", Usage: "print the public key that this installation signs with", Action: onSandboxHost(snapshotKey)},
			{Name: "trust", Usage: "accept snapshots signed by another installation's key", ArgsUsage: "NAME PUBLIC-KEY", Action: onSandboxHost(snapshotTrust)},
		},
	}
}

// openSnapshots opens the store of snapshots, beside the sandboxes, and clears what a crash left.
func openSnapshots(c *cli.Context) (*snapshot.Store, error) {
	keys := snapshot.OpenKeys(filepath.Join(stateDir(c), "keys"))
	store, err := snapshot.OpenStore(filepath.Join(stateDir(c), "snapshots"), keys)
	if err != nil {
		return nil, err
	}
	return store, store.Sweep()
}

// taken is what take --json prints.
type taken struct {
	*snapshot.Manifest
	Saved sandbox.Saved `json:"saved"`
	Bytes int64         `json:"bytes"` // on the disk
}

func snapshotTake(c *cli.Context) error {
	sb, err := find(c)
	if err != nil {
		return err
	}
	labels, err := parseLabels(c.StringSlice("label"))
	if err != nil {
		return err
	}
	store, err := openSnapshots(c)
	if err != nil {
		return err
	}
	st, err := sb.State()
	if err != nil {
		return err
	}
	m := snapshot.Manifest{Name: c.Args().Get(1), Sandbox: sb.Config.ID, Labels: labels}
	if _, err := store.Find(st.Snapshot); err == nil {
		m.Parent = st.Snapshot // or it has been removed
	}
	if m.Origin, err = json.Marshal(sb.Config); err != nil {
		return err
	}
	added, saved, err := takeSnapshot(c, store, sb, m)
	if err != nil {
		return err
	}
	if err := sb.At(c.Context, added.ID); err != nil && !ended(err) {
		return err
	}
	size, err := store.Size(added)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, taken{added, saved, size})
	}
	_, err = fmt.Fprintln(c.App.Writer, added.ID)
	return err
}

// takeSnapshot saves a sandbox and adds that to the store. What is to be encrypted is saved into memory, and sealed from there.
func takeSnapshot(c *cli.Context, store *snapshot.Store, sb *sandbox.Sandbox, m snapshot.Manifest) (*snapshot.Manifest, sandbox.Saved, error) {
	var saved sandbox.Saved
	if err := checkEncrypt(c, sb.Config.MemoryDisk); err != nil {
		return nil, saved, err
	}
	pending, err := store.Begin()
	if err != nil {
		return nil, saved, err
	}
	defer pending.Discard()
	if !c.IsSet("encrypt") {
		if saved, err = sb.Save(c.Context, pending.Dir, !c.Bool("stop")); err != nil {
			return nil, saved, err
		}
		added, err := pending.Add(c.Context, m)
		return added, saved, err
	}
	key, err := wrapOf(c)
	if err != nil {
		return nil, saved, err
	}
	volatile, err := openVolatile()
	if err != nil {
		return nil, saved, err
	}
	plain, err := volatile.Begin()
	if err != nil {
		return nil, saved, err
	}
	defer plain.Discard()
	if saved, err = sb.Save(c.Context, plain.Dir, !c.Bool("stop")); err != nil {
		return nil, saved, err
	}
	from, err := snapshot.Open(plain.Dir)
	if err != nil {
		return nil, saved, err
	}
	added, err := pending.AddEncrypted(c.Context, from, m, key)
	return added, saved, err
}

// listedSnapshot is one snapshot in the output of list.
type listedSnapshot struct {
	*snapshot.Manifest
	Bytes int64 `json:"bytes"` // on the disk
}

func snapshotList(c *cli.Context) error {
	store, err := openSnapshots(c)
	if err != nil {
		return err
	}
	all, err := store.List()
	if err != nil {
		return err
	}
	rows := []listedSnapshot{}
	for _, m := range all {
		size, err := store.Size(m)
		if err != nil {
			continue // removed meanwhile
		}
		rows = append(rows, listedSnapshot{m, size})
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, rows)
	}
	w := tabwriter.NewWriter(c.App.Writer, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "SNAPSHOT\tNAME\tPARENT\tSANDBOX\tTAKEN\tSIZE")
	if c.Bool("tree") {
		here := map[string]bool{}
		for _, r := range rows {
			here[r.ID] = true
		}
		for _, r := range rows {
			if !here[r.Parent] { // a root, or imported without its parent
				printSnapshot(w, r, 0)
				printTree(w, rows, r.ID, 1)
			}
		}
	} else {
		for _, r := range rows {
			printSnapshot(w, r, 0)
		}
	}
	return w.Flush()
}

// printTree prints the snapshots with that parent, each followed by its own children.
func printTree(w io.Writer, rows []listedSnapshot, parent string, depth int) {
	for _, r := range rows {
		if r.Parent == parent {
			printSnapshot(w, r, depth)
			printTree(w, rows, r.ID, depth+1)
		}
	}
}

func printSnapshot(w io.Writer, r listedSnapshot, depth int) {
	fmt.Fprintf(w, "%s%s\t%s\t%s\t%s\t%s\t%s\n", strings.Repeat("  ", depth), r.ID, r.Name, r.Parent, r.Sandbox, since(r.Created), formatSize(r.Bytes))
}

// eachSnapshot does something to every snapshot named.
func eachSnapshot(c *cli.Context, do func(context.Context, *snapshot.Store, *snapshot.Manifest) error) error {
	if c.NArg() == 0 {
		return usagef(c, "name a snapshot")
	}
	store, err := openSnapshots(c)
	if err != nil {
		return err
	}
	var errs []error
	for _, ref := range c.Args().Slice() {
		m, err := store.Find(ref)
		if err == nil {
			err = do(c.Context, store, m)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func snapshotInspect(c *cli.Context) error {
	found := []*snapshot.Manifest{}
	err := eachSnapshot(c, func(_ context.Context, _ *snapshot.Store, m *snapshot.Manifest) error {
		found = append(found, m)
		return nil
	})
	if err != nil {
		return err
	}
	return printJSON(c.App.Writer, found)
}

func snapshotVerify(c *cli.Context) error {
	return eachSnapshot(c, func(ctx context.Context, s *snapshot.Store, m *snapshot.Manifest) error {
		if err := s.Verify(ctx, m); err != nil {
			return err
		}
		_, err := fmt.Fprintln(c.App.Writer, m.Ref(), "is what was signed")
		return err
	})
}

func snapshotRemove(c *cli.Context) error {
	if c.Bool("damaged") {
		store, err := openSnapshots(c)
		if err != nil {
			return err
		}
		var errs []error
		for _, id := range c.Args().Slice() {
			errs = append(errs, store.RemoveDamaged(id))
		}
		return errors.Join(errs...)
	}
	return eachSnapshot(c, func(_ context.Context, s *snapshot.Store, m *snapshot.Manifest) error {
		gone, err := s.Remove(m, c.Bool("children"))
		for _, g := range gone {
			fmt.Fprintln(c.App.Writer, g.ID)
		}
		return err
	})
}

func snapshotRestore(c *cli.Context) error {
	if c.NArg() != 2 {
		return usagef(c, "name a sandbox and a snapshot")
	}
	sb, err := find(c)
	if err != nil {
		return err
	}
	if sb.Config.Ephemeral() {
		return fmt.Errorf("sandbox %s has no name and is gone when it ends: make another of the snapshot with 'spore run --from %s'", sb.Ref(), c.Args().Get(1))
	}
	store, err := openSnapshots(c)
	if err != nil {
		return err
	}
	m, err := store.Find(c.Args().Get(1))
	if err != nil {
		return err
	}
	if _, err := store.Admit(c.Context, m); err != nil { // an encrypted one would end up on the sandbox's disk
		return err
	}
	w, err := prepareWake(c, store, m)
	if err != nil {
		return err
	}
	if err := sb.Fits(w.from.Spec, w.cfg); err != nil { // before anything is ended
		return err
	}
	host, err := sandboxHost(c)
	if err != nil {
		return err
	}
	if err := sb.Kill(c.Context); err != nil && !ended(err) {
		return err
	}
	if err := sb.Rewind(c.Context, w.from, m.ID); err != nil {
		return err
	}
	return startSupervisor(c, sb, host)
}

func snapshotDiff(c *cli.Context) error {
	if c.NArg() != 2 {
		return usagef(c, "name two snapshots")
	}
	store, err := openSnapshots(c)
	if err != nil {
		return err
	}
	var pair [2]*snapshot.Manifest
	for i := range pair {
		if pair[i], err = store.Find(c.Args().Get(i)); err != nil {
			return err
		}
	}
	d, err := store.Diff(c.Context, pair[0], pair[1])
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, d)
	}
	_, err = fmt.Fprintf(c.App.Writer, "memory  %s\ndisk    %s\n", formatSize(d.Memory), formatSize(d.Disk))
	return err
}
