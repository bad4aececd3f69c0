package userspace

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

const (
	// backlog is how many connections wait to be accepted.
	backlog = 1024

	// Connections notice peers that are gone for good, and outlive a network that
	// is away for a quarter of an hour.
	keepIdle     = 5 * time.Minute
	keepInterval = time.Minute
	keepCount    = 10
)

// Listen listens for TCP connections on the stack's address. Port 0 takes a free
// one. Connections are *Conn.
func (s *Stack) Listen(_ context.Context, port uint16) (net.Listener, error) {
	queue := new(waiter.Queue)
	end, err := s.stack.NewEndpoint(tcp.ProtocolNumber, ipv6.ProtocolNumber, queue)
	if err != nil {
		return nil, s.opError("listen", "tcp", port, err)
	}
	if err := end.Bind(s.full(port)); err != nil {
		end.Close()
		return nil, s.opError("listen", "tcp", port, err)
	}
	if err := end.Listen(backlog); err != nil {
		end.Close()
		return nil, s.opError("listen", "tcp", port, err)
	}
	l := &listener{end: end, queue: queue, done: make(chan struct{})}
	at, err := end.GetLocalAddress()
	if err != nil {
		end.Close()
		return nil, s.opError("listen", "tcp", port, err)
	}
	l.addr = &net.TCPAddr{IP: s.own.AsSlice(), Port: int(at.Port)}
	return l, nil
}

// ListenPacket receives the datagrams to a UDP port of the stack's address.
func (s *Stack) ListenPacket(_ context.Context, port uint16) (net.PacketConn, error) {
	at := s.full(port)
	c, err := gonet.DialUDP(s.stack, &at, nil, ipv6.ProtocolNumber)
	if err != nil {
		return nil, known(err)
	}
	return &PacketConn{UDPConn: c}, nil
}

// DialContext connects from the stack's address. network is "tcp" or "udp".
func (s *Stack) DialContext(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
	if !to.Addr().Is6() {
		return nil, &net.OpError{Op: "dial", Net: network, Addr: net.TCPAddrFromAddrPort(to), Err: syscall.EAFNOSUPPORT}
	}
	remote := tcpip.FullAddress{NIC: nic, Addr: tcpip.AddrFrom16(to.Addr().As16()), Port: to.Port()}
	switch network {
	case "tcp", "tcp6":
		return s.dialTCP(ctx, to, remote)
	case "udp", "udp6":
		c, err := gonet.DialUDP(s.stack, nil, &remote, ipv6.ProtocolNumber)
		if err != nil {
			return nil, known(err)
		}
		return &PacketConn{UDPConn: c}, nil
	}
	return nil, net.UnknownNetworkError(network)
}

func (s *Stack) dialTCP(ctx context.Context, to netip.AddrPort, remote tcpip.FullAddress) (net.Conn, error) {
	fail := func(err error) error {
		return &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(to), Err: err}
	}
	queue := new(waiter.Queue)
	end, failed := s.stack.NewEndpoint(tcp.ProtocolNumber, ipv6.ProtocolNumber, queue)
	if failed != nil {
		return nil, fail(reason(failed))
	}
	entry, connected := waiter.NewChannelEntry(waiter.WritableEvents)
	queue.EventRegister(&entry)
	defer queue.EventUnregister(&entry)
	failed = end.Connect(remote)
	if _, ok := failed.(*tcpip.ErrConnectStarted); ok {
		select {
		case <-ctx.Done():
			end.Close()
			return nil, fail(ctx.Err())
		case <-s.link.done:
			end.Close()
			return nil, fail(net.ErrClosed)
		case <-connected:
		}
		failed = end.LastError()
	}
	if failed != nil {
		end.Close()
		return nil, fail(reason(failed))
	}
	return newConn(queue, end), nil
}

func (s *Stack) full(port uint16) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: nic, Addr: tcpip.AddrFrom16(s.own.As16()), Port: port}
}

func (s *Stack) opError(op, network string, port uint16, err tcpip.Error) error {
	return &net.OpError{Op: op, Net: network, Addr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(s.own, port)), Err: reason(err)}
}

type listener struct {
	end   tcpip.Endpoint
	queue *waiter.Queue
	addr  net.Addr
	shut  atomic.Bool
	done  chan struct{}
}

func (l *listener) Addr() net.Addr { return l.addr }

func (l *listener) Close() error {
	if l.shut.Swap(true) {
		return net.ErrClosed
	}
	close(l.done)
	l.end.Close()
	return nil
}

func (l *listener) Accept() (net.Conn, error) {
	entry, readable := waiter.NewChannelEntry(waiter.ReadableEvents)
	l.queue.EventRegister(&entry)
	defer l.queue.EventUnregister(&entry)
	for {
		end, queue, err := l.end.Accept(nil)
		if err == nil {
			return newConn(queue, end), nil
		}
		_, wait := err.(*tcpip.ErrWouldBlock)
		switch {
		case l.shut.Load():
			return nil, &net.OpError{Op: "accept", Net: "tcp", Addr: l.addr, Err: net.ErrClosed}
		case !wait:
			return nil, &net.OpError{Op: "accept", Net: "tcp", Addr: l.addr, Err: reason(err)}
		}
		select {
		case <-readable:
		case <-l.done:
		}
	}
}

