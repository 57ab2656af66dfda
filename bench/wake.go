package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"spore/internal/rights"
	"spore/internal/timing"
	"spore/jailer"
	"spore/jailer/cgroup"
	"spore/vmm/api"
)

// flagAt is the word that the bare-metal guest waits for, in the block of memory that it is in itself: others are not in its snapshot.
const flagAt = 0x180000

// flatWait is a bare-metal guest that says that it is there and then waits until the word at flagAt is not 0. What it does
// next is what ends flatReset: so a snapshot of it, with the word changed, ends with its first instructions.
func flatWait() []byte {
	code := []byte{0xbb}                                  // mov ebx, flagAt
	code = binary.LittleEndian.AppendUint32(code, flagAt) //
	code = append(code, 0x83, 0x3b, 0x00, 0x74, 0xfb)     // again: cmp dword [rbx], 0; je again
	return append(code, flatReset...)
}

// dormant is a snapshot of a bare-metal guest.
type dormant struct{ state, memory string }

// putToSleep saves a waiting guest with that much memory, and sets its flag.
func putToSleep(s settings, memory int64, without []jailer.Layer) (dormant, error) {
	return putToSleepOn(s, memory, without, nil)
}

// putToSleepOn is putToSleep for a guest that has a network interface, unless on is nil.
func putToSleepOn(s settings, memory int64, without []jailer.Layer, on *cable) (d dormant, err error) {
	flat := filepath.Join(s.scratch, "flat-wait")
	if err := os.WriteFile(flat, flatWait(), 0o644); err != nil {
		return d, err
	}
	m, err := startSpore(files{vmm: s.ours.vmm, kernel: flat, without: without, cable: on}, memory, true)
	if err != nil {
		return d, err
	}
	defer m.stop()
	if _, err := m.started(runLimit); err != nil {
		return d, err
	}
	shape := fmt.Sprintf("%d-%v", memory>>20, on != nil)
	d = dormant{filepath.Join(s.scratch, "state-"+shape), filepath.Join(s.scratch, "memory-"+shape)}
	var out []*os.File
	for _, path := range []string{d.state, d.memory} {
		f, err := os.Create(path)
		if err != nil {
			return d, err
		}
		defer f.Close()
		out = append(out, f)
	}
	if err := m.save(out); err != nil {
		return d, err
	}
	if err := out[1].Truncate(memory); err != nil {
		return d, err
	}
	_, err = out[1].WriteAt([]byte{1}, flagAt)
	return d, err
}

// save asks the machine for a snapshot into two files.
func (m *sporeMachine) save(out []*os.File) error { return m.askWithPages(api.OpSave, out...) }

// askWithPages makes a request with descriptors, the last of which is the machine's page table.
func (m *sporeMachine) askWithPages(op api.Op, out ...*os.File) error {
	pagemap, err := jailer.Pagemap(m.pid())
	if err != nil {
		return err
	}
	defer pagemap.Close()
	return m.ask(op, append(out, pagemap)...)
}

// ask makes a request with descriptors and waits for its reply.
func (m *sporeMachine) ask(op api.Op, out ...*os.File) error {
	if err := api.Send(&rights.Writer{Socket: m.control, Files: out}, &api.Request{ID: 1, Op: op}); err != nil {
		return err
	}
	m.control.SetReadDeadline(time.Now().Add(runLimit))
	for {
		var msg api.Message
		if err := api.Receive(m.control, &msg); err != nil {
			return err
		}
		switch {
		case msg.Reply == nil: // an event that nobody has read
		case msg.Reply.Error != "":
			return fmt.Errorf("%s: %s", op, msg.Reply.Error)
		default:
			return nil
		}
	}
}

// started waits until the machine is about to run and returns where its start-up time went.
func (m *sporeMachine) started(limit time.Duration) ([]api.Step, error) {
	m.control.SetReadDeadline(time.Now().Add(limit))
	var msg api.Message
	if err := api.Receive(m.control, &msg); err != nil {
		return nil, fmt.Errorf("wait for the start: %w", err)
	}
	if msg.Event == nil || msg.Event.Kind != api.EventStarted {
		return nil, fmt.Errorf("wait for the start: got %+v", msg.Event)
	}
	return msg.Event.Steps, nil
}

