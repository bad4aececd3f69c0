package overlay

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"github.com/pilotnet/pilot/natt/natlab"
	"github.com/pilotnet/pilot/overlay/services/echo"
)

// A quietNetwork has listeners on which nobody ever calls.
type quietNetwork struct {
	mu    sync.Mutex
	taken map[uint16]bool
}

func (q *quietNetwork) Listen(_ context.Context, port uint16) (net.Listener, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.taken[port] {
		return nil, syscall.EADDRINUSE
	}
	q.taken[port] = true
	return &quietListener{network: q, port: port, closed: make(chan struct{})}, nil
}

func (q *quietNetwork) ListenPacket(context.Context, uint16) (net.PacketConn, error) {
	return nil, errors.New("no datagrams here")
}

type quietListener struct {
	network *quietNetwork
	port    uint16
	once    sync.Once
	closed  chan struct{}
}

func (l *quietListener) Accept() (net.Conn, error) {
	<-l.closed
	return nil, net.ErrClosed
}

func (l *quietListener) Close() error {
	l.once.Do(func() {
		close(l.closed)
		l.network.mu.Lock()
		defer l.network.mu.Unlock()
		delete(l.network.taken, l.port)
	})
	return nil
}

func (l *quietListener) Addr() net.Addr { return &net.TCPAddr{Port: int(l.port)} }

func TestServe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		alice, bob := w.agent("alice", natlab.Linux), w.agent("bob", natlab.Linux)
		restart := func() {
			bob.stop()
			bob.cfg.Network = &quietNetwork{taken: map[uint16]bool{9000: true}}
			bob.start()
		}
		restart()
		w.befriend(alice, bob, "7,8080", "7")
		ctx := t.Context()

		want := Served{Kind: "http", Target: "localhost:3000", Port: 8080, URL: "http://bob.pilot.internal:8080/", State: "listening",
			Allow: []string{}, Peers: []string{"alice"}, NoGrant: []string{}}
		got, err := bob.Serve(ctx, ServeOptions{Kind: "http", Target: "3000", Port: 8080})
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%v %s", err, diff)
		}
		got, err = bob.Serve(ctx, ServeOptions{Kind: "tcp", Target: "[::1]:5432", Allow: []string{"alice"}})
		if err != nil || got.URL != "bob.pilot.internal:5432" || len(got.Peers) > 0 || strings.Join(got.NoGrant, " ") != "alice" {
			t.Errorf("a port without a grant: %v %+v", err, got)
		}
		for _, c := range []struct {
			o    ServeOptions
			want Code
		}{
			{ServeOptions{Kind: "http", Target: "3001", Port: 8080}, CodeConflict},
			{ServeOptions{Kind: "http", Target: "3001", Port: 9000}, CodeConflict},
			{ServeOptions{Kind: "http", Target: "192.168.1.1:80"}, CodeInvalidArgument},
			{ServeOptions{Kind: "gopher", Target: "70"}, CodeInvalidArgument},
			{ServeOptions{Kind: "http", Target: "80", Allow: []string{"nobody"}}, CodeNotFound},
		} {
			_, err := bob.Serve(ctx, c.o)
			if e := new(Error); !errors.As(err, &e) || e.Code != c.want || e.Hint == "" {
				t.Errorf("%+v: %#v", c.o, err)
			}
		}

		before := bob.Served()
		restart()
		eventually(t, "bob serves again", func() bool { return cmp.Diff(before, bob.Served()) == "" })
		if err := bob.Unserve(ctx, 5432); err != nil {
			t.Error(err)
		}
		if err := bob.Unserve(ctx, 5432); err.(*Error).Code != CodeNotFound {
			t.Error(err)
		}
		if got := bob.Served(); len(got) != 1 || got[0].Port != 8080 {
			t.Errorf("%+v", got)
		}
		if err := bob.Revoke(ctx, "alice"); err != nil {
			t.Fatal(err)
		}
		if got := bob.Served(); len(got[0].Peers) != 0 {
			t.Errorf("a revoked peer is listed: %+v", got)
		}
	})
}

// A service that cannot run says why, and publishing on its port is possible then.
func TestServiceStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		bob := w.agent("bob", natlab.Linux)
		bob.stop()
		bob.cfg.Services = append(bob.cfg.Services, echo.New())
		bob.cfg.Network = &quietNetwork{taken: map[uint16]bool{}}
		bob.start()
		eventually(t, "echo fails", func() bool { return bob.Status().Services[0].State == "failed" })
		if s := bob.Status().Services[0]; s.Name != "echo" || s.Port != 7 || !strings.Contains(s.Error, "no datagrams here") {
			t.Errorf("%+v", s)
		}
		if _, err := bob.Serve(t.Context(), ServeOptions{Kind: "tcp", Target: "7"}); err != nil {
			t.Error(err)
		}
	})
}
