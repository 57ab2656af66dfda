package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"spore/internal/hugepage"
)

// counter counts on its standard output for ever.
const counter = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done"

// counted is the last number that a counter said.
func (u *user) counted(ref string) int {
	u.t.Helper()
	lines := strings.Fields(u.run("logs", ref).stdout)
	if len(lines) == 0 {
		return 0
	}
	n, err := strconv.Atoi(lines[len(lines)-1])
	if err != nil {
		u.t.Fatalf("%s said %q", ref, lines[len(lines)-1])
	}
	return n
}

// countsPast waits until a counter has said a larger number.
func (u *user) countsPast(ref string, n int) int {
	u.t.Helper()
	for end := time.Now().Add(commandLimit); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if got := u.counted(ref); got > n {
			return got
		}
	}
	u.t.Fatalf("%s does not count past %d", ref, n)
	return 0
}

// wentBackTo waits until a counter has said a smaller number than before, and returns that.
func (u *user) wentBackTo(ref string) int {
	u.t.Helper()
	for end := time.Now().Add(commandLimit); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		last := 0
		for _, line := range strings.Fields(u.run("logs", ref).stdout) {
			n, err := strconv.Atoi(line)
			if err != nil {
				u.t.Fatalf("%s said %q", ref, line)
			}
			if n <= last {
				return n
			}
			last = n
		}
	}
	u.t.Fatalf("%s did not go back", ref)
	return 0
}

func (u *user) must(args ...string) string {
	u.t.Helper()
	r := u.run(args...)
	if r.code != 0 {
		u.t.Fatalf("spore %s: code %d\n%s", strings.Join(args, " "), r.code, clip(r.stderr))
	}
	return strings.TrimSpace(r.stdout)
}

// steps are the names of the parts of a run.
func (u *user) steps(args ...string) []string {
	u.t.Helper()
	var o struct {
		Outcome string `json:"outcome"`
		Detail  string `json:"detail"`
		Timing  []struct{ Step string }
	}
	if err := json.Unmarshal([]byte(u.run(append([]string{"run", "--json"}, args...)...).stdout), &o); err != nil || o.Outcome != "exited" {
		u.t.Fatalf("run: %+v, %v", o, err)
	}
	var names []string
	for _, s := range o.Timing {
		names = append(names, s.Step)
	}
	return names
}

