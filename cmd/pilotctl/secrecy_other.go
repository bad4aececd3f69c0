//go:build !linux

package main

import "golang.org/x/sys/unix"

// keepSecret keeps the memory of this process, where keys lie, out of core dumps.
func keepSecret() error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &limit); err != nil {
		return err
	}
	limit.Cur = 0
	return unix.Setrlimit(unix.RLIMIT_CORE, &limit)
}
