package rendezvous

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/natt/relay"
)

// from is how a client reaches the server out of a network of its own: 127.NET.0/24.
func from(server crypto.Server, net4 byte) relay.DialConfig {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, net4, 0, 1)}}
	return relay.DialConfig{Server: server, DialContext: d.DialContext}
}

// A flood is what one network does to a server with all that it has.
type flood struct {
	done, failed atomic.Int64
	end          func()
}

func startFlood(t *testing.T, workers int, one func(ctx context.Context, worker, n int) error) *flood {
	ctx, cancel := context.WithCancel(t.Context())
	f := &flood{}
	var running sync.WaitGroup
	for w := range workers {
		running.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				if one(ctx, w, n) != nil {
					f.failed.Add(1)
				} else {
					f.done.Add(1)
				}
			}
		})
	}
	f.end = func() { cancel(); running.Wait() }
	t.Cleanup(f.end)
	return f
}

func heapInUse() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}

// TestHostileFlood: one network leaves mail and makes first claims as fast as it
// can, over many connections and with stamps that cost it nothing. An agent of
// another network is served meanwhile, its mail stays, and the server's memory
// does not grow with the flood.
func TestHostileFlood(t *testing.T) {
	long, honest, workers := 200*time.Millisecond, 3, 16
	if os.Getenv("PILOT_HOSTILE") == "1" {
		long, honest, workers = 10*time.Second, 50, 200
	}
	s := start(t, Config{StateDir: t.TempDir(), Limits: Limits{ClaimBits: 8, MailBits: 8, Requests: 1000, RequestBurst: 1000}})
	alice, carol := newAgent(t, "alice", s.addr).claimed(), newAgent(t, "carol", s.addr)
	before := heapInUse()

	channels := make([]*relay.Control, workers)
	body := make([]byte, 4000)
	mail := startFlood(t, workers, func(ctx context.Context, w, n int) (err error) {
		if channels[w] == nil {
			if channels[w], err = relay.Dial(ctx, from(s.addr, 66)); err != nil {
				return err
			}
		}
		return channels[w].Put(ctx, alice.fingerprint(), fmt.Append(slices.Clone(body), w, " ", n))
	})
	wait(t, func() bool { return mail.done.Load() >= 10 })
	<-time.After(long)
	var waits []time.Duration
	for i := range honest {
		begin := time.Now()
		c := dial(t, from(s.addr, 77))
		if err := c.Put(t.Context(), alice.fingerprint(), fmt.Append(nil, "honest ", i)); err != nil {
			t.Fatalf("while one network floods: %v", err)
		}
		c.Close()
		waits = append(waits, time.Since(begin))
	}
	<-time.After(long)
	box, err := alice.control().Mail(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	mail.end()
	kept := 0
	for _, m := range box {
		if len(m.Body) < 100 {
			kept++
		}
	}
	// While it is read, page by page, new items come for old ones.
	if want := min(honest, s.cfg.Limits.Mailbox/2); len(box) > 2*s.cfg.Limits.Mailbox || kept < want {
		t.Errorf("the box has %d items, %d of %d honest ones", len(box), kept, want)
	}
	for _, c := range channels {
		if c != nil {
			c.Close()
		}
	}

	// Claims of keys that have no such address: each costs the worker a derivation.
	claims := startFlood(t, workers, func(ctx context.Context, w, n int) error {
		a := &agent{t: t, id: alice.id, server: s.addr}
		a.id.Key = crypto.NewPrivateKey([32]byte{1, byte(w), byte(n), byte(n >> 8)})
		var err error
		if a.reg, err = crypto.GenerateDH(); err != nil {
			return err
		}
		a.sign(1)
		cfg := from(s.addr, 66)
		cfg.Static, cfg.Key = &a.reg, a.id.Key.Public()
		c, err := relay.Dial(ctx, cfg)
		if err != nil {
			return err
		}
		defer c.Close()
		return c.Claim(ctx, a.claim, a.card)
	})
	wait(t, func() bool { return claims.failed.Load() >= 10 })
	<-time.After(long)
	cfg := from(s.addr, 77)
	cfg.Static, cfg.Key = &carol.reg, carol.id.Key.Public()
	c := dial(t, cfg)
	begin := time.Now()
	for {
		err := c.Claim(t.Context(), carol.claim, carol.card)
		if err == nil {
			break
		}
		if !errors.Is(err, relay.ErrBusy) || time.Since(begin) > patience {
			t.Fatalf("a first claim while one network floods: %v", err)
		}
		t.Errorf("one network keeps others out: %v", err)
	}
	claimed := time.Since(begin)
	claims.end()
	grown := int64(heapInUse()) - int64(before)
	slices.Sort(waits)
	t.Logf("%d mails and %d claims of one network; mail of another took %v (median), %v (longest), its first claim %v; heap and stacks grew by %d KiB",
		mail.done.Load(), claims.done.Load()+claims.failed.Load(), waits[len(waits)/2], waits[len(waits)-1], claimed, grown>>10)
	if grown > 64<<20 {
		t.Error("memory grows with the flood")
	}
	if a := s.Status().Agents; a != 2 {
		t.Errorf("%d agents", a)
	}
}
