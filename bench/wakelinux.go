package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"

	"spore/agent"
	"spore/snapshot"
	"spore/vmm/api"
)

// makeReady makes a booted guest what every sandbox's is: set up, its agent waiting for requests.
func makeReady(m machine) error {
	ctx, cancel := context.WithTimeout(context.Background(), runLimit)
	defer cancel()
	conn, err := m.agentReady(ctx)
	if err != nil {
		return err
	}
	// The connection stays open, as a supervisor's does.
	if _, err = agent.Handshake(ctx, conn, agent.Setup{Hostname: "bench", Entropy: entropy(), Now: time.Now().UnixNano(), Lower: "vda", Upper: "vdb"}); err != nil {
		return err
	}
	// As a supervisor does it before it takes a template.
	if err := answers(m); err != nil {
		return err
	}
	if err := agent.Rehearse(ctx, m.dial); err != nil {
		return err
	}
	return agent.Sync(ctx, m.dial)
}

func entropy() []byte {
	b := make([]byte, 64)
	rand.Read(b) // never fails, see crypto/rand
	return b
}

// answers waits until the agent of a woken guest has taken in that it is another's now.
func answers(m machine) error {
	ctx, cancel := context.WithTimeout(context.Background(), runLimit)
	defer cancel()
	for {
		err := agent.Resume(ctx, m.dial, agent.Resumed{Now: time.Now().UnixNano(), Entropy: entropy(), Hostname: "other"})
		if err == nil || ctx.Err() != nil {
			return err
		}
		time.Sleep(time.Millisecond) // QEMU's guest cannot be called before it is there, and nothing says when
	}
}

// sporeTemplate boots a guest of ours and saves it.
func sporeTemplate(f files, dir string) (dormant, error) {
	d := dormant{filepath.Join(dir, "linux-state"), filepath.Join(dir, "linux-memory")}
	m, err := startSpore(f, bootMemory, false)
	if err != nil {
		return d, err
	}
	defer m.stop()
	if err := makeReady(m); err != nil {
		return d, err
	}
	if _, err := m.started(runLimit); err != nil {
		return d, err
	}
	var out []*os.File
	for _, path := range []string{d.state, d.memory} {
		g, err := os.Create(path)
		if err != nil {
			return d, err
		}
		defer g.Close()
		out = append(out, g)
	}
	if err := errors.Join(m.save(out), out[1].Truncate(bootMemory), out[1].Close()); err != nil {
		return d, err
	}
	return d, collapse(d.memory) // as a supervisor does it with a template that it has made
}

func collapse(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := snapshot.Collapse(f); err != nil {
		fmt.Fprintln(os.Stderr, "bench: guests wake from small pages:", err)
	}
	return nil
}

// qemuTemplate boots the same guest under QEMU and saves it as a stream, the form that it restores fastest from.
func qemuTemplate(f files, dir string) (string, error) {
	stream, socket := filepath.Join(dir, "linux-qemu"), filepath.Join(dir, "qmp")
	m, err := startQEMU(f, bootMemory, append([]string{"-qmp", "unix:" + socket + ",server,nowait"}, tuned...), cmdline)
	if err != nil {
		return "", err
	}
	defer m.stop()
	if err := makeReady(m); err != nil {
		return "", err
	}
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(runLimit))
	q := qmp{bufio.NewReader(conn), conn}
	for _, c := range []string{`{"execute":"qmp_capabilities"}`, `{"execute":"migrate","arguments":{"uri":"exec:cat >` + stream + `"}}`} {
		if _, err := q.do(c); err != nil {
			return "", err
		}
	}
	for {
		status, err := q.do(`{"execute":"query-migrate"}`)
		if err != nil || status == "failed" {
			return "", fmt.Errorf("QEMU: migrate: %s, %v", status, err)
		}
		if status == "completed" {
			return stream, nil
		}
		time.Sleep(10 * time.Millisecond) // QMP has no other way to wait without events
	}
}

// learn wakes once and notes what is written by the time a command has run; the supervisor of the first sandbox of a template
// does so when its command has started.
func learn(f files, dir string) (string, error) {
	m, err := startSpore(f, bootMemory, false)
	if err != nil {
		return "", err
	}
	defer m.stop()
	if err := answers(m); err != nil {
		return "", err
	}
	if err := runTrue(m); err != nil {
		return "", err
	}
	path := filepath.Join(dir, "linux-hot")
	out, err := os.Create(path)
	if err != nil {
		return "", err
	}
	defer out.Close()
	return path, m.askWithPages(api.OpHot, out)
}

// qmp speaks QEMU's control protocol as far as a snapshot needs it.
type qmp struct {
	r *bufio.Reader
	w io.Writer
}

// do carries out one command and returns the status in its result, if it has one.
func (q qmp) do(command string) (string, error) {
	if _, err := io.WriteString(q.w, command+"\n"); err != nil {
		return "", err
	}
	for {
		line, err := q.r.ReadBytes('\n')
		if err != nil {
			return "", err
		}
		var reply struct {
			Return *struct{ Status string }
			Error  *struct{ Desc string }
		}
		if err := json.Unmarshal(line, &reply); err != nil {
			return "", err
		}
		switch {
		case reply.Error != nil:
			return "", fmt.Errorf("QEMU: %s: %s", command, reply.Error.Desc)
		case reply.Return != nil:
			return reply.Return.Status, nil
		}
	}
}

