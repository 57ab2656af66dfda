package kvm_test

import (
	"fmt"

	"golang.org/x/sys/unix"

	"spore/kvm"
)

// A guest of three instructions writes one byte to a port.
func Example() {
	fd, err := unix.Open("/dev/kvm", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		fmt.Println(err)
		return
	}
	sys, err := kvm.Open(fd)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer sys.Close()
	vm, err := sys.CreateVM()
	if err != nil {
		fmt.Println(err)
		return
	}
	defer vm.Close()
	memory, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		fmt.Println(err)
		return
	}
	copy(memory, []byte{0xb0, 'A', 0xe6, 0x10}) // mov al, 'A'; out 0x10, al
	if err := vm.SetMemory(kvm.MemSlot{Host: memory}); err != nil {
		fmt.Println(err)
		return
	}
	cpu, err := vm.CreateVCPU(0)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer cpu.Close()
	sregs, err := cpu.Sregs() // real mode, as after a reset, but at address 0
	if err != nil {
		fmt.Println(err)
		return
	}
	sregs.CS.Base, sregs.CS.Selector = 0, 0
	if err := cpu.SetSregs(&sregs); err != nil {
		fmt.Println(err)
		return
	}
	if err := cpu.SetRegs(&kvm.Regs{RFLAGS: 2}); err != nil {
		fmt.Println(err)
		return
	}
	cpu.Bind()
	exit, err := cpu.Run()
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("%v to port %#x: %q\n", exit.Reason, exit.Addr, exit.Data)
}
