package exchange

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pilotnet/pilot/overlay/services"
)

// TestQueueIsDelivered runs two agents in virtual time: one has files for bob, who
// comes after a while, goes in the middle and comes again, and for carol, who
// never does.
func TestQueueIsDelivered(t *testing.T) {
	t.Parallel()
	hereDir, thereDir := t.TempDir(), t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		there, err := New(Config{Dir: thereDir, Peer: trusted})
		if err != nil {
			t.Fatal(err)
		}
		l := &pipeListener{conns: make(chan net.Conn), done: make(chan struct{})}
		ctx, cancel := context.WithCancel(t.Context())
		served := make(chan error)
		go func() {
			served <- there.Serve(ctx, l, func(netip.Addr) (services.Peer, bool) { return carol, true })
		}()
		var online atomic.Bool
		var dialled atomic.Int64
		here, err := New(Config{Dir: hereDir, Peer: trusted, Dial: func(ctx context.Context, p services.Peer) (net.Conn, error) {
			if p != bob || !online.Load() {
				dialled.Add(1)
				return nil, errors.New("no route")
			}
			ours, theirs := net.Pipe()
			l.conns <- addressed{theirs}
			return ours, nil
		}})
		if err != nil {
			t.Fatal(err)
		}
		ran := make(chan error)
		go func() { ran <- here.Run(ctx) }()
		put := func(to services.Peer, name, text string) Item {
			it, err := here.queue.Put(to.Fingerprint, name, strings.NewReader(text))
			if err != nil {
				t.Fatal(err)
			}
			return it
		}
		big := strings.Repeat("b", Resumable)
		put(bob, "one", "1")
		put(bob, "big", big)
		put(carol, "never", "x")
		<-time.After(time.Hour) // virtual
		if n := dialled.Load(); n < 100 || n > 300 {
			t.Errorf("%d attempts in an hour", n)
		}
		if got := len(here.queue.List()); got != 3 {
			t.Errorf("%d items wait", got)
		}
		online.Store(true)
		begin := time.Now()
		here.Reachable(bob.Fingerprint)
		synctest.Wait()
		<-time.After(time.Second)
		if list := here.queue.List(); len(list) != 1 || list[0].Name != "never" {
			t.Errorf("after %v: %+v", time.Since(begin), list)
		}
		put(bob, "one", "another 1")
		put(bob, "two", "2")
		<-time.After(time.Minute)
		list := here.queue.List()
		if len(list) != 2 || list[1].Name != "one" || !strings.Contains(list[1].Failed, "already") {
			t.Errorf("%+v", list)
		}
		b, err := there.box(carol.Fingerprint)
		if err != nil {
			t.Fatal(err)
		}
		if got := b.files.list(); len(got) != 3 || got[0].SHA256 != sumOf([]byte(big)) || got[1].SHA256 != sumOf([]byte("1")) {
			t.Errorf("%+v", got)
		}
		cancel()
		l.Close()
		if err := errors.Join(<-served, <-ran, here.Close(), there.Close()); err != nil {
			t.Error(err)
		}
	})
}
