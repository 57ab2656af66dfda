/* Entry, tables, interrupts. The first processor comes here in 64-bit mode at ring 0, on page tables of the boot loader that map 1 GiB. The
 * second one is started by prepare. */

	.set KERNEL_CODE, 0x10	/* as the boot loader's */
	.set USER_DATA, 0x2b
	.set USER_CODE, 0x33
	.set TASK, 0x38		/* then 16 bytes for each processor's */
	.set STACK, 0x4000
	.set LAPIC, 0xfee00000

	.text
	.globl _start
_start:
	mov $pml4, %eax
	mov %rax, %cr3
	mov $ring0_stacks + STACK, %esp
	call prepare
	xor %edi, %edi
	jmp enter

/* The second one's way from real mode; prepare copies it below 1 MiB. */
	.globl second, second_end
	.code16
second:
	lgdtl %cs:second_gdt - second
	mov %cr4, %eax
	or $0x20, %eax			/* PAE */
	mov %eax, %cr4
	mov $pml4, %eax
	mov %eax, %cr3
	mov $0xc0000080, %ecx		/* EFER */
	xor %edx, %edx
	mov $0x100, %eax		/* LME */
	wrmsr
	mov %cr0, %eax
	and $0x9fffffff, %eax		/* caches on */
	or $0x80000001, %eax		/* PG, PE */
	mov %eax, %cr0
	ljmpl $KERNEL_CODE, $second_long
second_gdt:
	.word gdt_end - gdt - 1
	.long gdt
second_end:
	.code64
second_long:
	mov $0x18, %eax
	mov %eax, %ss
	mov %eax, %ds
	mov %eax, %es
	mov $ring0_stacks + 2 * STACK, %esp
	mov $LAPIC + 0xf0, %eax
	movl $0x1ff, (%rax)
	mov $1, %edi

/* enter goes to ring 3 as processor %edi, whose ring-0 stack this is. */
enter:
	lgdt gdt_pointer
	lidt idt_pointer
	mov %edi, %eax
	shl $4, %eax
	add $TASK, %eax
	ltr %ax
	lea 1(%rdi), %eax
	imul $STACK, %eax, %eax
	add $ring3_stacks - 8, %eax	/* as after a call */
	push $USER_DATA
	push %rax
	push $0x202			/* interrupts on */
	push $USER_CODE
	push $work
	iretq

/* int3 of ring 3: %eax says what for, %rdi is the processor, or with what. Interrupts are off. */
trap:
	cmp $1, %eax
	je 1f
	ja panic
	cmpl $0, pending(, %rdi, 4)	/* one that came since ring 3 looked is not slept over */
	jne 0f
	sti
	hlt
0:	iretq
1:	mov $0x600, %edx		/* ACPI sleep control: S5 */
	mov $0x34, %al
	out %al, %dx
	hlt
	jmp 1b

/* panic writes %edi times to a port that nobody has, for the VMM to count, and then to pvpanic. */
panic:
	mov $0x700, %edx
1:	out %al, %dx
	dec %edi
	jnz 1b
	mov $0x505, %edx
	mov $1, %al
2:	out %al, %dx
	hlt
	jmp 2b

/* An exception is a mistake of this program, or of who runs it. */
	.set vector, 0
	.globl exceptions
	.balign 16
exceptions:
	.rept 32
	.balign 16
	.if vector == 3
	jmp trap
	.else
	mov $1000 + vector, %edi
	jmp panic
	.endif
	.set vector, vector + 1
	.endr

/* The device's interrupt is noted, and that this processor got one. */
	.set line, 0
	.globl interrupts
	.balign 16
interrupts:
	.rept 18
	.balign 16
	push %rax
	mov $line, %eax
	jmp interrupt
	.set line, line + 1
	.endr
interrupt:
	movb $1, fired(%rax)
	mov $LAPIC + 0x20, %eax
	mov (%rax), %eax
	shr $24, %eax
	movl $1, pending(, %rax, 4)
	mov $LAPIC + 0xb0, %eax		/* EOI */
	movl $0, (%rax)
	pop %rax
	iretq

	.globl ask
ask:
	mov %edi, %eax
	mov %rsi, %rdi
	int3
	ret

	.data
	.balign 16
	.globl gdt
gdt:
	.quad 0, 0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0, 0x00cff3000000ffff, 0x00affb000000ffff
	.quad 0, 0, 0, 0		/* tasks, by prepare */
gdt_end:
gdt_pointer:
	.word gdt_end - gdt - 1
	.quad gdt
	.balign 16
idt_pointer:
	.word 256 * 16 - 1
	.quad idt

/* The first 5 GiB are mapped to themselves, for ring 3 too: memory, devices and, from 4 GiB on, pmem. */
	.balign 4096
pml4:
	.quad pdpt + 7
	.balign 4096
pdpt:
	.quad pd + 7, pd + 0x1007, pd + 0x2007, pd + 0x3007, pd + 0x4007
	.balign 4096
	.set page, 0
pd:
	.rept 5 * 512
	.quad page << 21 | 0x87
	.set page, page + 1
	.endr

	.bss
	.balign 4096
	.globl ring0_stacks
ring0_stacks:
	.skip 2 * STACK
ring3_stacks:
	.skip 2 * STACK
	.globl idt
idt:
	.skip 256 * 16
	.globl fired, pending
fired:
	.skip 32
pending:
	.skip 8
	.section .note.GNU-stack,"",@progbits
