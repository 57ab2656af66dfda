package block

import (
	"bytes"
	"context"
	"encoding/binary"
	"math"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spore/virtio"
	"spore/virtio/block/blocktest"
	"spore/virtio/queue"
)

var _ Backend = (*blocktest.Disk)(nil)

// gate is a disk that is never at hand: reads wait until it opens.
type gate struct {
	blocktest.Disk
	open    chan struct{}
	waiting atomic.Int32
}

func newGate() *gate {
	g := &gate{Disk: blocktest.Disk{Data: sectors(testSectors)}, open: make(chan struct{})}
	for i := range g.Data {
		g.Data[i] = byte(i / sectorSize)
	}
	g.Before = func(op blocktest.Op, _, _ int64, nowait bool) error {
		if nowait {
			return ErrAgain
		}
		if op == blocktest.OpRead {
			g.waiting.Add(1)
			<-g.open
		}
		return nil
	}
	return g
}

// eventually waits for what another goroutine is about to do.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

func all() (list []int) {
	for i := range slots {
		list = append(list, i)
	}
	return list
}

// More requests than workers: the rest stays on the ring, nothing is lost, and each is answered once (BLK-07, Q-08).
func TestBLK07_MoreRequestsThanWorkers(t *testing.T) {
	g := newGate()
	d := newDevice(t, Config{Backend: g})
	r := newRing(t)
	stop := r.run(d, allFeatures, nil)
	var in [slots][]byte
	for i := range in {
		in[i] = r.put(i, typeIn, uint64(i), nil, sectorSize)
	}
	r.submit(all()...)
	eventually(t, "every request object waits", func() bool { return g.waiting.Load() == maxWorkers+1 })
	if _, _, ok := r.poll(); ok {
		t.Error("a request was answered")
	}
	close(g.open)
	var seen [slots]bool
	for range slots {
		slot, n := r.wait()
		if seen[slot] || n != sectorSize+1 || in[slot][sectorSize] != statusOK || in[slot][0] != byte(slot) {
			t.Errorf("slot %d: seen %v, reported %d, status %d", slot, seen[slot], n, in[slot][sectorSize])
		}
		seen[slot] = true
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// Run returns only when what it took is given back; what it did not take stays on the ring for the next Run.
func TestPauseWithRequestsInFlight(t *testing.T) {
	g := newGate()
	d := newDevice(t, Config{Backend: g})
	r := newRing(t)
	stop := r.run(d, allFeatures, nil)
	for i := range slots {
		r.put(i, typeIn, uint64(i), nil, sectorSize)
	}
	r.submit(all()...)
	eventually(t, "every request object waits", func() bool { return g.waiting.Load() == maxWorkers+1 })
	stopped := make(chan error)
	go func() { stopped <- stop() }()
	close(g.open)
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	if r.state.NextAvail != r.state.NextUsed || r.state.NextUsed < maxWorkers+1 {
		t.Errorf("took %d chains, gave %d back", r.state.NextAvail, r.state.NextUsed)
	}
	r.run(d, allFeatures, nil)
	for range slots {
		if _, n := r.wait(); n != sectorSize+1 {
			t.Errorf("reported %d", n)
		}
	}
}

// Every step that can fail is an I/O error to the guest and costs nothing that is missed later.
func TestQ16_EveryFailure(t *testing.T) {
	disk := &blocktest.Disk{Data: sectors(testSectors)}
	var failing atomic.Value
	failing.Store(blocktest.Op(""))
	disk.Before = func(op blocktest.Op, _, _ int64, _ bool) error {
		if op == failing.Load() {
			return unix.EIO
		}
		return nil
	}
	r := newRing(t)
	stop := r.run(newDevice(t, Config{Backend: disk}), allFeatures, nil)
	for _, c := range []struct {
		op   blocktest.Op
		kind uint32
		out  []byte
		room int
	}{
		{blocktest.OpRead, typeIn, nil, sectorSize},
		{blocktest.OpWrite, typeOut, sectors(1), 0},
		{blocktest.OpFlush, typeFlush, nil, 0},
		{blocktest.OpDiscard, typeDiscard, rawSegment(0, 1, 0), 0},
		{blocktest.OpWriteZeroes, typeWriteZeroes, rawSegment(0, 1, 0), 0},
	} {
		for range 3 * maxWorkers {
			failing.Store(c.op)
			if status, _, _ := r.do(c.kind, 0, c.out, c.room); status != statusIOError {
				t.Fatalf("failing %s: status %d", c.op, status)
			}
		}
		failing.Store(blocktest.Op(""))
		if status, _, _ := r.do(c.kind, 0, c.out, c.room); status != statusOK {
			t.Fatalf("%s again: status %d", c.op, status)
		}
	}
	if err := stop(); err != nil || r.state.NextAvail != r.state.NextUsed {
		t.Errorf("took %d chains, gave %d back: %v", r.state.NextAvail, r.state.NextUsed, err)
	}
}

func TestShortCounts(t *testing.T) {
	disk := &blocktest.Disk{Data: sectors(testSectors), Short: 100}
	r := newRing(t)
	r.run(newDevice(t, Config{Backend: disk}), allFeatures, nil)
	data := bytes.Repeat([]byte{7}, 3*sectorSize)
	if status, _, _ := r.do(typeOut, 1, data, 0); status != statusOK || !bytes.Equal(disk.Content(sectorSize, 3*sectorSize), data) {
		t.Errorf("write: status %d", status)
	}
	if status, in, _ := r.do(typeIn, 1, nil, 3*sectorSize); status != statusOK || !bytes.Equal(in, data) {
		t.Errorf("read: status %d", status)
	}
}

func TestTruncatedImage(t *testing.T) {
	b, path := newImage(t, 1<<20)
	r := newRing(t)
	r.run(newDevice(t, Config{Backend: b}), allFeatures, nil)
	if err := os.Truncate(path, 100*sectorSize+10); err != nil {
		t.Fatal(err)
	}
	if status, _, n := r.do(typeIn, 100, nil, sectorSize); status != statusIOError || n != 10 {
		t.Errorf("across the end: status %d, reported %d", status, n)
	}
	if status, _, n := r.do(typeIn, 101, nil, sectorSize); status != statusIOError || n != 0 {
		t.Errorf("past the end: status %d, reported %d", status, n)
	}
}

// Without FLUSH a completed write must be stable (virtio 1.2 §5.2.5).
func TestWriteThrough(t *testing.T) {
	for features, want := range map[uint64]int{0: 1, featureFlush: 0} {
		disk := &blocktest.Disk{Data: sectors(testSectors)}
		r := newRing(t)
		r.run(newDevice(t, Config{Backend: disk}), features, nil)
		if status, _, _ := r.do(typeOut, 0, sectors(8), 0); status != statusOK || disk.Calls(blocktest.OpFlush) != want {
			t.Errorf("features %#x: status %d, %d flushes", features, status, disk.Calls(blocktest.OpFlush))
		}
	}
}

// The host's disk is full: the guest gets I/O errors, the process lives on.
func TestBLK08_DiskFull(t *testing.T) {
	const env = "SPORE_TEST_DISK_FULL"
	if os.Getenv(env) == "" {
		// Limits are the process's: do it in one of its own.
		cmd := exec.Command(os.Args[0], "-test.run=^TestBLK08_DiskFull$", "-test.v")
		cmd.Env = append(os.Environ(), env+"=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	b, path := newImage(t, 1<<30) // sparse
	const limit = 1 << 20
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: limit, Max: limit}); err != nil {
		t.Fatal(err)
	}
	r := newRing(t)
	r.run(newDevice(t, Config{Backend: b}), allFeatures, nil)
	data := bytes.Repeat([]byte{1}, 4*sectorSize)
	for _, c := range []struct {
		sector uint64
		want   byte
	}{{0, statusOK}, {limit/sectorSize - 4, statusOK}, {limit/sectorSize - 2, statusIOError}, {1 << 20, statusIOError}, {8, statusOK}} {
		if status, _, _ := r.do(typeOut, c.sector, data, 0); status != c.want {
			t.Errorf("write at sector %d: status %d, want %d", c.sector, status, c.want)
		}
	}
	if status, in, _ := r.do(typeIn, 8, nil, 4*sectorSize); status != statusOK || !bytes.Equal(in, data) {
		t.Errorf("read: status %d", status)
	}
	if info, err := os.Stat(path); err != nil || info.Size() != 1<<30 {
		t.Errorf("the image changed its length: %v, %v", info, err)
	}
}

// While requests are in flight the guest flips their headers. The disk panics at any access outside itself, so
// what was checked must be what is used.
func TestQ10_HeaderFlips(t *testing.T) {
	disk := &blocktest.Disk{Data: sectors(testSectors)}
	r := newRing(t)
	r.run(newDevice(t, Config{Backend: disk}), allFeatures, nil)
	done := make(chan struct{})
	flips := make(chan struct{})
	go func() {
		defer close(flips)
		good, bad := header(typeIn, testSectors-1), header(typeOut, math.MaxUint64/sectorSize)
		for i := 0; ; i++ {
			select {
			case <-done:
				return
			default:
			}
			for slot := range slots {
				copy(r.slot(slot), good)
				copy(r.slot(slot), bad)
			}
		}
	}()
	for range 200 {
		for i := range slots {
			r.put(i, typeIn, testSectors-1, nil, sectorSize)
		}
		r.submit(all()...)
		for range slots {
			if _, n := r.wait(); n > sectorSize+1 {
				t.Fatalf("reported %d", n)
			}
		}
	}
	close(done)
	<-flips
}

func TestManyQueues(t *testing.T) {
	disk := &blocktest.Disk{Data: sectors(testSectors)}
	d := newDevice(t, Config{Backend: disk, Queues: 3})
	if n := len(d.QueueSizes()); n != 3 {
		t.Fatalf("%d queues", n)
	}
	ctx, cancel := context.WithCancel(context.Background())
	a := virtio.Active{Features: allFeatures, Queues: make([]*queue.Queue, 3)}
	rings := map[int]*ring{0: newRing(t), 2: newRing(t)} // the driver sets up two of three
	for i, r := range rings {
		q, err := queue.New(r.mem, r.state, queue.Features{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.q, a.Queues[i] = q, q
	}
	a.Used = func(i int) {
		select {
		case rings[i].used <- struct{}{}:
		default:
		}
	}
	done := make(chan error)
	go func() { done <- d.Run(ctx, a) }()
	for i, r := range rings {
		if status, _, _ := r.do(typeOut, uint64(i), bytes.Repeat([]byte{byte(i + 1)}, sectorSize), 0); status != statusOK {
			t.Errorf("queue %d: status %d", i, status)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if disk.Data[0] != 1 || disk.Data[2*sectorSize] != 3 {
		t.Error("not written")
	}

	// One broken ring ends the whole run.
	go func() { done <- d.Run(context.Background(), a) }()
	r := rings[2]
	binary.LittleEndian.PutUint16(r.ram[ringAvail+2:], r.avail+queueSize+1)
	r.q.Kick()
	select {
	case err := <-done:
		if err == nil {
			t.Error("no error")
		}
	case <-time.After(patience):
		t.Error("still running")
	}
}

// A mistake of ours in one request ends the device, wherever it happens, and nothing else.
func TestPanicIsContained(t *testing.T) {
	for name, kind := range map[string]uint32{"by the owner": typeIn, "by a worker": typeFlush} {
		t.Run(name, func(t *testing.T) {
			disk := &blocktest.Disk{Data: sectors(testSectors)}
			disk.Before = func(blocktest.Op, int64, int64, bool) error { panic("bug: a test") }
			r := newRing(t)
			d := newDevice(t, Config{Backend: disk})
			q, err := queue.New(r.mem, r.state, queue.Features{}, nil)
			if err != nil {
				t.Fatal(err)
			}
			r.q = q
			r.put(0, kind, 0, nil, 0)
			if kind == typeIn {
				r.put(0, kind, 0, nil, sectorSize)
			}
			r.offer(0)
			done := make(chan error, 1)
			go func() { done <- d.Run(context.Background(), r.active(allFeatures)) }()
			select {
			case err := <-done:
				if err == nil || !strings.Contains(err.Error(), "bug: a test") {
					t.Error(err)
				}
			case <-time.After(patience):
				t.Error("still running")
			}
		})
	}
}
