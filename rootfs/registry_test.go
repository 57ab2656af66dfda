package rootfs_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"spore/rootfs"
)

// server is a registry on the loopback interface.
type server struct {
	host    string
	auth    authn.Authenticator
	blobs   atomic.Int32                                             // requests for blobs
	tamper  func(w http.ResponseWriter, r *http.Request) (done bool) // before the registry sees a request; may be nil
	handler http.Handler
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if s.auth != nil {
		c, _ := s.auth.Authorization()
		want := "Basic " + base64.StdEncoding.EncodeToString([]byte(c.Username+":"+c.Password))
		if r.Header.Get("Authorization") != want {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			http.Error(w, "who are you?", http.StatusUnauthorized)
			return
		}
	}
	if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
		s.blobs.Add(1)
	}
	if s.tamper == nil || !s.tamper(w, r) {
		s.handler.ServeHTTP(w, r)
	}
}

func startServer(t testing.TB) *server {
	t.Helper()
	s := &server{handler: registry.New(registry.Logger(log.New(io.Discard, "", 0)))}
	h := httptest.NewServer(s)
	t.Cleanup(h.Close)
	s.host = strings.TrimPrefix(h.URL, "http://")
	return s
}

func (s *server) push(t testing.TB, ref string, img v1.Image) {
	t.Helper()
	to, err := name.ParseReference(s.host + "/" + ref)
	if err != nil {
		t.Fatal(err)
	}
	options := []remote.Option{}
	if s.auth != nil {
		options = append(options, remote.WithAuth(s.auth))
	}
	if err := remote.Write(to, img, options...); err != nil {
		t.Fatal(err)
	}
}

func TestPull(t *testing.T) {
	reg := startServer(t)
	reg.push(t, "app:1", twoLayers(t))
	s := openStore(t, rootfs.Config{})
	ref := reg.host + "/app:1"

	if _, err := s.Pull(t.Context(), ref, rootfs.PullOptions{Policy: rootfs.PullNever}); !errors.Is(err, rootfs.ErrNotFound) {
		t.Errorf("never, before: %v", err)
	}
	var p recorder
	img, err := s.Pull(t.Context(), ref, rootfs.PullOptions{Progress: &p})
	if err != nil {
		t.Fatal(err)
	}
	files := contents(t, img)
	if files["added"].Content != "upper" || files["removed"].Mode != 0 || img.Config.User != "app" || img.Name != ref {
		t.Errorf("%+v", img)
	}
	if !strings.HasPrefix(img.Manifest, "sha256:") || img.Source != "docker://"+ref {
		t.Errorf("source %q, manifest %q", img.Source, img.Manifest)
	}
	if p.finished(rootfs.PhaseDownload) != 2 || p.finished(rootfs.PhaseUnpack) != 2 || p.finished(rootfs.PhaseResolve) != 1 {
		t.Errorf("steps: %+v", p.steps)
	}
	before := reg.blobs.Load()
	for _, policy := range []rootfs.Policy{rootfs.PullMissing, rootfs.PullNever, rootfs.PullAlways} {
		again, err := s.Pull(t.Context(), "docker://"+ref, rootfs.PullOptions{Policy: policy})
		if err != nil || again.Digest != img.Digest {
			t.Errorf("%s, after: %+v, %v", policy, again, err)
		}
	}
	if n := reg.blobs.Load() - before; n != 0 {
		t.Errorf("%d blobs fetched although nothing changed", n)
	}
	byDigest := reg.host + "/app@" + img.Manifest
	if again, err := s.Pull(t.Context(), byDigest, rootfs.PullOptions{}); err != nil || again.Digest != img.Digest || again.Name != byDigest {
		t.Errorf("by digest: %+v, %v", again, err)
	}

	reg.push(t, "app:1", image(t, types.DockerLayer, gzipped(t, tarBytes(t, file{"new", "version"}))))
	if again, err := s.Pull(t.Context(), ref, rootfs.PullOptions{}); err != nil || again.Digest != img.Digest {
		t.Errorf("missing must not ask: %v", err)
	}
	again, err := s.Pull(t.Context(), ref, rootfs.PullOptions{Policy: rootfs.PullAlways})
	if err != nil || contents(t, again)["new"].Content != "version" {
		t.Errorf("always, after a push: %v", err)
	}
	if _, err := s.Pull(t.Context(), ref, rootfs.PullOptions{Policy: "sometimes"}); err == nil {
		t.Error("a policy that does not exist was accepted")
	}
}

