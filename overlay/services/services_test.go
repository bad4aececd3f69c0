package services_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pilotnet/pilot/overlay/services"
	"github.com/pilotnet/pilot/overlay/services/servicetest"
)

// A service made of a handler.
type service struct {
	handle func(context.Context, *services.Conn)
	admit  func(services.Peer) bool
	opened chan *services.Listener
}

func (service) Name() string { return "test" }
func (service) Port() uint16 { return 9 }
func (s service) Run(ctx context.Context, env services.Env) error {
	l, err := env.Listen(ctx, 9, s.admit)
	if err != nil {
		return err
	}
	env.Ready()
	if s.opened != nil {
		s.opened <- l
	}
	return services.Serve(ctx, l, s.handle)
}

func TestIdentityAndAdmission(t *testing.T) {
	l := servicetest.New(t, "alice", "bob")
	l.Start(service{
		admit:  func(p services.Peer) bool { return p.Name == "alice" },
		handle: func(_ context.Context, c *services.Conn) { fmt.Fprint(c, c.Peer.Name, " ", c.Peer.Fingerprint) },
	})
	for who, want := range map[string]string{"alice": "alice " + servicetest.Agent("alice").Fingerprint.String(), "bob": "", "mallory": ""} {
		got, err := l.Answer(who, 9, 100)
		if got != want || (want == "") != (err != nil) {
			t.Errorf("%s: %q, %v", who, got, err)
		}
	}
}

func TestRevokedConnectionEndsOnRecheck(t *testing.T) {
	l := servicetest.New(t, "alice", "bob")
	s := service{handle: func(_ context.Context, c *services.Conn) { io.Copy(c, c.Conn) }, opened: make(chan *services.Listener, 1)}
	l.Start(s)
	alice, bob := l.MustDial("alice", "tcp", 9), l.MustDial("bob", "tcp", 9)
	buf := make([]byte, 1)
	for _, c := range []net.Conn{alice, bob} {
		c.Write([]byte("x"))
		if _, err := c.Read(buf); err != nil {
			t.Fatal(err)
		}
	}
	l.Revoke("alice")
	(<-s.opened).Recheck()
	if _, err := alice.Read(buf); err == nil {
		t.Error("alice is still served")
	}
	bob.Write([]byte("y"))
	if _, err := bob.Read(buf); err != nil {
		t.Errorf("bob is not served: %v", err)
	}
}

// One peer opens too many connections; another one still gets its own.
func TestPeerCannotTakeAllConnections(t *testing.T) {
	l := servicetest.New(t, "alice", "bob")
	l.Start(service{handle: func(ctx context.Context, c *services.Conn) {
		c.Write([]byte("x"))
		c.Read(make([]byte, 1))
	}})
	for i := range services.MaxPeerConns + 20 {
		if _, err := l.Answer("alice", 9, 1); (err == nil) != (i < services.MaxPeerConns) {
			t.Fatalf("connection %d: %v", i, err)
		}
	}
	if _, err := l.Answer("bob", 9, 1); err != nil {
		t.Errorf("bob: %v", err)
	}
}

func TestPanicEndsOneConnection(t *testing.T) {
	l := servicetest.New(t, "alice")
	l.Start(service{handle: func(_ context.Context, c *services.Conn) {
		b := make([]byte, 1)
		c.Read(b)
		if b[0] == '!' {
			panic("test")
		}
		c.Write(b)
	}})
	bad, good := l.MustDial("alice", "tcp", 9), l.MustDial("alice", "tcp", 9)
	bad.Write([]byte("!"))
	if _, err := bad.Read(make([]byte, 1)); err == nil {
		t.Error("the handler did not panic")
	}
	good.Write([]byte("x"))
	if _, err := good.Read(make([]byte, 1)); err != nil {
		t.Error(err)
	}
}

// stubborn fails until it was started often enough.
type stubborn struct {
	starts atomic.Int32
	fails  int32
}

func (s *stubborn) Name() string { return "stubborn" }
func (s *stubborn) Port() uint16 { return 0 }
func (s *stubborn) Run(ctx context.Context, env services.Env) error {
	n := s.starts.Add(1)
	if n == 1 {
		panic("test")
	}
	if n <= s.fails {
		return errors.New("the port is taken")
	}
	env.Ready()
	<-ctx.Done()
	return nil
}

func TestGroupStartsAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &stubborn{fails: 8}
		g := services.NewGroup(servicetest.New(t).Env(), s)
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { g.Run(ctx); close(ended) }()
		<-time.After(3500 * time.Millisecond) // tries at 0, 1 and 3 s
		if st := g.Status()[0]; st.State != "failed" || st.Err.Error() != "the port is taken" || s.starts.Load() != 3 {
			t.Errorf("%+v after %d starts", st, s.starts.Load())
		}
		<-time.After(4 * time.Minute)
		if st := g.Status()[0]; st.State != "running" || st.Err != nil || s.starts.Load() != 9 {
			t.Errorf("%+v after %d starts", st, s.starts.Load())
		}
		stop()
		<-ended
	})
}
