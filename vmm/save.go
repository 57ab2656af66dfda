package vmm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"spore/guestmem"
	"spore/internal/timing"
	"spore/virtio/block"
	"spore/virtio/mmio"
	"spore/vmm/api"
	"spore/vmm/snapshot"
)

// Save writes a snapshot of a paused or running machine, and leaves it paused: its disks must be copied before it runs
// on. After an error it is as it was, but that a pause which fails may have left it half paused (see Pause). The memory of a machine
// that was booted is written whole, of one that woke from a snapshot only what has changed since: Saved.Changes says which.
//
// The files stay the caller's; state is empty, memory too or, of a machine that woke, a copy of the memory file that it woke from; pagemap
// is /proc/PID/pagemap of this process. Memory goes to the offsets of Config.Memory, with holes for pages that were never touched; its
// size is the caller's business. Live copies memory while the guest
// runs, and stops it for the rest only. With goOn a machine that ran does so again, before the state is written, if
// nothing was written to its disks since Track: then there is nothing to wait for.
func (m *Machine) Save(ctx context.Context, stateFile, memory, pagemap *os.File, live, goOn bool) (saved api.Saved, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.serialIRQ != nil {
		return saved, errors.New("save machine: its debug console cannot be saved: run it without --debug-console")
	}
	saved.Changes = m.woke
	blocks := make(pageSet, snapshot.BlockWords(m.cfg.Memory)) // of the memory file, once the changes are put on what it woke with
	copy(blocks, m.filled)
	if live = live && m.state == Running; live {
		defer m.endLog()
		if saved.Before, err = m.copyLive(ctx, memory, pagemap, blocks); err != nil {
			return saved, fmt.Errorf("save machine: %w", err)
		}
	}
	clock := timing.Start()
	goOn = goOn && m.state == Running
	if m.state == Running {
		if err := m.pause(ctx, clock); err != nil {
			return saved, fmt.Errorf("save machine: %w", err)
		}
		defer func() {
			if err != nil && m.state == Paused {
				err = errors.Join(err, m.resume(context.WithoutCancel(ctx)))
			}
		}()
	}
	if err := m.state.to(Running); err != nil { // it has ended meanwhile
		return saved, fmt.Errorf("save machine: %w", err)
	}
	if live {
		saved.During, err = m.copyWritten(ctx, memory, blocks)
	} else {
		saved.During, err = m.copyOwned(ctx, memory, pagemap, blocks)
	}
	if err != nil {
		return saved, fmt.Errorf("save machine: %w", err)
	}
	clock.Done("memory")
	if err := m.saveParked(ctx, stateFile, blocks, &saved, goOn, clock); err != nil {
		return saved, fmt.Errorf("save machine: %w", err)
	}
	saved.Steps = Steps(clock)
	return saved, nil
}

// Steps are those of a clock as the supervisor is told them.
func Steps(clock *timing.Clock) (list []api.Step) {
	for _, s := range clock.Steps() {
		list = append(list, api.Step{Name: s.Name, Nanos: s.Duration.Nanoseconds()})
	}
	return list
}

// saveParked writes what else must be of one moment, and lets the machine run on where that is asked for and can be.
func (m *Machine) saveParked(ctx context.Context, stateFile *os.File, blocks pageSet, saved *api.Saved, goOn bool, clock *timing.Clock) error {
	saved.Disks = m.takeDiskWrites()
	state, devices, err := m.gather(blocks)
	if err != nil {
		return err
	}
	clock.Done("state")
	if goOn && !written(saved.Disks) {
		if err := m.resume(ctx); err != nil {
			return err
		}
		saved.GoesOn, saved.Stopped = true, m.Stopped().Nanoseconds()
		clock.Done("resume")
	}
	raw, err := encode(state, devices)
	if err != nil {
		return err
	}
	if err := writeAll(stateFile, raw, 0); err != nil {
		return fmt.Errorf("state: %w", err)
	}
	return nil
}

// Track begins to note what is written to the disks for the next Save, whose caller copies them meanwhile.
func (m *Machine) Track() { m.takeDiskWrites() }

// takeDiskWrites returns what was written to each writable disk since it was asked last.
func (m *Machine) takeDiskWrites() map[string][]api.Extent {
	disks := map[string][]api.Extent{}
	for id, log := range m.written {
		list := log.Take()
		for len(list) > api.MaxExtents { // two neighbours, and what is between them, become one
			for i := range len(list) / 2 {
				a, b := list[2*i], list[2*i+1]
				list[i] = block.Extent{Offset: a.Offset, Length: b.Offset + b.Length - a.Offset}
			}
			if len(list)%2 == 1 {
				list[len(list)/2] = list[len(list)-1]
			}
			list = list[:(len(list)+1)/2]
		}
		told := make([]api.Extent, len(list))
		for i, e := range list {
			told[i] = api.Extent(e)
		}
		disks[id] = told
	}
	return disks
}

// written reports whether any disk was.
func written(disks map[string][]api.Extent) bool {
	for _, list := range disks {
		if len(list) > 0 {
			return true
		}
	}
	return false
}

