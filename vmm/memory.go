package vmm

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"spore/guestmem"
	"spore/kvm"
	"spore/vmm/api"
	"spore/vmm/boot"
	"spore/vmm/snapshot"
)

// ram is the guest's memory: RAM as devices see it, and the pmem ranges that only the guest sees.
type ram struct {
	layout   []boot.Range
	mem      *guestmem.Memory
	pmem     []boot.Range // by Config.Pmem
	mappings []mapping
	slots    []kvm.MemSlot
}

// pmemAlign keeps the pmem ranges clear of RAM's huge pages and of Linux's memory sections.
const pmemAlign = 128 << 20

// newRAM maps everything a guest of this configuration can touch. Slots are not set yet.
func newRAM(cfg *api.Config, env Env) (_ *ram, err error) {
	r := &ram{layout: boot.RAM(uint64(cfg.Memory))}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.close())
		}
	}()
	if err := r.mapRegions(); err != nil {
		return r, err
	}
	if err := r.mapPmem(cfg, env); err != nil {
		return r, err
	}
	return r, nil
}

// mapRegions makes the RAM, empty.
func (r *ram) mapRegions() (err error) {
	var regions []guestmem.Region
	var offset int64
	for _, l := range r.layout {
		m, err := mapRAM(int(l.Size))
		if err != nil {
			return err
		}
		r.mappings = append(r.mappings, m)
		if err = unix.Madvise(m.bytes, unix.MADV_HUGEPAGE); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("advise huge pages for RAM at %#x: %w", l.Base, err) // EINVAL: a kernel without them
		}
		regions = append(regions, guestmem.Region{Base: l.Base, Host: m.bytes, Offset: offset})
		offset += int64(l.Size)
		r.slots = append(r.slots, kvm.MemSlot{Slot: uint32(len(r.slots)), GPA: uint64(l.Base), Host: m.bytes})
	}
	r.mem, err = guestmem.New(regions...)
	return err
}

// fill puts the blocks of a memory file that are filled in their places in RAM: pages are read from it when they are
// touched, and copied when they are written.
func (r *ram) fill(f *os.File, filled pageSet) error {
	for _, region := range r.mem.Regions() {
		if err := mapBlocks(region.Host, f, region.Offset, filled); err != nil {
			return fmt.Errorf("map RAM at %#x: %w", region.Base, err)
		}
	}
	return nil
}

// mapBlocks maps the blocks of a memory file that are filled over the part of RAM that begins at off in it. The holes stay
// memory of our own: to map them would only let the file grow by every page that a guest touches there.
func mapBlocks(ram []byte, f *os.File, off int64, filled pageSet) error {
	from, upto := int(off/snapshot.BlockSize), int((off+int64(len(ram)))/snapshot.BlockSize)
	for {
		first, count := filled.run(from, upto-from)
		if count == 0 || first >= upto {
			return nil
		}
		from = min(first+count, upto)
		at := int64(first)*snapshot.BlockSize - off
		b := ram[at : at+int64(from-first)*snapshot.BlockSize]
		if err := overlay(b, f, off+at, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE); err != nil {
			return err
		}
	}
}

// mapPmem puts the pmem files above the RAM.
func (r *ram) mapPmem(cfg *api.Config, env Env) error {
	at := max(boot.MMIOGapEnd, r.layout[len(r.layout)-1].End())
	for i, p := range cfg.Pmem {
		m, err := mapReadOnly(env.Files[p.File], p.Size)
		if err != nil {
			return fmt.Errorf("pmem %d: %w", i, err)
		}
		r.mappings = append(r.mappings, m)
		at = (at + pmemAlign - 1) &^ (pmemAlign - 1)
		r.pmem = append(r.pmem, boot.Range{Base: at, Size: uint64(len(m.bytes))})
		r.slots = append(r.slots, kvm.MemSlot{Slot: uint32(len(r.slots)), GPA: uint64(at), Host: m.bytes, ReadOnly: true})
		at += guestmem.GPA(len(m.bytes))
	}
	return nil
}

// install tells KVM about the memory.
func (r *ram) install(vm *kvm.VM) error {
	for _, s := range r.slots {
		if err := vm.SetMemory(s); err != nil {
			return fmt.Errorf("set memory slot %d (%#x+%#x): %w", s.Slot, s.GPA, len(s.Host), err)
		}
	}
	return nil
}

func (r *ram) close() error {
	var errs []error
	for _, m := range r.mappings {
		errs = append(errs, m.unmap())
	}
	r.mappings = nil
	return errors.Join(errs...)
}
