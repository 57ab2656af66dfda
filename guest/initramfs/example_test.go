package initramfs_test

import (
	"bytes"
	"fmt"

	"spore/guest/initramfs"
)

// The archive is the agent and a few directories.
func ExampleWrite() {
	var archive bytes.Buffer
	if err := initramfs.Write(&archive, []byte("the agent's binary")); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("%s, padded: %v\n", archive.Bytes()[:6], archive.Len()%4 == 0)
	// Output: 070701, padded: true
}
