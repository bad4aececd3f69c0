package overlay

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/pilotnet/pilot/natt/natlab"
)

// TestWhoisAfterTrust: who is trusted no longer is nobody, also as long as the
// packet path does not know it yet.
func TestWhoisAfterTrust(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, alice, bob := befriended(t, natlab.Linux, natlab.Linux)
		defer w.close()
		ttl := time.Minute
		if _, err := bob.Approve(w.ctx(time.Second), ApproveOptions{Peer: "alice", TTL: &ttl}); err != nil {
			t.Fatal(err)
		}
		address := alice.ID().ULA
		pass(10 * time.Second)
		if got, err := bob.Whois(address); err != nil || got.Name != "alice" || got.Expires == nil {
			t.Errorf("before the end: %+v, %v", got, err)
		}
		stale := bob.plane.snapshot.Load()
		pass(2 * time.Minute)
		bob.plane.snapshot.Store(stale)
		if got, err := bob.Whois(address); err == nil || publicError(err).Code != CodeNotFound {
			t.Errorf("after the end: %+v, %v", got, err)
		}
	})
}
