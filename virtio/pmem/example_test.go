package pmem_test

import (
	"fmt"
	"log"

	"spore/virtio/pmem"
)

// A file of 4 MiB, mapped above 4 GiB.
func Example() {
	device, err := pmem.New(pmem.Config{Start: 4 << 30, Size: 4 << 20})
	if err != nil {
		log.Fatal(err)
	}
	var config [16]byte
	device.ReadConfig(config[:], 0)
	fmt.Printf("%x\n", config)
	// Output: 00000000010000000000400000000000
}