// copyLive copies memory twice while the guest runs: all that is not the memory file's, and what was written during that. A third
// time would find little less than the second.
func (m *Machine) copyLive(ctx context.Context, memory, pagemap *os.File, blocks pageSet) (int64, error) {
	if err := m.logWrites(true); err != nil {
		return 0, err
	}
	first, err := m.copyOwned(ctx, memory, pagemap, blocks)
	if err != nil {
		return 0, err
	}
	second, err := m.copyWritten(ctx, memory, blocks)
	return first + second, err
}

// gather reads the state of a paused machine. The devices' is not in the State yet: to write it down can wait until the guest runs.
func (m *Machine) gather(blocks pageSet) (*snapshot.State, []deviceState, error) {
	s := &snapshot.State{Memory: m.cfg.Memory, TSCKHz: m.tscKHz, Blocks: blocks}
	for _, c := range m.cpus {
		v, err := saveVCPU(c.kvm)
		if err != nil {
			return nil, nil, fmt.Errorf("vCPU %d: %w", c.id, err)
		}
		v.CPUID = c.cpuid
		s.VCPUs = append(s.VCPUs, *v)
	}
	var err error
	for id := range s.Chips {
		if s.Chips[id], err = m.vm.IRQChip(uint32(id)); err != nil {
			return nil, nil, err
		}
	}
	if s.Clock, err = m.vm.Clock(); err != nil {
		return nil, nil, err
	}
	var devices []deviceState
	for _, d := range m.devs {
		st, err := d.regs.SaveState()
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", d.name, err)
		}
		devices = append(devices, deviceState{d.name, st})
	}
	return s, devices, nil
}

// deviceState is that of a device, by its name.
type deviceState struct {
	name string
	mmio.State
}

// encode writes down what gather has read.
func encode(s *snapshot.State, devices []deviceState) ([]byte, error) {
	for _, d := range devices {
		raw, err := encodeDevice(d.State)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", d.name, err)
		}
		s.Devices = append(s.Devices, snapshot.Device{Name: d.name, State: raw})
	}
	return snapshot.Encode(s)
}

// copyOwned writes all that is not the memory file's.
func (m *Machine) copyOwned(ctx context.Context, to, pagemap *os.File, blocks pageSet) (n int64, err error) {
	for i, r := range m.ram.mem.Regions() {
		pages, err := owned(pagemap, r)
		if err != nil {
			return n, err
		}
		m.withoutZeros(r, pages)
		if err := m.withoutCopies(i, pages); err != nil {
			return n, err
		}
		k, err := copyPages(ctx, to, r, pages, blocks)
		n += k
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// copyWritten writes what was written since the last copy of a live snapshot.
func (m *Machine) copyWritten(ctx context.Context, to *os.File, blocks pageSet) (n int64, err error) {
	for i, r := range m.ram.mem.Regions() {
		pages, err := m.takeWritten(i)
		if err != nil {
			return n, err
		}
		k, err := copyPages(ctx, to, r, pages, blocks)
		n += k
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// maxRun bounds one write, in pages.
const maxRun = 256

// copyPages writes the pages of a region that are in the set, neighbours in one go, and adds their blocks to the others.
func copyPages(ctx context.Context, to *os.File, r guestmem.Region, pages, blocks pageSet) (n int64, err error) {
	for first, count := pages.run(0, maxRun); count > 0; first, count = pages.run(first+count, maxRun) {
		if ctx.Err() != nil {
			return n, context.Cause(ctx)
		}
		from := first * guestmem.PageSize
		b := r.Host[from : from+count*guestmem.PageSize]
		if err := writeAll(to, b, r.Offset+int64(from)); err != nil {
			return n, fmt.Errorf("memory: %w", err)
		}
		n += int64(len(b))
		at := r.Offset + int64(from)
		for block := at / snapshot.BlockSize; block*snapshot.BlockSize < at+int64(len(b)); block++ {
			blocks.add(int(block))
		}
	}
	return n, nil
}

// writeAll is a pwrite of everything, by the call that disks are written with.
func writeAll(f *os.File, b []byte, off int64) error {
	return transfer(f, b, off, "pwritev2", unix.Pwritev2, errors.New("nothing was written"))
}

// readAll is a pread of everything, by the call that disks are read with.
func readAll(f *os.File, b []byte, off int64) error {
	return transfer(f, b, off, "preadv2", unix.Preadv2, io.ErrUnexpectedEOF)
}

// transfer makes a call until all of b is through. A call that moves nothing is the error none.
func transfer(f *os.File, b []byte, off int64, name string, call func(fd int, iovs [][]byte, offset int64, flags int) (int, error), none error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	for len(b) > 0 {
		var n int
		var inner error
		if err := raw.Control(func(fd uintptr) { n, inner = call(int(fd), [][]byte{b}, off, 0) }); err != nil {
			return err
		}
		switch {
		case inner == unix.EINTR:
			continue
		case inner != nil:
			return os.NewSyscallError(name, inner)
		case n == 0:
			return none
		}
		b, off = b[n:], off+int64(n)
	}
	return nil
}
