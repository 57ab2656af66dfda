package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"spore/rootfs"
	"spore/sandbox"
)

func imageCommand() *cli.Command {
	quiet := &cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "print only digests"}
	return &cli.Command{
		Name: "image", Usage: "images: read-only root file systems that sandboxes share",
		Subcommands: []*cli.Command{
			{Name: "pull", Usage: "get an image from a registry", ArgsUsage: "NAME[:TAG|@sha256:...]", Action: imagePull, Flags: []cli.Flag{quiet, jsonFlag(),
				&cli.StringFlag{Name: "platform", Usage: "`OS/ARCH` of a multi-platform image", Value: "linux/amd64"}}},
			{Name: "import", Usage: "make an image of local files", ArgsUsage: "SOURCE NAME", Action: imageImport, Flags: []cli.Flag{quiet, jsonFlag()},
				Description: "SOURCE is a path, or oci:PATH, docker-archive:PATH, tar:PATH or dir:PATH to say what it is."},
			{Name: "list", Aliases: []string{"ls"}, Usage: "list images", Action: imageList, Flags: []cli.Flag{quiet, jsonFlag()}},
			{Name: "inspect", Usage: "print all about images as JSON", ArgsUsage: "IMAGE...", Action: imageInspect},
			{Name: "rm", Usage: "remove images", ArgsUsage: "IMAGE...", Action: imageRemove,
				Flags: []cli.Flag{&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Usage: "also those in use or with several names"}}},
			{Name: "prune", Usage: "remove images without a name", Action: imagePrune},
		},
	}
}

func openImages(c *cli.Context) (*rootfs.Store, error) {
	return rootfs.Open(rootfs.Config{Dir: filepath.Join(cacheDir(c), "images"), Log: logger(c)})
}

// withProgress runs an import or a pull with bars on a terminal and lines elsewhere.
func withProgress(c *cli.Context, do func(rootfs.Progress) (rootfs.Image, error)) error {
	show := newProgress(os.Stderr, c.Bool("quiet") || c.Bool("json"))
	image, err := do(show)
	show.finish()
	if err != nil {
		return err
	}
	switch {
	case c.Bool("json"):
		return printJSON(c.App.Writer, image)
	case c.Bool("quiet"):
		_, err = fmt.Fprintln(c.App.Writer, image.Digest)
	default:
		_, err = fmt.Fprintf(c.App.Writer, "%s  %s  %s\n", image.Name, shortDigest(image.Digest), formatSize(image.Size))
	}
	return err
}

func imagePull(c *cli.Context) error {
	if c.NArg() != 1 {
		return usagef(c, "name one image")
	}
	store, err := openImages(c)
	if err != nil {
		return err
	}
	return withProgress(c, func(p rootfs.Progress) (rootfs.Image, error) {
		return store.Pull(c.Context, c.Args().First(), rootfs.PullOptions{Policy: rootfs.PullAlways, Platform: c.String("platform"), Progress: p})
	})
}

func imageImport(c *cli.Context) error {
	if c.NArg() != 2 {
		return usagef(c, "give a source and a name")
	}
	store, err := openImages(c)
	if err != nil {
		return err
	}
	return withProgress(c, func(p rootfs.Progress) (rootfs.Image, error) {
		return store.Import(c.Context, c.Args().Get(0), c.Args().Get(1), rootfs.ImportOptions{Progress: p})
	})
}

func imageList(c *cli.Context) error {
	store, err := openImages(c)
	if err != nil {
		return err
	}
	images, err := store.List()
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, append([]rootfs.Image{}, images...))
	}
	t := tabwriter.NewWriter(c.App.Writer, 0, 0, 3, ' ', 0)
	if !c.Bool("quiet") {
		fmt.Fprintln(t, "NAME\tDIGEST\tSIZE\tUPDATED")
	}
	for _, i := range images {
		if c.Bool("quiet") {
			fmt.Fprintln(t, i.Digest)
			continue
		}
		for _, name := range append(i.Names[:len(i.Names):len(i.Names)], none(i.Names)...) {
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", printable(name), shortDigest(i.Digest), formatSize(i.Size), since(i.Updated))
		}
	}
	return t.Flush()
}

