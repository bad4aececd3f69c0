package events

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pilotnet/pilot/overlay/services"
)

// A Service is the broker as the frame of services runs it, in the directory
// events of the agent's state.
type Service struct{ open atomic.Pointer[Broker] }

// NewService returns the service.
func NewService() *Service { return new(Service) }

// Name implements services.Service.
func (*Service) Name() string { return "events" }

// Port implements services.Service.
func (*Service) Port() uint16 { return Port }

// Run implements services.Service.
func (s *Service) Run(ctx context.Context, env services.Env) error {
	b, err := New(Config{Dir: filepath.Join(env.StateDir, "events"), Peer: env.Peer, Logger: env.Logger})
	if err != nil {
		return err
	}
	l, err := env.Listen(ctx, Port, nil)
	if err != nil {
		return errors.Join(fmt.Errorf("events: %w", err), b.Close())
	}
	s.open.Store(b)
	env.Ready()
	err = b.Serve(ctx, l)
	s.open.Store(nil)
	return errors.Join(err, b.Close())
}

// Trouble implements services.Troubled.
func (s *Service) Trouble() error {
	if b := s.open.Load(); b != nil {
		return b.db.Trouble()
	}
	return nil
}

// Owner returns the owner's side, and the path below which it is to be served.
func (s *Service) Owner() (string, http.Handler) {
	return OwnerPath, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b := s.open.Load()
		if b == nil {
			services.WriteJSON(w, http.StatusServiceUnavailable, map[string]any{"code": "internal", "message": "the events do not run", "hint": "pilotctl status says why", "retryable": true})
			return
		}
		b.Owner().ServeHTTP(w, r)
	})
}

// Serve answers those who connect to l, and stores, until ctx ends. It closes l.
func (b *Broker) Serve(ctx context.Context, l *services.Listener) error {
	g, ctx := errgroup.WithContext(ctx)
	b.mu.Lock()
	b.serving = ctx
	b.mu.Unlock()
	defer b.locals.Wait()
	q := newConnQueue(l.Addr())
	web := b.httpServer(ctx)
	g.Go(func() error { return b.Run(ctx) })
	g.Go(func() error {
		if err := web.Serve(q); !errors.Is(err, http.ErrServerClosed) && ctx.Err() == nil {
			return err
		}
		return nil
	})
	g.Go(func() error {
		<-ctx.Done()
		q.Close()
		return web.Close()
	})
	g.Go(func() error {
		err := services.Serve(ctx, l, func(ctx context.Context, c *services.Conn) { b.serve(ctx, c, c.Whois, q) })
		if err == nil && ctx.Err() == nil {
			err = errors.New("events: it stopped to listen")
		}
		return err
	})
	return g.Wait()
}

// serve looks at the first byte: an MQTT connection begins with CONNECT, an HTTP
// request with a letter.
func (b *Broker) serve(ctx context.Context, c net.Conn, peer func() (services.Peer, bool), web *connQueue) {
	c.SetReadDeadline(time.Now().Add(connectTime))
	head := make([]byte, 1)
	if _, err := c.Read(head); err != nil {
		return
	}
	const connect = 0x10
	switch first := head[0]; {
	case first == connect:
		b.serveMQTT(ctx, c, bufio.NewReader(&headed{head, c}), peer)
	case first >= 'A' && first <= 'Z':
		c.SetReadDeadline(time.Time{})
		q := &queuedConn{Conn: c, head: headed{head, c}, peer: peer, closed: make(chan struct{})}
		if web.put(ctx, q) {
			<-q.closed
		}
	default:
		b.Logger.Debug("neither MQTT nor HTTP", "from", c.RemoteAddr())
		services.Reset(c)
	}
}

// A headed gives back the byte that was looked at.
type headed struct {
	first []byte
	conn  net.Conn
}

func (h *headed) Read(p []byte) (int, error) {
	if len(h.first) > 0 && len(p) > 0 {
		n := copy(p, h.first)
		h.first = h.first[n:]
		return n, nil
	}
	return h.conn.Read(p)
}

// A connQueue is the listener of the HTTP server.
type connQueue struct {
	addr  net.Addr
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func newConnQueue(addr net.Addr) *connQueue {
	return &connQueue{addr: addr, conns: make(chan net.Conn), done: make(chan struct{})}
}

func (q *connQueue) put(ctx context.Context, c net.Conn) bool {
	select {
	case q.conns <- c:
		return true
	case <-ctx.Done():
	case <-q.done:
	}
	return false
}

// Accept implements net.Listener.
func (q *connQueue) Accept() (net.Conn, error) {
	select {
	case c := <-q.conns:
		return c, nil
	case <-q.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (q *connQueue) Close() error {
	q.once.Do(func() { close(q.done) })
	return nil
}

// Addr implements net.Listener.
func (q *connQueue) Addr() net.Addr { return q.addr }

// A queuedConn is a connection that the HTTP server has.
type queuedConn struct {
	net.Conn
	head   headed
	peer   func() (services.Peer, bool)
	once   sync.Once
	closed chan struct{}
}

func (c *queuedConn) Read(p []byte) (int, error) { return c.head.Read(p) }

func (c *queuedConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}
