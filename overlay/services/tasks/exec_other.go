//go:build !linux

package tasks

import (
	"errors"
	"syscall"

	"golang.org/x/sys/unix"
)

func contain(*syscall.SysProcAttr) {}

func apart(f func()) { f() }

// waitLeader returns when the process has ended, and leaves it to be reaped.
func waitLeader(pid int) {
	queue, err := unix.Kqueue()
	if err != nil {
		return // it is waited for by who reaps it
	}
	defer unix.Close(queue)
	var end unix.Kevent_t
	unix.SetKevent(&end, pid, unix.EVFILT_PROC, unix.EV_ADD|unix.EV_ONESHOT)
	end.Fflags = unix.NOTE_EXIT
	for {
		_, err := unix.Kevent(queue, []unix.Kevent_t{end}, make([]unix.Kevent_t, 1), nil)
		if !errors.Is(err, unix.EINTR) {
			return
		}
	}
}
