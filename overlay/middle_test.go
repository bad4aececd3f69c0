package overlay

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/natt"
	"github.com/pilotnet/pilot/natt/natlab"
	"github.com/pilotnet/pilot/natt/relay"
)

// hostile says that tests of hostile peers are to run in full size.
func hostile() bool { return os.Getenv("PILOT_HOSTILE") != "" }

// A middle stands on the wire before an agent's main socket: he sees each
// datagram that comes to it, decides what becomes of it, and adds what he likes
// from any address.
type middle struct {
	mu    sync.Mutex
	conn  *wiredConn                  // the agent's present socket
	judge func(wired) []time.Duration // when copies arrive; nil: at once, one
	all   bool                        // he stands before the agent's other sockets too
}

// wired is a datagram on the wire, with the address that it comes from.
type wired struct {
	from netip.AddrPort
	body []byte
}

// agentBehind is an agent with a man in the middle before its main socket.
func (w *world) agentBehind(name string, kind natlab.Kind) (*agent, *middle) {
	a := w.agent(name, kind)
	a.stop()
	m := &middle{}
	a.cfg.Underlay = wiredUnderlay{labUnderlay{a.host}, m}
	a.start()
	return a, m
}

type wiredUnderlay struct {
	labUnderlay
	middle *middle
}

// ListenUDP gives the node its main socket with the man before it, and later
// ones as they are.
func (u wiredUnderlay) ListenUDP(port uint16) (natt.PacketConn, error) {
	c, err := u.labUnderlay.ListenUDP(port)
	m := u.middle
	m.mu.Lock()
	defer m.mu.Unlock()
	if err != nil || m.conn != nil && !m.all {
		return c, err
	}
	w := &wiredConn{PacketConn: c, middle: m, queue: make(chan wired, 64), gone: make(chan struct{})}
	if m.conn == nil {
		m.conn = w
	}
	go w.carry()
	return w, nil
}

// arrived lets the man decide about a datagram to one of the agent's sockets.
func (c *wiredConn) arrived(d wired) {
	c.middle.mu.Lock()
	judge := c.middle.judge
	c.middle.mu.Unlock()
	copies := []time.Duration{0}
	if judge != nil {
		copies = judge(d)
	}
	for _, after := range copies {
		if after == 0 {
			c.put(d)
		} else {
			time.AfterFunc(after, func() { c.put(d) })
		}
	}
}

func (c *wiredConn) put(d wired) {
	select {
	case c.queue <- d:
	case <-c.gone:
	}
}

// inject hands the agent a datagram, if it listens.
func (m *middle) inject(d wired) {
	m.mu.Lock()
	c := m.conn
	m.mu.Unlock()
	if c != nil {
		c.put(d)
	}
}

func (m *middle) ask(judge func(wired) []time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.judge = judge
}

// everywhere puts him before the sockets that the agent opens from now on, too.
func (m *middle) everywhere() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.all = true
}

// A wiredConn is an agent's socket behind a middle.
type wiredConn struct {
	natt.PacketConn
	middle *middle
	queue  chan wired
	gone   chan struct{}
}

// carry takes what comes to the socket before the agent does.
func (c *wiredConn) carry() {
	defer close(c.gone)
	msgs := make([]natt.Message, c.BatchSize())
	for i := range msgs {
		msgs[i].Buf = make([]byte, natt.MaxRun)
	}
	for {
		n, err := c.PacketConn.ReadBatch(msgs)
		if err != nil {
			return
		}
		for _, r := range msgs[:n] {
			size := r.Segment
			if size <= 0 {
				size = max(r.N, 1)
			}
			for b := range slices.Chunk(r.Buf[:r.N], size) {
				c.arrived(wired{r.Addr, bytes.Clone(b)})
			}
		}
	}
}

func (c *wiredConn) ReadBatch(msgs []natt.Message) (n int, err error) {
	put := func(d wired) {
		msgs[n].N, msgs[n].Segment, msgs[n].Addr = copy(msgs[n].Buf, d.body), 0, d.from
		n++
	}
	select {
	case d := <-c.queue:
		put(d)
	case <-c.gone:
		return 0, net.ErrClosed
	}
	for n < len(msgs) {
		select {
		case d := <-c.queue:
			put(d)
		default:
			return n, nil
		}
	}
	return n, nil
}

// Close leaves the place to the agent's next socket.
func (c *wiredConn) Close() error {
	c.middle.mu.Lock()
	defer c.middle.mu.Unlock()
	if c.middle.conn == c {
		c.middle.conn = nil
	}
	return c.PacketConn.Close()
}

// tunnel is what a datagram carries, out of a relay frame if it came in one.
func (d wired) tunnel() []byte {
	if _, inner, ok := relay.ParseFrame(d.body); ok {
		return inner
	}
	return d.body
}

