package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"maps"
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

// life is a part of a sandbox's life that TestJAIL12 kills in: a command of Spore's, after others that are left alone. In all of them
// NAME is the sandbox and NET its network.
type life struct {
	before  string
	command string
	took    time.Duration // about the command, when nobody is killed
}

const (
	killedCreate = "create --name NAME --network NET " + image + " sleep 600"
	killedRun    = "run --name NAME --network NET "
)

var lives = []*life{
	{command: killedRun + image + " sleep 2"},
	{command: killedCreate},
	{before: killedCreate, command: "start NAME"},
	{before: killedRun + "-d " + image + " sleep 600", command: "stop --time 2s NAME"},
	{before: killedRun + "-d " + image + " sleep 600", command: "rm --force NAME"},
	{before: killedCreate, command: "rm NAME"},
}

// TestJAIL12 kills a process of Spore's, whichever, at a random moment of a part of a sandbox's life, round after round (KILL_ROUNDS):
// after the next command nothing is left of what does not run, and the sandbox is whole or gone. It looks at the whole machine.
func TestJAIL12(t *testing.T) {
	testenv.Require(t, testenv.Cgroup2)
	u := newUser(t)
	rounds, err := strconv.Atoi(os.Getenv("KILL_ROUNDS"))
	if err != nil {
		rounds = len(lives)
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("%d rounds, seed %d", rounds, seed)
	random := rand.New(rand.NewPCG(seed, 0))
	k := &killing{user: u, random: random, there: u.there(), killed: map[string]int{}}
	for i, l := range lives { // also makes what is made once: templates, the record of a network
		k.begin(l, "undisturbed", networks[i%len(networks)])
		began := time.Now()
		u.must(k.args(l.command)...)
		l.took = time.Since(began)
		k.end()
	}
	for round := range rounds {
		l := lives[round%len(lives)]
		k.begin(l, fmt.Sprintf("killed-%d", round), networks[random.IntN(len(networks))])
		pid, victim := k.kill(l)
		k.look(l, pid)
		k.end()
		if t.Failed() {
			t.Fatalf("round %d: %s on %s, killed %q", round, l.command, k.network, victim)
		}
		if (round+1)%50 == 0 {
			t.Logf("%d rounds, nothing left; killed %v", round+1, k.killed)
		}
	}
}

// networks are those that the killed sandboxes are on, one of each data path.
var networks = []string{"none", "internal:killed", "nat"}

// killing is the rounds of TestJAIL12. name and network are this round's.
type killing struct {
	*user
	random        *rand.Rand
	there         map[string]bool // before the first round
	killed        map[string]int  // how many, by the name of the process
	name, network string
}

func (k *killing) args(command string) []string {
	return strings.Fields(strings.NewReplacer("NAME", k.name, "NET", k.network).Replace(command))
}

// begin does what comes before.
func (k *killing) begin(l *life, name, network string) {
	k.t.Helper()
	k.name, k.network = name, network
	if l.before != "" {
		k.must(k.args(l.before)...)
	}
}

// kill starts the command, kills one of Spore's processes at some moment, each kind as often, and returns which, 0 if none was there any more.
func (k *killing) kill(l *life) (pid int, name string) {
	k.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
	defer cancel()
	cmd := k.command(ctx, k.args(l.command)...)
	cmd.Stdout, cmd.Stderr = io.Discard, io.Discard
	if err := cmd.Start(); err != nil {
		k.t.Fatal(err)
	}
	time.Sleep(time.Duration(k.random.Int64N(int64(l.took)))) // any moment of it, not a wait for anything
	kinds := map[string][]int{}
	for pid, name := range k.processes() {
		kinds[name] = append(kinds[name], pid)
	}
	if len(kinds) > 0 {
		names := slices.Sorted(maps.Keys(kinds))
		name = names[k.random.IntN(len(names))]
		pid = kinds[name][k.random.IntN(len(kinds[name]))]
		unix.Kill(pid, unix.SIGKILL) // it may just have ended
		l.took = l.took * 33 / 32
	} else {
		l.took = l.took * 3 / 4 // it is over sooner than it was
	}
	cmd.Wait()
	k.killed[name]++
	return pid, name
}

// look holds what is there after the next command to what the record says.
func (k *killing) look(l *life, pid int) {
	k.t.Helper()
	status, vmm := k.status()
	if status == "running" && vmm == pid {
		k.run("wait", k.name) // its supervisor lives, and is about to see what happened
		status, _ = k.status()
	}
	next := k.run("ls", "--all")
	switch status {
	case "starting", "running": // as it should: who was killed was not of it
	case "created", "exited":
		k.nothingLeft(next)
		if r := k.run("start", k.name); r.code != 0 {
			k.t.Errorf("a sandbox that is %s does not start: %+v", status, r)
		}
	case "":
		k.nothingLeft(next)
		if l.before != "" && !strings.HasPrefix(l.command, "rm") {
			k.t.Errorf("the sandbox is gone")
		}
	default:
		k.t.Errorf("the sandbox is %q", status)
	}
}

// status is what the record says, and its VMM; "" if there is no record.
func (k *killing) status() (status string, vmm int) {
	k.t.Helper()
	var all []struct {
		Status string
		VMM    int `json:"vmm_pid"`
	}
	r := k.run("inspect", k.name)
	if r.code != 0 && strings.Contains(r.stderr, "no such sandbox") {
		return "", 0
	}
	if err := json.Unmarshal([]byte(r.stdout), &all); err != nil || len(all) != 1 {
		k.t.Fatalf("inspect: %v, %+v", err, r)
	}
	return all[0].Status, all[0].VMM
}

// end removes what there is of the sandbox. Nothing may be left, of its files neither.
func (k *killing) end() {
	k.t.Helper()
	next := k.run("rm", "--force", k.name)
	if status, _ := k.status(); next.code != 0 || status != "" {
		k.t.Errorf("it is not removed but %q: %+v", status, next)
	}
	k.nothingLeft(next)
	files, err := os.ReadDir(filepath.Join(k.state, "sandboxes"))
	if err != nil {
		k.t.Fatal(err)
	}
	for _, f := range files {
		if f.Name() != "lock" {
			k.t.Errorf("left: file sandboxes/%s", f.Name())
		}
	}
}

// nothingLeft fails the test if there is something on the machine that was not there before the first round. A supervisor that was not
// killed is given the time to end.
func (k *killing) nothingLeft(next result) {
	k.t.Helper()
	for pid, name := range k.processes() {
		if name == "spore" {
			k.await(pid)
		}
	}
	var left []string
	for what := range k.user.there() {
		if !k.there[what] {
			left = append(left, what)
		}
	}
	if slices.Sort(left); left != nil {
		k.t.Errorf("left: %s\nafter code %d:\n%s%s", strings.Join(left, ", "), next.code, next.stdout, next.stderr)
	}
}

// await waits for a process's end, a minute at most.
func (k *killing) await(pid int) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return // it has ended
	}
	defer unix.Close(fd)
	unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 60_000)
}

