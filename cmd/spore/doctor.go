package main

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"spore/doctor"
	"spore/lab"
	"spore/sandbox"
)

func doctorCommand() *cli.Command {
	return &cli.Command{
		Name: "doctor", Usage: "try what this machine can do, and say what is missing",
		Description: "Exits with 1 when a plain 'spore run' would not work natively (it then uses the emulated host).",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "fix", Usage: "clean up what a power cut or a killed process has left"},
			jsonFlag(),
		},
		Action: func(c *cli.Context) error {
			if c.Bool("fix") {
				return onSandboxHost(fixAction)(c)
			}
			report := doctor.Examine(c.Context)
			jail := examineJail(c)
			report.Findings = append(append(report.Findings, examineNetworks(c)...), jail)
			report.Native = report.Native && jail.OK
			var err error
			if c.Bool("json") {
				err = printJSON(c.App.Writer, report)
			} else {
				err = printReport(c.App.Writer, report, colours())
			}
			if err == nil && !report.Native {
				err = &codeError{code: 1}
			}
			return err
		},
	}
}

// examineJail puts up a jail on this machine and looks at it. To try to get out takes longer: spore lab attest.
func examineJail(c *cli.Context) doctor.Finding {
	f := doctor.Finding{
		Name: "jail", Needed: true, Why: "the VMM is held by all the layers that spore lab attest tries to get through",
		Remedy: "mend what is named, or allow a layer to be missing with --jail-without; spore --native lab attest shows each attempt",
	}
	report, err := lab.Attest{Probe: beside("spore-probe"), Brief: true}.Run(c.Context)
	total := len(report.Posture)
	switch n := report.Failures(); {
	case err != nil:
		f.Detail = err.Error()
	case n > 0:
		f.Detail = fmt.Sprintf("%d of %d are not as the jail claims", n, total)
	default:
		f.OK, f.Detail = true, fmt.Sprintf("%d of %d facts are as it claims", total, total)
	}
	for _, l := range report.Missing {
		f.Detail += fmt.Sprintf("; not offered here: %s", l)
	}
	return f
}

// fixAction sets right what crashed processes have left where sandboxes run, and says what is there then. What is in use
// is not touched.
func fixAction(c *cli.Context) error {
	store, err := openSandboxes(c) // sweeps half-made records and the jails of killed supervisors
	if err != nil {
		return err
	}
	all, err := store.List()
	if err != nil {
		return err
	}
	running := 0
	for _, sb := range all {
		st, err := sb.State() // a sandbox that has lost its supervisor is recorded as ended
		if err != nil {
			return err
		}
		if st.Status == sandbox.Running || st.Status == sandbox.Starting {
			running++
		}
	}
	groups, err := sandbox.SweepGroups(c.Context)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.App.Writer, "%d sandboxes, %d of them running; %d cgroups without a process removed\n", len(all), running, groups)
	return err
}

func printReport(w io.Writer, r doctor.Report, p palette) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, f := range r.Findings {
		mark := "ok"
		if !f.OK {
			mark = "absent"
			if f.Needed {
				mark = "MISSING"
			}
		}
		fmt.Fprintf(t, "%s\t%s\t%s\n", f.Name, mark, firstOf(f.Detail, f.Why))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, f := range r.Findings {
		if !f.OK {
			fmt.Fprintf(w, "\n%s: %s\n  for:    %s\n  remedy: %s\n", p.bold(f.Name), f.Detail, f.Why, f.Remedy)
		}
	}
	if r.Native {
		_, err := fmt.Fprintln(w, "\nSandboxes run natively on this machine.")
		return err
	}
	_, err := fmt.Fprintln(w, "\nSandboxes do not run natively here; 'spore run' uses the emulated host.")
	return err
}

// palette is how text is set off on a terminal; the zero value sets nothing off.
type palette struct{ on bool }

func (p palette) bold(s string) string {
	if !p.on {
		return s
	}
	return "\x1b[1m" + s + "\x1b[0m"
}

// colours are on for a terminal whose user has not said otherwise (no-color.org).
func colours() palette {
	st, err := os.Stdout.Stat()
	terminal := err == nil && st.Mode()&os.ModeCharDevice != 0
	return palette{on: terminal && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"}
}

func versionCommand() *cli.Command {
	return &cli.Command{
		Name: "version", Usage: "print versions", Flags: []cli.Flag{jsonFlag()},
		Action: func(c *cli.Context) error {
			v := map[string]string{"spore": version, "go": runtime.Version(), "arch": runtime.GOARCH}
			if c.Bool("json") {
				return printJSON(c.App.Writer, v)
			}
			_, err := fmt.Fprintf(c.App.Writer, "spore %s (%s, %s)\n", version, v["go"], v["arch"])
			return err
		},
	}
}

// completions are the scripts that make a shell ask us: --generate-bash-completion prints the choices. Part of a flag is no flag, so
// they ask for all flags, by "-", and choose.
var completions = map[string]string{
	"bash": `_spore() {
  local words=("${COMP_WORDS[@]:0:$COMP_CWORD}")
  local cur="${COMP_WORDS[COMP_CWORD]}"
  [[ "$cur" == -* ]] && words+=(-)
  COMPREPLY=($(compgen -W "$("${words[@]}" --generate-bash-completion 2>/dev/null)" -- "$cur"))
}
complete -o bashdefault -o default -F _spore spore
`,
	"zsh": `#compdef spore
_spore() {
  local -a choices
  local cur=${words[-1]}
  if [[ "$cur" == -* ]]; then
    choices=("${(@f)$(_CLI_ZSH_AUTOCOMPLETE_HACK=1 ${words[@]:0:#words[@]-1} - --generate-bash-completion)}")
  else
    choices=("${(@f)$(_CLI_ZSH_AUTOCOMPLETE_HACK=1 ${words[@]:0:#words[@]-1} --generate-bash-completion)}")
  fi
  [[ -n "${choices[1]}" ]] && _describe 'values' choices || _files
}
compdef _spore spore
`,
}

func completionCommand() *cli.Command {
	return &cli.Command{
		Name: "completion", Usage: "print a completion script for bash or zsh", ArgsUsage: "bash|zsh",
		Description: "source <(spore completion bash)",
		Action: func(c *cli.Context) error {
			script, ok := completions[c.Args().First()]
			if !ok {
				return usagef(c, "shell %q: use bash or zsh", c.Args().First())
			}
			_, err := io.Copy(c.App.Writer, strings.NewReader(script))
			return err
		},
	}
}
