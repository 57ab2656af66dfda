package guest

import (
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"spore/agent"
)

// lateAfter is how long after its boot a machine goes without its late devices, unless it is asked to rehearse before.
const lateAfter = time.Second

// late are the devices of the machine that a guest can do without until it has booted: a source of randomness, whose place the host's
// entropy in the Setup takes, and a balloon. The kernel knows them only as platform devices without a driver (agent.LateHID).
type late struct {
	once    sync.Once
	devices string // directory of the platform's devices
	driver  string // directory of the driver for virtio-mmio transports
	say     func(string)
}

// attach gives them to the kernel's driver, the first time that it is called, and returns when they work. Any goroutine may call it. A
// machine may have none; one that the driver refuses is told of, and the guest goes on without it.
func (l *late) attach() {
	l.once.Do(func() {
		found, _ := filepath.Glob(filepath.Join(l.devices, agent.LateHID+":*")) // it fails only for its pattern
		for _, d := range found {
			name := filepath.Base(d)
			err := writeFile(filepath.Join(d, "driver_override"), filepath.Base(l.driver))
			if err == nil {
				err = writeFile(filepath.Join(l.driver, "bind"), name)
			}
			if err != nil {
				l.say(fmt.Sprintf("spore-agent: device %s: %v", name, err))
			}
		}
	})
}
