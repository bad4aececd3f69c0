package main

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"
)

// gone waits for the end of a process that is not our child. A pidfd tells of it
// even where nobody collects the dead, as in a container without an init.
func gone(ctx context.Context, pid int) bool {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return true
	}
	if err != nil {
		return goneByKill(ctx, pid)
	}
	defer unix.Close(fd)
	for ctx.Err() == nil {
		ready := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if n, _ := unix.Poll(ready, int(pollInterval.Milliseconds())); n > 0 {
			return true
		}
	}
	return false
}
