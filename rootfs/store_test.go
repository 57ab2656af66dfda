package rootfs_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"spore/rootfs"
)

func TestGet(t *testing.T) {
	s := openStore(t, rootfs.Config{})
	img := importPlain(t, s, "debian:12")
	importPlain(t, s, "other")
	hex := strings.TrimPrefix(img.Digest, "sha256:")
	for _, name := range []string{"debian:12", "docker.io/library/debian:12", "index.docker.io/library/debian:12", "library/debian:12",
		img.Digest, hex, hex[:12], "sha256:" + hex[:4]} {
		if got, err := s.Get(name); err != nil || got.Digest != img.Digest {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	for _, name := range []string{"debian", "debian:13", "x/debian:12", "", "sha256:", hex[:3], "sha256:" + strings.Repeat("0", 64), "../../etc",
		"UPPER", strings.Repeat("a", 1000)} {
		if got, err := s.Get(name); !errors.Is(err, rootfs.ErrNotFound) {
			t.Errorf("%s: %+v, %v, want ErrNotFound", name, got, err)
		}
	}
	if got, _ := s.Get(hex); len(got.Names) != 2 || got.Names[1] != "other:latest" {
		t.Errorf("names %q", got.Names)
	}
	for _, name := range []string{"", "UPPER", "a b", "x@sha256:" + hex, "../x", "-x"} {
		if _, err := s.Import(t.Context(), "dir:"+t.TempDir(), name, rootfs.ImportOptions{}); !errors.Is(err, rootfs.ErrSource) {
			t.Errorf("import as %q: %v, want ErrSource", name, err)
		}
	}
}

func TestListAndReopen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "deep/er")
	s := openStore(t, rootfs.Config{Dir: dir})
	if list, err := s.List(); err != nil || len(list) != 0 {
		t.Errorf("empty store: %v, %v", list, err)
	}
	importPlain(t, s, "b")
	if _, err := s.Import(t.Context(), "dir:"+t.TempDir(), "a:2", rootfs.ImportOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Import(t.Context(), "tar:"+write(t, "x", tarBytes(t, file{"f", "moved"})), "b", rootfs.ImportOptions{}); err != nil {
		t.Fatal(err)
	}
	list, err := openStore(t, rootfs.Config{Dir: dir}).List()
	if err != nil || len(list) != 3 || list[0].Name != "a:2" || list[1].Name != "b:latest" || list[2].Name != "" {
		t.Errorf("%+v, %v", list, err)
	}
	if contents(t, list[1])["f"].Content != "moved" {
		t.Error("the name did not move")
	}
}

func TestRemove(t *testing.T) {
	s := openStore(t, rootfs.Config{})
	ctx := t.Context()
	img := importPlain(t, s, "a")
	importPlain(t, s, "b")
	if err := s.Remove(ctx, "missing", false); !errors.Is(err, rootfs.ErrNotFound) {
		t.Errorf("missing: %v", err)
	}
	if err := s.Remove(ctx, img.Digest, false); !errors.Is(err, rootfs.ErrInUse) {
		t.Errorf("two names: %v", err)
	}
	if err := s.Remove(ctx, "a", false); err != nil {
		t.Error(err)
	}
	if _, err := s.Get("b"); err != nil {
		t.Errorf("the other name went too: %v", err)
	}
	held, err := img.Open()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(ctx, "b", false); !errors.Is(err, rootfs.ErrInUse) {
		t.Errorf("in use: %v", err)
	}
	if err := s.Remove(ctx, "b", true); err != nil {
		t.Errorf("by force: %v", err)
	}
	if left := storeFiles(t, s); len(left) != 0 {
		t.Errorf("left: %q", left)
	}
	var b [1]byte
	if _, err := held.ReadAt(b[:], 1024); err != nil || b[0] != 0xe2 {
		t.Errorf("the file that was held is gone: %v", err)
	}
	held.Close()
	if _, err := img.Open(); !errors.Is(err, rootfs.ErrNotFound) {
		t.Errorf("open after removal: %v", err)
	}
}

func TestPrune(t *testing.T) {
	s := openStore(t, rootfs.Config{})
	for i := range 3 { // the first two lose their name
		if _, err := s.Import(t.Context(), "tar:"+write(t, "x", tarBytes(t, file{"f", strings.Repeat(fmt.Sprint(i), 100_000)})), "a",
			rootfs.ImportOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	list, err := s.List()
	if err != nil || len(list) != 3 {
		t.Fatalf("%d images, %v", len(list), err)
	}
	held, err := list[1].Open()
	if err != nil {
		t.Fatal(err)
	}
	freed, err := s.Prune(t.Context())
	if err != nil || freed < 100_000 || freed > 1<<20 {
		t.Errorf("freed %d, %v", freed, err)
	}
	if list, _ := s.List(); len(list) != 2 {
		t.Errorf("%d images left, want the named and the held one", len(list))
	}
	held.Close()
	if _, err := s.Prune(t.Context()); err != nil {
		t.Error(err)
	}
	if list, _ := s.List(); len(list) != 1 || list[0].Name != "a:latest" {
		t.Errorf("left: %+v", list)
	}
	if _, err := s.Get("a"); err != nil {
		t.Error(err)
	}
}

// TestCorruption: what was changed behind the store's back is noticed.
func TestCorruption(t *testing.T) {
	s := openStore(t, rootfs.Config{})
	img := importPlain(t, s, "a")
	record := filepath.Join(s.Dir(), "images", strings.TrimPrefix(img.Digest, "sha256:")+".json")
	if err := errors.Join(os.Chmod(img.Path, 0o600), os.Truncate(img.Path, img.Size/2)); err != nil {
		t.Fatal(err)
	}
	if _, err := img.Open(); !errors.Is(err, rootfs.ErrDigest) {
		t.Errorf("short image: %v", err)
	}
	if _, err := importPlain(t, s, "a").Open(); err != nil {
		t.Errorf("imported once more: %v", err)
	}
	if err := errors.Join(os.Remove(record), os.WriteFile(record, []byte("{}"), 0o644)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get("a"); !errors.Is(err, rootfs.ErrDigest) {
		t.Errorf("changed record: %v", err)
	}
	if err := os.WriteFile(filepath.Join(s.Dir(), "names.json"), []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := s.List(); err == nil {
		t.Error("broken names.json: no error")
	}
}

// TestTogether lets several stores on one directory do everything at once.
func TestTogether(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	sources := make([]string, 3)
	for i := range sources {
		sources[i] = "tar:" + write(t, "x", tarBytes(t, file{"f", strings.Repeat(fmt.Sprint(i), 5000)}))
	}
	var wg sync.WaitGroup
	for i := range 6 {
		s := openStore(t, rootfs.Config{Dir: dir})
		wg.Go(func() {
			for j := range 8 {
				name := fmt.Sprintf("n%d", (i+j)%4)
				img, err := s.Import(t.Context(), sources[(i*j)%3], name, rootfs.ImportOptions{})
				if err != nil {
					t.Error(err)
					continue
				}
				if f, err := img.Open(); err == nil {
					f.Close()
				} else if !errors.Is(err, rootfs.ErrNotFound) {
					t.Error(err)
				}
				if err := s.Remove(t.Context(), name, false); err != nil && !errors.Is(err, rootfs.ErrNotFound) && !errors.Is(err, rootfs.ErrInUse) {
					t.Error(err)
				}
				if _, err := s.List(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	s := openStore(t, rootfs.Config{Dir: dir})
	list, err := s.List()
	if err != nil {
		t.Fatal(err)
	}
	for _, img := range list {
		contents(t, img)
	}
}

// TestLockWaitsAndGivesUp: a lock that somebody else holds ends with the context.
func TestLockWaitsAndGivesUp(t *testing.T) {
	s := openStore(t, rootfs.Config{})
	release, err := rootfs.LockStore(s)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := s.Prune(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v, want deadline exceeded", err)
	}
	release()
	if _, err := s.Prune(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestKill kills a process that imports, at any moment, and looks at what it leaves.
func TestKill(t *testing.T) {
	if dir := os.Getenv("ROOTFS_TEST_STORE"); dir != "" {
		s := openStore(t, rootfs.Config{Dir: dir})
		fmt.Println("started")
		for i := 0; ; i++ {
			if _, err := s.Import(t.Context(), os.Getenv("ROOTFS_TEST_SOURCE"), fmt.Sprintf("a:%d", i%3), rootfs.ImportOptions{
				Config: &rootfs.ImageConfig{Cmd: []string{fmt.Sprint(i)}}}); err != nil {
				t.Fatal(err)
			}
		}
	}
	dir := filepath.Join(t.TempDir(), "store")
	source := "tar:" + write(t, "x", tarBytes(t, append(plain, file{"big", strings.Repeat("big", 1<<18)})...))
	for range 12 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKill$", "-test.timeout=5m")
		cmd.Env = append(os.Environ(), "ROOTFS_TEST_STORE="+dir, "ROOTFS_TEST_SOURCE="+source)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := out.Read(make([]byte, 16)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(rand.IntN(40)) * time.Millisecond) // not to wait for something, but to hit anywhere
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		cmd.Wait()
	}
	s := openStore(t, rootfs.Config{Dir: dir})
	list, err := s.List()
	if err != nil {
		t.Fatal(err)
	}
	for _, img := range list {
		if contents(t, img)["big"].Size != 3<<18 {
			t.Errorf("%s is not whole", img.Digest)
		}
	}
	if _, err := s.Prune(t.Context()); err != nil {
		t.Fatal(err)
	}
	named := 0
	if list, err = s.List(); err != nil {
		t.Fatal(err)
	}
	for _, img := range list {
		named++
		if img.Name == "" {
			t.Errorf("%s has no name and stayed", img.Digest)
		}
	}
	if files := storeFiles(t, s); len(files) != named+min(named, 1) {
		t.Errorf("%d images, but files %q", named, files)
	}
}
