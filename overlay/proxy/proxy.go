package proxy

import (
	"bufio"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"sync"
	"time"
)

const (
	// dialTime is how long a destination may take to answer, and helloTime a
	// program to say what it wants.
	dialTime  = 30 * time.Second
	helloTime = 30 * time.Second

	// MaxConns is how many programs are served at a time.
	MaxConns = 1024

	copyBuffer = 64 << 10
)

// ErrNotLoopback means that others than this machine would reach the proxy.
var ErrNotLoopback = errors.New("want an address of the loopback")

// Config says where a Server's connections go.
type Config struct {
	// Inside says whether a host is one of the overlay's, and Dial connects to
	// HOST:PORT there.
	Inside func(host string) bool
	Dial   func(ctx context.Context, network, address string) (net.Conn, error)
	// Explain puts an error of Dial into words for HTTP.
	Explain func(error) string
	// Next is the proxy for a URL outside; nil, or an answer of nil: none. CA
	// verifies those that speak TLS; nil: the system's.
	Next   func(*url.URL) (*url.URL, error)
	CA     *x509.CertPool
	Logger *slog.Logger
}

// A Server is a proxy.
type Server struct {
	c    Config
	web  *http.Server
	next *http.Transport
}

// New makes a Server.
func New(c Config) *Server {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Next == nil {
		c.Next = func(*url.URL) (*url.URL, error) { return nil, nil }
	}
	s := &Server{c: c}
	s.next = s.transport()
	s.web = &http.Server{
		Handler: http.HandlerFunc(s.serveHTTP), ReadHeaderTimeout: helloTime, IdleTimeout: 2 * time.Minute,
		ErrorLog: slog.NewLogLogger(c.Logger.Handler(), slog.LevelDebug),
	}
	return s
}

// Listen opens a port of the loopback.
func Listen(address string) (net.Listener, error) {
	at, err := netip.ParseAddrPort(address)
	if err != nil || !at.Addr().IsLoopback() {
		return nil, fmt.Errorf("%.60q: %w", address, ErrNotLoopback)
	}
	return net.Listen("tcp", at.String())
}

// Serve serves until ctx ends, and returns when no connection is left. It closes l.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w := &waiting{addr: l.Addr(), conns: make(chan net.Conn), done: ctx.Done()}
	var all sync.WaitGroup
	defer all.Wait()
	defer s.next.CloseIdleConnections()
	defer s.web.Close()
	all.Go(func() { s.web.Serve(w) }) // ends with ctx
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	defer l.Close()
	room := make(chan struct{}, MaxConns)
	for wait := time.Duration(0); ; {
		conn, err := l.Accept()
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		default: // such as too many open files
			wait = min(max(2*wait, 5*time.Millisecond), time.Second)
			s.c.Logger.Warn("proxy: cannot accept", "err", err)
			select {
			case <-time.After(wait):
			case <-ctx.Done():
			}
			continue
		}
		wait = 0
		select {
		case room <- struct{}{}:
		default:
			conn.Close()
			continue
		}
		all.Go(func() {
			defer func() { <-room }()
			s.serve(ctx, w, conn)
		})
	}
}

// serve finds out what a connection speaks, and serves it.
func (s *Server) serve(ctx context.Context, w *waiting, conn net.Conn) {
	c := &peekConn{Conn: conn, in: bufio.NewReader(conn), closed: make(chan struct{})}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	conn.SetReadDeadline(time.Now().Add(helloTime))
	first, err := c.in.Peek(1)
	if err != nil {
		return
	}
	conn.SetReadDeadline(time.Time{})
	if first[0] == socksVersion {
		s.serveSOCKS(ctx, c)
		return
	}
	select {
	case w.conns <- c:
		<-c.closed
	case <-ctx.Done():
	}
}

// dial connects to a host inside or outside.
func (s *Server) dial(ctx context.Context, host, port string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	address := net.JoinHostPort(host, port)
	if s.c.Inside(host) {
		return s.c.Dial(ctx, "tcp", address)
	}
	next, err := s.c.Next(&url.URL{Scheme: "https", Host: address})
	if err != nil {
		return nil, err
	}
	if next != nil {
		return s.through(ctx, next, address)
	}
	var d net.Dialer
	return d.DialContext(ctx, "tcp", address)
}

// join copies both ways until both have ended, or ctx ends.
func join(ctx context.Context, a, b net.Conn) {
	stop := context.AfterFunc(ctx, func() {
		a.Close()
		b.Close()
	})
	defer stop()
	var both sync.WaitGroup
	both.Go(func() { forward(a, b) })
	forward(b, a)
	both.Wait()
}

// forward copies from one side to the other until it ends, and says so.
func forward(to, from net.Conn) {
	buf := make([]byte, copyBuffer)
	_, err := io.CopyBuffer(writeOnly{to}, readOnly{from}, buf)
	if h, ok := to.(interface{ CloseWrite() error }); ok && err == nil {
		h.CloseWrite()
		return
	}
	// Broken: the other direction ends as well.
	to.Close()
	from.Close()
}

// writeOnly and readOnly keep io.CopyBuffer to the buffer that it is given.
type (
	writeOnly struct{ io.Writer }
	readOnly  struct{ io.Reader }
)

// A waiting is a listener of connections that were accepted elsewhere.
type waiting struct {
	addr  net.Addr
	conns chan net.Conn
	done  <-chan struct{}
}

func (w *waiting) Accept() (net.Conn, error) {
	select {
	case c := <-w.conns:
		return c, nil
	case <-w.done:
		return nil, os.ErrClosed
	}
}

func (w *waiting) Addr() net.Addr { return w.addr }
func (w *waiting) Close() error   { return nil }

// A peekConn is a connection whose beginning was looked at.
type peekConn struct {
	net.Conn
	in     *bufio.Reader
	once   sync.Once
	closed chan struct{}
}

func (c *peekConn) Read(b []byte) (int, error) {
	if c.in.Buffered() == 0 {
		return c.Conn.Read(b) // not through the buffer again
	}
	return c.in.Read(b)
}

func (c *peekConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// CloseWrite ends our side of the stream.
func (c *peekConn) CloseWrite() error {
	h, ok := c.Conn.(interface{ CloseWrite() error })
	if !ok {
		return errors.ErrUnsupported
	}
	return h.CloseWrite()
}
