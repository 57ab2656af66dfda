package e2e

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"spore/internal/testenv"
	"spore/test/world"
)

func TestMain(m *testing.M) {
	world.Main()
	if urls := os.Getenv(fetchVariable); urls != "" {
		fetchAll(urls)
		return
	}
	os.Exit(m.Run())
}

// newWorld is a world for the time of the test.
func newWorld(t *testing.T) *world.World {
	t.Helper()
	testenv.Require(t, testenv.Root)
	w, err := world.Start(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

//go:embed testdata/attempts.py
var attemptsScript string

// attempted is what the guest saw of its attempts, by name, in their order.
func attempted(t *testing.T, out string) (map[string]string, []string) {
	t.Helper()
	seen, order := map[string]string{}, []string{}
	for line := range strings.Lines(out) {
		var a struct {
			Name string
			Seen json.RawMessage
		}
		if err := json.Unmarshal([]byte(line), &a); err != nil {
			t.Errorf("not an attempt: %q", clip(line))
			continue
		}
		seen[a.Name] = string(a.Seen)
		order = append(order, a.Name)
	}
	return seen, order
}

// hostListener counts who reaches a service of the host's.
func hostListener(t *testing.T) func() []string {
	t.Helper()
	l, err := net.Listen("tcp", ":22")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var came []string
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			came = append(came, fmt.Sprint(c.RemoteAddr(), " at ", c.LocalAddr()))
			mu.Unlock()
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close() })
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(came)
	}
}

func hostAddresses(t *testing.T) (all []string) {
	t.Helper()
	list, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range list {
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() {
			all = append(all, n.IP.String())
		}
	}
	return all
}

// policyRules are what TestPOLICY's guest is allowed.
var policyRules = []string{"allowed.test", "*.wild.test", "rebind.test", "meta.test", "alias.test", "tcp://93.184.216.40:7777"}

// TestPOLICY has a guest try every way around its rules that we know of. What counts is what reached the world.
func TestPOLICY(t *testing.T) {
	u, w := newUser(t), newWorld(t)
	came := hostListener(t)
	args := []string{"run", "-d", "--name", "p", "--network", "nat", "--dns", world.DNS.String(), "-u", "0", "--timeout", "15m"}
	for _, r := range policyRules {
		args = append(args, "--allow", r)
	}
	u.must(append(args, image, "--", "sleep", "900")...)
	w.Forget()
	out := u.feed(attemptsScript, append([]string{"exec", "-i", "p", "python3", "-"}, hostAddresses(t)...)...)
	seen, order := attempted(t, out.stdout)
	if out.code != 0 || seen["still-allowed"] == "" {
		t.Fatalf("the attempts ended with code %d after %d\n%s", out.code, len(order), clip(out.stderr))
	}
	reached := w.Reached()
	for name, want := range map[string]string{
		"allowed-http": "world allowed.test /allowed-http", "allowed-https": "world allowed.test /allowed-https", "allowed-https-ipv6": "world allowed.test /v6",
		"allowed-wildcard": "world a.wild.test /wild", "allowed-address-and-port": "to-the-port", "still-allowed": "world allowed.test /still",
		"POLICY-26 a forged Host at an allowed address": "403", "POLICY-01 lookup of a name that is not allowed": "error",
	} {
		if !strings.Contains(seen[name], want) {
			t.Errorf("%s: saw %s, want %q", name, clip(seen[name]), want)
		}
	}
	for _, name := range order {
		if strings.HasPrefix(name, "POLICY") {
			t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
				t.Logf("saw %s", clip(seen[name]))
				if why := leak(name, seen[name]); why != "" {
					t.Error(why)
				}
			})
		}
	}
	for _, r := range reached {
		if why := trespass(r); why != "" {
			t.Errorf("got through: %s: %+v", why, r)
		}
	}
	if c := came(); len(c) > 0 {
		t.Errorf("reached the host: %v", c)
	}
	t.Run("audit", func(t *testing.T) { checkAudit(t, &user{t, u.state}) })
	t.Run("explain", func(t *testing.T) {
		u := &user{t, u.state}
		for address, want := range map[string]string{"forbidden.test:443": "deny", "allowed.test:443": "allow", "169.254.169.254:80": "metadata"} {
			if got := u.must("network", "explain", "p", address); !strings.Contains(got, want) {
				t.Errorf("explain %s: %s, want %q", address, got, want)
			}
		}
	})
}

var (
	attemptNumber = regexp.MustCompile(`^POLICY-[0-9]+`)
	worldAnswer   = regexp.MustCompile(`world ([^ \\"]+)`) // as its servers begin
)

