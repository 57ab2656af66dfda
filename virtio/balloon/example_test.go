package balloon_test

import (
	"fmt"
	"log"

	"spore/guestmem"
	"spore/virtio/balloon"
)

// A guest of 64 MiB that is asked for 16 of them.
func Example() {
	ram, err := guestmem.MapAnon(64 << 20)
	if err != nil {
		log.Fatal(err)
	}
	defer guestmem.Unmap(ram)
	mem, err := guestmem.New(guestmem.Region{Host: ram})
	if err != nil {
		log.Fatal(err)
	}
	device, err := balloon.New(balloon.Config{Backend: balloon.NewMemory(mem, false), RAM: mem.Size()})
	if err != nil {
		log.Fatal(err)
	}
	if err := device.SetTarget(16 << 20); err != nil {
		log.Fatal(err)
	}
	target, actual := device.Size()
	fmt.Println("wanted:", target>>20, "MiB, given:", actual>>20, "MiB")
	// Output: wanted: 16 MiB, given: 0 MiB
}
