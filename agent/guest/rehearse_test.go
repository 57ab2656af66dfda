package guest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"spore/agent"
	"spore/internal/testenv"
)

// TestRehearsal: a process is started where it can change nothing, and of that place nothing is left.
func TestRehearsal(t *testing.T) {
	testenv.Require(t, testenv.Root)
	_, a := guest(t)
	root := filepath.Join(t.TempDir(), "root")
	for name, c := range map[string]struct {
		args  []string
		limit time.Duration
		want  string
	}{
		"shell":           {[]string{"/bin/sh", "-c", "pwd"}, rehearsalLimit, "/\n"},
		"read-only":       {[]string{"/bin/sh", "-c", "{ true >>/tmp; } 2>/dev/null || echo refused; id -u"}, rehearsalLimit, "refused\n65534\n"},
		"nothing mounted": {[]string{"/bin/sh", "-c", "echo /proc/*"}, rehearsalLimit, "/proc/*\n"},
		"takes for ever":  {[]string{"/bin/sh", "-c", "exec sleep 1000"}, time.Second, ""},
		"no such program": {[]string{"/no/such/shell"}, rehearsalLimit, ""},
	} {
		t.Run(name, func(t *testing.T) {
			var said strings.Builder
			a.rehearse(root, c.args, c.limit, agent.NewWriter(frames{&said}))
			if said.String() != c.want {
				t.Errorf("it said %q, want %q", said.String(), c.want)
			}
			if _, err := os.Lstat(root); !os.IsNotExist(err) {
				t.Errorf("the directory is left: %v", err)
			}
			mounts, err := os.ReadFile("/proc/self/mounts")
			if err != nil || strings.Contains(string(mounts), root) {
				t.Errorf("the mount is left, %v", err)
			}
		})
	}
}

// frames takes frames, one a Write, and keeps what a process printed.
type frames struct{ said *strings.Builder }

func (f frames) Write(p []byte) (int, error) {
	if t := agent.FrameType(p[0]); t == agent.FrameStdout {
		f.said.Write(p[5:])
	}
	return len(p), nil
}
