package rendezvous

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"net"
	"net/netip"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/natt"
	"github.com/pilotnet/pilot/natt/natlab"
	"github.com/pilotnet/pilot/natt/relay"
)

// A remote is an agent on an in-memory host: its home session run by one
// goroutine, as a node does it.
type remote struct {
	conn   natt.PacketConn
	server netip.AddrPort
	in     chan []byte
	events chan relay.HomeEvent
	home   *relay.Home
}

func (r *remote) run(ctx context.Context) {
	go func() {
		m := []natt.Message{{Buf: make([]byte, natt.MaxRun)}}
		for {
			n, err := r.conn.ReadBatch(m)
			if err != nil {
				return
			}
			if n == 1 {
				r.in <- append([]byte(nil), m[0].Buf[:m[0].N]...)
			}
		}
	}()
	for {
		for _, b := range r.home.Advance(time.Now()) {
			r.conn.WriteBatch([]natt.Message{{Buf: b, Addr: r.server}})
		}
		timer := time.NewTimer(time.Until(r.home.Next()))
		select {
		case <-ctx.Done():
			timer.Stop()
			r.conn.Close()
			return
		case b := <-r.in:
			events, _ := r.home.Receive(time.Now(), b)
			for _, e := range events {
				r.events <- e
			}
		case <-timer.C:
		}
		timer.Stop()
	}
}

func (r *remote) until(t *testing.T, kind relay.HomeEventKind, patience time.Duration) time.Duration {
	t.Helper()
	began := time.Now()
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	for {
		select {
		case e := <-r.events:
			if e.Kind == kind {
				return time.Since(began)
			}
		case <-timeout.C:
			t.Fatalf("no event %d in %v", kind, patience)
		}
	}
}

// An idle agent behind a NAT that forgets mappings after 30 s, in virtual time:
// registered in two round trips, still reachable after an hour, back within a
// second after the server was restarted, and after its NAT lost its mappings.
func TestVirtualTime(t *testing.T) {
	dir := t.TempDir()
	key, err := LoadKey(dir)
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		lab := natlab.New(natlab.Config{})
		defer lab.Close()
		host := lab.Host("rdv")
		nat := lab.NAT(natlab.Port, netip.MustParseAddr("198.51.100.7"))
		nat.SetTimeout(30 * time.Second)
		inside := nat.Host("alice")
		server := crypto.Server{Host: host.Addr().String(), Port: 3478, Key: key.Public()}
		store := NewMemoryStore()
		boot := func() (stop func()) {
			s, err := New(Config{Key: key, StateDir: dir, Store: store, Limits: testLimits(),
				UDP: []natt.PacketConn{host.Listen(3478)}, TCP: []net.Listener{host.ListenTCP(3478)}})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(context.Background())
			ended := make(chan error)
			go func() { ended <- s.Run(ctx) }()
			return func() {
				cancel()
				if err := <-ended; err != nil {
					t.Error(err)
				}
			}
		}
		stop := boot()

		alice := newAgent(t, "alice", server)
		c := dial(t, relay.DialConfig{Server: server, Static: &alice.reg, Key: alice.id.Key.Public(), DialContext: inside.DialContext})
		if err := c.Claim(context.Background(), alice.claim, alice.card); err != nil {
			t.Fatal(err)
		}
		c.Close()
		r := &remote{conn: inside.Listen(0), server: netip.AddrPortFrom(host.Addr(), 3478), home: alice.home,
			in: make(chan []byte, 16), events: make(chan relay.HomeEvent, 1000)}
		ctx, cancel := context.WithCancel(context.Background())
		defer synctest.Wait()
		defer cancel()
		go r.run(ctx)
		t.Logf("registered after %v", r.until(t, relay.Registered, time.Second))

		<-time.After(time.Hour)
		v := dial(t, relay.DialConfig{Server: server, DialContext: host.DialContext})
		if err := v.Put(context.Background(), alice.fingerprint(), []byte("mail")); err != nil {
			t.Fatal(err)
		}
		t.Logf("mail announced after %v", r.until(t, relay.MailWaiting, time.Second))
		v.Close()

		stop()
		stop = boot()
		t.Logf("back after a restart in %v", r.until(t, relay.Registered, 5*time.Second))
		nat.Flush()
		<-time.After(oneKeepalive)
		stop()
		stop = boot()
		t.Logf("back after a restart and a flush in %v", r.until(t, relay.Registered, 5*time.Second))
		stop()
	})
}

// oneKeepalive lets one keepalive pass.
const oneKeepalive = relay.DefaultKeepalive + time.Second