// state is all that a datagram could change in an agent. Between two calls no
// virtual time may pass.
func (a *agent) state(t testing.TB) string {
	t.Helper()
	var b strings.Builder
	err := a.loop.call(context.Background(), func(now instant) {
		for _, h := range a.loop.servers {
			fmt.Fprintf(&b, "server: %+v claimed %v seen as %v since %v\n", h.machine, h.claimed, h.seenAs, h.registeredAt)
		}
		for _, k := range a.loop.links {
			tx := k.peer.tx.Load()
			fmt.Fprintf(&b, "peer %s: scope in %v out %v, slots %d, last %d tried %v inits %d tokens %v, gone %q home %v\n",
				k.book.Name, k.book.In, k.book.Out, len(k.slots), k.last, k.tried, len(k.inits.seen), k.inits.tokens, k.gone, k.home)
			fmt.Fprintf(&b, "counters: %d %d %d %d seen %d roamed %v awake %v\n", k.rxPackets.Load(), k.rxBytes.Load(), k.txPackets.Load(),
				k.txBytes.Load(), k.lastSeen.Load(), k.roamed.Load(), k.awake.Load())
			if tx != nil {
				fmt.Fprintf(&b, "sends on %x by %v and %v, budget %d\n", tx.session.Remote(), tx.path, tx.also, tx.budget)
			}
			for _, s := range k.sessions {
				fmt.Fprintf(&b, "session %x %x confirmed %v made %v retires %v sent %d window %s\n", s.Local(), s.Remote(), s.confirmed.Load(),
					s.created, s.retire, s.Sent(), taken(t, s.Session))
			}
			fmt.Fprintf(&b, "tries %v, relay paths %v, legs", k.try != nil, k.seen)
			for _, leg := range k.legs {
				fmt.Fprintf(&b, " %+v", leg.visitor.way)
			}
			fmt.Fprintf(&b, "\npaths: %+v\n", k.agent)
		}
		fmt.Fprintf(&b, "%d sessions, %d INITs under way, candidates %v\n", a.loop.live, len(a.loop.waits), a.loop.candidates)
	})
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(&b, "trust: %+v pending %+v\n", a.store.Peers(), a.Pending())
	fmt.Fprintf(&b, "packets for the host: %d\n", a.device.Waiting())
	return b.String()
}

// taken shows which counters a session has taken.
func taken(t testing.TB, s *crypto.Session) string {
	w := reflect.ValueOf(s).Elem().FieldByName("recv").FieldByName("window")
	if !w.IsValid() {
		t.Fatal("crypto.Session keeps its window elsewhere now")
	}
	return fmt.Sprint(w)
}

// difference is the first line in which two states differ.
func difference(before, after string) string {
	x, y := strings.Split(before, "\n"), strings.Split(after, "\n")
	for i := range min(len(x), len(y)) {
		if x[i] != y[i] {
			return fmt.Sprintf("before: %.600s\nafter:  %.600s", x[i], y[i])
		}
	}
	return fmt.Sprintf("%d and %d lines", len(x), len(y))
}

// A mitm has datagrams of one agent in hand and tries what can be done with them.
type mitm struct {
	t        *testing.T
	agent    *agent
	wire     *middle
	mu       sync.Mutex
	held     []wired
	record   []wired
	done     map[string]int // by kind: how many were tampered with
	injected int
}

// most is how many datagrams of one kind and length are tampered with.
func (x *mitm) most() int {
	if hostile() {
		return 1 << 30
	}
	return 1
}

// coarse is how far the lengths of two datagrams of one kind may differ.
func (x *mitm) coarse() int {
	if hostile() {
		return 16
	}
	return 256
}

func newMITM(t *testing.T, a *agent, m *middle) *mitm {
	x := &mitm{t: t, agent: a, wire: m, done: map[string]int{}}
	m.ask(func(d wired) []time.Duration {
		x.mu.Lock()
		defer x.mu.Unlock()
		x.held = append(x.held, d)
		return nil
	})
	return x
}

func (x *mitm) inject(from netip.AddrPort, b []byte) {
	x.wire.inject(wired{from, b})
	if x.injected++; x.injected%64 == 0 {
		synctest.Wait() // the queue of what strangers say to the loop is bounded
	}
}

// unchanged runs an attack, and fails the test if the agent noticed it other than
// by counting.
func (x *mitm) unchanged(what string, attack func()) {
	x.t.Helper()
	synctest.Wait()
	before := x.agent.state(x.t)
	attack()
	synctest.Wait()
	if after := x.agent.state(x.t); after != before {
		x.t.Errorf("%s: %s changed:\n%s", what, x.agent.cfg.Name, difference(before, after))
	}
}

