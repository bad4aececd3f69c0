package natt

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
)

// genericConn is a PacketConn over net.UDPConn: one datagram a system call, everywhere.
type genericConn struct {
	udp *net.UDPConn
}

func listenGeneric(c ListenConfig, control func(network, address string, rc syscall.RawConn) error) (PacketConn, error) {
	network, host := "udp", ""
	if ip := c.Addr.Addr(); ip.IsValid() && ip != netip.IPv6Unspecified() {
		host = ip.String()
		if ip.Is4() {
			network = "udp4"
		}
	}
	lc := net.ListenConfig{Control: control}
	pc, err := lc.ListenPacket(context.Background(), network, net.JoinHostPort(host, fmt.Sprint(c.Addr.Port())))
	if err != nil {
		return nil, fmt.Errorf("natt: %w", err)
	}
	udp := pc.(*net.UDPConn)
	if err := udp.SetReadBuffer(c.ReceiveBuffer); err != nil {
		c.Logger.Debug("natt: receive buffer", "err", err)
	}
	return &genericConn{udp}, nil
}

func (c *genericConn) LocalAddr() netip.AddrPort {
	return c.udp.LocalAddr().(*net.UDPAddr).AddrPort()
}

func (c *genericConn) BatchSize() int   { return 1 }
func (c *genericConn) Offload() Offload { return Offload{} }
func (c *genericConn) Close() error     { return c.udp.Close() }

func (c *genericConn) ReadBatch(m []Message) (int, error) {
	if len(m) == 0 {
		return 0, nil
	}
	for {
		n, addr, err := c.udp.ReadFromUDPAddrPort(m[0].Buf)
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return 0, net.ErrClosed
			}
			if !addr.IsValid() {
				continue // an ICMP error of some destination
			}
		}
		m[0].N, m[0].Segment, m[0].Local = n, 0, netip.Addr{}
		m[0].Addr = netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
		return 1, nil
	}
}

func (c *genericConn) WriteBatch(m []Message) (int, error) {
	var fail *WriteError
	for i := range m {
		if err := c.writeRun(&m[i]); err != nil {
			if errors.Is(err, net.ErrClosed) {
				return i, net.ErrClosed
			}
			fail = failed(fail, i, m[i].Addr, err)
		}
	}
	if fail != nil {
		return fail.Failed[0], fail
	}
	return len(m), nil
}

func (c *genericConn) writeRun(m *Message) error {
	b, size := m.Buf, m.Segment
	if size <= 0 {
		size = len(b)
	}
	for {
		n := min(size, len(b))
		if _, err := c.udp.WriteToUDPAddrPort(b[:n], m.Addr); err != nil {
			return err
		}
		if b = b[n:]; len(b) == 0 {
			return nil
		}
	}
}

// failed adds message i to the failures of a batch.
func failed(e *WriteError, i int, addr netip.AddrPort, err error) *WriteError {
	if e == nil {
		e = &WriteError{Addr: addr, Err: err}
	}
	e.Failed = append(e.Failed, i)
	return e
}
