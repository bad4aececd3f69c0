package services

import (
	"context"
	"net"
	"net/netip"
	"strconv"
	"syscall"
	"time"
)

// Kernel is the Network of an agent whose address the kernel holds.
type Kernel struct {
	Addr   netip.Addr // the agent's own
	Device string     // of the TUN
}

// keepAlive notices peers that are gone for good, and lets a connection that
// merely rests outlive a network that is away for a quarter of an hour. Probes
// are rare, since each wakes the tunnel.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 5 * time.Minute, Interval: time.Minute, Count: 10}

// Listen implements Network.
func (k Kernel) Listen(ctx context.Context, port uint16) (net.Listener, error) {
	c := net.ListenConfig{Control: k.control, KeepAliveConfig: keepAlive}
	return c.Listen(ctx, "tcp6", k.hostPort(port))
}

// ListenPacket implements Network.
func (k Kernel) ListenPacket(ctx context.Context, port uint16) (net.PacketConn, error) {
	c := net.ListenConfig{Control: k.control}
	return c.ListenPacket(ctx, "udp6", k.hostPort(port))
}

func (k Kernel) hostPort(port uint16) string {
	return net.JoinHostPort(k.Addr.String(), strconv.Itoa(int(port)))
}

// control binds the socket to the device before it gets its address. The sockets
// of accepted connections inherit that.
func (k Kernel) control(_, _ string, c syscall.RawConn) error {
	var bound error
	err := c.Control(func(fd uintptr) { bound = bindToDevice(int(fd), k.Device) })
	if err != nil {
		return err
	}
	return bound
}