// none is the name shown for an image without one.
func none(names []string) []string {
	if len(names) > 0 {
		return nil
	}
	return []string{"<none>"}
}

func shortDigest(d string) string {
	hex := strings.TrimPrefix(d, "sha256:")
	return hex[:min(12, len(hex))]
}

func imageInspect(c *cli.Context) error {
	if c.NArg() == 0 {
		return usagef(c, "name an image")
	}
	store, err := openImages(c)
	if err != nil {
		return err
	}
	var images []rootfs.Image
	for _, name := range c.Args().Slice() {
		i, err := store.Get(name)
		if err != nil {
			return imageError(name, err)
		}
		images = append(images, i)
	}
	return printJSON(c.App.Writer, images)
}

func imageRemove(c *cli.Context) error {
	if c.NArg() == 0 {
		return usagef(c, "name an image")
	}
	store, err := openImages(c)
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range c.Args().Slice() {
		if err := keptBySandbox(c, store, name); err != nil && !c.Bool("force") {
			errs = append(errs, err)
			continue
		}
		if err := store.Remove(c.Context, name, c.Bool("force")); err != nil {
			errs = append(errs, imageError(name, err))
			continue
		}
		fmt.Fprintln(c.App.Writer, name)
	}
	return errors.Join(errs...)
}

// keptBySandbox is an error when a named sandbox, which can start again, is of that image.
func keptBySandbox(c *cli.Context, images *rootfs.Store, name string) error {
	img, err := images.Get(name)
	if err != nil || len(img.Names) > 1 {
		return nil // Remove knows better, or leaves the image there
	}
	store, err := openSandboxes(c)
	if err != nil {
		return err
	}
	all, err := store.List()
	if err != nil {
		return err
	}
	for _, sb := range all {
		if !sb.Config.Ephemeral() && sb.Config.ImageDigest == img.Digest {
			return fmt.Errorf("remove image %s: sandbox %s is of it: remove that first (spore rm %s), or use --force", name, sb.Ref(), sb.Ref())
		}
	}
	return keptBySnapshot(c, name, img.Digest)
}

// keptBySnapshot is an error when what wakes from a snapshot reads its files from that image.
func keptBySnapshot(c *cli.Context, name, digest string) error {
	store, err := openSnapshots(c)
	if err != nil {
		return err
	}
	all, err := store.List()
	if err != nil {
		return err
	}
	for _, m := range all {
		var origin sandbox.Config
		if json.Unmarshal(m.Origin, &origin) == nil && origin.ImageDigest == digest {
			return fmt.Errorf("remove image %s: snapshot %s needs it: remove that first (spore snapshot rm %s), or use --force", name, m.Ref(), m.Ref())
		}
	}
	return nil
}

func imagePrune(c *cli.Context) error {
	store, err := openImages(c)
	if err != nil {
		return err
	}
	freed, err := store.Prune(c.Context)
	if err != nil {
		return err
	}
	templates, err := openTemplates(c).Prune(c.Context)
	freed += templates
	if err == nil {
		_, err = fmt.Fprintf(c.App.Writer, "freed %s\n", formatSize(freed))
	}
	return err
}

// imageError adds the remedy to the errors a user can mend.
func imageError(name string, err error) error {
	switch {
	case errors.Is(err, rootfs.ErrNotFound):
		return fmt.Errorf("image %s: %w: 'spore image list' shows those there are, 'spore image pull' gets more", name, err)
	case errors.Is(err, rootfs.ErrInUse):
		return fmt.Errorf("image %s: %w: remove the sandboxes that use it, or use --force", name, err)
	}
	return err
}

// isTerminal reports whether w is one that bars can be drawn on.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	st, err := f.Stat()
	return err == nil && st.Mode()&os.ModeCharDevice != 0 && os.Getenv("TERM") != "dumb"
}
