#include "go_asm.h"
#include "textflag.h"

// func cloneAndRun(args *cloneArgs, size uintptr, steps *step, n uintptr, f *failure, report uintptr) (pid uintptr)
//
// In the parent it returns the child's number or a negative error number. In the child it never returns. The child has
// its parent's stack pointer, and perhaps its memory, so it lives in registers: nothing here may touch the stack after the clone.
//
//	R12 the next step  R13 how many are left  R14 failure  R15 descriptor for it  BX index
TEXT ·cloneAndRun(SB), NOSPLIT, $0-56
	MOVQ args+0(FP), DI
	MOVQ size+8(FP), SI
	MOVQ steps+16(FP), R12
	MOVQ n+24(FP), R13
	MOVQ f+32(FP), R14
	MOVQ report+40(FP), R15
	XORL BX, BX
	MOVL $435, AX // clone3
	SYSCALL
	TESTQ AX, AX
	JZ   next
	MOVQ AX, pid+48(FP)
	RET

next:
	CMPQ BX, R13
	JAE  exit // execveat came back without an error: cannot be
	MOVQ step_nr(R12), AX
	MOVQ (step_args+0)(R12), DI
	MOVQ (step_args+8)(R12), SI
	MOVQ (step_args+16)(R12), DX
	MOVQ (step_args+24)(R12), R10
	MOVQ (step_args+32)(R12), R8
	MOVQ (step_args+40)(R12), R9
	SYSCALL
	CMPQ AX, $-4095
	JAE  failed
	CMPB step_one(R12), $0
	JEQ  done
	CMPQ AX, $1
	JEQ  done
	MOVQ $-32, AX // EPIPE: the other end said nothing

failed:
	NEGQ AX
	MOVL BX, failure_index(R14)
	MOVL AX, failure_errno(R14)
	MOVQ R15, DI
	MOVQ R14, SI
	MOVL $failure__size, DX
	MOVL $1, AX // write
	SYSCALL

exit:
	MOVL $253, DI
	MOVL $231, AX // exit_group
	SYSCALL
	JMP  exit

done:
	MOVQ step_report(R12), AX
	TESTQ AX, AX
	JZ   same
	MOVQ AX, R15

same:
	ADDQ $step__size, R12
	INCQ BX
	JMP  next
