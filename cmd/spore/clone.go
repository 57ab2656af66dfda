package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"spore/internal/sparse"
	"spore/sandbox"
)

func cloneCommand() *cli.Command {
	return &cli.Command{
		Name: "clone", Usage: "make a copy of a named sandbox that does not run", ArgsUsage: "SANDBOX NAME",
		Description: "The copy has the disk of the original. Where the file system can, they share what neither has changed; --linked\n" +
			"insists on it. A running sandbox is copied with its memory by 'spore fork'.",
		Flags:  []cli.Flag{&cli.BoolFlag{Name: "linked", Usage: "fail if the disks cannot share their blocks"}},
		Action: onSandboxHost(cloneAction),
	}
}

func cloneAction(c *cli.Context) error {
	if c.NArg() != 2 {
		return usagef(c, "name a sandbox and the copy")
	}
	sb, err := find(c)
	if err != nil {
		return err
	}
	store, err := openSandboxes(c)
	if err != nil {
		return err
	}
	cfg := sb.Config
	cfg.ID, cfg.Hostname, cfg.Name, cfg.Network = "", "", c.Args().Get(1), cfg.Network.Copied()
	var copied *sandbox.Sandbox
	err = sb.Standing(func(disk *os.File) error {
		copied, err = store.Create(cfg, sandbox.Origin{Writable: func(path string) error { return copyDisk(c, path, disk, cfg.Disk) }})
		return err
	})
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(c.App.Writer, copied.Config.ID)
	return err
}

// errNotShared is for --linked.
var errNotShared = errors.New("this file system cannot share blocks between files: leave out --linked for a full copy")

func copyDisk(c *cli.Context, path string, from *os.File, size int64) error {
	to, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	shared, err := sparse.Copy(c.Context, to, from, size)
	if err == nil && c.Bool("linked") && !shared {
		err = errNotShared
	}
	return errors.Join(err, to.Close())
}
