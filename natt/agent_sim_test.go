package natt

import (
	"container/heap"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"
)

// The simulation: two agents with owners as simple as can be, joined by relays and by a direct link between two NATs,
// in virtual time. Nothing runs concurrently; a run is a function of its seed.

var epoch = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

// natKind says how a router maps and filters.
type natKind int

const (
	natNone natKind = iota // public address, everything passes
	natWall                // public address, only answers pass
	natFull                // mapped, everything passes
	natAddr                // mapped, answers from the same address pass
	natPort                // mapped, answers from the same address and port pass
	natSym                 // mapped anew for each destination
)

func (k natKind) String() string {
	return [...]string{"none", "fw", "full", "addr", "port", "sym"}[k]
}

// router is the NAT of one node.
type router struct {
	kind    natKind
	public  netip.Addr
	port    uint16 // of the endpoint-independent mapping
	next    uint16
	forget  time.Duration // of a flow without traffic out; 0: never
	sym     map[netip.AddrPort]uint16
	flows   map[netip.AddrPort]time.Time // destinations that we sent to
	private netip.AddrPort
}

func newRouter(kind natKind, public string, private string) *router {
	r := &router{kind: kind, public: netip.MustParseAddr(public), private: netip.MustParseAddrPort(private), next: 50000}
	r.flush()
	r.port = r.private.Port()
	return r
}

// flush forgets all flows, as a router does that reboots.
func (r *router) flush() {
	r.sym, r.flows = map[netip.AddrPort]uint16{}, map[netip.AddrPort]time.Time{}
	r.next += 7
	r.port = r.next
	if r.kind == natNone || r.kind == natWall {
		r.port = r.private.Port()
	}
}

func (r *router) out(now time.Time, dst netip.AddrPort) netip.AddrPort {
	if r.stale(now, dst) && r.kind == natSym {
		delete(r.sym, dst)
	}
	r.flows[dst] = now
	port := r.port
	if r.kind == natSym {
		if r.sym[dst] == 0 {
			r.next += 13
			r.sym[dst] = r.next
		}
		port = r.sym[dst]
	}
	return netip.AddrPortFrom(r.public, port)
}

func (r *router) stale(now time.Time, dst netip.AddrPort) bool {
	t, ok := r.flows[dst]
	return !ok || r.forget > 0 && now.Sub(t) > r.forget
}

func (r *router) in(now time.Time, dst, src netip.AddrPort) bool {
	if dst.Addr() != r.public {
		return false
	}
	switch r.kind {
	case natNone:
		return dst.Port() == r.port
	case natFull:
		return dst.Port() == r.port && len(r.flows) > 0
	case natAddr:
		for f := range r.flows {
			if f.Addr() == src.Addr() && !r.stale(now, f) {
				return dst.Port() == r.port
			}
		}
		return false
	case natSym:
		return r.sym[src] == dst.Port() && !r.stale(now, src)
	}
	return dst.Port() == r.port && !r.stale(now, src)
}

type packetKind int

const (
	pktData packetKind = iota
	pktChallenge
	pktResponse
	pktCandidates
)

type packet struct {
	kind  packetKind
	size  int
	seq   int
	token Token
	offer Offer
}

type event struct {
	at  time.Time
	seq int
	run func()
}

type events []event

func (h events) Len() int { return len(h) }
func (h events) Less(i, j int) bool {
	return h[i].at.Before(h[j].at) || h[i].at.Equal(h[j].at) && h[i].seq < h[j].seq
}
func (h events) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *events) Push(x any)   { *h = append(*h, x.(event)) }
func (h *events) Pop() (x any) {
	old := *h
	*h, x = old[:len(old)-1], old[len(old)-1]
	return x
}

// link is what lies between the nodes; one for each relay and one for direct packets.
type link struct {
	delay time.Duration
	loss  float64
	mtu   int
	cut   [2]bool // by sender
}

type world struct {
	t      testing.TB
	now    time.Time
	events events
	count  int
	rnd    *rand.Rand
	nodes  [2]*node
	direct link
	relays []*link
	sent   map[netip.AddrPort]int // direct packets by destination as sent
}

// randReader makes tokens from the run's seed.
type randReader struct{ r *rand.Rand }

func (r randReader) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = byte(r.r.Uint32())
	}
	return len(b), nil
}

var _ io.Reader = randReader{}

func newWorld(t testing.TB, seed uint64, a, b natKind) *world {
	w := &world{
		t: t, now: epoch, rnd: rand.New(rand.NewPCG(seed, 1)),
		direct: link{delay: 15 * time.Millisecond, mtu: 1500},
		relays: []*link{{delay: 20 * time.Millisecond, mtu: 1500}},
		sent:   map[netip.AddrPort]int{},
	}
	w.nodes[0] = newNode(w, 0, newRouter(a, "203.0.113.2", "10.1.0.2:4242"))
	w.nodes[1] = newNode(w, 1, newRouter(b, "198.51.100.2", "10.2.0.2:4242"))
	return w
}

