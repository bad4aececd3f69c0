package natt

import (
	"encoding/binary"
	"io"
	"net/netip"
	"slices"
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
// Two hard NATs meet only if both count. Each side opens 64 sockets, asks a server which port its NAT gave out last,
// and tells the other. Then all sockets of a side send to one and the same port: the one that the other's NAT gives to the
// 25th flow after that. Whatever else opens flows meanwhile, up to 24 on each side, one of our sockets has the port
// at which the other side aims, and has opened it for the port at which we aim.
//
// A run starts when user data has taken a relay for 200 ms; one at a time for all agents of a Gate, three for a peer in
// ten minutes, unless our network changes. Where plain bursts should do (the other side does not filter, or a router has mapped
// a port for the hard side) it starts only when they have not, after 3 s.
//
// What a peer says about its address is not believed: all of this goes to the one from which a server saw it
// (Attested), and which has thereby asked for it. A hostile peer gets us to send three times 2,048 small challenges in ten
// minutes to itself, and never faster. Without a server that attests there are no runs.
const (
	// PoolSockets is how many sockets a run opens.
	PoolSockets = 256
	// CountSockets is how many it opens where both NATs count.
	CountSockets = 64

	aimAt     = 24                     // flows that may come in between
	aimRounds = 3                      // of challenges, after those of openers
	aimPause  = 100 * time.Millisecond // between them
	aimWait   = time.Second            // for what comes of the last

	runAfter   = 200 * time.Millisecond
	runLast    = 3 * time.Second // if bursts should do
	runsKept   = 3
	runsIn     = 10 * time.Minute
	runPause   = 15 * time.Second
	runAgain   = 2 * time.Second
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
	runCount            // both count: sockets are open, and both wait for the other's count
	runAim              // the sockets send
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
	aimed     int            // rounds of runAim
	alone     bool           // the pool is one fresh socket
	dead      netip.AddrPort // where the path led that died; zero: none did, or a fresh socket was tried
	diedAt    time.Time
	fresh     tally
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
	return a.connected && !a.direct() && a.shunned() == nil && !o.relayed.IsZero() && a.flowing() && a.now.Sub(o.relayed) >= after
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
	pause := runTime + runPause
	if a.runs.fails == 0 {
		pause = runAgain // the last one found a path, which died
	}
	if n == runsKept || n > 0 && a.now.Sub(last) < pause {
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
	if !o.alone {
		o.fails++
	}
	if a.direct() {
		o.fails = 0
	}
	o.alone = false
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
	a.runs.began, a.runs.fails, a.runs.relayed, a.runs.fresh = [runsKept]time.Time{}, 0, time.Time{}, tally{}
}

// run does what is due for runs.
func (a *Agent) run() {
	o := &a.runs
	if o.phase == runIdle {
		a.startFresh()
	}
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
	case runCount:
		o.next = time.Time{}
		a.sendList()
	case runAim:
		a.aim()
	}
}

// counting reports whether a hard NAT counts.
func (t Traits) counting() bool { return t.Mapping == AddressAndPortDependent && t.Step != 0 }

// searchable reports whether a run could bring the two sides together.
func (a *Agent) searchable() bool {
	if a.theirs == (Traits{}) || a.theirs.Blocked || a.traits.Blocked {
		return false
	}
	return a.traits.Hard() != a.theirs.Hard() || a.traits.counting() && a.theirs.counting()
}

// bursting reports whether plain bursts should do: the hard side is let in anywhere, or has a port that a router mapped.
func (a *Agent) bursting() bool {
	mapped := func(list []Candidate) bool {
		return slices.ContainsFunc(list, func(c Candidate) bool { return c.Kind == Mapped })
	}
	if a.traits.Hard() && (a.theirs.open() || mapped(a.local)) {
		return true
	}
	return a.theirs.Hard() && (a.traits.open() || mapped(UsableCandidates(a.remote, a.links, a.cfg.Exclude)))
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
	if a.bursting() {
		wait = runLast
	}
	if !a.ripe(wait) || !a.searchable() {
		return
	}
	switch {
	case a.traits.Hard() && a.theirs.Hard():
		a.beginRun(runOpening)
		o.target, o.until, o.next = target, a.now.Add(poolWait), time.Time{}
		a.actions = append(a.actions, Action{
			Kind: ActPool, Path: Path{Remote: netip.AddrPortFrom(target.Addr(), 0)}, Pool: Pool{Sockets: CountSockets}, Count: true,
		})
	case a.traits.Hard():
		a.beginRun(runOpening)
		o.target, o.until, o.next = target, a.now.Add(poolWait), time.Time{}
		a.actions = append(a.actions, Action{Kind: ActPool, Path: Path{Remote: target}, Pool: Pool{Sockets: PoolSockets}, Count: a.traits.Step != 0})
	case o.offered.Sockets > 0 && a.now.Sub(o.offeredAt) < poolWait:
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
	both := a.theirs.Hard()
	if p.Sockets == 0 || (both || o.alone) && p.Base == 0 {
		a.endRun()
		return
	}
	if o.alone {
		o.phase, o.pool = runAim, p
		o.aimed, o.next = len(openerTTL), a.now.Add(a.relayRTT()/2+goMargin)
		o.until = o.next.Add(aimRounds*aimPause + aimWait)
		a.sendList()
		return
	}
	if both {
		o.phase, o.pool = runCount, p
		o.until, o.next = a.now.Add(poolWait), a.now.Add(runRepeat)
		a.sendList()
		a.takeAim()
		return
	}
	o.phase, o.pool = runOpen, p
	o.until, o.next = a.now.Add(runTime+a.relayRTT()), a.now.Add(runRepeat+a.relayRTT())
	a.sendList()
}

// takeAim begins to send when both counts are known.
func (a *Agent) takeAim() {
	o := &a.runs
	if o.phase != runCount || o.offered.Base == 0 || a.now.Sub(o.offeredAt) >= poolWait {
		return
	}
	port := int(o.offered.Base) + (aimAt+1)*int(a.theirs.Step)
	if port < 1024 || port >= 1<<16 {
		return // the count goes round in between; another time
	}
	o.phase, o.aimed, o.next = runAim, 0, a.now
	o.target = netip.AddrPortFrom(o.target.Addr(), uint16(port))
	o.until = a.now.Add(a.relayRTT() + aimRounds*aimPause + aimWait)
}

// aim has all sockets send, openers first.
func (a *Agent) aim() {
	o := &a.runs
	ttl, pause := 0, aimPause
	switch n := o.aimed - len(openerTTL); {
	case n < 0:
		ttl, pause = openerTTL[o.aimed], openerPause
		if n == -1 {
			pause = a.relayRTT()/2 + goMargin
		}
	case n == aimRounds-1:
		pause = time.Hour
	}
	o.aimed++
	if o.next = a.now.Add(pause); o.next.After(o.until) {
		o.next = time.Time{}
	}
	a.actions = append(a.actions, Action{Kind: ActAim, Path: Path{Remote: o.target}, TTL: ttl})
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
	if o.phase == runSearch && p.Remote.Addr() == o.target.Addr() || o.phase != runSearch && p.Socket != 0 {
		o.hit = a.now
	}
}

// poolOffered takes what the peer says about its pool.
func (a *Agent) poolOffered(p Pool) {
	if p.Sockets > 0 {
		a.runs.offered, a.runs.offeredAt = p, a.now
		a.takeAim()
		a.freshPort(p)
	}
}

// runAt is when a run has something to do; zero for never.
func (a *Agent) runAt() time.Time {
	o := &a.runs
	if o.phase == runIdle {
		return a.freshAt() // what starts another run is user data
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
func (a *Agent) Searching() bool { return a.runs.phase != runIdle && a.runs.phase != runSearch }

// Uses reports whether a path that starts at a socket is used or may be.
func (a *Agent) Uses(socket uint16) bool {
	for _, r := range a.routes {
		if r.path.Socket == socket && (r.validated || a.use.holds(r)) {
			return true
		}
	}
	return false
}
