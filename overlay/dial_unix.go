//go:build linux || darwin

package overlay

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// narrow makes a TCP connection that is not open yet use segments that every link
// of the Internet carries, in both directions (RFC 9293 3.7.1: the other side keeps
// to what we say we take; RFC 8200 5: 1,280 bytes). Without it a path that is
// narrower than ours, and whose routers do not say so, lets nothing through but
// the beginning. A system that refuses goes without.
func narrow(_, _ string, c syscall.RawConn) error {
	const segment = 1280 - 40 - 20
	return c.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG, segment)
	})
}
