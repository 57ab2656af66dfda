package guest

import (
	"os"
	"path/filepath"
	"testing"
)

func TestAwaitDevice(t *testing.T) {
	dir := t.TempDir()
	there := filepath.Join(dir, "there")
	if err := os.WriteFile(there, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := awaitDevice(there); err != nil {
		t.Error(err)
	}
	late := filepath.Join(dir, "late")
	done := make(chan error, 1)
	go func() { done <- awaitDevice(late) }()
	for _, name := range []string{"another", "late"} { // whenever the watch begins, the look comes after it
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}
