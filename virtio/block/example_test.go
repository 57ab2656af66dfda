package block_test

import (
	"encoding/binary"
	"fmt"
	"log"
	"os"

	"spore/virtio/block"
	"spore/virtio/rate"
)

// A disk of 1 MiB whose guest may do 100 requests in a second.
func Example() {
	f, err := os.CreateTemp("", "disk")
	if err != nil {
		log.Fatal(err)
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if err := f.Truncate(1 << 20); err != nil {
		log.Fatal(err)
	}
	image, err := block.NewFile(f, false)
	if err != nil {
		log.Fatal(err)
	}
	disk, err := block.New(block.Config{Backend: image, ID: "root", Rate: rate.Rate{OpsPerSecond: 100}})
	if err != nil {
		log.Fatal(err)
	}
	var capacity [8]byte
	disk.ReadConfig(capacity[:], 0)
	fmt.Println(binary.LittleEndian.Uint64(capacity[:]), "sectors")
	// Output: 2048 sectors
}
