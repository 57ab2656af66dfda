package doctor

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"spore/kvm"
)

// stage is how far the test guest came. Each stage needs the ones before it.
type stage uint8

const (
	stageNone stage = iota
	stageLongMode
	stageInterrupt
	stageRing3
	stageSyscall
)

// The test guest: it reports a stage by a byte on port 0x10, except that ring 3 reports by a write to an
// address without memory, and the system call by its code segment on port 0x11.
//
//	8000  b0 01             mov  al, 1
//	8002  e6 10             out  0x10, al              ; long mode
//	8004  bf 00 00 e0 fe    mov  edi, 0xfee00000       ; local APIC
//	8009  c7 87 f0 …        mov  dword [rdi+0xf0], 0x1ff   ; enable it
//	8013  c7 87 00 03 …     mov  dword [rdi+0x300], 0x44040 ; vector 0x40 to itself
//	801d  fb                sti
//	801e  f3 90 eb fc       pause; jmp .-2
//
//	8100  b0 02 e6 10       mov  al, 2; out 0x10, al   ; interrupt arrived
//	8104  c7 87 b0 …        mov  dword [rdi+0xb0], 0   ; end of interrupt
//	810e  6a 23 68 00e00000 push 0x23; push 0xe000     ; SS, RSP
//	8115  6a 02 6a 2b       push 2; push 0x2b          ; RFLAGS, CS of ring 3
//	8119  68 00830000 48 cf push 0x8300; iretq
//
//	8200  8c c8 e6 11 f4    mov  eax, cs; out 0x11, al; hlt
//
//	8300  bf 00 00 20 00    mov  edi, 0x200000
//	8305  c6 07 03          mov  byte [rdi], 3         ; ring 3
//	8308  0f 05             syscall                    ; to 8200, in ring 0
var (
	codeRing0 = []byte("\xb0\x01\xe6\x10\xbf\x00\x00\xe0\xfe\xc7\x87\xf0\x00\x00\x00\xff\x01\x00\x00" +
		"\xc7\x87\x00\x03\x00\x00\x40\x40\x04\x00\xfb\xf3\x90\xeb\xfc")
	codeInterrupt = []byte("\xb0\x02\xe6\x10\xc7\x87\xb0\x00\x00\x00\x00\x00\x00\x00" +
		"\x6a\x23\x68\x00\xe0\x00\x00\x6a\x02\x6a\x2b\x68\x00\x83\x00\x00\x48\xcf")
	codeSyscall = []byte("\x8c\xc8\xe6\x11\xf4")
	codeRing3   = []byte("\xbf\x00\x00\x20\x00\xc6\x07\x03\x0f\x05")
)

// Where things are in the test guest's memory.
const (
	guestSize   = 64 << 10
	pml4        = 0x1000
	pdpt        = 0x2000
	pdLow       = 0x3000 // the first GiB
	pdHigh      = 0x4000 // the fourth, where the local APIC is
	gdtBase     = 0x5000
	idtBase     = 0x6000
	tssBase     = 0x7000
	atRing0     = 0x8000
	atInterrupt = 0x8100
	atSyscall   = 0x8200
	atRing3     = 0x8300
	stackRing0  = 0xf000
	nowhere     = 0x200000 // no memory: a write comes out
	vector      = 0x40
	codeSel     = 0x08
	dataSel     = 0x10
	tssSel      = 0x30
)

// layOut writes tables and code into the guest's memory.
func layOut(mem []byte) {
	put := func(at int, words ...uint64) {
		for i, w := range words {
			binary.LittleEndian.PutUint64(mem[at+8*i:], w)
		}
	}
	const table, page = 7, 0x87 // present, writable, user; and 2 MiB
	put(pml4, pdpt|table)
	put(pdpt, pdLow|table, 0, 0, pdHigh|table)
	for i := range uint64(512) {
		put(pdLow+8*int(i), i<<21|page)
		put(pdHigh+8*int(i), 3<<30|i<<21|page)
	}
	put(gdtBase, 0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0, 0x00cff3000000ffff, 0x00affb000000ffff,
		0x00008b0000000067|tssBase<<16, 0)
	gate := uint64(atInterrupt)&0xffff | codeSel<<16 | 0x8e<<40
	put(idtBase+16*vector, gate, 0)
	put(tssBase+4, stackRing0) // RSP0
	copy(mem[atRing0:], codeRing0)
	copy(mem[atInterrupt:], codeInterrupt)
	copy(mem[atSyscall:], codeSyscall)
	copy(mem[atRing3:], codeRing3)
}

