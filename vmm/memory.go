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
	var regions []guestmem.Region
	var offset int64
	for _, l := range r.layout {
		m, err := mapRAM(int(l.Size))
		if err != nil {
			return r, err
		}
		r.mappings = append(r.mappings, m)
		if err := unix.Madvise(m.bytes, unix.MADV_HUGEPAGE); err != nil && !errors.Is(err, unix.EINVAL) {
			return r, fmt.Errorf("advise huge pages: %w", err) // EINVAL: a kernel without them
		}
		regions = append(regions, guestmem.Region{Base: l.Base, Host: m.bytes, Offset: offset})
		offset += int64(l.Size)
		r.slot(l.Base, m.bytes, false)
	}
	if r.mem, err = guestmem.New(regions...); err != nil {
		return r, err
	}
	at := max(boot.MMIOGapEnd, r.layout[len(r.layout)-1].End())
	for i, p := range cfg.Pmem {
		m, err := mapReadOnly(env.Files[p.File], p.Size)
		if err != nil {
			return r, fmt.Errorf("pmem %d: %w", i, err)
		}
		r.mappings = append(r.mappings, m)
		at = (at + pmemAlign - 1) &^ (pmemAlign - 1)
		r.pmem = append(r.pmem, boot.Range{Base: at, Size: uint64(len(m.bytes))})
		r.slot(at, m.bytes, true)
		at += guestmem.GPA(len(m.bytes))
	}
	return r, nil
}

func (r *ram) slot(at guestmem.GPA, b []byte, readOnly bool) {
	r.slots = append(r.slots, kvm.MemSlot{Slot: uint32(len(r.slots)), GPA: uint64(at), Host: b, ReadOnly: readOnly})
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
