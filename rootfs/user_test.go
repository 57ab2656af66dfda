package rootfs_test

import (
	"reflect"
	"strings"
	"testing"

	"spore/rootfs"
)

func TestLookupUser(t *testing.T) {
	s := openStore(t, rootfs.Config{})
	img := importPlain(t, s, "a")
	root := rootfs.User{Name: "root", Groups: []uint32{50}, Home: "/root", Shell: "/bin/bash"}
	app := rootfs.User{Name: "app", UID: 1000, GID: 1001, Groups: []uint32{44, 50}, Home: "/home/app", Shell: "/bin/sh"}
	for spec, want := range map[string]rootfs.User{
		"": root, "root": root, "0": root, "app": app, "1000": app,
		"app:video":     {Name: "app", UID: 1000, GID: 44, Home: "/home/app", Shell: "/bin/sh"},
		"app:7777":      {Name: "app", UID: 1000, GID: 7777, Home: "/home/app", Shell: "/bin/sh"},
		"1234":          {UID: 1234, Home: "/"},
		"1234:staff":    {UID: 1234, GID: 50, Home: "/"},
		"7":             {Name: "7", UID: 77, GID: 77, Home: "/", Shell: "/bin/sh"}, // a name before a number
		"4294967294":    {UID: 4294967294, Home: "/"},
		"4294967294:0":  {UID: 4294967294, Home: "/"},
		"nobody:nobody": {},
	} {
		got, err := img.LookupUser(spec)
		if spec == "nobody:nobody" {
			if err == nil {
				t.Errorf("%q: a group that does not exist was accepted", spec)
			}
			continue
		}
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %+v, %v; want %+v", spec, got, err, want)
		}
	}
	for _, spec := range []string{"missing", "bad", "broken line", "-1", "4294967295", "4294967296", ":0", ":", "root:", "root:missing", "root:4294967295"} {
		if got, err := img.LookupUser(spec); err == nil {
			t.Errorf("%q: %+v, want an error", spec, got)
		}
	}
	img.Config.User = "app"
	if got, err := img.LookupUser(""); err != nil || got.UID != 1000 {
		t.Errorf("user of the configuration: %+v, %v", got, err)
	}
	if got, err := img.LookupUser("root"); err != nil || got.UID != 0 {
		t.Errorf("spec over the configuration: %+v, %v", got, err)
	}
}

// TestAccountsInOddPlaces: no accounts, absurdly many, and accounts behind links.
func TestAccountsInOddPlaces(t *testing.T) {
	s := openStore(t, rootfs.Config{})
	for name, files := range map[string][]file{
		"none": {{"bin/sh", ""}},
		"huge": {{"etc/passwd", strings.Repeat("x:x:1:1::/:/bin/sh\n", 100_000)}},
	} {
		img, err := s.Import(t.Context(), "tar:"+write(t, "x", tarBytes(t, files...)), name, rootfs.ImportOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if u, err := img.LookupUser(""); err != nil || u.UID != 0 || u.Home != "/" {
			t.Errorf("%s: %+v, %v", name, u, err)
		}
		if _, err := img.LookupUser("x"); err == nil {
			t.Errorf("%s: found a user by name", name)
		}
	}
}