// A Conn is a TCP connection of a Stack. It does what a *net.TCPConn does, and
// its errors are those of that.
type Conn struct {
	*gonet.TCPConn
	end    tcpip.Endpoint
	closed atomic.Bool
}

func newConn(queue *waiter.Queue, end tcpip.Endpoint) *Conn {
	idle, interval := tcpip.KeepaliveIdleOption(keepIdle), tcpip.KeepaliveIntervalOption(keepInterval)
	// None of these fails on a connection.
	_ = end.SetSockOpt(&idle)
	_ = end.SetSockOpt(&interval)
	_ = end.SetSockOptInt(tcpip.KeepaliveCountOption, keepCount)
	end.SocketOptions().SetKeepAlive(true)
	end.SocketOptions().SetDelayOption(false)
	return &Conn{TCPConn: gonet.NewTCPConn(queue, end), end: end}
}

// Read implements net.Conn.
func (c *Conn) Read(b []byte) (int, error) {
	n, err := c.TCPConn.Read(b)
	return n, c.known(err)
}

// Write implements net.Conn.
func (c *Conn) Write(b []byte) (int, error) {
	n, err := c.TCPConn.Write(b)
	return n, c.known(err)
}

func (c *Conn) known(err error) error {
	if err != nil && c.closed.Load() {
		return &net.OpError{Op: "use", Net: "tcp", Err: net.ErrClosed}
	}
	return known(err)
}

// SetLinger is that of net.TCPConn: 0 makes Close reset the connection.
func (c *Conn) SetLinger(sec int) error {
	c.end.SocketOptions().SetLinger(tcpip.LingerOption{Enabled: sec >= 0, Timeout: time.Duration(max(sec, 0)) * time.Second})
	return nil
}

// Close implements net.Conn.
func (c *Conn) Close() error {
	if c.closed.Swap(true) {
		return &net.OpError{Op: "close", Net: "tcp", Err: net.ErrClosed}
	}
	return c.TCPConn.Close()
}

// A PacketConn is a UDP socket of a Stack.
type PacketConn struct {
	*gonet.UDPConn
	closed atomic.Bool
}

// ReadFrom implements net.PacketConn.
func (c *PacketConn) ReadFrom(b []byte) (int, net.Addr, error) {
	n, from, err := c.UDPConn.ReadFrom(b)
	return n, from, c.known(err)
}

// Read implements net.Conn.
func (c *PacketConn) Read(b []byte) (int, error) {
	n, _, err := c.ReadFrom(b)
	return n, err
}

// WriteTo implements net.PacketConn.
func (c *PacketConn) WriteTo(b []byte, to net.Addr) (int, error) {
	n, err := c.UDPConn.WriteTo(b, to)
	return n, c.known(err)
}

// Write implements net.Conn.
func (c *PacketConn) Write(b []byte) (int, error) {
	n, err := c.UDPConn.Write(b)
	return n, c.known(err)
}

// Close implements net.PacketConn.
func (c *PacketConn) Close() error {
	if c.closed.Swap(true) {
		return &net.OpError{Op: "close", Net: "udp", Err: net.ErrClosed}
	}
	return c.UDPConn.Close()
}

func (c *PacketConn) known(err error) error {
	if err != nil && c.closed.Load() {
		return &net.OpError{Op: "use", Net: "udp", Err: net.ErrClosed}
	}
	return known(err)
}

// errnos are netstack's errors as the kernel calls them.
var errnos = map[string]error{
	(&tcpip.ErrPortInUse{}).String():            syscall.EADDRINUSE,
	(&tcpip.ErrNoPortAvailable{}).String():      syscall.EADDRINUSE,
	(&tcpip.ErrConnectionRefused{}).String():    syscall.ECONNREFUSED,
	(&tcpip.ErrConnectionReset{}).String():      syscall.ECONNRESET,
	(&tcpip.ErrConnectionAborted{}).String():    syscall.ECONNABORTED,
	(&tcpip.ErrTimeout{}).String():              syscall.ETIMEDOUT,
	(&tcpip.ErrHostUnreachable{}).String():      syscall.EHOSTUNREACH,
	(&tcpip.ErrNetworkUnreachable{}).String():   syscall.ENETUNREACH,
	(&tcpip.ErrBadLocalAddress{}).String():      syscall.EADDRNOTAVAIL,
	(&tcpip.ErrClosedForSend{}).String():        syscall.EPIPE,
	(&tcpip.ErrMessageTooLong{}).String():       syscall.EMSGSIZE,
	(&tcpip.ErrNoBufferSpace{}).String():        syscall.ENOBUFS,
	(&tcpip.ErrNotPermitted{}).String():         syscall.EPERM,
	(&tcpip.ErrInvalidEndpointState{}).String(): net.ErrClosed,
	(&tcpip.ErrNotConnected{}).String():         syscall.ENOTCONN,
	"i/o timeout":                               os.ErrDeadlineExceeded,
}

func reason(err tcpip.Error) error {
	if known := errnos[err.String()]; known != nil {
		return known
	}
	return errors.New(err.String())
}

// known makes an error of package gonet, which has lost what it was, one of the
// kernel's.
func known(err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	op := new(net.OpError)
	if !errors.As(err, &op) {
		return err
	}
	if known := errnos[strings.TrimSpace(op.Err.Error())]; known != nil {
		c := *op
		c.Err = known
		return &c
	}
	return err
}
