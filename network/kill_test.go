package network

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"spore/internal/timing"
)

// churnVariable makes this very program attach and detach in that directory until it is killed.
const churnVariable = "NETWORK_TEST_CHURN"

func TestMain(m *testing.M) {
	if dir := os.Getenv(churnVariable); dir != "" {
		churn(dir)
	}
	os.Exit(m.Run())
}

// churn does what spore does to networks, over and over.
func churn(dir string) {
	n, err := Open(Config{Dir: dir, Plugins: []string{plugins()}})
	ctx := context.Background()
	kinds := []Choice{{Kind: KindNAT}, {KindInternal, "a"}, {Kind: KindHostOnly}, {KindInternal, "b"}}
	for i := 0; err == nil; i++ {
		c := kinds[i%len(kinds)]
		var a *Attachment
		if i%3 == 2 { // as a pool does
			if a, err = n.Prepare(ctx, Class{Choice: c, Mediated: c.Mediated()}); err == nil && i%2 == 0 {
				err = n.Bind(a, newID())
			}
		} else {
			a, err = n.Attach(ctx, Request{Sandbox: newID(), Choice: c})
		}
		switch {
		case err != nil:
		case a.Sandbox == "":
			err = n.Discard(ctx, a)
		default:
			if a.Tap != nil {
				a.Tap.Close()
			}
			err = n.Detach(ctx, a.Sandbox)
		}
	}
	fmt.Fprintln(os.Stderr, "churn:", err)
	os.Exit(1)
}

// rounds is how often something is done to be believed: KILL_ROUNDS, or few.
func rounds(t *testing.T, few int) int {
	if s := os.Getenv("KILL_ROUNDS"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	return few
}

// CNI-02: whatever moment a process is killed at, the next one that sweeps leaves nothing of its attachments.
func TestCNI02KilledAtAnyMoment(t *testing.T) {
	n := testNetworks(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	swept := 0
	for round := range rounds(t, 5) {
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), churnVariable+"="+n.cfg.Dir)
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		after := time.Duration(rand.IntN(1200)) * time.Millisecond
		time.Sleep(after) // the moment is what is tried, not waited for
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); cmd.ProcessState.Exited() {
			t.Fatalf("round %d: it ended by itself: %v", round, err)
		}
		got, err := n.Sweep(context.Background(), func(string) bool { return false })
		if err != nil {
			t.Fatalf("round %d, killed after %s: %v", round, after, err)
		}
		swept += got
		if left := leftOf(n); left != nil {
			t.Fatalf("round %d, killed after %s: left %q", round, after, left)
		}
	}
	t.Logf("%d attachments were removed by the next process", swept)
}

// What lives is left alone, and what a pool that lives has too.
func TestSweepLeavesTheLiving(t *testing.T) {
	n := testNetworks(t)
	ctx := context.Background()
	a := mustAttach(t, n, Request{Choice: Choice{KindInternal, "a"}})
	dead := mustAttach(t, n, Request{Choice: Choice{KindInternal, "a"}})
	pooled, err := n.Prepare(ctx, Class{Choice: Choice{KindInternal, "a"}})
	if err != nil {
		t.Fatal(err)
	}
	live := func(id string) bool { return id == a.Sandbox }
	if got, err := n.Sweep(ctx, live); got != 1 || err != nil {
		t.Errorf("swept %d, %v", got, err)
	}
	if isNetNS(dead.NetNS) || !isNetNS(a.NetNS) || !isNetNS(pooled.NetNS) {
		t.Error("the wrong ones were swept")
	}
	bound := newID()
	if err := n.Bind(pooled, bound); err != nil {
		t.Fatal(err)
	}
	defer pooled.Tap.Close()
	if got, err := n.Sweep(ctx, func(id string) bool { return id == bound }); got != 1 || err != nil {
		t.Errorf("swept %d, %v", got, err)
	}
	if err := n.Detach(ctx, bound); err != nil {
		t.Error(err)
	}
}

// After a restart of the machine the records are there and nothing else is.
func TestSweepAfterReboot(t *testing.T) {
	n := testNetworks(t)
	for _, c := range []Choice{{Kind: KindNAT}, {KindInternal, "a"}} {
		a := mustAttach(t, n, Request{Choice: c})
		if a.Tap != nil {
			a.Tap.Close()
		}
		if err := unix.Unmount(a.NetNS, unix.MNT_DETACH); err != nil {
			t.Fatal(err)
		}
		net, _, err := n.Inspect(c)
		if err != nil {
			t.Fatal(err)
		}
		link, err := netlink.LinkByName(net.Bridge)
		if err == nil {
			err = errors.Join(netlink.LinkDel(link), deleteTable(context.Background(), tableFamily(c.Kind), net.Bridge))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if got, err := n.Sweep(context.Background(), func(string) bool { return false }); got != 2 || err != nil {
		t.Errorf("swept %d, %v", got, err)
	}
	if left := leftOf(n); left != nil {
		t.Errorf("left: %q", left)
	}
	mustAttach(t, n, Request{Choice: Choice{Kind: KindNAT}}) // and it begins anew
}

// Two hundred sandboxes on one network: one after another, and many at once.
func TestTwoHundredOnOneNetwork(t *testing.T) {
	n := testNetworks(t)
	count := 12
	if s := os.Getenv("ATTACHMENTS"); s != "" {
		count, _ = strconv.Atoi(s)
	}
	ctx := context.Background()
	for _, choice := range []Choice{{Kind: KindNAT}, {KindInternal, "crowd"}} {
		for _, at := range []int{1, 16} {
			t.Run(fmt.Sprintf("%s, %d at once", choice, at), func(t *testing.T) {
				ids, taps := make([]string, count), make([]*os.File, count)
				clock := timing.Start()
				each(count, at, func(i int) {
					ids[i] = newID()
					a, err := n.Attach(ctx, Request{Sandbox: ids[i], Choice: choice})
					if err != nil {
						t.Error(err)
						return
					}
					taps[i] = a.Tap
				})
				clock.Done("attach")
				if on, err := n.on(choice); len(on) != count || err != nil {
					t.Errorf("%d are on it, %v", len(on), err)
				}
				seen := map[string]bool{}
				on, _ := n.on(choice)
				for _, r := range on {
					seen[r.MAC.String()], seen[r.Addresses[0].String()], seen[r.Addresses[1].String()] = true, true, true
				}
				if len(seen) != 3*count {
					t.Errorf("%d different addresses, want %d", len(seen), 3*count)
				}
				clock.Done("look")
				each(count, at, func(i int) {
					if taps[i] != nil {
						taps[i].Close()
					}
				})
				clock.Done("close taps")
				each(count, at, func(i int) {
					if err := n.Detach(ctx, ids[i]); err != nil {
						t.Error(err)
					}
				})
				clock.Done("detach")
				for _, s := range clock.Steps() {
					t.Logf("%-10s %s, %s each", s.Name, s.Duration.Round(time.Millisecond), (s.Duration / time.Duration(count)).Round(10*time.Microsecond))
				}
				if left := leftOf(n); left != nil {
					t.Errorf("left: %q", left)
				}
			})
		}
	}
	if paths, _ := filepath.Glob(n.path(addressesDir, "*", "*")); len(paths) == 0 {
		t.Error("no store of addresses found: what is left of them was not looked for")
	}
}

// each runs do for 0 to count-1, that many at once.
func each(count, at int, do func(int)) {
	var wg sync.WaitGroup
	next := make(chan int)
	for range at {
		wg.Go(func() {
			for i := range next {
				do(i)
			}
		})
	}
	for i := range count {
		next <- i
	}
	close(next)
	wg.Wait()
}
