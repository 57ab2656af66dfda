package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/urfave/cli/v2"
)

func snapshotExport(c *cli.Context) error {
	if c.NArg() != 2 {
		return usagef(c, "name a snapshot and a file")
	}
	store, err := openSnapshots(c)
	if err != nil {
		return err
	}
	m, err := store.Find(c.Args().First())
	if err != nil {
		return err
	}
	path := c.Args().Get(1)
	if path == "-" {
		return store.Export(c.Context, m, os.Stdout)
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".spore-export-*") // the file appears whole or not at all
	if err != nil {
		return err
	}
	err = errors.Join(store.Export(c.Context, m, tmp), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp.Name()))
	}
	return nil
}

func snapshotImport(c *cli.Context) error {
	if c.NArg() != 1 {
		return usagef(c, "name a file")
	}
	store, err := openSnapshots(c)
	if err != nil {
		return err
	}
	in := os.Stdin
	if path := c.Args().First(); path != "-" {
		if in, err = os.Open(path); err != nil {
			return err
		}
		defer in.Close()
	}
	m, err := store.Import(c.Context, in)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(c.App.Writer, m.ID)
	return err
}

func snapshotKey(c *cli.Context) error {
	store, err := openSnapshots(c)
	if err != nil {
		return err
	}
	public, err := store.Keys().Public()
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(c.App.Writer, public)
	return err
}

func snapshotTrust(c *cli.Context) error {
	if c.NArg() != 2 {
		return usagef(c, "give the key a name, and the key that 'spore snapshot key' printed there")
	}
	store, err := openSnapshots(c)
	if err != nil {
		return err
	}
	return store.Keys().Trust(c.Args().Get(0), c.Args().Get(1))
}
