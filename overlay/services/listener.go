package services

import (
	"context"
	"fmt"
	"net"
	"sync"
)

// What one listener holds open. A peer that opens more is reset, and so cannot
// keep others out.
const (
	MaxConns     = 2048
	MaxPeerConns = 256
)

// A Listener accepts connections of peers that are admitted; each is a *Conn. It
// resets all others without a byte, and Accept does not return for them.
type Listener struct {
	net.Listener
	env   Env
	admit func(Peer) bool

	mu      sync.Mutex
	conns   map[*Conn]struct{}
	perPeer map[Peer]int
	shut    bool
	drained chan struct{} // closed when the last of conns goes; nil: nobody waits for it
}

// Listen opens a TCP listener on the agent's address. admit decides on each
// connection beyond the grant; nil admits every peer.
func (e Env) Listen(ctx context.Context, port uint16, admit func(Peer) bool) (*Listener, error) {
	inner, err := e.Network.Listen(ctx, port)
	if err != nil {
		return nil, err
	}
	if admit == nil {
		admit = func(Peer) bool { return true }
	}
	return &Listener{Listener: inner, env: e, admit: admit, conns: map[*Conn]struct{}{}, perPeer: map[Peer]int{}}, nil
}

// A Conn is a connection of a peer.
type Conn struct {
	net.Conn
	Peer     Peer // as it was when the connection came
	listener *Listener
	once     sync.Once
}

// Accept returns the next connection of a peer that is admitted.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		inner, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if c := l.take(inner); c != nil {
			return c, nil
		}
		Reset(inner)
	}
}

func (l *Listener) take(inner net.Conn) *Conn {
	peer, ok := l.env.Whois(source(inner.RemoteAddr()))
	if !ok || !l.admit(peer) {
		l.env.Logger.Debug("connection refused", "from", inner.RemoteAddr(), "peer", peer.Name)
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.shut || len(l.conns) >= MaxConns || l.perPeer[peer] >= MaxPeerConns {
		return nil
	}
	c := &Conn{Conn: inner, Peer: peer, listener: l}
	l.conns[c] = struct{}{}
	l.perPeer[peer]++
	return c
}

// Close closes the connection.
func (c *Conn) Close() error {
	c.once.Do(func() {
		l := c.listener
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.conns, c)
		if l.perPeer[c.Peer]--; l.perPeer[c.Peer] <= 0 {
			delete(l.perPeer, c.Peer)
		}
		l.tellDrained()
	})
	return c.Conn.Close()
}

// CloseWrite ends our side of the stream, where the network can do that.
func (c *Conn) CloseWrite() error {
	h, ok := c.Conn.(interface{ CloseWrite() error })
	if !ok {
		return fmt.Errorf("services: close write: not on a %T", c.Conn)
	}
	return h.CloseWrite()
}

// Whois says who the other end is now. False: it lost trust, or the address has
// gone to another key, and the connection must not be served any more.
func (c *Conn) Whois() (Peer, bool) {
	p, ok := c.listener.env.Whois(source(c.RemoteAddr()))
	return p, ok && p.Fingerprint == c.Peer.Fingerprint && c.listener.admit(p)
}

// Recheck closes the connections of those who are no longer admitted.
func (l *Listener) Recheck() {
	for _, c := range l.open() {
		if _, ok := c.Whois(); !ok {
			Reset(c)
		}
	}
}

// Drain accepts no more connections, and returns when all that came have ended, or ctx
// has. Those that are left go on until Shut.
func (l *Listener) Drain(ctx context.Context) {
	l.mu.Lock()
	if l.drained == nil {
		l.drained = make(chan struct{})
	}
	done := l.drained
	l.tellDrained()
	l.mu.Unlock()
	l.Listener.Close()
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// tellDrained wakes Drain when no connection is left. The caller holds mu.
func (l *Listener) tellDrained() {
	if l.drained == nil || len(l.conns) > 0 {
		return
	}
	select {
	case <-l.drained:
	default:
		close(l.drained)
	}
}

// Shut closes the listener and every connection that came from it, also those
// that somebody took over from an HTTP server.
func (l *Listener) Shut() {
	l.mu.Lock()
	l.shut = true
	l.mu.Unlock()
	l.Listener.Close()
	for _, c := range l.open() {
		c.Close()
	}
}

func (l *Listener) open() []*Conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	list := make([]*Conn, 0, len(l.conns))
	for c := range l.conns {
		list = append(list, c)
	}
	return list
}

// Reset closes a connection so that the other side sees an error and not an end.
func Reset(c net.Conn) {
	inner := c
	if o, ok := c.(*Conn); ok {
		inner = o.Conn
	}
	if t, ok := inner.(interface{ SetLinger(int) error }); ok {
		t.SetLinger(0)
	}
	c.Close()
}
