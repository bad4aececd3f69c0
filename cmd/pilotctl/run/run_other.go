//go:build !linux

package run

// Inside needs Linux.
func Inside([]string) error { return ErrNotAllowed }
