package lab_test

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"spore/internal/testenv"
	"spore/jailer"
	"spore/lab"
)

var update = flag.Bool("update", false, "write the golden list of claims")

// TestClaims keeps the list of what the jail claims: a change of it is a change of the jail.
func TestClaims(t *testing.T) {
	const golden = "testdata/claims.golden"
	var b strings.Builder
	for _, c := range lab.Checks() {
		fmt.Fprintf(&b, "%s\t%s\t%s\t%s\n", c.Claim, c.Stage, c.Action, c.Expected)
	}
	if *update {
		if err := os.WriteFile(golden, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if b.String() != string(want) {
		t.Errorf("claims are not those of %s; go test ./lab -update writes them:\n%s", golden, b.String())
	}
}

// TestAttest tries every claim and every system call, JAIL-05, JAIL-07 and JAIL-08 among them, on this machine: a
// group of calls that the filters deny has a process here that dies of it.
func TestAttest(t *testing.T) {
	testenv.Require(t, testenv.Root)
	path := filepath.Join(t.TempDir(), "spore-probe")
	build := exec.Command("go", "build", "-trimpath", "-o", path, "spore/cmd/spore-probe")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build spore-probe: %v\n%s", err, out)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	r, err := lab.Attest{Probe: path, Without: jailer.Optional(), Calls: true, Workers: 2}.Run(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range r.Posture {
		if !f.OK() {
			t.Errorf("POSTURE-01: %s (%s): expected %q, observed %q", f.Claim, f.Source, f.Expected, f.Observed)
		}
	}
	for _, c := range r.Checks {
		if !c.OK() {
			t.Errorf("%s: %s in stage %s: expected %s, observed %s", c.Claim, c.Action, c.Stage, c.Expected, c.Observed)
		}
	}
	t.Logf("%d facts, %d attempts; this host does not offer %v", len(r.Posture), len(r.Checks), r.Missing)
}

// rootlessInmate makes this test binary run an attestation as whoever it is; the value is where spore-probe is.
const rootlessInmate = "SPORE_TEST_ROOTLESS"

// TestAttestRootless tries every claim as a user without privileges: the jail is the same.
func TestAttestRootless(t *testing.T) {
	if path := os.Getenv(rootlessInmate); path != "" {
		attestAs(t, path)
		return
	}
	testenv.Require(t, testenv.Root) // to become somebody else
	dir, err := os.MkdirTemp("", "spore-rootless-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	probe, self := filepath.Join(dir, "spore-probe"), filepath.Join(dir, "lab.test")
	for path, args := range map[string][]string{probe: {"build", "-o", probe, "spore/cmd/spore-probe"}, self: {"test", "-c", "-o", self, "spore/lab"}} {
		cmd := exec.Command("go", args...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("make %s: %v\n%s", path, err, out)
		}
	}
	const nobody = 65534
	cmd := exec.Command(self, "-test.v", "-test.run", "^TestAttestRootless$")
	cmd.Dir, cmd.Env = dir, []string{rootlessInmate + "=" + probe}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("as uid %d: %v\n%s", nobody, err, out)
	}
}

func attestAs(t *testing.T, path string) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	r, err := lab.Attest{Probe: path, Without: jailer.Optional(), Workers: 2}.Run(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if n := r.Failures(); n > 0 || len(r.Checks) == 0 {
		t.Errorf("%d of %d are not as claimed: %+v", n, len(r.Checks)+len(r.Posture), r)
	}
}
