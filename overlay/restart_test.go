package overlay

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/pilotnet/pilot/natt/natlab"
)

// A peer dies without a word and is back after half a second, without sessions
// and at another port: who sends to it is heard again within a second of its
// start.
func TestPeerRestarts(t *testing.T) {
	for _, every := range []time.Duration{10 * time.Millisecond, 250 * time.Millisecond} {
		for _, kinds := range [][2]natlab.Kind{{natlab.None, natlab.None}, {natlab.Port, natlab.Linux}} {
			t.Run(kinds[0].String()+"-"+kinds[1].String()+" every "+every.String(), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { peerRestarts(t, every, kinds) })
			})
		}
	}
}

func peerRestarts(t *testing.T, every time.Duration, kinds [2]natlab.Kind) {
	w, alice, bob := befriended(t, kinds[0], kinds[1])
	defer w.close()
	alice.pathTo("bob", "direct")
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		tick := time.NewTicker(every)
		defer tick.Stop()
		for i := uint32(0); ; i++ {
			select {
			case <-stop:
				return
			case <-tick.C:
				alice.send(bob, i, 64)
			}
		}
	}()
	for range 5 {
		for end := time.Now().Add(7 * time.Second); time.Now().Before(end); {
			if _, err := bob.receive(time.Second); err != nil {
				t.Fatal(err)
			}
		}
		w.net.Cut(bob.host, bob.router)
		bob.stop()
		w.net.Uncut(bob.host, bob.router)
		pass(500 * time.Millisecond)
		began := time.Now()
		bob.start()
		_, err := bob.receive(30 * time.Second)
		if took := time.Since(began); err != nil || took > time.Second {
			t.Errorf("heard again after %v, %v", took, err)
		}
	}
}
