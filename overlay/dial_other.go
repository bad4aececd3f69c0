//go:build !linux && !darwin

package overlay

import "syscall"

// narrow leaves the size of segments to the system.
func narrow(_, _ string, _ syscall.RawConn) error { return nil }
