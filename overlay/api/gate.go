package api

import (
	"context"
	"net"
	"net/http"
	"sync"
	"time"
)

// A gate is a listener that lets only so many connections be open at a time.
// When one more comes, the user with the most loses one: that which has rested
// longest. So nobody keeps others away by connections on which nothing is asked,
// nor one user another by calls that last. Only a user who has them all at work
// already is refused a further one.
type gate struct {
	*socketFile
	most  int
	mu    sync.Mutex
	conns map[*gatedConn]bool
}

// A gatedConn is one connection. Its fields belong to the gate's lock.
type gatedConn struct {
	*net.UnixConn
	gate *gate
	uid  int // -1: the kernel does not tell
	busy bool
	rest time.Time // since when it has not been busy; of a busy one, when it was made
}

func newGate(s *socketFile, most int) *gate {
	return &gate{socketFile: s, most: most, conns: map[*gatedConn]bool{}}
}

// Accept waits for a connection that has its place.
func (g *gate) Accept() (net.Conn, error) {
	for {
		u, err := g.AcceptUnix()
		if err != nil {
			return nil, err
		}
		c := &gatedConn{UnixConn: u, gate: g, uid: -1, rest: time.Now()}
		if uid, _, ok := Caller(withCaller(context.Background(), u)); ok {
			c.uid = int(uid)
		}
		if g.admit(c) {
			return c, nil
		}
		u.Close()
	}
}

// admit finds a place for c, by ending another if there is none.
func (g *gate) admit(c *gatedConn) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.conns) >= g.most {
		v := g.victim(c.uid)
		if v == nil {
			return false
		}
		delete(g.conns, v)
		v.UnixConn.Close()
	}
	g.conns[c] = true
	return true
}

// victim picks the connection that goes for one of a user, with the lock held.
func (g *gate) victim(uid int) (v *gatedConn) {
	held := map[int]int{}
	most := uid
	for c := range g.conns {
		if held[c.uid]++; held[c.uid] > held[most] {
			most = c.uid
		}
	}
	for c := range g.conns {
		switch {
		case c.uid != most, c.busy && most == uid:
		case v == nil, v.busy && !c.busy, v.busy == c.busy && c.rest.Before(v.rest):
			v = c
		}
	}
	return v
}

type connKey struct{}

// withConn lets working find the connection of a call.
func withConn(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(withCaller(ctx, c), connKey{}, c)
}

// working notes that a whole request has come and is at work.
func working(ctx context.Context) {
	if c, ok := ctx.Value(connKey{}).(*gatedConn); ok {
		c.gate.mu.Lock()
		c.busy = true
		c.gate.mu.Unlock()
	}
}

// rested is http.Server.ConnState: a connection whose answer was sent rests.
func rested(conn net.Conn, s http.ConnState) {
	if c, ok := conn.(*gatedConn); ok && s == http.StateIdle {
		c.gate.mu.Lock()
		c.busy, c.rest = false, time.Now()
		c.gate.mu.Unlock()
	}
}

// Close is safe to call again.
func (c *gatedConn) Close() error {
	c.gate.mu.Lock()
	delete(c.gate.conns, c)
	c.gate.mu.Unlock()
	return c.UnixConn.Close()
}