// stamps are the times of one wake, in milliseconds since the request.
type stamps struct {
	process, running, first, returned float64
	steps                             []api.Step // of the VMM
}

// wakeOnce wakes a bare-metal guest in a fresh jailed process. Its first instructions end it; the VMM says when that was.
func wakeOnce(f files, memory int64) (s stamps, err error) {
	began := timing.Monotonic()
	since := func() float64 { return float64(timing.Monotonic()-began) / 1e6 }
	m, err := startSpore(f, memory, true)
	if err != nil {
		return s, err
	}
	defer func() { m.stop(); s.returned = since() }()
	s.process = since()
	if s.steps, err = m.started(runLimit); err != nil {
		return s, err
	}
	s.running = since()
	e, err := m.end(runLimit)
	s.first = float64(e.First-began) / 1e6
	return s, err
}

// here is where this runs, for the table.
func here() string {
	if b, err := os.ReadFile("/sys/module/kvm_pvm/refcnt"); err == nil && len(b) > 0 {
		return "native (PVM)"
	}
	return "native"
}

// noCgroup is what has to be left out of the jail where there is no cgroup v2 to be had.
func noCgroup() []jailer.Layer {
	if _, err := cgroup.Root(); err != nil {
		return []jailer.Layer{jailer.Cgroup}
	}
	return nil
}

// wakes are the times of many.
type wakes struct {
	process, running, first, returned []float64

	steps map[string][]float64
	order []string // of the steps
}

func (w *wakes) add(t stamps) {
	w.process, w.running = append(w.process, t.process), append(w.running, t.running)
	w.first, w.returned = append(w.first, t.first), append(w.returned, t.returned)
	for _, step := range t.steps {
		if w.steps[step.Name] == nil {
			w.order = append(w.order, step.Name)
		}
		w.steps[step.Name] = append(w.steps[step.Name], float64(step.Nanos)/1e6)
	}
}

// measureWake times t0 → t3 of a bare-metal guest of 128 MiB: request → first guest instruction that exits. In turns with it
// goes a C program that makes the same calls.
func measureWake(s settings, r *results) (err error) {
	without := noCgroup()
	d, err := putToSleep(s, bootMemory, without)
	if err != nil {
		return fmt.Errorf("put to sleep: %w", err)
	}
	f := files{vmm: s.ours.vmm, state: d.state, memory: d.memory, without: without, processor: s.ours.processor}
	peer, err := startFloor(s, d)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, peer.stop()) }()
	ours, theirs := wakes{steps: map[string][]float64{}}, wakes{}
	for i := range s.wakes + 10 {
		t, err := wakeOnce(f, bootMemory)
		if err != nil {
			return err
		}
		c, err := peer.wake()
		if err != nil {
			return err
		}
		if i < 10 {
			continue
		}
		ours.add(t)
		if peer != nil {
			theirs.add(c)
		}
	}
	ours.report(r, theirs)
	return nil
}

func (w *wakes) report(r *results, floor wakes) {
	where, peer := here(), ""
	if len(floor.first) > 0 {
		peer = floorName
	}
	r.add("wake, fresh process: t0 → t1, process there", where, "ms", w.process, peer, floor.process, nil)
	r.add("wake, fresh process: t0 → t2, vCPUs running", where, "ms", w.running, peer, floor.running, nil)
	r.add("wake, fresh process: t0 → t3, first instruction", where, "ms", w.first, "", nil, &bar{value: 4})
	if peer != "" {
		r.add("wake, fresh process: t0 → t3, beside C", where, "ms", w.first, peer, floor.first, &bar{ratio: 1.5})
	}
	for _, name := range w.order {
		r.add("wake, fresh process: of it the VMM's "+name, where, "ms", w.steps[name], "", nil, nil)
	}
	r.add("wake, fresh process: t0 → t7, all returned", where, "ms", w.returned, peer, floor.returned, nil)
}
