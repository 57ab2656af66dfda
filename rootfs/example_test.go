package rootfs_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"spore/rootfs"
)

// Example imports a directory as an image and opens its file system, as a sandbox would.
func Example() {
	tmp, err := os.MkdirTemp("", "example")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(tmp)
	etc := filepath.Join(tmp, "root/etc")
	if err := os.MkdirAll(etc, 0o755); err != nil {
		panic(err)
	}
	if err := os.WriteFile(filepath.Join(etc, "passwd"), []byte("app:x:1000:1000::/home/app:/bin/sh\n"), 0o644); err != nil {
		panic(err)
	}

	store, err := rootfs.Open(rootfs.Config{Dir: filepath.Join(tmp, "store")})
	if err != nil {
		panic(err)
	}
	ctx := context.Background()
	img, err := store.Import(ctx, "dir:"+filepath.Join(tmp, "root"), "app:1", rootfs.ImportOptions{
		Config: &rootfs.ImageConfig{User: "app", Cmd: []string{"/bin/sh"}},
	})
	if err != nil {
		panic(err)
	}
	f, err := img.Open() // in use until closed
	if err != nil {
		panic(err)
	}
	defer f.Close()
	user, err := img.LookupUser("")
	if err != nil {
		panic(err)
	}
	fmt.Println(img.Name, img.Config.Cmd, user.UID, user.Home, img.Size/rootfs.Alignment)
	fmt.Println(store.Remove(ctx, "app:1", false))
	// Output:
	// app:1 [/bin/sh] 1000 /home/app 1
	// remove image app:1: image is in use
}
