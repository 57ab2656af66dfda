package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"spore/agent"
)

// workMemory is the guest's memory when it works, in bytes.
const workMemory = 512 << 20

// ready is a guest that carries out requests.
type ready struct {
	machine
	control net.Conn        // stays open as long as the guest is used
	console string          // what the guest's kernel says at its end
	ctx     context.Context // of the whole measurement
	cancel  context.CancelFunc
}

// workLimit ends a measurement in one guest.
const workLimit = 3 * time.Minute

// bring starts a guest with the image, a copy of the writable layer and a scratch disk, and sets it up.
func bring(s settings, name string, start func(files) (machine, error)) (*ready, error) {
	f := s.ours
	f.writable, f.scratch = filepath.Join(s.scratch, name+".ext4"), filepath.Join(s.scratch, name+".disk")
	f.console = filepath.Join(s.scratch, name+".console")
	if err := copyFile(f.writable, s.ours.writable); err != nil {
		return nil, err
	}
	if err := makeDisk(f.scratch); err != nil {
		return nil, err
	}
	m, err := start(f)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), workLimit)
	conn, err := m.agentReady(ctx)
	if err == nil {
		setup := agent.Setup{Hostname: "bench", Now: time.Now().UnixNano(), Lower: "vda", Upper: "vdb", Pids: 512}
		if f.cable != nil {
			setup.Network = &agent.Network{MAC: guestMAC, Addresses: []string{netGuest + "/24"}}
		}
		_, err = agent.Handshake(ctx, conn, setup)
	}
	if err != nil {
		cancel()
		m.stop()
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return &ready{m, conn, f.console, ctx, cancel}, nil
}

// explain adds the guest's last words to an error.
func (g *ready) explain(err error) error {
	end, endErr := g.ended(2 * time.Second)
	if endErr != nil {
		end = endErr.Error()
	}
	b, _ := os.ReadFile(g.console)
	return fmt.Errorf("%w (the machine: %s)\n%s", err, end, b[max(0, len(b)-4096):])
}

func (g *ready) close() {
	g.cancel()
	g.control.Close()
	g.stop()
}

// exec runs a program as root and returns what it wrote.
func (g *ready) exec(stdin io.Reader, argv ...string) ([]byte, error) {
	var out, errs bytes.Buffer
	p, err := agent.Start(g.ctx, g.dial, agent.Exec{Args: argv, Env: []string{"PATH=/usr/bin:/bin"}, Dir: "/"}, agent.Streams{Stdin: stdin, Stdout: &out, Stderr: &errs})
	if err != nil {
		return nil, err
	}
	exit, err := p.Wait()
	if err != nil {
		return nil, err
	}
	if exit.Code != 0 || exit.Signal != 0 {
		return nil, fmt.Errorf("%s: code %d, signal %d\n%s", strings.Join(argv, " "), exit.Code, exit.Signal, errs.String())
	}
	return out.Bytes(), nil
}

// diskSize is the size of the disk that fio works on, in bytes.
const diskSize = 256 << 20

// makeDisk fills a file, so that reads read data and writes allocate nothing.
func makeDisk(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	piece := bytes.Repeat([]byte("spore---"), 1<<17)
	for range diskSize / len(piece) {
		if _, err := f.Write(piece); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	return f.Close()
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// jobs are what fio does, on the raw device and past the guest's page cache.
var jobs = []struct {
	name, rw, size, unit string
	depth                int
	iops                 bool
}{
	{"random read, 4 KiB, depth 1", "randread", "4k", "IOPS", 1, true},
	{"random read, 4 KiB, depth 16", "randread", "4k", "IOPS", 16, true},
	{"random write, 4 KiB, depth 16", "randwrite", "4k", "IOPS", 16, true},
	{"sequential read, 1 MiB", "read", "1m", "MiB/s", 4, false},
	{"sequential write, 1 MiB", "write", "1m", "MiB/s", 4, false},
}

// measureBlock runs every job in a guest of each kind, taking turns.
func measureBlock(s settings, r *results) error {
	if s.ours.image == "" {
		return errors.New("no image: fio has nothing to run from")
	}
	spore := make([][]float64, len(jobs))
	qemu := make([][]float64, len(jobs))
	for range s.repeats {
		for _, kind := range []struct {
			name  string
			start func(files) (machine, error)
			to    [][]float64
		}{{"spore", workSpore, spore}, {"qemu", workQEMU, qemu}} {
			err := r.anew(kind.name, func() error {
				figures, err := fioOnce(s, kind.name, kind.start)
				if err == nil {
					for i, v := range figures {
						kind.to[i] = append(kind.to[i], v)
					}
				}
				return err
			})
			if err != nil {
				return err
			}
		}
	}
	for i, j := range jobs {
		r.add(j.name, "emulated host", j.unit, spore[i], "QEMU microvm, virtio-blk", qemu[i], &bar{ratio: 1, atLeast: true})
	}
	return nil
}

func workSpore(f files) (machine, error) { return startSpore(f, workMemory, false) }
func workQEMU(f files) (machine, error)  { return startQEMU(f, workMemory, tuned, cmdline) }

// fioOnce runs every job in one guest.
func fioOnce(s settings, name string, start func(files) (machine, error)) (figures []float64, err error) {
	g, err := bring(s, name, start)
	if err != nil {
		return nil, err
	}
	defer g.close()
	device, err := g.exec(nil, "sh", "-c", "m=$(cat /sys/block/vdc/dev); mknod /dev/disk b ${m%:*} ${m#*:} && echo -n /dev/disk")
	if err != nil {
		return nil, err
	}
	for _, j := range jobs {
		fmt.Fprintf(os.Stderr, "bench: %s: %s\n", name, j.name)
		out, err := g.exec(nil, "fio", "--output-format=json", "--name=job", "--filename="+string(device), "--direct=1", "--ioengine=libaio",
			"--rw="+j.rw, "--bs="+j.size, fmt.Sprintf("--iodepth=%d", j.depth), "--runtime=3", "--time_based", "--ramp_time=1")
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, g.explain(err))
		}
		var result struct {
			Jobs []map[string]json.RawMessage `json:"jobs"`
		}
		var half struct {
			IOPS float64 `json:"iops"`
			BW   float64 `json:"bw"` // KiB/s
		}
		direction := map[bool]string{true: "read", false: "write"}[strings.Contains(j.rw, "read")]
		if err := json.Unmarshal(out, &result); err != nil || len(result.Jobs) != 1 {
			return nil, fmt.Errorf("%s: fio's output: %w", name, err)
		}
		if err := json.Unmarshal(result.Jobs[0][direction], &half); err != nil {
			return nil, err
		}
		v := half.BW / 1024
		if j.iops {
			v = half.IOPS
		}
		figures = append(figures, v)
	}
	return figures, nil
}

