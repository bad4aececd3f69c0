package main

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// keepSecret keeps the memory of this process, where keys lie, out of core dumps
// and from the debuggers of others who run as the same user. Programs that it
// starts may dump again, if their limit is raised.
func keepSecret() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("prctl PR_SET_DUMPABLE: %w", err)
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &limit); err != nil {
		return fmt.Errorf("getrlimit RLIMIT_CORE: %w", err)
	}
	limit.Cur = 0
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &limit); err != nil {
		return fmt.Errorf("setrlimit RLIMIT_CORE: %w", err)
	}
	return nil
}
