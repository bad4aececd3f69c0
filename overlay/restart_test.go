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

// The session before was made less than a second before the new one, as both sides of a
// peer that dies young know: it must not win over the new one, whoever began it.
func TestPeerDiesYoung(t *testing.T) {
	for _, swap := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w, a, b := befriended(t, natlab.None, natlab.None)
			defer w.close()
			if swap {
				a, b = b, a
			}
			a.pathTo(b.cfg.Name, "direct")
			restart := func(pause time.Duration) {
				w.net.Cut(b.router, nil)
				b.stop()
				pass(pause)
				w.net.Uncut(b.router, nil)
				b.start()
			}
			heard := func(limit time.Duration) { // by b, whom a sends to
				began := time.Now()
				for err := error(nil); ; {
					a.send(b, 0, 64)
					if _, err = b.receive(50 * time.Millisecond); err == nil {
						break
					}
				}
				if took := time.Since(began); took > limit {
					t.Errorf("heard after %v", took)
				}
			}
			for round := range uint32(4) {
				restart(50 * time.Millisecond)
				heard(2 * time.Second) // a asks by itself, as b says nothing
				restart(100 * time.Millisecond)
				b.send(a, round, 64)
				if n, err := a.receive(time.Second); err != nil || n != round {
					t.Fatalf("round %d, %v: %d, %v", round, swap, n, err)
				}
				heard(150 * time.Millisecond)
				pass(2 * time.Second)
			}
		})
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
		w.net.Cut(b.router, nil)
		b.stop()
		pass(pause) // what is cut is lost when it would arrive
		w.net.Uncut(b.router, nil)
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
