package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

const (
	maxDatagram = 4096 // of a query; longer ones are cut and then refused
	maxStreams  = 32   // connections at a time
	maxAsked    = 64   // questions under way to upstreams
	idleTime    = 10 * time.Second
)

// A Server answers on sockets. Both fields must be set before Serve is called.
type Server struct {
	Zone    *Zone
	Forward *Forwarder // asked about names outside the zone; nil: refuse them
}

// Serve answers until ctx ends, and then returns nil once all has ended. It
// closes both sockets; either may be nil. It fails where a forwarder's upstream
// is this server.
func (s *Server) Serve(ctx context.Context, datagrams net.PacketConn, streams net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var closers []io.Closer
	var addrs []net.Addr
	if datagrams != nil {
		closers, addrs = append(closers, datagrams), append(addrs, datagrams.LocalAddr())
	}
	if streams != nil {
		closers, addrs = append(closers, streams), append(addrs, streams.Addr())
	}
	closeAll := func() {
		for _, c := range closers {
			c.Close()
		}
	}
	if s.Forward != nil {
		if err := s.Forward.notTo(addrs); err != nil {
			closeAll()
			return err
		}
	}
	stop := context.AfterFunc(ctx, closeAll)
	defer stop()
	var group sync.WaitGroup
	errs := make(chan error, 2)
	part := func(f func() error) {
		group.Go(func() {
			if err := f(); err != nil && ctx.Err() == nil {
				errs <- fmt.Errorf("dns: %w", err)
			}
			cancel() // one without the other is half a server
		})
	}
	if datagrams != nil {
		part(func() error { return s.packets(ctx, &group, datagrams) })
	}
	if streams != nil {
		part(func() error { return s.accept(ctx, &group, streams) })
	}
	group.Wait()
	select {
	case err := <-errs:
		return err
	default:
		return nil
	}
}

func (s *Server) packets(ctx context.Context, group *sync.WaitGroup, conn net.PacketConn) error {
	in, out := make([]byte, maxDatagram), make([]byte, 0, ednsSize)
	asked := make(chan struct{}, maxAsked)
	for {
		n, from, err := conn.ReadFrom(in)
		if err != nil {
			return err
		}
		reply, outside := s.Zone.answer(out, in[:n], false)
		if len(reply) == 0 {
			continue
		}
		if !outside || s.Forward == nil {
			// A reply that is lost on its way is asked for again, this one too.
			_, _ = conn.WriteTo(reply, from)
			continue
		}
		select {
		case asked <- struct{}{}:
		default:
			continue // as lost; the program repeats it
		}
		query := append([]byte(nil), in[:n]...)
		group.Go(func() {
			defer func() { <-asked }()
			_, _ = conn.WriteTo(s.Forward.ask(ctx, query, false), from)
		})
	}
}

func (s *Server) accept(ctx context.Context, group *sync.WaitGroup, l net.Listener) error {
	open := make(chan struct{}, maxStreams)
	for {
		select {
		case open <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		group.Go(func() {
			defer func() { <-open }()
			stop := context.AfterFunc(ctx, func() { conn.Close() })
			defer stop()
			defer conn.Close()
			s.stream(ctx, conn)
		})
	}
}

// stream answers the questions of one connection in their order (RFC 7766).
func (s *Server) stream(ctx context.Context, conn net.Conn) {
	for {
		if err := conn.SetDeadline(time.Now().Add(idleTime)); err != nil {
			return
		}
		query, err := readMessage(conn)
		if err != nil {
			return
		}
		reply, outside := s.Zone.answer(make([]byte, 2, 2+ednsSize), query, true)
		if len(reply) == 2 {
			return
		}
		if outside && s.Forward != nil {
			reply = append(reply[:2], s.Forward.ask(ctx, query, true)...)
		}
		binary.BigEndian.PutUint16(reply, uint16(len(reply)-2))
		if _, err := conn.Write(reply); err != nil {
			return
		}
	}
}

// readMessage reads a message behind its length.
func readMessage(r io.Reader) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(size[:]))
	if n < headerSize {
		return nil, errors.New("dns: message without a header")
	}
	b := make([]byte, n)
	_, err := io.ReadFull(r, b)
	return b, err
}