// guestLimit bounds the test guest's life.
const guestLimit = 5 * time.Second

// runGuest runs the test guest and returns how far it came; the error says what stopped it.
func runGuest() (reached stage, err error) {
	fd, err := unix.Open("/dev/kvm", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return stageNone, &os.PathError{Op: "open", Path: "/dev/kvm", Err: err}
	}
	sys, err := kvm.Open(fd)
	if err != nil {
		unix.Close(fd)
		return stageNone, err
	}
	defer sys.Close()
	vm, err := sys.CreateVM()
	if err != nil {
		return stageNone, err
	}
	defer vm.Close()
	mem, err := unix.Mmap(-1, 0, guestSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return stageNone, os.NewSyscallError("mmap", err)
	}
	defer unix.Munmap(mem)
	layOut(mem)
	if err := vm.SetMemory(kvm.MemSlot{Host: mem}); err != nil {
		return stageNone, err
	}
	if err := vm.CreateIRQChip(); err != nil {
		return stageNone, err
	}
	vcpu, err := vm.CreateVCPU(0)
	if err != nil {
		return stageNone, err
	}
	done := make(chan struct{})
	go func() { // the vCPU belongs to one thread, which ends with the goroutine
		defer close(done)
		defer vcpu.Close()
		reached, err = drive(vcpu)
	}()
	<-done
	return reached, err
}

// drive sets the registers and follows the guest's reports.
func drive(vcpu *kvm.VCPU) (reached stage, err error) {
	vcpu.Bind()
	if err := enter(vcpu); err != nil {
		return stageNone, err
	}
	limit := time.AfterFunc(guestLimit, func() { vcpu.Kick() })
	defer limit.Stop()
	for {
		exit, err := vcpu.Run()
		switch {
		case errors.Is(err, kvm.ErrInterrupted):
			return reached, errors.New("the test guest hung")
		case err != nil:
			return reached, err
		case exit.Reason == kvm.ExitIO && exit.Addr == 0x10 && exit.Write:
			reached = stage(exit.Data[0])
		case exit.Reason == kvm.ExitMMIO && exit.Addr == nowhere && exit.Write:
			reached = stageRing3
		case exit.Reason == kvm.ExitIO && exit.Addr == 0x11 && exit.Write:
			if exit.Data[0] != codeSel {
				return reached, fmt.Errorf("SYSCALL entered with CS %#x, want %#x", exit.Data[0], codeSel)
			}
			return stageSyscall, nil
		default:
			return reached, fmt.Errorf("the test guest ended with %v", exit.Reason)
		}
	}
}

// enter points the vCPU at the guest's code in 64-bit mode.
func enter(vcpu *kvm.VCPU) error {
	s, err := vcpu.Sregs()
	if err != nil {
		return err
	}
	code := kvm.Segment{Limit: 0xffffffff, Selector: codeSel, Type: 11, Present: 1, S: 1, L: 1, G: 1}
	data := kvm.Segment{Limit: 0xffffffff, Selector: dataSel, Type: 3, Present: 1, S: 1, DB: 1, G: 1}
	s.CS, s.DS, s.ES, s.FS, s.GS, s.SS = code, data, data, data, data, data
	s.TR = kvm.Segment{Base: tssBase, Limit: 0x67, Selector: tssSel, Type: 11, Present: 1}
	s.GDT = kvm.DTable{Base: gdtBase, Limit: 0x3f}
	s.IDT = kvm.DTable{Base: idtBase, Limit: 0xfff}
	const pe, mp, et, ne, wp, am, pg, pae, sce, lme, lma = 1, 2, 16, 32, 1 << 16, 1 << 18, 1 << 31, 1 << 5, 1, 1 << 8, 1 << 10
	s.CR0, s.CR3, s.CR4, s.EFER = pe|mp|et|ne|wp|am|pg, pml4, pae, sce|lme|lma
	if err := vcpu.SetSregs(&s); err != nil {
		return err
	}
	if err := vcpu.SetMSRs([]kvm.MSR{{Index: 0xc0000081, Value: 0x0018<<48 | codeSel<<32}, {Index: 0xc0000082, Value: atSyscall}}); err != nil {
		return err
	}
	return vcpu.SetRegs(&kvm.Regs{RIP: atRing0, RSP: stackRing0, RFLAGS: 2})
}