func TestPullLocal(t *testing.T) {
	s := openStore(t, rootfs.Config{})
	source := "tar:" + write(t, "root.tar", tarBytes(t, plain...))
	if _, err := s.Pull(t.Context(), source, rootfs.PullOptions{}); !errors.Is(err, rootfs.ErrSource) {
		t.Errorf("without a name: %v", err)
	}
	if img, err := s.Pull(t.Context(), source, rootfs.PullOptions{Name: "a"}); err != nil || img.Name != "a:latest" {
		t.Errorf("%+v, %v", img, err)
	}
	if _, err := s.Pull(t.Context(), source, rootfs.PullOptions{Name: "a", Policy: rootfs.PullNever}); err != nil {
		t.Error(err)
	}
}

// TestPullCredentials takes a password from Docker's config file.
func TestPullCredentials(t *testing.T) {
	reg := startServer(t)
	reg.auth = &authn.Basic{Username: "user", Password: "pass:word"}
	reg.push(t, "private", twoLayers(t))
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("DOCKER_CONFIG", filepath.Join(home, ".docker"))
	t.Setenv("XDG_RUNTIME_DIR", home)
	s := openStore(t, rootfs.Config{})
	if _, err := s.Pull(t.Context(), reg.host+"/private", rootfs.PullOptions{}); err == nil || !strings.Contains(err.Error(), "401") {
		t.Errorf("without credentials: %v", err)
	}
	helpers := filepath.Join(home, "bin")
	helper := fmt.Sprintf("#!/bin/sh\ncat >/dev/null\nprintf '%%s' '{\"ServerURL\":%q,\"Username\":\"user\",\"Secret\":\"pass:word\"}'\n", reg.host)
	if err := errors.Join(os.MkdirAll(helpers, 0o755), os.MkdirAll(filepath.Join(home, ".docker"), 0o755),
		os.WriteFile(filepath.Join(helpers, "docker-credential-test"), []byte(helper), 0o755)); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", helpers+":"+os.Getenv("PATH"))
	for name, config := range map[string]string{
		"auth":   fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, reg.host, base64.StdEncoding.EncodeToString([]byte("user:pass:word"))),
		"helper": fmt.Sprintf(`{"credHelpers":{%q:"test"}}`, reg.host),
	} {
		if err := os.WriteFile(filepath.Join(home, ".docker/config.json"), []byte(config), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Pull(t.Context(), reg.host+"/private", rootfs.PullOptions{Policy: rootfs.PullAlways}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPullPlatform(t *testing.T) {
	reg := startServer(t)
	index := v1.ImageIndex(empty.Index)
	for _, arch := range []string{"arm64", "amd64"} {
		img := image(t, types.OCILayer, gzipped(t, tarBytes(t, file{"arch", arch})))
		config, _ := img.ConfigFile()
		config = config.DeepCopy()
		config.Architecture = arch
		img, err := mutate.ConfigFile(img, config)
		if err != nil {
			t.Fatal(err)
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{
			Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}}})
	}
	ref, _ := name.ParseReference(reg.host + "/multi")
	if err := remote.WriteIndex(ref, index); err != nil {
		t.Fatal(err)
	}
	s := openStore(t, rootfs.Config{})
	for _, arch := range []string{"amd64", "arm64"} {
		img, err := s.Pull(t.Context(), ref.Name(), rootfs.PullOptions{Platform: "linux/" + arch, Policy: rootfs.PullAlways})
		if err != nil || contents(t, img)["arch"].Content != arch || img.Platform != "linux/"+arch {
			t.Errorf("%s: %+v, %v", arch, img, err)
		}
	}
	if img, err := s.Pull(t.Context(), ref.Name(), rootfs.PullOptions{}); err != nil || img.Platform != "linux/arm64" {
		t.Errorf("no platform asked for: %+v, %v", img, err)
	}
	if _, err := s.Pull(t.Context(), ref.Name(), rootfs.PullOptions{Platform: "linux/amd64", Policy: rootfs.PullNever}); !errors.Is(err, rootfs.ErrNotFound) {
		t.Errorf("the other platform, without asking the registry: %v", err)
	}
	if img, err := s.Pull(t.Context(), ref.Name(), rootfs.PullOptions{Platform: "linux/amd64"}); err != nil || img.Platform != "linux/amd64" {
		t.Errorf("the other platform: %+v, %v", img, err)
	}
	for _, platform := range []string{"linux/s390x", "windows/amd64", "linux", "a/b/c/d"} {
		if _, err := s.Pull(t.Context(), ref.Name(), rootfs.PullOptions{Platform: platform, Policy: rootfs.PullAlways}); err == nil {
			t.Errorf("%s was accepted", platform)
		}
	}
}

// TestPullTogether: those who want the same image at once get it from one download.
func TestPullTogether(t *testing.T) {
	reg := startServer(t)
	reg.push(t, "app", twoLayers(t))
	dir := filepath.Join(t.TempDir(), "store")
	var wg sync.WaitGroup
	for range 8 {
		s := openStore(t, rootfs.Config{Dir: dir})
		wg.Go(func() {
			if img, err := s.Pull(t.Context(), reg.host+"/app", rootfs.PullOptions{}); err != nil || len(img.Names) != 1 {
				t.Errorf("%+v, %v", img, err)
			}
		})
	}
	wg.Wait()
	if n := reg.blobs.Load(); n != 3 {
		t.Errorf("%d blobs fetched, want a configuration and two layers", n)
	}
}

// TestPullFailures: a pull that fails leaves nothing behind, whatever the registry does.
func TestPullFailures(t *testing.T) {
	img := twoLayers(t)
	layers, _ := img.Layers()
	digest, _ := layers[1].Digest()
	onLayer := func(f func(w http.ResponseWriter)) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, digest.String()) {
				return false
			}
			f(w)
			return true
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	for _, c := range []struct {
		name   string
		tamper func(http.ResponseWriter, *http.Request) bool
	}{
		{"other bytes", onLayer(func(w http.ResponseWriter) { io.WriteString(w, "something else") })},
		{"nothing", onLayer(func(w http.ResponseWriter) { w.WriteHeader(http.StatusNotFound) })},
		{"endless", onLayer(func(w http.ResponseWriter) {
			for range 1000 {
				if _, err := w.Write(make([]byte, 1<<16)); err != nil {
					return
				}
			}
		})},
		{"cut", onLayer(func(w http.ResponseWriter) {
			w.Header().Set("Content-Length", "1000")
			io.WriteString(w, "cut")
		})},
		{"cancelled", onLayer(func(w http.ResponseWriter) { cancel() })},
	} {
		t.Run(c.name, func(t *testing.T) {
			reg := startServer(t)
			reg.push(t, "app", img)
			reg.tamper = c.tamper
			s := openStore(t, rootfs.Config{})
			within := t.Context()
			if c.name == "cancelled" {
				within = ctx
			}
			if _, err := s.Pull(within, reg.host+"/app", rootfs.PullOptions{}); err == nil {
				t.Error("no error")
			}
			if left := storeFiles(t, s); len(left) != 0 {
				t.Errorf("left behind: %q", left)
			}
		})
	}
}

// TestIMG01ForeignLayers: addresses in a manifest are not followed.
func TestIMG01ForeignLayers(t *testing.T) {
	var asked atomic.Bool
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Store(true) }))
	defer other.Close()
	reg := startServer(t)
	img := twoLayers(t)
	layers, _ := img.Layers()
	foreign, err := mutate.Append(empty.Image, mutate.Addendum{Layer: layers[0], URLs: []string{other.URL + "/layer"}})
	if err != nil {
		t.Fatal(err)
	}
	reg.push(t, "foreign", foreign)
	reg.tamper = func(w http.ResponseWriter, r *http.Request) bool {
		d, _ := layers[0].Digest()
		if strings.HasSuffix(r.URL.Path, d.String()) {
			w.WriteHeader(http.StatusNotFound)
			return true
		}
		return false
	}
	if _, err := openStore(t, rootfs.Config{}).Pull(t.Context(), reg.host+"/foreign", rootfs.PullOptions{}); err == nil {
		t.Error("no error for a layer that the registry does not have")
	}
	if asked.Load() {
		t.Error("an address out of the manifest was asked")
	}
}
