package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/urfave/cli/v2"

	"spore/rootfs"
	"spore/sandbox"
)

// TestSNAP08Image: which file is behind the disk of an image is what the store says, whatever the snapshot says.
func TestSNAP08Image(t *testing.T) {
	dir := t.TempDir()
	root := filepath.Join(dir, "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	app := &cli.App{Flags: []cli.Flag{&cli.StringFlag{Name: "cache-dir"}}, Action: func(c *cli.Context) error {
		store, err := openImages(c)
		if err != nil {
			return err
		}
		img, err := store.Import(c.Context, "dir:"+root, "app:1", rootfs.ImportOptions{})
		if err != nil {
			return err
		}
		cfg := sandbox.Config{Image: "app:1", ImageDigest: img.Digest, ImagePath: "/etc/passwd"}
		if err := ownImage(c, &cfg); err != nil || cfg.ImagePath != img.Path {
			t.Errorf("SNAP-08: the image is %s, %v, want %s", cfg.ImagePath, err, img.Path)
		}
		for _, digest := range []string{"", "app:1", img.Digest[:len(img.Digest)-1], "sha256:" + filepath.Base(root)} {
			cfg := sandbox.Config{Image: "app:1", ImageDigest: digest, ImagePath: "/etc/passwd"}
			if err := ownImage(c, &cfg); err == nil {
				t.Errorf("SNAP-08: digest %q is taken for %s", digest, cfg.ImagePath)
			}
		}
		return nil
	}}
	if err := app.Run([]string{"spore", "--cache-dir", dir}); err != nil {
		t.Fatal(err)
	}
}