func (w *world) after(d time.Duration, run func()) {
	w.count++
	heap.Push(&w.events, event{w.now.Add(d), w.count, run})
}

// run lets time pass.
func (w *world) run(d time.Duration) {
	end := w.now.Add(d)
	for len(w.events) > 0 && !w.events[0].at.After(end) {
		e := heap.Pop(&w.events).(event)
		w.now = e.at
		e.run()
	}
	w.now = end
}

// until lets time pass until a condition holds, at most d, and returns how long it took.
func (w *world) until(what string, d time.Duration, cond func() bool) time.Duration {
	w.t.Helper()
	start := w.now
	for w.now.Sub(start) < d {
		if cond() {
			return w.now.Sub(start)
		}
		w.run(time.Millisecond)
	}
	if !cond() {
		w.t.Fatalf("%s: not within %v", what, d)
	}
	return d
}

func relayAddr(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}), 3478)
}

// node is a host with the owner of an agent.
type node struct {
	w      *world
	id     int
	agent  *Agent
	nat    *router
	inited bool

	use     Action
	lost    int
	changes []Action // all ActUse
	actions map[ActionKind]int
	padded  int
	watch   func(Action) // sees every challenge, if set
	timer   time.Time

	lastIn               Path
	sentData, gotData    bool
	seq                  int
	seen                 map[int]bool
	delivered, duplicate int
	reordered, high      int
	lastAt               time.Time
	gap                  time.Duration // longest between two deliveries
}

func newNode(w *world, id int, nat *router) *node {
	n := &node{w: w, id: id, nat: nat, seen: map[int]bool{}, actions: map[ActionKind]int{}}
	n.agent = NewAgent(AgentConfig{Controlling: id == 0, Rand: randReader{w.rnd}})
	return n
}

func (n *node) peer() *node { return n.w.nodes[1-n.id] }

func (n *node) relay(i int) Path { return Path{Remote: relayAddr(i), Channel: uint64(10*i + n.id + 1)} }

// candidates are what the host finds on its interface and what a server sees.
func (n *node) candidates() []Candidate {
	list := []Candidate{{Host, n.nat.private}}
	if n.nat.kind == natNone || n.nat.kind == natWall {
		return []Candidate{{Host, netip.AddrPortFrom(n.nat.public, n.nat.port)}}
	}
	return append(list, Candidate{Observed, n.nat.out(n.w.now, relayAddr(0))})
}

func (n *node) refresh() {
	n.agent.SetLocal(n.w.now, n.candidates())
	n.agent.Links(n.w.now, []netip.Prefix{netip.PrefixFrom(n.nat.private.Addr(), 24)})
}

// connect is the first handshake: by relay 0.
func (w *world) connect() {
	for _, n := range w.nodes {
		n.refresh()
		var paths []Path
		for i := range w.relays {
			paths = append(paths, n.relay(i))
		}
		n.agent.Relays(w.now, paths)
		n.step()
	}
	w.nodes[0].init(w.nodes[0].relay(0))
}

func (n *node) init(p Path) {
	if !n.inited {
		n.inited = true
		n.agent.Connected(n.w.now, p)
		n.step()
		n.tick()
	}
}

// tick reports what happened to user data, as an owner does.
func (n *node) tick() {
	if n.sentData || n.gotData {
		n.agent.Active(n.w.now, n.sentData, n.gotData)
		n.sentData, n.gotData = false, false
		n.step()
	}
	n.w.after(100*time.Millisecond, n.tick)
}

// step does what the agent asks for and sets the timer.
func (n *node) step() {
	for _, act := range n.agent.Advance(n.w.now) {
		n.actions[act.Kind]++
		switch act.Kind {
		case ActChallenge:
			if act.Size > 0 {
				n.padded++
			}
			if n.watch != nil {
				n.watch(act)
			}
			n.send(act.Path, packet{kind: pktChallenge, token: act.Token, size: max(act.Size, 80)})
		case ActResponse:
			n.send(act.Path, packet{kind: pktResponse, token: act.Token, size: 80})
		case ActCandidates:
			n.data(packet{kind: pktCandidates, offer: Offer{act.Candidates, act.Traits, act.Pool}, size: 200})
		case ActPunch:
			n.nat.out(n.w.now, act.Path.Remote) // and no further
		case ActUse:
			n.use = act
			n.changes = append(n.changes, act)
		case ActLost:
			n.lost++
		}
	}
	next := n.agent.Next()
	if !next.IsZero() && !next.After(n.w.now) {
		n.w.t.Fatalf("Advance left work for %v, it is %v", next, n.w.now)
	}
	if !next.IsZero() && !next.Equal(n.timer) {
		n.timer = next
		n.w.after(next.Sub(n.w.now), func() {
			if n.timer.Equal(next) {
				n.timer = time.Time{}
				n.step()
			}
		})
	}
}

