package overlay

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pilotnet/pilot/natt/natlab"
)

// An agent that starts while UDP is slow, or its machine busy, takes TLS; it leaves it
// as soon as UDP answers, and does not go on believing that UDP is blocked.
func TestSlowStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		alice, bob := w.agent("alice", natlab.Linux), w.agent("bob", natlab.Linux)
		w.befriend(alice, bob, "7", "7")
		alice.stop()
		inside := alice.host.Addr()
		w.net.Filter(func(from, _ netip.AddrPort, _ []byte) bool { return from.Addr() != inside })
		alice.start()
		alice.via("tls")
		pass(300 * time.Millisecond)
		w.net.Filter(nil)
		began := time.Now()
		alice.via("udp")
		t.Logf("off TLS after %v", time.Since(began))
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("off TLS after %v", took)
		}
		done := make(chan result)
		go func() { done <- stream(alice, bob, 1000, 5*time.Millisecond) }()
		alice.pathTo("bob", "direct")
		t.Logf("direct after %v", time.Since(began))
		if took := time.Since(began); took > 4*time.Second {
			t.Errorf("direct after %v: %s", took, alice.peer("bob").WhyNot)
		}
		if r := <-done; r.lost != 0 || r.twice != 0 {
			t.Errorf("%+v", r)
		}
	})
}
