package e2e

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"spore/guest"
	"spore/internal/testenv"
	"spore/test/world"
)

// fetchVariable makes this test binary, as the only program of a guest, print what it gets from the URLs in it.
const fetchVariable = "SPORE_TEST_FETCH"

func fetchAll(urls string) {
	client := &http.Client{Timeout: 20 * time.Second}
	for _, url := range strings.Fields(urls) {
		r, err := client.Get(url)
		if err != nil {
			fmt.Println(url, "ERROR", err)
			continue
		}
		b, err := io.ReadAll(io.LimitReader(r.Body, 4<<10))
		r.Body.Close()
		fmt.Println(url, r.StatusCode, strings.ReplaceAll(string(b), "\n", " "), err)
	}
}

// anybody is a user without privileges.
const anybody = 1000

// TestRootlessNetwork gives a sandbox of an unprivileged user the same network, rules and answers.
func TestRootlessNetwork(t *testing.T) {
	testenv.Require(t, testenv.Root, guests)
	w := newWorld(t)
	home, err := os.MkdirTemp("", "rootless-") // whose parents anybody may enter
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(home) })
	image := filepath.Join(home, "image")
	for _, d := range []string{"bin", "etc", "tmp", "dev", "proc", "sys", "run"} {
		if err := os.MkdirAll(filepath.Join(image, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	kernel := filepath.Join(home, "vmlinux")
	for from, to := range map[string]string{self: filepath.Join(image, "bin", "fetch"), kernelPath(t): kernel} {
		copyFile(t, from, to)
	}
	if out, err := exec.Command("chown", "-R", fmt.Sprint(anybody), home).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	spore := func(args ...string) string {
		ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
		defer cancel()
		cmd := exec.CommandContext(ctx, binary("spore"), append([]string{"--native"}, args...)...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: anybody, Gid: anybody}}
		cmd.Env = []string{"HOME=" + home, "PATH=" + os.Getenv("PATH"), "SPORE_KERNEL=" + kernel, "SPORE_JAIL_WITHOUT=cgroup"}
		cmd.Dir = home
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("spore %s: %v\n%s", strings.Join(args, " "), err, clip(string(out)))
		}
		return string(out)
	}
	spore("image", "import", image, "fetch")
	urls := fmt.Sprintf("http://allowed.test/rootless https://forbidden.test/ http://%s/ http://%s/ http://10.0.2.2/ http://169.254.169.254/", world.Forbidden, world.Private)
	run := []string{"run", "--rm", "--network", "nat", "--dns", world.DNS.String(), "--allow", "allowed.test", "-e", fetchVariable + "=" + urls, "fetch", "--", "/bin/fetch"}
	out := spore(run...)
	lines := strings.Split(out, "\n")
	if !strings.Contains(lines[0], "200 world allowed.test /rootless") {
		t.Errorf("what is allowed: %s", clip(out))
	}
	if n := strings.Count(out, " 403 "); n != 4 || !strings.Contains(out, "https://forbidden.test/ ERROR") {
		t.Errorf("%d denials by HTTP, want 4: %s", n, clip(out))
	}
	for _, r := range w.Reached() {
		if why := trespass(r); why != "" {
			t.Errorf("got through: %s: %+v", why, r)
		}
	}
	// The page table of an unprivileged user's VMM is that user's to read: the template was saved by it, and says what a guest wrote.
	spore(run...)
	if list, err := filepath.Glob(filepath.Join(home, ".local/state/spore/templates/*/hot")); err != nil || len(list) != 1 {
		t.Errorf("templates that know which pages are hot: %v, %v; want one", list, err)
	}
}

func kernelPath(t *testing.T) string {
	t.Helper()
	if k := os.Getenv("SPORE_KERNEL"); k != "" {
		return k
	}
	path, err := guest.KernelPath(cacheDir())
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// cacheDir is where spore has its kernel and images, unless told otherwise.
func cacheDir() string {
	if d := os.Getenv("XDG_CACHE_HOME"); d != "" {
		return filepath.Join(d, "spore")
	}
	return filepath.Join(os.Getenv("HOME"), ".cache", "spore")
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(out, in); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
}
