package main

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"spore/lab"
	"spore/sandbox"
	"spore/snapshot"
)

func labCommand() *cli.Command {
	return &cli.Command{
		Name: "lab", Usage: "prove what the jail does",
		Subcommands: []*cli.Command{attestCommand(), postureCommand(), twinsCommand()},
	}
}

func attestCommand() *cli.Command {
	return &cli.Command{
		Name: "attest", Usage: "try to get out of a real jail, from the VMM's own place in it",
		Description: "Each attempt is a process of its own in the jail of spore-vmm, at one stage of its system-call filters:\n" +
			"bare (none, to see what the layers below them do), building, running, and vcpu (the thread of a vCPU).\n" +
			"Exits with 1 when anything is not as claimed.",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "calls", Usage: "try every system call by number too"},
			&cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "print what is as claimed too, not only its number"},
			withoutFlag(), jsonFlag(),
		},
		Action: whereSandboxesRun(attestAction),
	}
}

func postureCommand() *cli.Command {
	return &cli.Command{
		Name: "posture", Usage: "show what a running sandbox's VMM is held by", ArgsUsage: "SANDBOX",
		Flags:  []cli.Flag{jsonFlag()},
		Action: onSandboxHost(postureAction),
	}
}

func twinsCommand() *cli.Command {
	return &cli.Command{
		Name: "twins", Usage: "wake two sandboxes from a snapshot and prove that they are not the same", ArgsUsage: "SNAPSHOT",
		Description: "What two copies of one memory have in common is what an attacker knows of one who has the other: random numbers,\n" +
			"identifiers, the clock. Exits with 1 when anything that must differ does not. A generator inside a program that\n" +
			"already ran when the snapshot was taken is the program's own to seed again.",
		Flags:  []cli.Flag{withoutFlag(), unlockFlag(), jsonFlag()},
		Action: onSandboxHost(twinsAction),
	}
}

func twinsAction(c *cli.Context) error {
	if c.NArg() != 1 {
		return usagef(c, "name a snapshot")
	}
	store, err := openSnapshots(c)
	if err != nil {
		return err
	}
	m, err := store.Find(c.Args().First())
	if err != nil {
		return err
	}
	host, err := sandboxHost(c)
	if err != nil {
		return err
	}
	var pair [2]*sandbox.Sandbox
	for i := range pair {
		sb, err := wakeTwin(c, store, m, host)
		if err != nil {
			return err
		}
		defer func() { sb.Kill(c.Context); sb.Remove() }() // what cannot be removed now is listed, and has no name
		pair[i] = sb
	}
	twins, err := lab.Twins(c.Context, pair[0].Dial, pair[1].Dial)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		err = printJSON(c.App.Writer, twins)
	} else {
		err = printTwins(c.App.Writer, twins)
	}
	for _, t := range twins {
		if err == nil && !t.OK() {
			err = errNotAsClaimed
		}
	}
	return err
}

// wakeTwin wakes one sandbox from a snapshot, with the command that it was taken of.
func wakeTwin(c *cli.Context, store *snapshot.Store, m *snapshot.Manifest, host sandbox.Host) (*sandbox.Sandbox, error) {
	w, err := prepareWake(c, store, m)
	if err != nil {
		return nil, err
	}
	defer w.discard()
	w.cfg.Name, w.cfg.Hostname = "", ""
	sandboxes, err := openSandboxes(c)
	if err != nil {
		return nil, err
	}
	return startFrom(c, sandboxes, host, w.cfg, w.from, w.from.Spec.Main, m.ID)
}

func printTwins(w io.Writer, twins []lab.Twin) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\tWHAT\tFIRST\tSECOND")
	for _, f := range twins {
		mark := "ok"
		switch {
		case !f.OK():
			mark = "SAME"
		case f.Absent:
			mark = "-"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", mark, f.What, printable(f.First), printable(f.Second))
	}
	return t.Flush()
}

// whereSandboxesRun is onSandboxHost for what needs no KVM: with --native it runs here in any case.
func whereSandboxesRun(action cli.ActionFunc) cli.ActionFunc {
	return func(c *cli.Context) error {
		if c.Bool("native") {
			return action(c)
		}
		return onSandboxHost(action)(c)
	}
}

// errNotAsClaimed makes the command fail; what is wrong has been printed.
var errNotAsClaimed = &codeError{code: 1}

func attestAction(c *cli.Context) error {
	layers, err := allowedMissing(c)
	if err != nil {
		return err
	}
	a := lab.Attest{Probe: beside("spore-probe"), Without: layers, Calls: c.Bool("calls"), Workers: runtime.NumCPU()}
	report, err := a.Run(c.Context)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		err = printJSON(c.App.Writer, report)
	} else {
		err = printAttestation(c.App.Writer, report, c.Bool("all"))
	}
	if err == nil && report.Failures() > 0 {
		err = errNotAsClaimed
	}
	return err
}

func printAttestation(w io.Writer, r lab.Report, all bool) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\tCLAIM\tSTAGE\tACTION\tEXPECTED\tOBSERVED")
	row := func(ok bool, columns ...any) {
		if !all && ok {
			return
		}
		mark := "ok"
		if !ok {
			mark = "NOT"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", append([]any{mark}, columns...)...)
	}
	for _, f := range r.Posture {
		row(f.OK(), f.Claim, "running", "read /proc "+f.Source, f.Expected, f.Observed)
	}
	for _, k := range r.Checks {
		row(k.OK(), k.Claim, k.Stage, k.Action, k.Expected, k.Observed)
	}
	total, failed := len(r.Posture)+len(r.Checks), r.Failures()
	if all || failed > 0 {
		if err := t.Flush(); err != nil {
			return err
		}
	}
	for _, l := range r.Missing {
		fmt.Fprintf(w, "this host does not offer: %s\n", l)
	}
	_, err := fmt.Fprintf(w, "%d of %d as claimed\n", total-failed, total)
	return err
}

func postureAction(c *cli.Context) error {
	ref := c.Args().First()
	if ref == "" {
		return usagef(c, "name a sandbox")
	}
	store, err := openSandboxes(c)
	if err != nil {
		return err
	}
	sb, err := store.Find(ref)
	if err != nil {
		return err
	}
	st, err := sb.State()
	if err != nil {
		return err
	}
	if st.Status != sandbox.Running {
		return &sandbox.StateError{Ref: sb.Ref(), Is: st.Status, Want: "only a running sandbox has a posture"}
	}
	facts, err := lab.Posture(st.VMM, lab.Lacks(st.Outcome.JailMissing)...)
	if err != nil {
		return err
	}
	report := lab.Report{Posture: facts}
	if c.Bool("json") {
		err = printJSON(c.App.Writer, facts)
	} else {
		err = printPosture(c.App.Writer, facts)
	}
	if err == nil && report.Failures() > 0 {
		fmt.Fprintln(os.Stderr, "spore: not as the jail claims")
		err = errNotAsClaimed
	}
	return err
}

func printPosture(w io.Writer, facts []lab.Fact) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\tCLAIM\tSOURCE\tEXPECTED\tOBSERVED")
	for _, f := range facts {
		mark := "ok"
		if !f.OK() {
			mark = "NOT"
		}
		fmt.Fprintf(t, "%s\t%s\t/proc/PID/%s\t%s\t%s\n", mark, f.Claim, f.Source, f.Expected, f.Observed)
	}
	return t.Flush()
}