// tamper sends a datagram with each of its bits flipped, cut to each length and
// with something appended, from its true source and from a stranger.
// A relay's header is not authenticated, as the outer address is not; so what is
// still fresh is left alone there: with another channel it is the same frame by
// another way, once.
func (x *mitm) tamper(d wired, fresh bool) {
	name, relayed := fmt.Sprintf("%x", d.body[:1]), d.body[0] == relay.TypeFrame
	kind := fmt.Sprintf("%s/%x/%d/%v", name, d.tunnel()[:min(1, len(d.tunnel()))], len(d.body)/x.coarse(), fresh)
	if x.done[kind] == x.most() {
		return
	}
	x.done[kind]++
	x.unchanged("tampered "+kind, func() {
		for bit := range 8 * len(d.body) {
			at := bit / 8
			if relayed && fresh && at >= 1 && at < relayHeader || !hostile() && at > crypto.InitSize+relayHeader && bit%8 != at%8 {
				continue
			}
			b := bytes.Clone(d.body)
			b[at] ^= 1 << (bit % 8)
			from := d.from
			if bit%8 == 7 {
				from = stranger
			}
			x.inject(from, b)
		}
		for n := range d.body {
			x.inject(d.from, bytes.Clone(d.body[:n]))
		}
		x.inject(d.from, append(bytes.Clone(d.body), 0))
	})
}

// release tampers with what is held, and lets it pass.
func (x *mitm) release() {
	synctest.Wait()
	x.mu.Lock()
	held := x.held
	x.held = nil
	x.mu.Unlock()
	for _, d := range held {
		x.tamper(d, true)
		x.wire.inject(d)
		x.record = append(x.record, d)
	}
	synctest.Wait()
}

// replay sends all of the record again in an order, as it is.
func (x *mitm) replay(what string, order []int, from func(netip.AddrPort) netip.AddrPort) {
	x.unchanged("replayed "+what, func() {
		for _, i := range order {
			x.inject(from(x.record[i].from), bytes.Clone(x.record[i].body))
		}
	})
}

// TestHostileMiddle: a man in the middle holds every datagram of a session of
// several minutes, with its handshakes, its upgrade from relay to direct, its
// rekeys and the home server's messages: he tampers with each before he lets it
// pass, and afterwards replays all. What he made up is refused and changes nothing;
// what he held arrives once. Without PILOT_HOSTILE=1 the session is shorter, he
// tampers with one datagram of each kind and length, and of long ones flips one bit
// of a byte.
func TestHostileMiddle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		alice, atAlice := w.agentBehind("alice", natlab.Linux)
		bob, atBob := w.agentBehind("bob", natlab.Full)
		w.befriend(alice, bob, "7", "7")
		both := []*mitm{newMITM(t, alice, atAlice), newMITM(t, bob, atBob)}
		defer func() {
			for _, x := range both {
				x.wire.ask(nil)
			}
		}()
		seen := map[uint32]int{}
		rounds := uint32(125 * 2)
		if hostile() {
			rounds = 10 * 60 * 2
		}
		for i := range rounds {
			if i%4 == 0 {
				alice.send(bob, i, []int{64, 1300}[i/4%2])
				bob.send(alice, i, 64)
			}
			pass(500 * time.Millisecond)
			for _, x := range both {
				x.release()
				for x.agent.device.Waiting() > 0 {
					if n, err := x.agent.receive(time.Second); err == nil {
						seen[n]++
					}
				}
			}
		}
		for n, times := range seen {
			if times != 2 { // one each way
				t.Errorf("packet %d arrived %d times at the two of them", n, times)
			}
		}
		if len(seen) < int(rounds/4)-8 {
			t.Errorf("%d of %d packets arrived", len(seen), rounds/4)
		}
		for _, x := range both {
			x.afterwards()
		}
	})
}

// afterwards is what can be done with the record of a session.
func (x *mitm) afterwards() {
	t := x.t
	kinds := map[byte]int{}
	for _, d := range x.record {
		kinds[d.body[0]]++
		if d.body[0] == relay.TypeFrame {
			kinds[d.tunnel()[0]]++
		}
	}
	for _, kind := range []crypto.MessageType{crypto.TypeInit, crypto.TypeResp, crypto.TypeData} {
		if kinds[byte(kind)] == 0 {
			t.Errorf("%s was not sent a message of type %d: %v", x.agent.cfg.Name, kind, kinds)
		}
	}
	forward := make([]int, len(x.record))
	for i := range forward {
		forward[i] = i
	}
	backward := slices.Clone(forward)
	slices.Reverse(backward)
	r := rand.New(rand.NewPCG(7, 7))
	itself := func(a netip.AddrPort) netip.AddrPort { return a }
	x.replay("in order", forward, itself)
	x.replay("backwards", backward, itself)
	x.replay("shuffled", r.Perm(len(x.record)), itself)
	x.replay("by a stranger", forward, func(netip.AddrPort) netip.AddrPort { return stranger })
	x.replay("from the neighbour's port", forward, func(a netip.AddrPort) netip.AddrPort {
		return netip.AddrPortFrom(a.Addr(), a.Port()+1)
	})
	for _, d := range x.record {
		x.tamper(d, false)
	}
	t.Logf("%s: %d datagrams held (%v), %d made of them; drops %v", x.agent.cfg.Name, len(x.record), kinds, x.injected, x.agent.plane.drops.counts())
}
