package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"spore/vmm/api"
)

// The network of the measurement: a tap whose host's end is the peer.
const (
	tapName  = "bench0"
	hostAddr = "10.213.0.1"
	netGuest = "10.213.0.2"
	guestMAC = "02:00:00:00:d5:02"
)

// cable is a guest's network interface: a tap of this machine.
type cable struct {
	file *os.File
}

// newCable makes the tap as package network does for a switched network, and gives this machine an address on it.
func newCable() (*cable, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: "/dev/net/tun", Err: err}
	}
	c := &cable{os.NewFile(uintptr(fd), "tap")}
	ifr, err := unix.NewIfreq(tapName)
	if err != nil {
		return nil, errors.Join(err, c.close())
	}
	ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	err = errors.Join(
		os.NewSyscallError("TUNSETIFF", unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)),
		os.NewSyscallError("TUNSETVNETHDRSZ", unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, 12)),
		os.NewSyscallError("TUNSETOFFLOAD", unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, unix.TUN_F_CSUM|unix.TUN_F_TSO4|unix.TUN_F_TSO6|unix.TUN_F_TSO_ECN)),
	)
	for _, args := range [][]string{{"addr", "add", hostAddr + "/24", "dev", tapName}, {"link", "set", tapName, "up"}} {
		if err == nil {
			err = command("ip", args...)
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make tap: %w", err), c.close())
	}
	return c, nil
}

func command(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

// close ends the tap, with its interface.
func (c *cable) close() error { return c.file.Close() }

// device is what a VMM of ours is told of it.
func (c *cable) device(add func(*os.File) api.File) (*api.Net, error) {
	mac, err := api.ParseMAC(guestMAC)
	if err != nil {
		return nil, err
	}
	fd, err := unix.FcntlInt(c.file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	return &api.Net{File: add(os.NewFile(uintptr(fd), "tap")), MAC: mac, MTU: 1500, Offload: true}, nil
}

// iperf is what iperf3 is run for.
var iperf = []struct {
	name, unit string
	args       []string
	figure     func(iperfResult) float64
}{
	{"TCP, guest to host", "Mbit/s", nil, iperfResult.megabits},
	{"TCP, host to guest", "Mbit/s", []string{"-R"}, iperfResult.megabits},
	{"UDP of 64 bytes, guest to host", "packets/s", []string{"-u", "-b", "0", "-l", "64"}, iperfResult.packets},
	{"UDP of 64 bytes, host to guest", "packets/s", []string{"-u", "-b", "0", "-l", "64", "-R"}, iperfResult.packets},
}

// iperfResult is the part of iperf3's JSON that is looked at.
type iperfResult struct {
	End struct {
		Received struct {
			BitsPerSecond float64 `json:"bits_per_second"`
		} `json:"sum_received"`
		Sum struct {
			Packets, Lost float64
			LostPackets   float64 `json:"lost_packets"`
			Seconds       float64
		} `json:"sum"`
	} `json:"end"`
	Error string `json:"error"`
}

func (r iperfResult) megabits() float64 { return r.End.Received.BitsPerSecond / 1e6 }

// packets are those that arrived.
func (r iperfResult) packets() float64 {
	return (r.End.Sum.Packets - r.End.Sum.LostPackets) / r.End.Sum.Seconds
}

const netSeconds = 5

// measureNet runs iperf3 and ping in guests of both kinds, taking turns, against this machine.
func measureNet(s settings, r *results) error {
	if s.ours.image == "" {
		return errors.New("no image: iperf3 has nothing to run from")
	}
	figures := map[string]map[string][]float64{"spore": {}, "qemu": {}}
	for range s.repeats {
		for _, kind := range []struct {
			name  string
			start func(files) (machine, error)
		}{{"spore", workSpore}, {"qemu", workQEMU}} {
			err := r.anew(kind.name, func() error {
				once, err := netOnce(s, kind.name, kind.start)
				for k, v := range once {
					figures[kind.name][k] = append(figures[kind.name][k], v)
				}
				return err
			})
			if err != nil {
				return err
			}
		}
	}
	add := func(name, unit string, atLeast bool) {
		r.add(name, "emulated host", unit, figures["spore"][name], "QEMU microvm, virtio-net on a tap without vhost", figures["qemu"][name], &bar{ratio: 1, atLeast: atLeast})
	}
	for _, j := range iperf {
		add(j.name, j.unit, true)
	}
	add("ping, there and back", "µs", false)
	return nil
}

// netOnce measures everything in one guest.
func netOnce(s settings, name string, start func(files) (machine, error)) (map[string]float64, error) {
	c, err := newCable()
	if err != nil {
		return nil, err
	}
	defer c.close()
	s.ours.cable = c
	g, err := bring(s, name, start)
	if err != nil {
		return nil, err
	}
	defer g.close()
	out, err := g.exec(nil, "ping", "-q", "-c", "200", "-i", "0.01", hostAddr)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, g.explain(err))
	}
	rtt, err := parsePing(string(out))
	if err != nil {
		return nil, err
	}
	figures := map[string]float64{"ping, there and back": rtt}
	for _, j := range iperf {
		fmt.Fprintf(os.Stderr, "bench: %s: %s\n", name, j.name)
		v, err := runIperf(g, j.args, j.figure)
		if err != nil {
			return nil, fmt.Errorf("%s: %s: %w", name, j.name, g.explain(err))
		}
		fmt.Fprintf(os.Stderr, "bench: %s: %.0f %s\n", name, v, j.unit)
		figures[j.name] = v
	}
	return figures, nil
}

// runIperf runs a server here, for one test, and a client in the guest.
func runIperf(g *ready, args []string, figure func(iperfResult) float64) (float64, error) {
	ctx, cancel := context.WithTimeout(g.ctx, runLimit)
	defer cancel()
	server := exec.CommandContext(ctx, "iperf3", "-s", "-1", "-B", hostAddr)
	if err := server.Start(); err != nil {
		return 0, err
	}
	defer server.Wait()
	defer cancel()
	for { // until the server listens, which it does not tell
		v, err := iperfOnce(g, args, figure)
		if err == nil || lost(err) || ctx.Err() != nil {
			return v, err
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func iperfOnce(g *ready, args []string, figure func(iperfResult) float64) (float64, error) {
	out, err := g.exec(nil, append([]string{"iperf3", "-J", "-t", strconv.Itoa(netSeconds), "-c", hostAddr}, args...)...)
	if err != nil {
		return 0, err
	}
	var result iperfResult
	if err := json.Unmarshal(out, &result); err != nil {
		return 0, fmt.Errorf("iperf3's output: %w", err)
	}
	if result.Error != "" {
		return 0, fmt.Errorf("iperf3: %s", result.Error)
	}
	return figure(result), nil
}

// parsePing returns the mean round trip in microseconds.
func parsePing(out string) (float64, error) {
	_, after, ok := strings.Cut(out, "rtt min/avg/max/mdev = ")
	fields := strings.Split(after, "/")
	if !ok || len(fields) < 2 {
		return 0, fmt.Errorf("ping's output: %s", out)
	}
	ms, err := strconv.ParseFloat(fields[1], 64)
	return ms * 1e3, err
}