// leak says what of an attempt's own sight shows that it got through, "" if nothing: an answer of the world's for a host that is not allowed, its
// own words from an echo, a connection to the host, an answer to a question.
func leak(name, seen string) string {
	for _, host := range worldAnswer.FindAllStringSubmatch(seen, -1) {
		if host[1] != "allowed.test" && host[1] != "a.wild.test" {
			return "an answer for " + host[1]
		}
	}
	switch {
	case strings.Contains(seen, attemptNumber.FindString(name)):
		return "an echo of what it said"
	case strings.Contains(seen, `"connected"`):
		return "a connection"
	case strings.Contains(seen, `"code": 0`) && !strings.Contains(seen, `"answers": 0`) && !strings.Contains(name, "alias"): // whose own record names no address
		return "an answer to a question"
	}
	return ""
}

// trespass says what of the rules a thing that reached the world breaks, "" if nothing.
func trespass(r world.Reached) string {
	to, port := r.Destination.Addr(), r.Destination.Port()
	web := (to == world.Allowed || to == world.Allowed6 || to == world.Wild) && (port == 80 || port == 443)
	switch {
	case r.Kind == "packet" && r.Protocol == "udp" && to == world.DNS && port == 53, r.Kind == "packet" && r.Protocol == "tcp" && to == world.DNS && port == 53:
	case r.Kind == "packet" && r.Protocol == "tcp" && (web || to == world.Port && port == 7777):
	case r.Kind == "packet":
		return "a packet to where nothing may go"
	case r.Kind == "dns" && !slices.Contains([]string{"allowed.test.", "a.wild.test.", "rebind.test.", "meta.test.", "alias.test."}, strings.ToLower(r.Name)):
		return "a question for a name that is not allowed"
	case (r.Kind == "http" || r.Kind == "tls") && !(r.Name == "allowed.test" && to != world.Wild || r.Name == "a.wild.test" && to == world.Wild):
		return "a name that is not allowed at this address"
	case r.Kind == "http" && strings.Contains(r.Text, "other.test"):
		return "a request for another host"
	case r.Kind == "tcp" && to != world.Port:
		return "something that is neither TLS nor HTTP at an address that is allowed by name"
	case r.Kind == "udp":
		return "a datagram"
	}
	return ""
}

// checkAudit looks at the audit lines of the sandbox p: each denial is there, with its rule, and names nothing raw.
func checkAudit(t *testing.T, u *user) {
	denied, allowed := 0, 0
	for line := range strings.Lines(u.must("network", "log", "p")) {
		var e struct{ Time, Sandbox, Action, Rule, Reason string }
		if err := json.Unmarshal([]byte(line), &e); err != nil || e.Time == "" || e.Sandbox == "" || e.Rule == "" {
			t.Errorf("audit line %q: %v", clip(line), err)
		}
		switch e.Action {
		case "deny":
			denied++
		case "allow":
			allowed++
		}
	}
	if denied < 20 || allowed < 3 {
		t.Errorf("%d denials and %d permissions in the audit", denied, allowed)
	}
}

