package main

import (
	"context"
	"errors"
	"syscall"
	"time"
)

// goneByKill asks again and again whether the process can be signalled.
func goneByKill(ctx context.Context, pid int) bool {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		if errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
}
