package overlay

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/ipam"
	"github.com/pilotnet/pilot/natt/relay"
	"github.com/pilotnet/pilot/trust"
)

// What is kept for people and of strangers: the limits of package trust.
const (
	pendingKept = 256 + 1
	storeMost   = 48 << 20
)

// floodAgent is bob, who takes the address of any key's card for right: it takes a
// stranger seconds to make one that is, which is not the question here.
func (w *world) floodAgent(name string) *agent {
	a := w.agentWith(name, nil)
	a.stop()
	a.begin = func(n *Node) {
		if err := n.store.Close(); err != nil {
			w.t.Fatal(err)
		}
		var err error
		n.store, err = trust.Open(trust.Config{
			Dir: a.dir, Key: a.cfg.Identity.Key, Seal: n.loop.secrets.seals, Name: name,
			Now: a.cfg.Clock.Now, Boot: a.cfg.Clock.Boot, Logger: a.cfg.Logger, NoSync: true,
			Card: n.loop.secrets.card, ValidName: ipam.ValidName,
			CheckCard: func(c crypto.Card) (addr [6]byte, err error) {
				if c.Counter != floodCounter {
					return checkCard(c)
				}
				h := sha256.Sum256(c.Key[:])
				copy(addr[2:], h[:])
				return addr, nil
			},
		})
		if err != nil {
			w.t.Fatal(err)
		}
		n.loop.store = n.store
	}
	a.start()
	a.registered()
	return a
}

const floodCounter = 1 << 40

// floodMail is a request of the nth key of a flood.
func floodMail(t testing.TB, n int, to *agent, card crypto.Card) []byte {
	var seed [32]byte
	binary.BigEndian.PutUint64(seed[8:], uint64(n+1))
	key := crypto.NewPrivateKey(seed)
	card.Key, card.Counter = key.Public(), floodCounter
	own, err := card.Sign(key)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := trust.Statement{
		Kind: trust.KindRequest, Serial: uint64(time.Now().UnixMilli()), Issuer: key.Public(), Subject: to.key(), Random: seed,
		Tunnel: card.Registration, Ask: trust.DefaultAsk, Offer: trust.DefaultOffer, Name: "alice", Reason: "let me in", Card: own,
	}.Sign(key)
	if err != nil {
		t.Fatal(err)
	}
	bobs, err := crypto.ParseCard(to.loop.secrets.card())
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := bobs.Seal.Seal("pilot mail v1", signed)
	if err != nil {
		t.Fatal(err)
	}
	return sealed
}

// TestHostileTrustRequestFlood: ten thousand keys of sixteen networks ask bob for trust
// through his server, while he is there and while he is not. What the server and bob keep of
// them is bounded, what bob's user is shown too; a peer does not notice, and a friend who
// asks meanwhile is heard. Without PILOT_HOSTILE=1 the keys are few.
func TestHostileTrustRequestFlood(t *testing.T) {
	keys := 40
	if hostile() {
		keys = 10_000
	}
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		alice, carol := w.agentWith("alice", nil), w.agentWith("carol", nil)
		bob := w.floodAgent("bob")
		alice.asks(bob, RequestOptions{})
		bob.approves(alice)
		agree(alice, bob)
		alice.pathTo("bob", "direct")
		card, err := crypto.ParseCard(carol.loop.secrets.card())
		if err != nil {
			t.Fatal(err)
		}
		fp := bob.key().Fingerprint()
		heap := func() int64 {
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			return int64(m.HeapAlloc)
		}
		before := heap()
		var refused atomic.Int64
		flood := func(from, to int) {
			const networks = 16
			done := make(chan struct{})
			for k := range networks {
				go func() {
					defer func() { done <- struct{}{} }()
					host := w.net.Host(fmt.Sprintf("flood-%d-%d", from, k), netip.AddrFrom4([4]byte{198, 51 + byte(k), byte(min(from, 1)), 7}))
					c, err := relay.Dial(timeout(t), relay.DialConfig{Server: w.serverRef(), DialContext: host.DialContext, Now: time.Now})
					if err != nil {
						t.Errorf("network %d: %v", k, err)
						return
					}
					defer c.Close()
					for n := from + k; n < to; n += networks {
						if err := c.Put(t.Context(), fp, floodMail(t, n, bob, card)); err != nil {
							refused.Add(1)
						}
						pass(time.Millisecond)
					}
				}()
			}
			for range networks {
				<-done
			}
		}
		bounded := func() {
			t.Helper()
			s := bob.Status()
			text, err := json.Marshal(s)
			if err != nil || len(s.Requests) > pendingKept || len(bob.Pending()) > pendingKept || len(text) > 1<<20 {
				t.Errorf("bob's user is shown %d requests in %d bytes, %v", len(s.Requests), len(text), err)
			}
			if info, err := os.Stat(filepath.Join(bob.dir, trust.StoreFile)); err != nil || info.Size() > storeMost {
				t.Errorf("bob's store has %d bytes, %v", info.Size(), err)
			}
			if left, err := w.store.Mail(fp, 0, 1000); err != nil || len(left) > 32 {
				t.Errorf("%d mails are at the server, %v", len(left), err)
			}
		}
		flooded := make(chan struct{})
		go func() { flood(0, keys*9/10); close(flooded) }()
		done := make(chan result)
		go func() { done <- stream(alice, bob, 500, 10*time.Millisecond) }()
		pass(100 * time.Millisecond)
		carol.asks(bob, RequestOptions{})
		asked := func() bool {
			for _, r := range bob.Pending() {
				if r.Fingerprint == carol.key().Fingerprint().String() {
					return true
				}
			}
			return false
		}
		eventually(t, "the friend's request is there amid the flood", asked)
		if _, err := bob.Approve(timeout(t), ApproveOptions{Peer: carol.ID().Fingerprint, As: "carol"}); err != nil {
			t.Fatal(err)
		}
		if r := <-done; r.lost != 0 || r.twice != 0 {
			t.Errorf("the peer lost packets: %+v", r)
		}
		<-flooded
		agree(carol, bob)
		bounded()

		// And while bob is away.
		bob.stop()
		flood(keys*9/10, keys)
		left, err := w.store.Mail(fp, 0, 1000)
		if err != nil || len(left) == 0 || len(left) > 32 {
			t.Errorf("%d mails wait at the server, %v", len(left), err)
		}
		bob.start()
		bob.registered()
		pass(10 * time.Second)
		bounded()
		agree(alice, bob)
		agree(carol, bob)
		grown := heap() - before
		t.Logf("%d keys, %d refused by the server; bob shows %d; heap grew by %d KiB", keys, refused.Load(), len(bob.Pending()), grown>>10)
		if grown > 64<<20 {
			t.Errorf("the heap grew by %d bytes", grown)
		}
		if len(bob.Pending()) < 16 {
			t.Error("hardly a request came through: this was no flood")
		}
	})
}
