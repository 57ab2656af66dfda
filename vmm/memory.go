package vmm

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"spore/guestmem"
	"spore/kvm"
	"spore/vmm/api"
	"spore/vmm/boot"
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
	if err := r.mapRegions(cfg, env); err != nil {
		return r, err
	}
	if err := r.mapPmem(cfg, env); err != nil {
		return r, err
	}
	return r, nil
}

// mapRegions makes the RAM: empty, or what a snapshot's memory file has, of which pages are read when they are touched
// and copied when they are written. Then it is also noted who writes what, for the next snapshot.
func (r *ram) mapRegions(cfg *api.Config, env Env) (err error) {
	var regions []guestmem.Region
	var offset int64
	for _, l := range r.layout {
		m, err := mapRAM(int(l.Size))
		if err != nil {
			return err
		}
		r.mappings = append(r.mappings, m)
		if cfg.Restore != nil {
			err = overlay(m.bytes, env.Files[cfg.Restore.Memory], offset, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
		} else if err = unix.Madvise(m.bytes, unix.MADV_HUGEPAGE); errors.Is(err, unix.EINVAL) {
			err = nil // a kernel without huge pages
		}
		if err != nil {
			return fmt.Errorf("prepare RAM at %#x: %w", l.Base, err)
		}
		regions = append(regions, guestmem.Region{Base: l.Base, Host: m.bytes, Offset: offset})
		offset += int64(l.Size)
		r.slots = append(r.slots, kvm.MemSlot{Slot: uint32(len(r.slots)), GPA: uint64(l.Base), Host: m.bytes, LogDirty: cfg.Restore != nil})
	}
	if r.mem, err = guestmem.New(regions...); err == nil && cfg.Restore != nil {
		r.mem.LogWrites()
	}
	return err
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
