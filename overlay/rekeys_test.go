package overlay

import (
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/natt/natlab"
)

// A bad network before an agent: it loses, repeats and reorders, and remembers
// which frames with a numbered packet of the test's it let through at all.
type badNetwork struct {
	size   int // of a frame with a packet of the test's
	mu     sync.Mutex
	random *rand.Rand
	came   map[[12]byte]bool // by index and counter
	lost   int
	twice  int
	late   int
}

func newBadNetwork(m *middle, seed uint64, size int) *badNetwork {
	n := &badNetwork{size: size, random: rand.New(rand.NewPCG(seed, 1)), came: map[[12]byte]bool{}}
	m.ask(n.judge)
	return n
}

// judge loses one datagram in 20, sends one in 50 twice, and lets one in 10 wait so
// long that others overtake it.
func (n *badNetwork) judge(d wired) (copies []time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.random.IntN(20) == 0 {
		n.lost++
		return nil
	}
	copies = []time.Duration{0}
	if n.random.IntN(10) == 0 {
		n.late++
		copies[0] = time.Duration(1+n.random.IntN(80)) * time.Millisecond
	}
	if n.random.IntN(50) == 0 {
		n.twice++
		copies = append(copies, time.Duration(n.random.IntN(200))*time.Millisecond)
	}
	if id, ok := n.numbered(d.body); ok {
		n.came[id] = true
	}
	return copies
}

// numbered is the index and the counter of a frame with a packet of the test's.
func (n *badNetwork) numbered(b []byte) (id [12]byte, ok bool) {
	b = wired{body: b}.tunnel()
	if len(b) != n.size || b[0] != byte(crypto.TypeData) {
		return id, false
	}
	return [12]byte(b[4:16]), true
}

// TestHostileRekeys: over a network that loses 5 % of all datagrams each way,
// repeats some and reorders many, keys are renewed again and again, and no packet
// is lost that the network did not lose, none comes twice: each of a frame's copies
// was lost, or its packet arrived. 1,000 rekeys with PILOT_HOSTILE=1.
func TestHostileRekeys(t *testing.T) {
	rekeys := 3
	if hostile() {
		rekeys = 1000
	}
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		alice, atAlice := w.agentBehind("alice", natlab.Linux)
		bob, atBob := w.agentBehind("bob", natlab.Full)
		atAlice.everywhere()
		atBob.everywhere()
		w.befriend(alice, bob, "7", "7")
		alice.pathTo("bob", "direct")
		const payload = 777
		plain := 48 + payload
		frame := crypto.Overhead + (plain+15)&^15
		ways := []*numberedWay{
			{from: alice, to: bob, network: newBadNetwork(atBob, 1, frame), sent: map[[12]byte]uint32{}},
			{from: bob, to: alice, network: newBadNetwork(atAlice, 2, frame), sent: map[[12]byte]uint32{}},
		}
		defer atAlice.ask(nil)
		defer atBob.ask(nil)
		w.net.Observe(func(e natlab.Event) {
			if e.Kind == natlab.Sent {
				for _, way := range ways {
					way.observe(e)
				}
			}
		})
		sessions := map[*crypto.Session]bool{}
		number := uint32(0)
		for len(sessions) < rekeys {
			number++
			for _, way := range ways {
				way.send(number, payload)
			}
			pass(time.Duration(500+number%1000) * time.Millisecond)
			for _, way := range ways {
				way.take()
			}
			if s := alice.session(bob); s != nil {
				sessions[s] = true
			}
			if number > uint32(rekeys)*400 {
				t.Fatalf("%d sessions after %d packets", len(sessions), number)
			}
		}
		pass(5 * time.Second)
		for _, way := range ways {
			way.take()
			way.judge(t, number)
		}
		t.Logf("%d sessions", len(sessions))
	})
}

// A numberedWay is one direction of the traffic.
type numberedWay struct {
	from, to *agent
	network  *badNetwork
	mu       sync.Mutex
	now      uint32              // the packet that was sent last
	sent     map[[12]byte]uint32 // frames that left, and which packet is in each
	arrived  []uint32
}

func (y *numberedWay) observe(e natlab.Event) {
	if id, ok := y.network.numbered(e.Data); ok && e.Sender == y.from.host {
		y.mu.Lock()
		defer y.mu.Unlock()
		if _, again := y.sent[id]; !again {
			y.sent[id] = y.now
		}
	}
}

func (y *numberedWay) send(number uint32, payload int) {
	y.mu.Lock()
	y.now = number
	y.mu.Unlock()
	y.from.send(y.to, number, payload)
}

func (y *numberedWay) take() {
	for y.to.device.Waiting() > 0 {
		if n, err := y.to.receive(time.Second); err == nil {
			y.arrived = append(y.arrived, n)
		}
	}
}

// judge compares what the network let through with what arrived.
func (y *numberedWay) judge(t *testing.T, sent uint32) {
	t.Helper()
	y.mu.Lock()
	defer y.mu.Unlock()
	y.network.mu.Lock()
	defer y.network.mu.Unlock()
	times := map[uint32]int{}
	for _, n := range y.arrived {
		if times[n]++; times[n] > 1 {
			t.Errorf("packet %d arrived %d times", n, times[n])
		}
	}
	left, came := map[uint32]bool{}, map[uint32]bool{}
	for id, n := range y.sent {
		left[n] = true
		came[n] = came[n] || y.network.came[id]
	}
	for n := uint32(1); n <= sent; n++ {
		switch {
		case !left[n]:
			t.Errorf("packet %d never left %s; drops %v", n, y.from.cfg.Name, y.from.plane.drops.counts())
		case came[n] && times[n] == 0:
			t.Errorf("packet %d came to %s and was lost there; drops %v", n, y.to.cfg.Name, y.to.plane.drops.counts())
		}
	}
	lost := int(sent) - len(times)
	t.Logf("%s to %s: %d packets, the network lost %d of them for good; it lost %d datagrams, repeated %d, delayed %d; drops %v",
		y.from.cfg.Name, y.to.cfg.Name, sent, lost, y.network.lost, y.network.twice, y.network.late, y.to.plane.drops.counts())
	if y.network.lost == 0 || y.network.twice == 0 || y.network.late == 0 || lost == 0 || lost > int(sent)/10 {
		t.Error("the network was not as bad as it was to be, or worse")
	}
}
