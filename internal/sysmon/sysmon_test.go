package sysmon

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"spore/internal/testenv"
)

// program is what this test is when it is started as a child: a program in Go that waits for its standard input to end.
const program = "SYSMON_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(program) != "" {
		os.Stdout.WriteString("up\n")
		os.Stdin.Read(make([]byte, 1))
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// TestSlacken: one thread of another process oversleeps, and not the one that it began with.
func TestSlacken(t *testing.T) {
	testenv.Require(t, testenv.Root)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), program+"=1")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer in.Close()
	if _, err := out.Read(make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	if err := Slacken(cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	tasks, err := filepath.Glob("/proc/" + strconv.Itoa(cmd.Process.Pid) + "/task/*")
	if err != nil {
		t.Fatal(err)
	}
	late := map[string]bool{}
	for _, path := range tasks {
		b, err := os.ReadFile("/proc/" + filepath.Base(path) + "/timerslack_ns")
		if err != nil {
			t.Fatal(err)
		}
		n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		if time.Duration(n) == Slack {
			late[filepath.Base(path)] = true
		}
	}
	// What the monitor starts afterwards has its slack.
	if len(late) == 0 || late[strconv.Itoa(cmd.Process.Pid)] {
		t.Errorf("of %d threads these oversleep: %v", len(tasks), late)
	}
}

func TestSlackenNobody(t *testing.T) {
	if err := Slacken(1 << 30); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want that there is no such process", err)
	}
}
