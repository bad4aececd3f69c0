package crashtest

import (
	"fmt"
	"syscall"
)

// dropCall keeps the kernel from making the call that a thread has begun.
func dropCall(tid int) error {
	var regs syscall.PtraceRegs
	err := syscall.PtraceGetRegs(tid, &regs)
	if err == nil {
		regs.Orig_rax = ^uint64(0)
		err = syscall.PtraceSetRegs(tid, &regs)
	}
	if err != nil {
		return fmt.Errorf("%w: drop a call: %w", errNoTrace, err)
	}
	return nil
}

// answerCall makes a call that has ended one that failed.
func answerCall(tid int, with syscall.Errno) error {
	var regs syscall.PtraceRegs
	err := syscall.PtraceGetRegs(tid, &regs)
	if err == nil {
		regs.Rax = -uint64(with)
		err = syscall.PtraceSetRegs(tid, &regs)
	}
	if err != nil {
		return fmt.Errorf("%w: answer a call: %w", errNoTrace, err)
	}
	return nil
}
