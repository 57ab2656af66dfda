package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spore/internal/testenv"
)

// TestAttest tries to get out of the jail where guests run, with every layer in place.
func TestAttest(t *testing.T) {
	testenv.Require(t, testenv.Cgroup2)
	u := newUser(t)
	if r := u.run("lab", "attest"); r.code != 0 {
		t.Errorf("spore lab attest: code %d\n%s%s", r.code, r.stdout, r.stderr)
	}
}

// TestPOSTURE01 looks at the VMM of a running sandbox. HOST-01 asks its guest for nested virtualisation.
func TestPOSTURE01(t *testing.T) {
	u := newUser(t)
	u.run("run", "-d", "--name", "posture", image, "sleep", "600")
	if r := u.run("lab", "posture", "posture"); r.code != 0 {
		t.Errorf("spore lab posture: code %d\n%s%s", r.code, r.stdout, r.stderr)
	}
	if path := u.groupOf("posture"); path != "" {
		for file, want := range map[string]string{"memory.swap.max": "0", "pids.max": "512", "cpu.max": "200000 100000"} {
			if b, err := os.ReadFile(filepath.Join(path, file)); err != nil || strings.TrimSpace(string(b)) != want {
				t.Errorf("%s is %q, %v; want %s", file, b, err, want)
			}
		}
	}
	r := u.run("exec", "posture", "sh", "-c", `grep -c -w -E 'vmx|svm' /proc/cpuinfo`)
	if strings.TrimSpace(r.stdout) != "0" {
		t.Errorf("HOST-01: processors with nested virtualisation: %q %s", r.stdout, r.stderr)
	}
}

// groupOf is the cgroup of a sandbox.
func (u *user) groupOf(ref string) string {
	u.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", u.vmmOf(ref)))
	if err != nil {
		u.t.Fatal(err)
	}
	_, path, ok := strings.Cut(strings.TrimSpace(string(b)), "0::/spore/")
	if !ok {
		u.t.Errorf("the VMM is in %s, not below /spore", b)
		return ""
	}
	return filepath.Join("/sys/fs/cgroup/spore", path)
}

// TestJAIL12 kills a process of Spore's at a random moment of a sandbox's life, round after round (KILL_ROUNDS): after
// the next command nothing may be left of it.
func TestJAIL12(t *testing.T) {
	testenv.Require(t, testenv.Cgroup2)
	u := newUser(t)
	rounds, err := strconv.Atoi(os.Getenv("KILL_ROUNDS"))
	if err != nil {
		rounds = 5
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("%d rounds, seed %d", rounds, seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for round := range rounds {
		u.killOnce(fmt.Sprintf("killed-%d", round), random)
		if t.Failed() {
			t.Fatalf("round %d", round)
		}
		if (round+1)%50 == 0 {
			t.Logf("%d rounds, nothing left", round+1)
		}
	}
}

// killOnce starts a sandbox, kills its supervisor or its VMM, and looks for what is left after the next command.
func (u *user) killOnce(name string, random *rand.Rand) {
	u.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
	defer cancel()
	cmd := u.command(ctx, "run", "--name", name, image, "sleep", "2")
	cmd.Stdout, cmd.Stderr = io.Discard, io.Discard
	if err := cmd.Start(); err != nil {
		u.t.Fatal(err)
	}
	time.Sleep(time.Duration(random.IntN(5000)) * time.Millisecond) // any moment of its life, not a wait for anything
	if vmm := u.vmmIn(name); vmm > 0 && random.IntN(2) == 0 {
		unix.Kill(vmm, unix.SIGKILL) // it may just have ended
	} else {
		cmd.Process.Kill()
	}
	cmd.Wait()
	next := u.run("ls", "--all")
	if left := u.left(); left != "" {
		u.t.Errorf("left: %s\nafter spore ls, code %d:\n%s%s", left, next.code, next.stdout, next.stderr)
	}
	u.run("rm", "--force", name)
}

// vmmIn is the process number in the record of a sandbox, 0 if there is none yet.
func (u *user) vmmIn(name string) int {
	var all []struct {
		VMM int `json:"vmm_pid"`
	}
	r := u.run("inspect", name)
	if json.Unmarshal([]byte(r.stdout), &all) != nil || len(all) == 0 {
		return 0
	}
	return all[0].VMM
}

// left names what is still there of sandboxes that have ended.
func (u *user) left() string {
	var all []string
	groups, err := os.ReadDir("/sys/fs/cgroup/spore")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		u.t.Fatal(err)
	}
	for _, g := range groups {
		if g.IsDir() {
			all = append(all, "cgroup "+g.Name())
		}
	}
	commands, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		u.t.Fatal(err)
	}
	for _, c := range commands {
		if b, err := os.ReadFile(c); err == nil && slices.Contains([]string{"spore-vmm", "spore-net"}, strings.TrimSpace(string(b))) {
			state, _ := os.ReadFile(filepath.Join(filepath.Dir(c), "status"))
			where, _ := os.ReadFile(filepath.Join(filepath.Dir(c), "wchan"))
			all = append(all, fmt.Sprintf("%s in %s\n%s", filepath.Dir(c), where, state))
		}
	}
	return strings.Join(all, ", ")
}

// TestFilterSoak keeps disk, entropy, console and vsock busy under the production filters, where a call too many is death (SOAK, a duration).
func TestFilterSoak(t *testing.T) {
	u := newUser(t)
	soak, err := time.ParseDuration(os.Getenv("SOAK"))
	if err != nil {
		soak = 20 * time.Second
	}
	u.run("run", "-d", "--name", "soak", "--cpus", "2", "--timeout", "30m", "-u", "0", image, "sleep", "1800")
	script := fmt.Sprintf(`[ -e /dev/hwrng ] || mknod /dev/hwrng c 10 183 || exit 1
end=$(($(date +%%s) + %d)); n=0
while [ $(date +%%s) -lt $end ]; do
    head -c 4096 /dev/hwrng >/dev/null || exit 2
    dd if=/dev/zero of=/var/tmp/x bs=64k count=64 conv=fsync 2>/dev/null; rm /var/tmp/x; fstrim / 2>/dev/null
    echo 3 >/proc/sys/vm/drop_caches; cat /bin/bash >/dev/null
    echo "round $n" >/dev/console; n=$((n + 1))
done; echo done`, int(soak.Seconds()))
	streams := make(chan result)
	go func() { streams <- u.run("exec", "soak", "sh", "-c", script) }()
	for {
		select {
		case r := <-streams:
			r.want(t, 0, "done\n")
			if u.vmmOf("soak") == 0 {
				t.Error("the VMM has died")
			}
			return
		default: // vsock, in both directions, from beginning to end
			u.feed(strings.Repeat("x", 1<<16), "exec", "-i", "soak", "cat").want(t, 0, strings.Repeat("x", 1<<16))
		}
	}
}