// Amounts of the vsock and exec measurements.
const (
	streamBytes = 16 << 20
	pings       = 200
	execs       = 30
)

// measureCalls times what goes over vsock: a stream in each direction, a one-byte round trip, a whole exec.
func measureCalls(s settings, r *results) error {
	figures := map[string]map[string][]float64{}
	for _, kind := range []struct {
		name  string
		start func(files) (machine, error)
	}{{"spore", workSpore}, {"qemu", workQEMU}} {
		err := r.anew(kind.name, func() error {
			g, err := bring(s, kind.name, kind.start)
			if err != nil {
				return err
			}
			defer g.close()
			if figures[kind.name], err = calls(g); err != nil {
				return fmt.Errorf("%s: %w", kind.name, g.explain(err))
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	for _, m := range []struct{ name, unit string }{
		{"vsock, guest to host", "MiB/s"}, {"vsock, host to guest", "MiB/s"}, {"vsock, one byte there and back", "µs"}, {"exec of /bin/true", "ms"},
	} {
		r.add(m.name, "emulated host", m.unit, figures["spore"][m.name], "QEMU microvm, vhost-vsock", figures["qemu"][m.name], nil)
	}
	return nil
}

func calls(g *ready) (map[string][]float64, error) {
	f := map[string][]float64{}
	for range 3 {
		began := time.Now()
		out, err := g.exec(nil, "head", "-c", fmt.Sprint(streamBytes), "/dev/zero")
		if err != nil || len(out) != streamBytes {
			return nil, fmt.Errorf("guest to host: %d bytes, %w", len(out), err)
		}
		f["vsock, guest to host"] = append(f["vsock, guest to host"], float64(streamBytes>>20)/time.Since(began).Seconds())
		began = time.Now()
		if _, err := g.exec(io.LimitReader(zeros{}, streamBytes), "sh", "-c", "cat > /dev/null"); err != nil {
			return nil, fmt.Errorf("host to guest: %w", err)
		}
		f["vsock, host to guest"] = append(f["vsock, host to guest"], float64(streamBytes>>20)/time.Since(began).Seconds())
	}
	for range execs {
		began := time.Now()
		if _, err := g.exec(nil, "/bin/true"); err != nil {
			return nil, err
		}
		f["exec of /bin/true"] = append(f["exec of /bin/true"], float64(time.Since(began).Microseconds())/1e3)
	}
	return f, pingPong(g, f)
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// pingPong sends one byte to a cat in the guest and waits for it, again and again.
func pingPong(g *ready, f map[string][]float64) error {
	in, inW := io.Pipe()
	outR, out := io.Pipe()
	p, err := agent.Start(g.ctx, g.dial, agent.Exec{Args: []string{"cat"}, Env: []string{"PATH=/usr/bin:/bin"}, Dir: "/"}, agent.Streams{Stdin: in, Stdout: out})
	if err != nil {
		return err
	}
	one := make([]byte, 1)
	for range pings {
		began := time.Now()
		if _, err := inW.Write(one); err != nil {
			return err
		}
		if _, err := io.ReadFull(outR, one); err != nil {
			return err
		}
		f["vsock, one byte there and back"] = append(f["vsock, one byte there and back"], float64(time.Since(began).Nanoseconds())/1e3)
	}
	inW.Close()
	go io.Copy(io.Discard, outR)
	_, err = p.Wait()
	return err
}
