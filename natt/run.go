package natt

import (
	"encoding/binary"
	"io"
	"net/netip"
	"time"
)

// Runs: how a peer behind a hard NAT is met.
//
// A hard NAT gives every flow a port of its own, so a peer that filters does not know which port to let in, and the port
// that a server saw is of no use. If one side is hard and the other keeps its port, the hard side opens many ports at
// once: up to 256 sockets, each of which sends openers (they open our NATs and die before the peer's) to the address from
// which a server saw the peer. It then tells the peer, in its offer, and the peer sends challenges to ports of the hard
// side's public address, at most 400 in a second and 2,048 in all: first those that a counting NAT must have given out,
// then random ones. The first that meets an open port arrives at one of the sockets; the hard side answers and challenges
// from there, and from then on it is a path like any other. Of 64,512 ports 256 are open: 1,024 probes meet one with 98 %,
// 2,048 with 99.97 %.
//
// A run starts when user data has taken a relay for 200 ms; one at a time for all agents of a Gate, three for a peer in
// ten minutes, unless our network changes. Where plain bursts should do (the other side does not filter) it starts only
// when they have not, after 3 s. Two hard NATs do not meet.
//
// What a peer says is believed only so far: a hostile one gets us to send three times 2,048 small challenges in ten
// minutes to one public IPv4 address that it calls its own, and never faster.
const (
	// PoolSockets is how many sockets a run opens.
	PoolSockets = 256

	runAfter   = 200 * time.Millisecond
	runLast    = 3 * time.Second // if bursts should do
	runsKept   = 3
	runsIn     = 10 * time.Minute
	runPause   = 15 * time.Second
	runGrace   = 500 * time.Millisecond
	runRepeat  = 250 * time.Millisecond
	poolWait   = 2 * time.Second
	probeEvery = 10 * time.Millisecond
	probeBatch = 4 // 400 in a second
	maxProbes  = 2048
	runTime    = maxProbes/probeBatch*probeEvery + time.Second
	hitWait    = time.Second
	window     = 256 // ports tried in the order of a counting NAT
)

// A Gate lets one run at a time go on, of all agents that share it.
type Gate struct{ holder *Agent }

type runPhase uint8

const (
	runIdle    runPhase = iota
	runOpening          // we are hard: sockets are being opened
	runOpen             // and the peer searches
	runSearch           // the peer is hard: we search
)

// runs is what an Agent knows about its runs.
type runs struct {
	phase   runPhase
	began   [runsKept]time.Time // ring of those in the last ten minutes
	count   int
	fails   int       // in a row
	relayed time.Time // since when user data takes a relay; zero: it does not
	latest  time.Time // user data before that of now
	until   time.Time
	next    time.Time // the next probes, or the repeated offer
	target  netip.AddrPort
	pool    Pool // ours
	hit     time.Time

	offered   Pool // the peer's
	offeredAt time.Time
	tried     map[uint16]struct{}
	counted   int
}

// flowed notes user data.
func (a *Agent) flowed() {
	o := &a.runs
	if a.direct() {
		o.relayed = time.Time{}
		return
	}
	if o.relayed.IsZero() || a.now.Sub(o.latest) > 2*time.Second {
		o.relayed = a.now
	}
	o.latest = a.now
}

// ripe reports whether user data has taken a relay for long enough.
func (a *Agent) ripe(after time.Duration) bool {
	o := &a.runs
	return a.connected && !a.direct() && !o.relayed.IsZero() && a.flowing() && a.now.Sub(o.relayed) >= after
}

// spentRuns is how many runs there were in the last ten minutes.
func (a *Agent) spentRuns() (n int, last time.Time) {
	for _, t := range a.runs.began {
		if !t.IsZero() && a.now.Sub(t) < runsIn {
			n++
		}
		if t.After(last) {
			last = t
		}
	}
	return n, last
}

// mayRun reports whether the budget has room for a run now.
func (a *Agent) mayRun() bool {
	n, last := a.spentRuns()
	if n == runsKept || n > 0 && a.now.Sub(last) < runTime+runPause {
		return false
	}
	return a.cfg.Gate.holder == nil
}

func (a *Agent) beginRun(p runPhase) {
	o := &a.runs
	a.cfg.Gate.holder = a
	o.phase, o.hit = p, time.Time{}
	o.began[o.count%runsKept] = a.now
	o.count++
}

// endRun is called on every way out of a run.
func (a *Agent) endRun() {
	o := &a.runs
	if o.phase == runIdle {
		return
	}
	if o.phase != runSearch {
		a.forget(func(r *route) bool {
			return r.path.Socket != 0 && !r.path.Relayed() && !a.use.holds(r) && r != a.inbound
		})
		a.actions = append(a.actions, Action{Kind: ActPoolEnd})
	}
	o.fails++
	if a.direct() {
		o.fails = 0
	}
	o.phase, o.tried, o.pool, o.offered = runIdle, nil, Pool{}, Pool{}
	a.cfg.Gate.holder = nil
}

// Close ends what the agent has under way. The owner calls it, and then Advance, before it forgets the agent.
func (a *Agent) Close(now time.Time) {
	a.at(now)
	a.endRun()
}

// refill gives a new budget to runs because our network is another one.
func (a *Agent) refill() {
	a.endRun()
	a.runs.began, a.runs.fails, a.runs.relayed = [runsKept]time.Time{}, 0, time.Time{}
}

// peerSeen is the address from which a server saw the peer, a public IPv4 one.
func (a *Agent) peerSeen() (netip.AddrPort, bool) {
	var host netip.AddrPort
	for _, c := range UsableCandidates(a.remote, a.links, a.cfg.Exclude) {
		switch {
		case !c.Addr.Addr().Is4() || c.Addr.Addr().IsPrivate():
		case c.Kind == Observed:
			return c.Addr, true
		case c.Kind == Host && !host.IsValid():
			host = c.Addr // seen as it is
		}
	}
	return host, host.IsValid() && !a.theirs.Hard()
}

