package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestEncryptedSnapshots takes one of a sandbox that holds a secret in its memory and on its disk. Nothing finds the secret in the
// files; what wakes with the key has it, keeps it off the disk, and is gone when it ends.
func TestEncryptedSnapshots(t *testing.T) {
	u := newUser(t)
	key, other := filepath.Join(u.state, "key-file"), filepath.Join(u.state, "other-file")
	for path, letter := range map[string]string{key: "k", other: "o"} {
		if err := os.WriteFile(path, []byte(strings.Repeat(letter, 32)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// The shell puts the secret together: no command line or log of ours has it.
	u.must("run", "-d", "--name", "e", image, "sh", "-c", "s=rapun; echo ${s}zel >/tmp/secret; sync; x=${s}zel; "+counter)
	n := u.countsPast("e", 3)
	u.must("snapshot", "take", "--encrypt", "key:"+key, "e", "sealed")
	u.must("snapshot", "take", "e", "open")
	if found := grep(t, filepath.Join(u.state, "snapshots"), "rapunzel"); len(found) != 1 && len(found) != 2 {
		t.Fatalf("the secret is in %v: want the memory or the disk of the snapshot that is not encrypted", found)
	}
	u.must("snapshot", "rm", "--children", "open")
	u.must("rm", "-f", "e")
	if found := grep(t, u.state, "rapunzel"); len(found) > 0 {
		t.Fatalf("the secret is in %v", found)
	}

	for _, c := range []struct {
		want string
		args []string
	}{
		{"--unlock key:FILE", []string{"run", "--from", "sealed", "--", "true"}},
		{"does not open", []string{"run", "--from", "sealed", "--unlock", "key:" + other, "--", "true"}},
		{"spore run --from", []string{"create", "--from", "sealed", "--unlock", "key:" + key, "--", "true"}},
		{"encrypted", []string{"snapshot", "diff", "sealed", "sealed"}},
	} {
		if r := u.run(c.args...); r.code == 0 || !strings.Contains(r.stderr, c.want) {
			t.Errorf("%v: code %d, %q: want %q", c.args, r.code, r.stderr, c.want)
		}
	}
	unlock := "key:" + key
	u.run("run", "--from", "sealed", "--unlock", unlock, "--", "cat", "/tmp/secret").want(t, 0, "rapunzel\n")
	u.must("run", "-d", "--name", "w", "--from", "sealed", "--unlock", unlock)
	u.countsPast("w", n)
	u.must("fork", "--name", "f", "w")
	u.run("exec", "f", "cat", "/tmp/secret").want(t, 0, "rapunzel\n")
	if r := u.run("snapshot", "take", "w", "x"); r.code == 0 || !strings.Contains(r.stderr, "--plain") {
		t.Errorf("what was encrypted was taken without: code %d, %q", r.code, r.stderr)
	}
	u.must("snapshot", "take", "--encrypt", unlock, "w", "below")
	u.must("stop", "w")
	if r := u.run("start", "w"); r.code == 0 || !strings.Contains(r.stderr, "disk was in memory only") {
		t.Errorf("started without its disk: code %d, %q", r.code, r.stderr)
	}
	if found := grep(t, u.state, "rapunzel"); len(found) > 0 {
		t.Errorf("the secret is in %v", found)
	}
	u.must("rm", "-f", "w", "f")
	if left, err := filepath.Glob("/dev/shm/spore-*/staging/*"); err != nil || len(left) > 0 {
		t.Errorf("left in memory: %v, %v", left, err)
	}
	u.must("snapshot", "verify", "sealed", "below")
	u.must("snapshot", "rm", "--children", "sealed")
}

// grep returns the files below dir that hold what.
func grep(t *testing.T, dir, what string) (found []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if strings.Contains(string(b), what) {
			found = append(found, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}
