package natt_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pilotnet/pilot/natt"
	"github.com/pilotnet/pilot/natt/natlab"
	"github.com/pilotnet/pilot/natt/stun"
)

// serveResponsePort answers as a server with one address that knows RESPONSE-PORT.
func serveResponsePort(h *natlab.Host, port uint16) (close func()) {
	c := h.Listen(port)
	go func() {
		m := []natt.Message{{Buf: make([]byte, natt.MaxRun)}}
		for {
			if _, err := c.ReadBatch(m); err != nil {
				return
			}
			for b := range slices.Chunk(m[0].Buf[:m[0].N], runLength(m[0])) {
				q, ok := stun.ParseQuery(b)
				if !ok {
					continue
				}
				to := m[0].Addr
				if q.ResponsePort != 0 {
					to = netip.AddrPortFrom(to.Addr(), q.ResponsePort)
				}
				_, _ = c.WriteBatch([]natt.Message{{Buf: stun.AppendMapped(nil, q.ID, m[0].Addr), Addr: to}})
			}
		}
	}()
	return func() { c.Close() }
}

// runLifetimeTest drives one test of a silence.
func runLifetimeTest(h *natlab.Host, server netip.AddrPort, idle time.Duration) natt.LifetimeResult {
	type answer struct {
		socket int
		from   netip.AddrPort
		b      []byte
	}
	answers := make(chan answer, 16)
	var conns [2]natt.PacketConn
	for i := range conns {
		conns[i] = h.Listen(0)
		defer conns[i].Close()
		go func() {
			m := []natt.Message{{Buf: make([]byte, natt.MaxRun)}}
			for {
				if _, err := conns[i].ReadBatch(m); err != nil {
					return
				}
				answers <- answer{i, m[0].Addr, slices.Clone(m[0].Buf[:m[0].N])}
			}
		}()
	}
	t := natt.NewLifetimeTest(time.Now(), server, idle)
	for !t.Done() {
		for _, d := range t.Advance(time.Now()) {
			_, _ = conns[d.Socket].WriteBatch([]natt.Message{{Buf: d.Data, Addr: d.To}})
		}
		select {
		case a := <-answers:
			t.Receive(time.Now(), a.socket, a.from, a.b)
		case <-time.After(max(time.Until(t.Next()), time.Millisecond)):
		}
	}
	r, _ := t.Result()
	return r
}

// What is found lies below the true lifetime, and not far below, for every kind.
func TestLifetime(t *testing.T) {
	for name, want := range map[time.Duration]time.Duration{
		12 * time.Second: 9 * time.Second, 20 * time.Second: 18 * time.Second, 30 * time.Second: 28 * time.Second,
		time.Minute: 57 * time.Second, 2 * time.Minute: 115 * time.Second, 5 * time.Minute: 175 * time.Second,
	} {
		for _, kind := range natlab.Kinds() {
			lifetime, want := name, want
			if kind == natlab.None { // forgets nothing
				lifetime, want = time.Hour, 175*time.Second
			}
			t.Run(fmt.Sprint(name)+"/"+kind.String(), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					n := natlab.New(natlab.Config{Seed: 3})
					defer n.Close()
					server := n.Host("server")
					defer serveResponsePort(server, 3478)()
					r := n.NAT(kind, netip.MustParseAddr("203.0.113.5"))
					r.SetTimeout(lifetime)
					host := r.Host("a")
					at := netip.AddrPortFrom(server.Addr(), 3478)
					var life natt.Lifetime
					life.Reset(time.Now(), 0)
					start, most := time.Now(), uint64(0)
					for !life.Settled() {
						<-time.After(time.Until(life.Next()))
						idle, sent, began := life.Step(time.Now()), host.Counts().Sent, time.Now()
						life.Told(time.Now(), runLifetimeTest(host, at, idle), idle)
						if time.Since(began) > 20*time.Second {
							most = max(most, host.Counts().Sent-sent)
						}
						if life.Trouble() != "" {
							t.Fatal(life.Trouble())
						}
					}
					low, high := life.Known()
					if low != want || high != 0 && high <= lifetime {
						t.Errorf("at least %v, below %v, want %v", low, high, want)
					}
					if k := life.Keepalive(); k >= lifetime || k > natt.MaxKeepalive {
						t.Errorf("keepalive %v", k)
					}
					if took := time.Since(start); took > 8*time.Minute || most > 6 {
						t.Errorf("took %v, %d packets for one silence", took, most)
					}
				})
			})
		}
	}
}

