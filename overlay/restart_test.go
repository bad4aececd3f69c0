package overlay

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/pilotnet/pilot/natt/natlab"
	"github.com/pilotnet/pilot/tun"
)

// A peer dies without a word, again and again, and is back within half a second,
// without sessions and at another port: who sends to it is heard again within a
// second of its start, whoever of the two makes the new session.
func TestPeerRestarts(t *testing.T) {
	for _, every := range []time.Duration{10 * time.Millisecond, 250 * time.Millisecond} {
		for _, kinds := range [][2]natlab.Kind{{natlab.None, natlab.None}, {natlab.Port, natlab.Linux}} {
			for _, swap := range []bool{false, true} {
				name := kinds[0].String() + "-" + kinds[1].String() + " every " + every.String()
				if swap {
					name += ", the other"
				}
				t.Run(name, func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						w, a, b := befriended(t, kinds[0], kinds[1])
						defer w.close()
						if swap {
							a, b = b, a
						}
						peerRestarts(t, every, w, a, b)
					})
				})
			}
		}
	}
}

func peerRestarts(t *testing.T, every time.Duration, w *world, a, b *agent) {
	a.pathTo(b.cfg.Name, "direct")
	packet := udp(a.plane.own, b.plane.own, 4000, 7, make([]byte, 64))
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				a.device.Inject(tun.Packet{Data: packet}) // fails only when the test is over
			}
		}
	}()
	for i, pause := range []time.Duration{500, 50, 200, 300} {
		pause *= time.Millisecond
		for end := time.Now().Add(2 * time.Second); time.Now().Before(end); {
			if _, err := b.receive(time.Second); err != nil {
				t.Fatal(err)
			}
		}
		w.net.Cut(b.host, b.router)
		b.stop()
		w.net.Uncut(b.host, b.router)
		pass(pause)
		began := time.Now()
		b.start()
		says := time.NewTicker(100 * time.Millisecond) // it has something to say, too
		if i == 0 {
			says.Stop()
		}
		heard := make(chan error)
		go func() {
			_, err := b.receive(30 * time.Second)
			heard <- err
		}()
		var err error
		for done := false; !done; {
			select {
			case err = <-heard:
				done = true
			case <-says.C:
				b.send(a, 0, 64)
			}
		}
		says.Stop()
		if took := time.Since(began); err != nil || took > time.Second {
			t.Errorf("restart %d: heard again after %v, %v", i, took, err)
		}
	}
}