// run does what is due for runs.
func (a *Agent) run() {
	o := &a.runs
	if o.phase == runIdle {
		a.startRun()
		return
	}
	if a.direct() && o.hit.IsZero() {
		o.hit = a.now
	}
	if !a.connected || !a.now.Before(o.until) || a.direct() && (o.phase == runSearch || a.now.Sub(o.hit) >= runGrace) {
		a.endRun()
		return
	}
	if o.next.IsZero() || o.next.After(a.now) {
		return
	}
	switch o.phase {
	case runOpen:
		o.next = time.Time{}
		if o.hit.IsZero() {
			a.sendList()
		}
	case runSearch:
		a.search()
	}
}

func (a *Agent) startRun() {
	o := &a.runs
	if !a.mayRun() {
		return
	}
	target, known := a.peerSeen()
	if !known {
		return
	}
	wait := runAfter
	if a.traits.Hard() && a.theirs.open() || a.theirs.Hard() && a.traits.open() {
		wait = runLast
	}
	if !a.ripe(wait) {
		return
	}
	switch {
	case a.traits.Hard() && !a.theirs.Hard() && a.theirs != Traits{}:
		a.beginRun(runOpening)
		o.target, o.until, o.next = target, a.now.Add(poolWait), time.Time{}
		a.actions = append(a.actions, Action{Kind: ActPool, Path: Path{Remote: target}, Pool: Pool{Sockets: PoolSockets}})
	case a.theirs.Hard() && !a.traits.Hard() && o.offered.Sockets > 0 && a.now.Sub(o.offeredAt) < poolWait:
		a.beginRun(runSearch)
		o.target, o.until, o.next = target, a.now.Add(runTime), a.now
		o.tried, o.counted = make(map[uint16]struct{}, maxProbes), 0
		a.search()
	}
}

// Pooled tells the agent that sockets have opened ports towards the peer, and what port the NAT gave out right before, if
// it counts.
func (a *Agent) Pooled(now time.Time, p Pool) {
	a.at(now)
	o := &a.runs
	if o.phase != runOpening {
		return
	}
	if p.Sockets == 0 {
		a.endRun()
		return
	}
	o.phase, o.pool = runOpen, p
	o.until, o.next = a.now.Add(runTime+a.relayRTT()), a.now.Add(runRepeat+a.relayRTT())
	a.sendList()
}

// search sends the next probes.
func (a *Agent) search() {
	o := &a.runs
	o.next = a.now.Add(probeEvery)
	if !o.hit.IsZero() {
		if a.now.Sub(o.hit) < hitWait {
			return // the path is being tested
		}
		o.hit = time.Time{}
	}
	for range probeBatch {
		port, ok := a.guess()
		if !ok || len(a.actions) >= maxActions {
			return
		}
		var t Token
		if _, err := io.ReadFull(a.cfg.Rand, t[:]); err != nil {
			return
		}
		a.actions = append(a.actions, Action{Kind: ActProbe, Path: Path{Remote: netip.AddrPortFrom(o.target.Addr(), port)}, Token: t})
	}
}

// guess is the next port to try.
func (a *Agent) guess() (uint16, bool) {
	o := &a.runs
	for o.offered.Base != 0 && a.theirs.Step != 0 && o.counted < window {
		o.counted++
		p := int(o.offered.Base) + o.counted*int(a.theirs.Step)
		if p > 0 && p < 1<<16 && a.try(uint16(p)) {
			return uint16(p), true
		}
	}
	for len(o.tried) < maxProbes {
		var b [2]byte
		if _, err := io.ReadFull(a.cfg.Rand, b[:]); err != nil {
			return 0, false
		}
		if p := binary.BigEndian.Uint16(b[:]); p >= 1024 && a.try(p) {
			return p, true
		}
	}
	return 0, false
}

// try reports whether a port has not been tried in this run, and notes that it has.
func (a *Agent) try(p uint16) bool {
	if _, done := a.runs.tried[p]; done || len(a.runs.tried) >= maxProbes {
		return false
	}
	a.runs.tried[p] = struct{}{}
	return true
}

// met notes that the peer was heard over a direct path.
func (a *Agent) met(p Path) {
	o := &a.runs
	if p.Relayed() || !o.hit.IsZero() {
		return
	}
	if o.phase == runSearch && p.Remote.Addr() == o.target.Addr() || o.phase == runOpen && p.Socket != 0 {
		o.hit = a.now
	}
}

// poolOffered takes what the peer says about its pool.
func (a *Agent) poolOffered(p Pool) {
	if p.Sockets > 0 {
		a.runs.offered, a.runs.offeredAt = p, a.now
	}
}

// runAt is when a run has something to do; zero for never.
func (a *Agent) runAt() time.Time {
	o := &a.runs
	if o.phase == runIdle {
		return time.Time{} // what starts a run is user data
	}
	t := o.until
	if !o.next.IsZero() && o.next.Before(t) {
		t = o.next
	}
	if a.direct() && !o.hit.IsZero() && o.hit.Add(runGrace).Before(t) {
		t = o.hit.Add(runGrace)
	}
	return t
}

// Searching reports whether a run is under way that has sockets of a pool.
func (a *Agent) Searching() bool { return a.runs.phase == runOpening || a.runs.phase == runOpen }

// Uses reports whether a path that starts at a socket is used or may be.
func (a *Agent) Uses(socket uint16) bool {
	for _, r := range a.routes {
		if r.path.Socket == socket && (r.validated || a.use.holds(r)) {
			return true
		}
	}
	return false
}
