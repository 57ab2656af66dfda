package vmm

import (
	"errors"
	"os"
	"testing"

	"spore/virtio/net/nettest"
	"spore/vmm/api"
)

// withNet gives the machine a network.
func withNet(t *testing.T, tap **nettest.Tap, mac byte) func(*api.Config, *Env) {
	return func(cfg *api.Config, env *Env) {
		var file *os.File
		file, *tap = nettest.New(t)
		cfg.Net = &api.Net{File: api.File(len(env.Files)), MAC: api.MAC{2, 0, 0, 0, 0, mac}, MTU: 1500, Offload: true}
		env.Files = append(env.Files, file)
	}
}

// netSender sets up the transmit queue of the first and only device, sends a frame of 60 bytes, tells the probe, waits for an answer
// other than 0, and sends it once more. (virtio 1.2 §3.1, §4.2.3, §5.1.6.2)
func netSender() code {
	const device, desc, avail, used, buffer = 0xd0000000, 0x10000, 0x11000, 0x12000, 0x13000
	reg := func(off, v uint32) []byte { return store32(device+off, v) }
	send := func(n uint32) []byte {
		return asm(store32(avail+2+2*n, 0), store32(avail, n<<16), reg(kickOffset, 1), poll(used, n<<16), load32(used), outEAX(portProbe))
	}
	return asm(
		reg(0x70, 0), reg(0x70, 1), reg(0x70, 3),
		reg(0x24, 0), reg(0x20, 0), reg(0x24, 1), reg(0x20, 1), // VERSION_1 only
		reg(0x70, 11),
		reg(0x30, 1), reg(0x38, 8), // queue 1, 8 descriptors
		reg(0x80, desc), reg(0x84, 0), reg(0x90, avail), reg(0x94, 0), reg(0xa0, used), reg(0xa4, 0),
		reg(0x44, 1), reg(0x70, 15),
		store32(buffer+12, 0xffffffff), store32(buffer+16, 0x0002ffff), // to all, from 02:00:…
		store32(desc, buffer), store32(desc+4, 0), store32(desc+8, 12+60), store32(desc+12, 0),
		send(1),
		in32(portProbe), []byte{0x85, 0xc0, 0x74, 0xf7}, // back over test (2), jz (2), in (1) and mov dx (4)
		send(2), off, halt)
}

// TestNetFrameFromTheGuest sends a frame from a machine and, with another network and address, from one that was made of its snapshot.
func TestNetFrameFromTheGuest(t *testing.T) {
	var tap, other *nettest.Tap
	m, p := newTestMachine(t, netSender(), withNet(t, &tap, 1))
	if err := m.Resume(within(t)); err != nil {
		t.Fatal(err)
	}
	check := func(tap *nettest.Tap) {
		t.Helper()
		if _, f := tap.Receive(); len(f) != 60 || f[0] != 0xff || f[6] != 2 {
			t.Errorf("received %x", f)
		}
	}
	check(tap)
	await(t, p)
	from, _ := save(t, m, nil, false)
	clone, p := wake(t, from, withNet(t, &other, 2))
	if name := clone.devs[len(clone.devs)-1].name; name != "net" {
		t.Errorf("the last device is %s: a network would move others", name)
	}
	p.reply(1)
	if exit := finish(t, clone); exit.Reason != api.ExitPowerOff {
		t.Fatalf("ended with %+v", exit)
	}
	check(other)
	if _, _, sent := tap.Next(); sent {
		t.Error("the clone's frame came from the original")
	}
	if s := clone.Stats()["net"]; s["transmitted_frames"] != 1 || s["transmitted_bytes"] != 60 {
		t.Errorf("counters %v", s)
	}
}

func TestNetConfig(t *testing.T) {
	for name, change := range map[string]func(*api.Config){
		"no address":         func(c *api.Config) { c.Net.MAC = api.MAC{} },
		"a group's address":  func(c *api.Config) { c.Net.MAC[0] = 1 },
		"an MTU of 67":       func(c *api.Config) { c.Net.MTU = 67 },
		"no file":            func(c *api.Config) { c.Net.File = api.NoFile },
		"a file that is not": func(c *api.Config) { c.Net.File = 9 },
		"KVM":                func(c *api.Config) { c.Net.File = api.KVMFile },
	} {
		var tap *nettest.Tap
		cfg := api.Config{Version: api.Version, VCPUs: 1, Memory: api.MinMemory, Boot: api.Boot{Kernel: 1, Initrd: api.NoFile},
			Entropy: api.NoFile, Console: api.Console{Output: api.NoFile, Input: api.NoFile}}
		env := Env{Files: []*os.File{os.Stdin, os.Stdin}}
		withNet(t, &tap, 1)(&cfg, &env)
		if err := check(&cfg, env); err != nil {
			t.Fatal(err)
		}
		change(&cfg)
		if err := check(&cfg, env); !errors.Is(err, ErrConfig) {
			t.Errorf("%s: %v, want ErrConfig", name, err)
		}
	}
}
