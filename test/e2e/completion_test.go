package e2e

import (
	"os/exec"
	"strings"
	"testing"
)

// TestCompletion completes what stands on a command line, as bash does.
func TestCompletion(t *testing.T) {
	for line, want := range map[string]string{
		"spore ins":             "inspect",
		"spore run --prog":      "--program",
		"spore run --cpu":       "--cpus",
		"spore snapshot ta":     "take",
		"spore snapshot take -": "--help", // among others
	} {
		words := strings.Fields(line)
		words[0] = binary("spore")
		script := `source <("$0" completion bash); COMP_WORDS=("$0" "$@"); COMP_CWORD=$#; _spore; printf '%s\n' "${COMPREPLY[@]}"`
		out, err := exec.Command("bash", append([]string{"-c", script}, words...)...).CombinedOutput()
		if err != nil || !strings.Contains("\n"+string(out), "\n"+want+"\n") {
			t.Errorf("%s: %q, %v; want %s", line, out, err, want)
		}
	}
}