// TestTemplates boots once and wakes from then on; a template that does not wake costs only time.
func TestTemplates(t *testing.T) {
	u := newUser(t)
	for _, test := range []struct {
		name string
		args []string
		want string
	}{
		{"the first boots", nil, "template"},
		{"the second wakes", nil, "wake"},
		{"--cold boots", []string{"--cold"}, "guest kernel"},
		{"another memory boots", []string{"--memory", "128m"}, "template"},
	} {
		if got := u.steps(append(test.args, image, "true")...); !slices.Contains(got, test.want) {
			t.Errorf("%s: %v, want %q", test.name, got, test.want)
		}
	}
	var o struct{ Stamps map[string]int64 }
	if err := json.Unmarshal([]byte(u.run("run", "--json", image, "echo", "x").stdout), &o); err != nil {
		t.Fatal(err)
	}
	last := int64(0)
	for _, name := range []string{"t1_vmm_ns", "t2_running_ns", "t3_first_exit_ns", "t4_agent_ns", "t5_first_output_ns", "t6_command_ended_ns", "t7_all_returned_ns"} {
		if o.Stamps[name] <= last {
			t.Errorf("%s is not after what comes before it: %v", name, o.Stamps)
		}
		last = o.Stamps[name]
	}
	found, err := filepath.Glob(filepath.Join(u.state, "templates", "*", "state"))
	if err != nil || len(found) != 2 {
		t.Fatalf("templates %v, %v", found, err)
	}
	for _, path := range found {
		if err := os.Truncate(path, 100); err != nil {
			t.Fatal(err)
		}
	}
	r := u.run("run", image, "echo", "anyway")
	r.want(t, 0, "anyway\n")
	if !strings.Contains(r.stderr, "does not wake") {
		t.Errorf("nothing is said of the damaged template: %q", r.stderr)
	}
	if found, err = filepath.Glob(filepath.Join(u.state, "templates", "*", "machine.json")); err != nil || len(found) == 0 {
		t.Fatalf("templates %v, %v", found, err)
	}
	for _, path := range found {
		if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r = u.run("run", image, "echo", "anyway")
	r.want(t, 0, "anyway\n")
	if !strings.Contains(r.stderr, "cannot be read") {
		t.Errorf("nothing is said of the template that cannot be read: %q", r.stderr)
	}
	u.run("run", "--prepare", "echo prepared >/tmp/prepared", image, "cat", "/tmp/prepared").want(t, 0, "prepared\n")
	u.run("run", "--prepare", "echo prepared >/tmp/prepared", image, "cat", "/tmp/prepared").want(t, 0, "prepared\n")
	for range 2 { // what is left running is left running, in the guest that makes the template and in those that wake
		u.run("run", "--prepare", "sleep 1000 & echo $! >/tmp/pid", image, "sh", "-c", "sleep 1; kill -0 $(cat /tmp/pid) && echo stays").want(t, 0, "stays\n")
	}
	if r := u.run("run", "--prepare", "exit 3", image, "true"); r.code != 125 || !strings.Contains(r.stderr, "--prepare") {
		t.Errorf("a failing --prepare: code %d, %q", r.code, r.stderr)
	}
}

// TestSNAP07 wakes two sandboxes from one snapshot: nothing that tells machines apart may be the same.
func TestSNAP07(t *testing.T) {
	u := newUser(t)
	u.must("run", "-d", "--name", "parent", image, "sleep", "600")
	u.must("snapshot", "take", "parent", "twin")
	r := u.run("lab", "twins", "--json", "twin")
	var twins []struct {
		What, First, Second string
		Absent              bool
	}
	if err := json.Unmarshal([]byte(r.stdout), &twins); err != nil || r.code != 0 {
		t.Fatalf("SNAP-07: code %d, %v\n%s%s", r.code, err, clip(r.stdout), clip(r.stderr))
	}
	compared := 0
	for _, w := range twins {
		if !w.Absent {
			compared++
		}
		if !w.Absent && w.First == w.Second {
			t.Errorf("SNAP-07: %s is %q in both", w.What, w.First)
		}
	}
	if compared < 8 {
		t.Errorf("SNAP-07: only %d things were compared", compared)
	}
}

// TestSnapshots goes forward, back and sideways in a tree.
func TestSnapshots(t *testing.T) {
	u := newUser(t)
	u.must("run", "--cold", "-d", "--name", "c", image, "sh", "-c", counter+" & wait")
	first := u.countsPast("c", 3)
	s1 := u.must("snapshot", "take", "c", "s1")
	second := u.countsPast("c", first+5)
	s2 := u.must("snapshot", "take", "c", "s2")
	u.countsPast("c", second+5)

	var rows []struct{ ID, Name, Parent string }
	if err := json.Unmarshal([]byte(u.must("snapshot", "list", "--json")), &rows); err != nil || len(rows) != 2 {
		t.Fatalf("snapshots %+v, %v", rows, err)
	}
	if rows[0].ID != s1 || rows[0].Parent != "" || rows[1].ID != s2 || rows[1].Parent != s1 {
		t.Errorf("tree %+v: want s2 below s1", rows)
	}
	if tree := u.must("snapshot", "list", "--tree"); !strings.Contains(tree, "\n  "+s2) {
		t.Errorf("tree:\n%s", tree)
	}
	if r := u.run("snapshot", "rm", "s1"); r.code == 0 || !strings.Contains(r.stderr, "--children") {
		t.Errorf("a parent was removed: %q", r.stderr)
	}

	u.must("run", "--cold", "-d", "--name", "small", "--memory", "128m", image, "sleep", "600")
	if r := u.run("snapshot", "restore", "small", "s1"); r.code == 0 || !strings.Contains(r.stderr, "spore run --from") {
		t.Errorf("a snapshot of another shape was restored: code %d, %q", r.code, r.stderr)
	}
	u.run("exec", "small", "echo", "untouched").want(t, 0, "untouched\n")
	u.must("rm", "-f", "small")
	if r := u.run("run", "--from", "s1", "--memory", "1g", "--", "true"); r.code != 125 || !strings.Contains(r.stderr, "--memory") {
		t.Errorf("--from with --memory: code %d, %q", r.code, r.stderr)
	}
	u.must("snapshot", "restore", "c", "s1")
	if n := u.wentBackTo("c"); n <= first || n > second {
		t.Errorf("rolled back to between %d and %d, it goes on with %d", first, second, n)
	}
	u.countsPast("c", first)
	u.must("snapshot", "take", "c", "s3")
	if got := u.must("snapshot", "inspect", "s3"); !strings.Contains(got, `"parent": "`+s1+`"`) {
		t.Errorf("s3 is not below s1: %s", clip(got))
	}

	u.run("run", "--from", "s2", "--", "echo", "beside it").want(t, 0, "beside it\n")
	u.must("run", "-d", "--name", "again", "--from", "s2")
	u.countsPast("again", second)
	u.must("snapshot", "verify", "s1", "s2", "s3")
	u.must("rm", "-f", "c", "again")
	if got := strings.Fields(u.must("snapshot", "rm", "--children", "s1")); len(got) != 3 || got[2] != s1 {
		t.Errorf("removed %v, want %s last", got, s1)
	}
}

// TestFork copies a running sandbox, which does not notice.
func TestFork(t *testing.T) {
	u := newUser(t)
	u.must("run", "-d", "--name", "p", image, "sh", "-c", "echo mine >/tmp/file; "+counter)
	before := u.countsPast("p", 3)
	ids := strings.Fields(u.must("fork", "-n", "2", "p"))
	if len(ids) != 2 {
		t.Fatalf("forks %v", ids)
	}
	u.countsPast("p", before)
	for i := range ids {
		name := fmt.Sprintf("p-%d", i+1)
		u.countsPast(name, before)
		u.run("exec", name, "sh", "-c", "cat /tmp/file; hostname; echo "+name+" >/tmp/file").want(t, 0, "mine\n"+name+"\n")
	}
	u.run("exec", "p", "cat", "/tmp/file").want(t, 0, "mine\n")
	u.run("exec", "p-2", "cat", "/tmp/file").want(t, 0, "p-2\n")
	if left, err := filepath.Glob(filepath.Join(u.state, "snapshots", "staging", "*")); err != nil || len(left) > 0 {
		t.Errorf("left of the fork: %v, %v", left, err)
	}
	u.must("fork", "--name", "grandchild", "p-1") // a copy of a copy
	u.countsPast("grandchild", before)
}

// TestCarry takes a snapshot to another installation and wakes it there, and clones a sandbox that does not run.
func TestCarry(t *testing.T) {
	here, there := newUser(t), newUser(t)
	here.must("run", "-d", "--name", "c", image, "sh", "-c", "echo carried >/tmp/file; "+counter)
	at := here.countsPast("c", 2)
	here.must("snapshot", "take", "c", "s")
	file := filepath.Join(t.TempDir(), "s.spore")
	here.must("snapshot", "export", "s", file)
	if r := there.run("snapshot", "import", file); r.code != 125 || !strings.Contains(r.stderr, "not trusted") {
		t.Errorf("import from a stranger: code %d, %q", r.code, r.stderr)
	}
	there.must("snapshot", "trust", "here", here.must("snapshot", "key"))
	there.must("snapshot", "import", file)
	there.must("run", "-d", "--name", "c", "--from", "s")
	there.countsPast("c", at)
	there.run("exec", "c", "cat", "/tmp/file").want(t, 0, "carried\n")

	if r := there.run("clone", "c", "d"); r.code != 125 || !strings.Contains(r.stderr, "spore fork") {
		t.Errorf("clone of a running sandbox: code %d, %q", r.code, r.stderr)
	}
	there.must("stop", "--time", "1s", "c")
	there.must("clone", "c", "d")
	there.must("start", "d")
	there.run("exec", "d", "sh", "-c", "cat /tmp/file; hostname").want(t, 0, "carried\nd\n")
}

// TestPause stops a sandbox, takes a snapshot of it as it stands, and lets it go on.
func TestPause(t *testing.T) {
	u := newUser(t)
	u.must("run", "-d", "--name", "p", image, "sh", "-c", counter)
	u.countsPast("p", 2)
	u.must("pause", "p")
	if r := u.run("exec", "p", "true"); r.code != 125 || !strings.Contains(r.stderr, "spore resume") {
		t.Errorf("exec in a paused sandbox: code %d, %q", r.code, r.stderr)
	}
	if r := u.run("pause", "p"); r.code != 125 {
		t.Errorf("paused twice: code %d", r.code)
	}
	if got := u.must("ls"); !strings.Contains(got, "paused") {
		t.Errorf("ls: %s", got)
	}
	at := u.counted("p")
	u.must("snapshot", "take", "p", "standing")
	if now := u.counted("p"); now != at {
		t.Errorf("it counted from %d to %d while it was paused", at, now)
	}
	u.must("resume", "p")
	u.countsPast("p", at)
	u.must("run", "-d", "--name", "q", "--from", "standing")
	u.countsPast("q", at)
	u.must("pause", "q")
	u.must("stop", "q") // a paused one can be stopped
	u.must("pause", "p")
	u.must("kill", "p") // and killed
}

// TestLiveDisk takes snapshots of a sandbox that writes to its disk all the time. What is on the disk of each is of the moment that
// its memory is of: the file system in the copy, read from the disk again, has what the programs in the copy believe.
func TestLiveDisk(t *testing.T) {
	u := newUser(t)
	const (
		writer = `cd /tmp; i=0; while :; do i=$((i+1)); head -c 300000 /dev/urandom >t; { cat t; sha256sum <t; } >u; sync; mv u f$((i%8)); echo $i; done`
		check  = `sync; echo 3 >/proc/sys/vm/drop_caches; cd /tmp; for f in f*; do
cp $f /dev/shm/x; [ "$(head -c 300000 /dev/shm/x | sha256sum)" = "$(tail -c +300001 /dev/shm/x)" ] || exit 3; done; echo whole`
	)
	u.must("run", "-d", "--name", "w", image, "sh", "-c", writer)
	n := u.countsPast("w", 2)
	for i := range 3 {
		u.must("snapshot", "take", "w", fmt.Sprintf("s%d", i))
		n = u.countsPast("w", n+1)
	}
	u.must("rm", "-f", "w")
	for i := range 3 {
		name := fmt.Sprintf("s%d", i)
		u.must("run", "-d", "--name", name, "--from", name)
		u.run("exec", "-u", "0", name, "sh", "-c", check).want(t, 0, "whole\n")
		u.must("rm", "-f", name)
	}
}

// TestTemplateCollapsesText: a guest that wakes has its agent's file in huge pages, one that boots for itself has none.
func TestTemplateCollapsesText(t *testing.T) {
	u := newUser(t)
	st, err := os.Stat(binary("spore-agent"))
	if err != nil {
		t.Fatal(err)
	}
	blocks := (st.Size() + hugepage.Size - 1) / hugepage.Size
	want := fmt.Sprintln(blocks * hugepage.Size >> 10)
	count := []string{image, "awk", "/^ShmemHugePages:/ { print $2 }", "/proc/meminfo"}
	u.must("run", image, "true")
	u.run(append([]string{"run"}, count...)...).want(t, 0, want)
	u.run(append([]string{"run", "--cold"}, count...)...).want(t, 0, "0\n")
}
