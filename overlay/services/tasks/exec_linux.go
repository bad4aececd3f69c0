package tasks

import (
	"errors"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// contain lets the command die with the thread that starts it, which lasts as
// long as the command and no longer than the daemon.
func contain(a *syscall.SysProcAttr) { a.Pdeathsig = syscall.SIGKILL }

// apart runs f on a thread of its own, whose children can gain no privileges. The
// thread is not used again.
func apart(f func()) {
	runtime.LockOSThread()
	// Capabilities that a service manager gave to the daemon are not for handlers. A
	// kernel without them (before 4.3) answers EINVAL.
	unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
	unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	f()
}

// waitLeader returns when the process has ended, and leaves it to be reaped.
func waitLeader(pid int) {
	for errors.Is(unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil), unix.EINTR) {
	}
}
