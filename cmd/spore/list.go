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

	"spore/sandbox"
	"spore/snapshot"
)

// listed is one sandbox in the output of ls and inspect.
type listed struct {
	sandbox.Config
	sandbox.State
}

func lsCommand() *cli.Command {
	return &cli.Command{
		Name: "ls", Aliases: []string{"ps"}, Usage: "list sandboxes", UseShortOptionHandling: true,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "also those that have ended"},
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "only ids"},
			&cli.StringSliceFlag{Name: "filter", Aliases: []string{"f"}, Usage: "only those with `label=NAME[=VALUE]` or status=STATUS"},
			jsonFlag(),
		},
		Action: onSandboxHost(lsAction),
	}
}

func jsonFlag() cli.Flag { return &cli.BoolFlag{Name: "json", Usage: "print JSON"} }

func lsAction(c *cli.Context) error {
	store, err := openSandboxes(c)
	if err != nil {
		return err
	}
	all, err := store.List()
	if err != nil {
		return err
	}
	rows := []listed{}
	for _, sb := range all {
		st, err := sb.State()
		if err != nil {
			continue // removed meanwhile
		}
		row := listed{sb.Config, st}
		active := st.Status == sandbox.Starting || st.Status == sandbox.Running
		if (active || c.Bool("all")) && matches(row, c.StringSlice("filter")) {
			rows = append(rows, row)
		}
	}
	switch {
	case c.Bool("quiet"):
		for _, r := range rows {
			fmt.Fprintln(c.App.Writer, r.ID)
		}
		return nil
	case c.Bool("json"):
		return printJSON(c.App.Writer, rows)
	}
	return printTable(c.App.Writer, rows)
}

// matches reports whether a sandbox passes every filter.
func matches(r listed, filters []string) bool {
	for _, f := range filters {
		key, value, _ := strings.Cut(f, "=")
		switch key {
		case "status":
			if string(r.Status) != value {
				return false
			}
		case "label":
			name, want, exact := strings.Cut(value, "=")
			if got, ok := r.Labels[name]; !ok || exact && got != want {
				return false
			}
		default:
			return false
		}
	}
	return true
}

func printTable(w io.Writer, rows []listed) error {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, "ID\tNAME\tIMAGE\tCOMMAND\tCREATED\tSTATUS\tPORTS")
	for _, r := range rows {
		words := shellWords(r.Args)
		if len(words) > 30 {
			words = words[:29] + "…"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r.ID, printable(r.Name), printable(r.Image), printable(words), since(r.Created), statusLine(r.State), ports(r.State))
	}
	return t.Flush()
}

func statusLine(st sandbox.State) string {
	if st.Status == sandbox.Stopped {
		return fmt.Sprintf("%s (%d) %s", st.Outcome.Kind, st.Outcome.ExitCode, since(st.Ended))
	}
	if st.Paused {
		return "paused, started " + since(st.Started)
	}
	if st.Status == sandbox.Running {
		return "running, started " + since(st.Started)
	}
	return string(st.Status)
}

// ports are those that are published, as docker ps has them.
func ports(st sandbox.State) string {
	if st.Network == nil {
		return ""
	}
	var all []string
	for _, p := range st.Network.Ports {
		all = append(all, fmt.Sprintf("%s->%d/%s", p.Host, p.Guest, p.Protocol))
	}
	return strings.Join(all, ", ")
}

// printable replaces what a terminal would act on.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

func inspectCommand() *cli.Command {
	return &cli.Command{
		Name: "inspect", Usage: "print all about sandboxes as JSON", ArgsUsage: "SANDBOX...",
		Flags: []cli.Flag{&cli.BoolFlag{Name: "json", Usage: "JSON is what it prints anyway", Hidden: true}},
		Action: onSandboxHost(func(c *cli.Context) error {
			found, err := findAll(c)
			if err != nil {
				return err
			}
			rows := []listed{}
			for _, sb := range found {
				st, err := sb.State()
				if err != nil {
					return err
				}
				rows = append(rows, listed{sb.Config, st})
			}
			return printJSON(c.App.Writer, rows)
		}),
	}
}

// openSandboxes opens the store and clears what a crash left.
func openSandboxes(c *cli.Context) (*sandbox.Store, error) {
	store, err := sandbox.OpenStore(stateDir(c) + "/sandboxes")
	if err != nil {
		return nil, err
	}
	networks, err := openNetworks(c)
	if err != nil {
		return nil, err
	}
	if _, err := networks.Sweep(c.Context, store.Alive); err != nil {
		logger(c).Warn("some of what killed sandboxes left on networks stays", "err", err) // and is tried again by the next command
	}
	return store, errors.Join(store.Sweep(), openTemplates(c).Sweep(), sandbox.SweepShells(poolDir(c)), snapshot.SweepVolatile(volatileDirs()...))
}

// findAll resolves every argument, at least one.
func findAll(c *cli.Context) ([]*sandbox.Sandbox, error) {
	if c.NArg() == 0 {
		return nil, usagef(c, "name a sandbox")
	}
	store, err := openSandboxes(c)
	if err != nil {
		return nil, err
	}
	var found []*sandbox.Sandbox
	for _, ref := range c.Args().Slice() {
		sb, err := store.Find(ref)
		if err != nil {
			return nil, err
		}
		found = append(found, sb)
	}
	return found, nil
}

// find resolves the first argument.
func find(c *cli.Context) (*sandbox.Sandbox, error) {
	if c.NArg() == 0 {
		return nil, usagef(c, "name a sandbox")
	}
	store, err := openSandboxes(c)
	if err != nil {
		return nil, err
	}
	return store.Find(c.Args().First())
}

// openTemplates is where templates are: with the sandboxes, for they are of this boot of this machine.
func openTemplates(c *cli.Context) *sandbox.Templates {
	return sandbox.OpenTemplates(filepath.Join(stateDir(c), "templates"))
}

// stateDir and cacheDir are where the flags or the XDG variables say.
func stateDir(c *cli.Context) string {
	return firstOf(c.String("state-dir"), xdg("XDG_STATE_HOME", ".local/state"))
}

func cacheDir(c *cli.Context) string {
	return firstOf(c.String("cache-dir"), xdg("XDG_CACHE_HOME", ".cache"))
}

func xdg(variable, below string) string {
	base := os.Getenv(variable)
	if base == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			home = "/"
		}
		base = home + "/" + below
	}
	return base + "/spore"
}
