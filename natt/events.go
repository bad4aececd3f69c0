package natt

// What an owner tells an agent about the peer, the paths and the network.

import (
	"slices"
	"time"
)

// Handshaken is Connected, with the time that the peer needed to answer the last message of the handshake: what its
// round trip is taken to be until it is measured.
func (a *Agent) Handshaken(now time.Time, p Path, took time.Duration) {
	a.at(now)
	if r := a.reached(p); r != nil && took > 0 {
		r.guess = took
	}
	a.Connected(now, p)
}

// Connected tells the agent that a handshake ran over a path: the peer is there.
func (a *Agent) Connected(now time.Time, p Path) {
	a.at(now)
	r := a.reached(p)
	if r == nil {
		return
	}
	first := !a.connected
	a.connected = true
	a.sign(0)
	a.traffic = a.now // somebody wanted this session
	r.validate(a.now)
	a.settle(r)
	a.inbound = r
	if r == a.use.route {
		a.watch.answered()
	}
	if !r.rtt.known() {
		a.challenge(r, 0)
	}
	a.rounds.told = false // the peer may have started anew and know nothing of us
	a.choose()
	if first {
		for _, o := range a.routes {
			if o != r && o.path.Relayed() {
				a.challenge(o, 0)
			}
		}
		a.burst(a.relayRTT(), func(r *route) bool { return r.listed })
	}
	if r != a.use.route {
		a.suspect()
	}
	if first || !a.direct() {
		a.rounds.start = true
	}
}

// Received tells the agent that an authenticated frame with user data came over a path. The owner reports at least
// the first frame over another path than the last one reported.
func (a *Agent) Received(now time.Time, p Path) {
	a.at(now)
	r := a.reached(p)
	if r == nil || !a.connected {
		return
	}
	a.sign(0)
	moved := a.inbound != r
	a.inbound = r
	switch {
	case r == a.use.route:
		a.watch.heard()
	case moved:
		a.suspect() // the peer prefers another path: does ours still work?
	}
	a.meet(r)
}

// Challenged tells the agent that a challenge of the peer came over a path, in an outer packet of size bytes. Only
// what came authenticated inside the session may be told.
func (a *Agent) Challenged(now time.Time, p Path, t Token, size int) {
	a.at(now)
	if !a.connected || !a.acceptable(p) {
		return
	}
	a.sign(0)
	if len(a.responses) < maxResponses {
		a.responses = append(a.responses, Action{Kind: ActResponse, Path: p, Token: t})
	}
	a.met(p)
	if r := a.reached(p); r != nil {
		if r != a.use.route {
			a.suspect() // perhaps the peer asks here because ours is dead
		}
		if !p.Relayed() {
			a.rounds.heardPeer = true
		}
		a.meet(r)
	}
}

// meet challenges a route that the peer sends over and that we may not use yet.
func (a *Agent) meet(r *route) {
	switch {
	case r.validated && (r.path.Relayed() || a.now.Sub(r.confirmed) < freshFor):
	case r.path.Relayed():
		if a.now.Sub(r.asked) >= r.rtt.timeout() {
			a.challenge(r, 0)
		}
	case !r.probes.running():
		r.probes.begin(a.now, 0)
	case a.now.Sub(r.asked) >= burstTimes[1]:
		a.challenge(r, 0) // a triggered check: the peer's NAT is open for us now
	}
}

// Responded tells the agent that the answer to a challenge came over a path.
func (a *Agent) Responded(now time.Time, p Path, t Token) {
	a.at(now)
	r := a.find(p)
	if r == nil {
		return // to a probe, at most: the path is challenged when the peer is heard over it
	}
	c, ok := r.answer(a.now, t)
	if !ok {
		return
	}
	a.sign(0)
	a.settle(r)
	r.budget.answered(c)
	if r == a.use.route {
		a.watch.answered()
	}
	a.choose()
}

// Active tells the agent whether user data was sent to the peer and received from it since the last call. The owner
// calls it every 100 ms (ActiveEvery) while there is any. Control items (challenges, candidates, keepalives) are no user data:
// otherwise two idle agents would keep each other awake.
func (a *Agent) Active(now time.Time, sent, received bool) {
	a.at(now)
	since := a.told
	a.told = a.now
	if !sent && !received || !a.connected {
		return
	}
	if a.now.Sub(since) > ActiveEvery+ActiveEvery/2 {
		since = a.now
	}
	slept := a.asleep()
	if received || !a.flowing() {
		a.sign(ActiveEvery)
	}
	a.traffic = a.now
	a.flowed()
	heard := received && a.inbound == a.use.route
	if heard {
		a.watch.heard()
	} else if sent && a.watch.waiting.IsZero() {
		a.watch.waiting = since
	}
	if slept {
		a.wake()
	}
}

// TooBig tells the agent that the system refused to send an outer packet of this size over a path.
func (a *Agent) TooBig(now time.Time, p Path, size int) {
	a.at(now)
	if r := a.find(p); r != nil {
		r.budget.refused(a.now, size)
	}
}

// Relays tells the agent all relay paths over which the peer can be reached at present. A path that is not in the list
// any more is not used any more.
func (a *Agent) Relays(now time.Time, paths []Path) {
	a.at(now)
	kept := 0
	for _, p := range paths {
		if !p.Relayed() || kept == maxRelays {
			continue
		}
		kept++
		if r := a.find(p); r == nil {
			a.routes = append(a.routes, newRoute(p, a.now))
			if a.connected {
				a.challenge(a.routes[len(a.routes)-1], 0)
			}
		}
	}
	gone := func(r *route) bool { return r.path.Relayed() && !slices.Contains(paths, r.path) }
	if r := a.use.route; r != nil && gone(r) && r.validated {
		r.validated = false
		a.choose()
	}
	a.forget(gone)
	if r := a.use.route; r != nil && !r.validated && !a.asleep() {
		a.wake() // hold on to it until another one answers
	}
}

// NetworkChanged tells the agent that our own network changed: other interfaces, addresses or routes. All that was
// measured is in doubt. If the peer is idle this is looked into when there is traffic again.
func (a *Agent) NetworkChanged(now time.Time) {
	a.at(now)
	a.refill()
	switch {
	case !a.connected:
	case a.asleep():
		a.changed = true // a peer that nobody talks to can wait
	default:
		a.recheck()
	}
}

// recheck forgets what was measured and measures it anew.
func (a *Agent) recheck() {
	a.changed = false
	a.refill()
	a.accounts = nil
	a.renewAttested()
	a.rounds.told = false
	a.rounds.next = 0
	a.rounds.start = true
	for _, r := range a.routes {
		r.spent = tally{}
		r.hold = time.Time{}
		r.budget = newBudget(r.budget.link)
		if r.path.Relayed() || !r.listed {
			a.challenge(r, 0)
		}
	}
	a.burst(a.relayRTT(), func(r *route) bool { return r.listed })
	if r := a.use.route; r != nil {
		a.watch = watch{phase: doubt, next: a.now}
		a.use.climb(a.now)
	}
}
