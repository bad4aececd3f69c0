// Package echo is the service on port 7: it sends back what a peer sends (RFC
// 862), over TCP as a stream and over UDP datagram by datagram. It shows that a
// grant, a tunnel and a way back work, without any program of the owner's.
//
// A UDP datagram that comes from port 7 is dropped: two echo services would
// answer each other for ever. A TCP connection that is silent for ten minutes is
// closed.
package echo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pilotnet/pilot/overlay/services"
)

// Port is that of RFC 862.
const Port = 7

const (
	idle        = 10 * time.Minute
	maxDatagram = 1 << 16
)

// A Service is the echo service.
type Service struct{ port uint16 }

// New returns the service.
func New() *Service { return &Service{port: Port} }

// Name implements services.Service.
func (*Service) Name() string { return "echo" }

// Port implements services.Service.
func (s *Service) Port() uint16 { return s.port }

// Run implements services.Service.
func (s *Service) Run(ctx context.Context, env services.Env) error {
	l, err := env.Listen(ctx, s.port, nil)
	if err != nil {
		return fmt.Errorf("echo: %w", err)
	}
	conn, err := env.Network.ListenPacket(ctx, s.port)
	if err != nil {
		l.Shut()
		return fmt.Errorf("echo: %w", err)
	}
	env.Ready()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return services.Serve(ctx, l, stream) })
	g.Go(func() error { return s.datagrams(ctx, env, conn) })
	return g.Wait()
}

func stream(_ context.Context, c *services.Conn) {
	buf := make([]byte, 32<<10)
	for {
		if err := c.SetReadDeadline(time.Now().Add(idle)); err != nil {
			return
		}
		n, err := c.Read(buf)
		if n > 0 {
			if err := c.SetWriteDeadline(time.Now().Add(idle)); err != nil {
				return
			}
			if _, err := c.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			if !errors.Is(err, io.EOF) {
				services.Reset(c)
			}
			return
		}
	}
}

func (s *Service) datagrams(ctx context.Context, env services.Env, conn net.PacketConn) error {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	buf := make([]byte, maxDatagram)
	for {
		n, from, err := conn.ReadFrom(buf)
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("echo: %w", err)
		}
		if err != nil { // such as an ICMP error for an earlier answer
			continue
		}
		if u, ok := from.(*net.UDPAddr); ok && u.Port == int(s.port) {
			continue
		}
		if _, ok := env.From(from); ok {
			_, _ = conn.WriteTo(buf[:n], from) // like any datagram it may be lost
		}
	}
}
