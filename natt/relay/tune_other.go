//go:build !linux && !darwin

package relay

import "net"

// TuneStream keeps the queue of a TCP connection short: what waits longer is in our
// own queue, where the oldest can be dropped. Other connections it leaves alone.
func TuneStream(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetWriteBuffer(64 << 10) // a longer queue is no other fault
	}
}