// wakeTo starts a machine and returns the milliseconds until its agent answers, and then until a command has run. It adds KVM's counts
// when the agent answered to exits.
func wakeTo(r *results, kind string, start func() (machine, error), exits map[string][]float64) (agentAt, commandAt float64, err error) {
	err = r.anew(kind, func() error {
		once := map[string][]float64{}
		if agentAt, commandAt, err = wakeMeasured(start, once); err != nil {
			return err
		}
		for k, v := range once {
			exits[k] = append(exits[k], v...)
		}
		return nil
	})
	return agentAt, commandAt, err
}

func wakeMeasured(start func() (machine, error), exits map[string][]float64) (agentAt, commandAt float64, err error) {
	if err := scrub(); err != nil {
		return 0, 0, err
	}
	began := time.Now()
	since := func() float64 { return float64(time.Since(began).Microseconds()) / 1e3 }
	m, err := start()
	if err != nil {
		return 0, 0, err
	}
	defer m.stop()
	if err := answers(m); err != nil {
		if q, ok := m.(*qemuMachine); ok {
			err = fmt.Errorf("%w\n%s", err, q.log.String())
		}
		return 0, 0, err
	}
	agentAt = since()
	counts(m.pid(), exits)
	err = runTrue(m)
	return agentAt, since(), err
}

func runTrue(m machine) error {
	ctx, cancel := context.WithTimeout(context.Background(), runLimit)
	defer cancel()
	p, err := agent.Start(ctx, m.dial, agent.Exec{Args: []string{"/bin/true"}, Dir: "/", Env: []string{"PATH=/usr/bin:/bin"}}, agent.Streams{})
	if err != nil {
		return err
	}
	if exit, err := p.Wait(); err != nil || exit.Code != 0 {
		return fmt.Errorf("true ended with %+v, %w", exit, err)
	}
	return nil
}

// saved is what guests of both kinds are woken from.
type saved struct {
	ours, theirs files
	stream       string // QEMU's
}

// saveBoth makes templates of the same guest.
func saveBoth(s settings, r *results) (t saved, err error) {
	f := files{vmm: s.ours.vmm, kernel: s.ours.kernel, initramfs: s.ours.initramfs, image: s.ours.image, writable: s.ours.writable, without: noCgroup(), processor: s.ours.processor}
	copyOf := func(name string) (files, error) { // each side writes to a disk of its own
		g := f
		g.writable = filepath.Join(s.scratch, name)
		return g, copyFile(g.writable, f.writable)
	}
	if t.ours, err = copyOf("wake-spore"); err != nil {
		return t, err
	}
	if t.theirs, err = copyOf("wake-qemu"); err != nil {
		return t, err
	}
	var d dormant
	err = r.anew("spore", func() (err error) {
		d, err = sporeTemplate(t.ours, s.scratch)
		return err
	})
	if err != nil {
		return t, fmt.Errorf("spore: template: %w", err)
	}
	t.theirs.cid = 77 // what the guest knows of itself is what its restored copies are to have
	err = r.anew("qemu", func() (err error) {
		t.stream, err = qemuTemplate(t.theirs, s.scratch)
		return err
	})
	if err != nil {
		return t, fmt.Errorf("QEMU: template: %w", err)
	}
	t.ours.state, t.ours.memory = d.state, d.memory
	err = r.anew("spore", func() (err error) {
		t.ours.hot, err = learn(t.ours, s.scratch)
		return err
	})
	if err != nil {
		return t, fmt.Errorf("spore: hot pages: %w", err)
	}
	return t, nil
}

// measureWakeLinux times t0 → t4, request → agent answers, of a Linux guest with a root file system, in a fresh process,
// beside QEMU's restore of the same guest.
func measureWakeLinux(s settings, r *results) error {
	t, err := saveBoth(s, r)
	if err != nil {
		return err
	}
	var spore, sporeTrue, qemu, qemuTrue []float64
	exits, qemuExits := map[string][]float64{}, map[string][]float64{}
	for i := range s.boots + 1 {
		a, c, err := wakeTo(r, "spore", func() (machine, error) { return startSpore(t.ours, bootMemory, false) }, exits)
		if err != nil {
			return fmt.Errorf("spore: %w", err)
		}
		spore, sporeTrue = append(spore, a), append(sporeTrue, c)
		a, c, err = wakeTo(r, "qemu", func() (machine, error) {
			return startQEMU(t.theirs, bootMemory, append([]string{"-incoming", "exec:cat " + t.stream}, tuned...), cmdline)
		}, qemuExits)
		if err != nil {
			return fmt.Errorf("QEMU: %w", err)
		}
		qemu, qemuTrue = append(qemu, a), append(qemuTrue, c)
		if i == 0 {
			spore, sporeTrue, qemu, qemuTrue = nil, nil, nil, nil
			clear(exits)
			clear(qemuExits)
		}
	}
	r.add("wake, fresh process: t0 → t4, agent answers", "emulated host", "ms", spore, "QEMU microvm, restored from a stream", qemu, &bar{ratio: 0.12})
	r.add("wake, fresh process: t0 → t6, /bin/true has run", "emulated host", "ms", sporeTrue, "QEMU microvm, restored from a stream", qemuTrue, nil)
	for _, c := range kvmCounters {
		if len(exits[c.file]) > 0 {
			r.add(c.name+" of a wake, until the agent answers", "emulated host", "", exits[c.file], "QEMU microvm, restored from a stream", qemuExits[c.file], nil)
		}
	}
	return nil
}
