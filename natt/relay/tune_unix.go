//go:build linux || darwin

package relay

import (
	"net"

	"golang.org/x/sys/unix"
)

// notSent is how much the kernel may hold that it has not sent yet. More would
// only be old by the time it leaves.
const notSent = 16 << 10

// TuneStream keeps the queue of a TCP connection short: what waits longer is in our
// own queue, where the oldest can be dropped. Other connections it leaves alone.
func TuneStream(c net.Conn) {
	t, ok := c.(*net.TCPConn)
	if !ok {
		return
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return
	}
	// A kernel without the option has a longer queue, no other fault.
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, notSent)
	})
}