// TestSecretsStayOutside has a guest use a secret that it never sees.
func TestSecretsStayOutside(t *testing.T) {
	u, w := newUser(t), newWorld(t)
	const value = "the-very-secret-value"
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(value+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SSL_CERT_FILE", w.CA())
	const script = `
import os, ssl, urllib.request
token = os.environ["TOKEN"]
print("placeholder", token)
def ask(url):
    r = urllib.request.Request(url, headers={"Authorization": "Bearer " + token})
    print(urllib.request.urlopen(r, timeout=20).read().decode())
ask("https://allowed.test/with")
try: ask("https://a.wild.test/without")
except Exception as e: print("ERROR", e)
`
	r := u.feed(script, "run", "-i", "--name", "s", "--network", "nat", "--dns", world.DNS.String(), "--allow", "allowed.test", "--allow", "a.wild.test",
		"--secret", "TOKEN=file:"+file+"@allowed.test", image, "--", "python3", "-")
	if r.code != 0 || strings.Contains(r.stdout+r.stderr, value) {
		t.Errorf("code %d, %s, %s", r.code, clip(r.stdout), clip(r.stderr))
	}
	with, without := "", ""
	for _, x := range w.Reached() {
		if x.Kind == "http" && strings.HasPrefix(x.Text, "/without") {
			without = x.Header
		} else if x.Kind == "http" {
			with = x.Header
		}
	}
	if !strings.Contains(with, "Bearer "+value) {
		t.Errorf("the host of the secret got %q", with)
	}
	if strings.Contains(without, value) {
		t.Errorf("another host got the secret: %q", without)
	}
	for _, dir := range []string{u.state} {
		if found := grep(t, dir, value); len(found) > 0 {
			t.Errorf("the value is in %v", found)
		}
	}
}

// TestSwitchedNetwork has two sandboxes of one name see one another, one of another name see neither, and nothing left afterwards.
func TestSwitchedNetwork(t *testing.T) {
	testenv.Require(t, testenv.Root)
	u := newUser(t)
	u.must("run", "-d", "--name", "server", "--network", "internal:a", "-u", "0", image, "--", "python3", "-m", "http.server", "80")
	at := u.addressOf("server")
	const fetch = `
import sys, urllib.request, time
for _ in range(int(sys.argv[2])):
    try: print(urllib.request.urlopen(sys.argv[1], timeout=5).status); break
    except OSError as e: print(type(e).__name__, e, file=sys.stderr); time.sleep(0.2)
`
	url := "http://" + at + "/"
	u.feed(fetch, "run", "-i", "--network", "internal:a", image, "--", "python3", "-", url, "50").want(t, 0, "200\n")
	u.feed(fetch, "run", "-i", "--network", "internal:b", image, "--", "python3", "-", url, "1").want(t, 0, "")
	u.feed(fetch, "run", "-i", image, "--", "python3", "-", url, "1").want(t, 0, "")
	u.must("rm", "-f", "server")
	for _, n := range []string{"internal:a", "internal:b"} {
		u.must("network", "rm", n)
	}
	if links, err := net.Interfaces(); err != nil || slices.ContainsFunc(links, func(i net.Interface) bool { return strings.HasPrefix(i.Name, "sp") }) {
		t.Errorf("left behind: %v, %v", links, err)
	}
}

// addressOf is the IPv4 address of a running sandbox.
func (u *user) addressOf(name string) string {
	u.t.Helper()
	var rows []struct {
		Connected struct{ Addresses []string }
	}
	if err := json.Unmarshal([]byte(u.must("inspect", name)), &rows); err != nil || len(rows) != 1 || len(rows[0].Connected.Addresses) == 0 {
		u.t.Fatalf("inspect %s: %+v, %v", name, rows, err)
	}
	address, _, _ := strings.Cut(rows[0].Connected.Addresses[0], "/")
	return address
}

// TestPublish reaches a guest through a port of the host's.
func TestPublish(t *testing.T) {
	u := newUser(t)
	u.must("run", "-d", "--name", "w", "--network", "nat", "-p", "0:80", "-u", "0", image, "--", "python3", "-m", "http.server", "80")
	var rows []struct {
		Connected struct{ Ports []struct{ Host string } }
	}
	if err := json.Unmarshal([]byte(u.must("inspect", "w")), &rows); err != nil || len(rows) != 1 || len(rows[0].Connected.Ports) != 1 {
		t.Fatalf("inspect: %+v, %v", rows, err)
	}
	at := rows[0].Connected.Ports[0].Host
	if !strings.HasPrefix(at, "127.0.0.1:") {
		t.Errorf("published on %s, want the loopback", at)
	}
	if got := fetchSoon(t, "http://"+at+"/"); !strings.Contains(got, "Directory listing") {
		t.Errorf("got %q", clip(got))
	}
	if ls := u.must("ls"); !strings.Contains(ls, at+"->80/tcp") {
		t.Errorf("spore ls does not show the port: %s", ls)
	}
}

// fetchTries is how often a server that has just been started is asked.
const fetchTries = 100

// fetchSoon gets a page of a server that may not listen yet.
func fetchSoon(t *testing.T, url string) string {
	t.Helper()
	var last error
	for range fetchTries {
		r, err := http.Get(url)
		if err != nil {
			last = err
			time.Sleep(100 * time.Millisecond)
			continue
		}
		defer r.Body.Close()
		b, err := io.ReadAll(r.Body)
		if err == nil {
			return string(b)
		}
		last = err
	}
	t.Fatal(last)
	return ""
}

// TestLeak has what judges the attempts find what it is there for.
func TestLeak(t *testing.T) {
	const name = "POLICY-26 a forged Host"
	for seen, want := range map[string]bool{
		`"HTTP/1.1 200 OK\r\n\r\nworld other.test /26\n"`: true, `"POLICY-26"`: true, `[["10.0.2.15", "connected", ""]]`: true, `{"code": 0, "answers": 2, "error": []}`: true,
		`"HTTP/1.1 200 OK\r\n\r\nworld allowed.test /27a\nHTTP/1.1 403 Forbidden"`: false, `{"code": 3, "answers": 0, "error": []}`: false, `"OSError: [Errno 113] No route to host"`: false,
	} {
		if got := leak(name, seen); (got != "") != want {
			t.Errorf("%s: %q", seen, got)
		}
	}
}
