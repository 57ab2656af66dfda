package lossy_test

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"spore/internal/lossy"
)

// TestWriterNeverWaits fills a pipe that nobody reads.
func TestWriterNeverWaits(t *testing.T) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	r, f := os.NewFile(uintptr(fds[0]), "r"), os.NewFile(uintptr(fds[1]), "w")
	defer f.Close()
	w, line := lossy.New(f), bytes.Repeat([]byte("x"), 4<<10)
	for range 64 { // four times what a pipe holds
		if n, err := w.Write(line); n != len(line) || err != nil {
			t.Fatalf("wrote %d, %v", n, err)
		}
	}
	r.Close()
	if _, err := w.Write(line); err == nil {
		t.Error("a reader that is gone is none missed")
	}
	lossy.Logger(nil, "s").Info("nowhere")
}

func TestLoggerNamesTheSandbox(t *testing.T) {
	r, f, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	lossy.Logger(f, "abc").Info("hello")
	f.Close()
	b := make([]byte, 1<<10)
	n, _ := r.Read(b)
	if s := string(b[:n]); !strings.Contains(s, `"sandbox":"abc"`) || !strings.Contains(s, "hello") {
		t.Errorf("logged %q", s)
	}
}