// data sends something the way data goes.
func (n *node) data(p packet) {
	if n.use.Kind != ActUse {
		return
	}
	n.send(n.use.Path, p)
	if n.use.Also != (Path{}) {
		n.send(n.use.Also, p)
	}
}

// stream sends a numbered packet of user data every interval.
func (n *node) stream(interval time.Duration, count int, size func() int) {
	if count == 0 {
		return
	}
	n.seq++
	n.sentData = true
	n.data(packet{kind: pktData, seq: n.seq, size: size()})
	n.w.after(interval, func() { n.stream(interval, count-1, size) })
}

func small() int { return 200 }

// full is the size of a packet that fills the budget.
func (n *node) full() int { return n.use.Budget }

func (n *node) send(p Path, pkt packet) {
	w := n.w
	if p.Relayed() {
		for i, l := range w.relays {
			if n.relay(i) == p && l.passes(w, n, pkt) {
				other := n.peer()
				w.after(l.delay, func() { other.receive(other.relay(i), pkt) })
			}
		}
		return
	}
	w.sent[p.Remote]++
	src := n.nat.out(w.now, p.Remote)
	if !w.direct.passes(w, n, pkt) {
		return
	}
	w.after(w.direct.delay, func() {
		if other := n.peer(); other.nat.in(w.now, p.Remote, src) {
			other.receive(Path{Remote: src}, pkt)
		}
	})
}

func (l *link) passes(w *world, n *node, pkt packet) bool {
	return !l.cut[n.id] && pkt.size <= l.mtu && w.rnd.Float64() >= l.loss
}

func (n *node) receive(p Path, pkt packet) {
	now := n.w.now
	n.init(p)
	switch pkt.kind {
	case pktChallenge:
		n.agent.Challenged(now, p, pkt.token, pkt.size)
	case pktResponse:
		n.agent.Responded(now, p, pkt.token)
	case pktCandidates:
		offer, err := ParseOffer(AppendOffer(nil, pkt.offer))
		if err != nil {
			n.w.t.Fatal(err)
		}
		n.agent.SetOffer(now, offer)
	case pktData:
		if n.seen[pkt.seq] {
			n.duplicate++ // the replay window drops it
			return
		}
		n.deliver(pkt.seq)
		if p == n.lastIn {
			return // nothing to tell the agent
		}
		n.lastIn = p
		n.agent.Received(now, p)
	}
	n.step()
}

func (n *node) deliver(seq int) {
	now := n.w.now
	n.seen[seq] = true
	n.gotData = true
	n.delivered++
	if seq < n.high {
		n.reordered++
	}
	n.high = max(n.high, seq)
	if !n.lastAt.IsZero() {
		n.gap = max(n.gap, now.Sub(n.lastAt))
	}
	n.lastAt = now
}

func (n *node) direct() bool {
	p, ok := n.agent.Best()
	return ok && !p.Relayed()
}

func (w *world) bothDirect() bool { return w.nodes[0].direct() && w.nodes[1].direct() }

// streams starts numbered packets in both directions.
func (w *world) streams(interval time.Duration, count int) {
	for _, n := range w.nodes {
		n.stream(interval, count, small)
	}
}

// resetGaps starts the measurement of gaps anew.
func (w *world) resetGaps() {
	for _, n := range w.nodes {
		n.gap, n.lastAt = 0, w.now
	}
}

func (w *world) noLoss() {
	w.t.Helper()
	for _, n := range w.nodes {
		if n.peer().seq != n.delivered {
			w.t.Errorf("node %d got %d of %d packets", n.id, n.delivered, n.peer().seq)
		}
	}
}

func (w *world) String() string {
	s := ""
	for _, n := range w.nodes {
		st := n.agent.Status()
		s += fmt.Sprintf("node %d: %v also %v rtt %v budget %d lost %v why %q\n", n.id, st.Path, st.Also, st.RTT, st.Budget, st.Lost, st.WhyNotDirect)
		for _, p := range st.Paths {
			s += fmt.Sprintf("   %v validated %v listed %v rtt %v unanswered %d\n", p.Path, p.Validated, p.Listed, p.RTT, p.Unanswered)
		}
	}
	return s
}