// A server that does not know RESPONSE-PORT is no help, one that is silent tells
// nothing, and neither is taken for a NAT.
func TestLifetimeWithoutHelp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := natlab.New(natlab.Config{Seed: 3})
		defer n.Close()
		old, silent := n.Host("old"), n.Host("silent")
		c := old.Listen(3478)
		defer c.Close()
		go func() {
			m := []natt.Message{{Buf: make([]byte, natt.MaxRun)}}
			for {
				if _, err := c.ReadBatch(m); err != nil {
					return
				}
				b, _ := stun.Answer(nil, m[0].Buf[:m[0].N], m[0].Addr)
				_, _ = c.WriteBatch([]natt.Message{{Buf: b, Addr: m[0].Addr}})
			}
		}()
		host := n.NAT(natlab.Linux, netip.MustParseAddr("203.0.113.5")).Host("a")
		if r := runLifetimeTest(host, netip.AddrPortFrom(old.Addr(), 3478), 0); r != natt.LifetimeNoHelp {
			t.Errorf("old server: %v", r)
		}
		if r := runLifetimeTest(host, netip.AddrPortFrom(silent.Addr(), 3478), 0); r != natt.LifetimeUnclear {
			t.Errorf("silent server: %v", r)
		}
	})
}

// What was found and turns out wrong is given up, and not believed again for an hour.
func TestLifetimeHeals(t *testing.T) {
	now := time.Unix(0, 0)
	var life natt.Lifetime
	life.Reset(now, 0)
	// find plays a NAT whose mappings live for d.
	find := func(d time.Duration) {
		for !life.Settled() {
			now = life.Next()
			idle := life.Step(now)
			now = now.Add(idle)
			r := natt.LifetimeAlive
			if idle >= d {
				r = natt.LifetimeDead
			}
			life.Told(now, r, idle)
		}
	}
	find(2 * time.Minute)
	if k := life.Keepalive(); k != 115*time.Second*8/10 {
		t.Fatalf("keepalive %v", k)
	}
	now = life.Next() // the check finds that the NAT keeps less now
	if changed := life.Told(now, natt.LifetimeDead, life.Step(now)); !changed || life.Keepalive() != 0 || life.Settled() {
		t.Errorf("keepalive %v after a check that failed", life.Keepalive())
	}
	find(time.Minute)
	if k := life.Keepalive(); k != 57*time.Second*8/10 {
		t.Errorf("keepalive %v", k)
	}
	life.Fell(now)
	if life.Keepalive() != 0 || life.Next().Sub(now) < time.Minute {
		t.Errorf("keepalive %v, next after %v", life.Keepalive(), life.Next().Sub(now))
	}
	find(5 * time.Minute)
	if k := life.Keepalive(); k != 28*time.Second*8/10 {
		t.Errorf("keepalive %v though mappings were lost at 39.9 s", k)
	}
	now = now.Add(2 * time.Hour)
	life.Reset(now, 0)
	find(5 * time.Minute)
	if k := life.Keepalive(); k != natt.MaxKeepalive {
		t.Errorf("keepalive %v", k)
	}
	// Unclear outcomes change nothing and are repeated ever more rarely.
	var last time.Duration
	for range 10 {
		now = life.Next()
		life.Told(now, natt.LifetimeUnclear, life.Step(now))
		wait := life.Next().Sub(now)
		if wait < last || wait > time.Hour || life.Keepalive() != natt.MaxKeepalive {
			t.Errorf("waits %v after %v, keepalive %v", wait, last, life.Keepalive())
		}
		last = wait
	}
}
