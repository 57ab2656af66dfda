package stack_test

import (
	"runtime"
	"strings"
	"testing"
	"time"
)

// left fails if goroutines of a stack's live on.
func left(t *testing.T) {
	t.Helper()
	var text string
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		b := make([]byte, 1<<20)
		text = string(b[:runtime.Stack(b, true)])
		found := false
		for _, g := range strings.Split(text, "\n\n") {
			found = found || strings.Contains(g, "spore/network/stack.(") || strings.Contains(g, "spore/network/proxy.(")
		}
		if !found {
			return
		}
	}
	t.Errorf("left over:\n%s", text)
}
