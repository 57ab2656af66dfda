package snapshot

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// victimEnv makes this test binary the process that is killed; it names the directory of its store.
const victimEnv = "SPORE_TEST_SNAPSHOT_VICTIM"

// atWork is what the victim says when it begins.
const atWork = "at work"

// TestVictim takes, exports, imports and removes snapshots until it is killed.
func TestVictim(t *testing.T) {
	dir := os.Getenv(victimEnv)
	if dir == "" {
		t.Skip("it is what TestKilledAtAnyMoment kills")
	}
	s, err := OpenStore(filepath.Join(dir, "snapshots"), OpenKeys(filepath.Join(dir, "keys")))
	if err != nil {
		t.Fatal(err)
	}
	w, _ := keyFilePair(t)
	fmt.Println(atWork)
	for i := 0; ; i++ {
		root := take(t, s, fmt.Sprintf("root-%d-%d", os.Getpid(), i), "")
		leaf := take(t, s, "", root.ID)
		d := draft(t, filepath.Join(dir, "plain"), 'a')
		if _, err := begin(t, s).AddEncrypted(t.Context(), d, Manifest{Parent: leaf.ID, Sandbox: "0123456789ab", Origin: []byte(`{}`)}, w); err != nil {
			t.Fatal(err)
		}
		var archive bytes.Buffer
		if err := s.Export(t.Context(), leaf, &archive); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Remove(leaf, true); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Import(t.Context(), &archive); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Remove(root, i%2 == 0); err != nil && i%2 == 0 {
			t.Fatal(err)
		}
		if err := d.Remove(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestKilledAtAnyMoment kills a process that works on a store, at random. What is there afterwards is whole: every snapshot is what was
// signed and has its parent, and the next command leaves nothing else.
func TestKilledAtAnyMoment(t *testing.T) {
	rounds := 25
	if testing.Short() {
		rounds = 5
	}
	dir := t.TempDir()
	s, err := OpenStore(filepath.Join(dir, "snapshots"), OpenKeys(filepath.Join(dir, "keys")))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Keys().Public(); err != nil { // it takes a while to be made, and is not what is tested
		t.Fatal(err)
	}
	seen := 0
	for range rounds {
		if err := errors.Join(os.RemoveAll(filepath.Join(dir, "plain")), Sweep(dir)); err != nil { // the victim's own
			t.Fatal(err)
		}
		killOnce(t, dir)
		if err := s.Sweep(); err != nil {
			t.Fatal(err)
		}
		all, err := s.List()
		if err != nil {
			t.Fatal(err)
		}
		ids := map[string]bool{"": true}
		for _, m := range all {
			ids[m.ID] = true
		}
		for _, m := range all {
			if err := s.Verify(context.Background(), m); err != nil {
				t.Error(err)
			}
			if !ids[m.Parent] {
				t.Errorf("snapshot %s has lost its parent %s", m.ID, m.Parent)
			}
		}
		seen += len(all)
		left, err := os.ReadDir(s.dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range left {
			if !ids[e.Name()] && e.Name() != stagingDir && e.Name() != "lock" {
				t.Errorf("left: %s", e.Name())
			}
		}
		if staged, _ := filepath.Glob(filepath.Join(s.dir, stagingDir, "*")); len(staged) > 0 {
			t.Errorf("left in staging: %v", staged)
		}
	}
	if seen == 0 {
		t.Error("no process lived long enough to leave a snapshot: nothing was tested")
	}
}

// killOnce starts a victim, waits until it has begun to work, and kills it a random while later.
func killOnce(t *testing.T, dir string) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run", "^TestVictim$")
	cmd.Env = append(os.Environ(), victimEnv+"="+dir)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() && lines.Text() != atWork {
	}
	time.Sleep(time.Duration(rand.IntN(100)) * time.Millisecond) // the moment is the test, and waits for nothing
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	said, _ := io.ReadAll(out)
	if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Fatalf("it ended by itself: %v\n%s", err, said)
	}
}