// processes are Spore's own that live and were not there before, by number.
func (k *killing) processes() map[int]string {
	k.t.Helper()
	all := k.user.processes()
	maps.DeleteFunc(all, func(pid int, name string) bool { return k.there[process(pid, name)] })
	return all
}

func process(pid int, name string) string { return fmt.Sprintf("process %d %s", pid, name) }

// processes are Spore's own that live, by number.
func (u *user) processes() map[int]string {
	u.t.Helper()
	paths, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		u.t.Fatal(err)
	}
	all := map[int]string{}
	for _, path := range paths {
		b, err := os.ReadFile(path)
		number, rest, _ := strings.Cut(string(b), " (")
		name, rest, _ := strings.Cut(rest, ") ")
		if pid, _ := strconv.Atoi(number); err == nil && strings.HasPrefix(name, "spore") && !strings.HasPrefix(rest, "Z") {
			all[pid] = name
		}
	}
	return all
}

// there is what Spore could leave on the machine, in words: processes that live, cgroups, mounts, namespaces, interfaces, locks, and
// files half made or half removed.
func (u *user) there() map[string]bool {
	u.t.Helper()
	all := map[string]bool{}
	each := func(pattern string, f func(path string)) {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			u.t.Fatal(err)
		}
		for _, path := range paths {
			f(path)
		}
	}
	lines := func(path string, f func(fields []string)) {
		b, err := os.ReadFile(path)
		if err != nil {
			u.t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			f(strings.Fields(line))
		}
	}
	for pid, name := range u.processes() {
		all[process(pid, name)] = true
	}
	each("/proc/[0-9]*/ns/*", func(path string) {
		if ns, err := os.Readlink(path); err == nil {
			all["namespace "+ns] = true
		}
	})
	each("/sys/fs/cgroup/spore/*/cgroup.procs", func(path string) { all["cgroup "+filepath.Base(filepath.Dir(path))] = true })
	each("/sys/class/net/*", func(path string) { all["interface "+filepath.Base(path)] = true })
	lines("/proc/self/mountinfo", func(f []string) { all["mount "+f[4]] = true })
	lines("/proc/locks", func(f []string) { all["lock "+strings.Join(f[1:], " ")] = true })
	filepath.WalkDir(u.state, func(path string, _ fs.DirEntry, err error) error {
		if ext := filepath.Ext(path); ext == ".new" || ext == ".gone" || ext == ".tmp" {
			all["file "+path] = true
		}
		return nil
	})
	return all
}

// left names what is still there of sandboxes: their cgroups and jailed processes.
func (u *user) left() string {
	var all []string
	for what := range u.there() {
		if strings.HasPrefix(what, "cgroup ") || strings.HasSuffix(what, " spore-vmm") || strings.HasSuffix(what, " spore-net") {
			all = append(all, what)
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
