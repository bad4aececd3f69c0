package natt

import "time"

const (
	overlapMin   = 20 * time.Millisecond
	overlapMax   = 500 * time.Millisecond
	dwell        = 2 * time.Second  // between two changes for a better round trip
	refreshFlow  = 5 * time.Second  // challenge of the path in use while data flows
	keepalive    = 20 * time.Second // and afterwards, if it is direct
	refreshOther = 20 * time.Second // challenge of the other good paths while data flows
	refreshRetry = time.Second      // if the last one was not answered
	spares       = 3                // direct paths kept besides the one in use
)

// usage is what the data path was told to use.
type usage struct {
	route *route
	since time.Time
	old   *route    // gets a copy as well,
	until time.Time // until then
	lost  bool      // route is dead and there is no other
	told  Action    // the last ActUse
}

func (u *usage) holds(r *route) bool { return r != nil && (r == u.route || r == u.old) }

// climb starts the search for a larger budget on the path in use.
func (u *usage) climb(now time.Time) {
	if b := &u.route.budget; b.size < b.link && b.next.IsZero() {
		b.climb(now)
	}
}

// direct reports whether data goes to the peer without a relay.
func (a *Agent) direct() bool {
	r := a.use.route
	return r != nil && r.validated && !r.path.Relayed()
}

func (a *Agent) flowing() bool { return a.connected && !a.now.After(a.traffic.Add(flowFor)) }
func (a *Agent) asleep() bool  { return !a.now.Before(a.traffic.Add(activeFor)) }

// class orders routes before their round trips do.
func (a *Agent) class(r *route) int {
	switch {
	case r.path.Relayed():
		return 1
	case r == a.use.route || a.now.Sub(r.confirmed) < freshFor:
		return 2
	}
	return 0 // direct, but not heard of for long
}

// better reports whether r should be used in the place of old.
func (a *Agent) better(r, old *route) bool {
	if old == nil || !old.validated {
		return true
	}
	if c, o := a.class(r), a.class(old); c != o {
		return c > o
	}
	if a.now.Sub(r.confirmed) >= freshFor {
		return false
	}
	if old == a.use.route {
		if a.inbound == r && a.watch.phase >= doubt {
			return true // the peer moved there, and the old path does not answer
		}
		if a.now.Sub(a.use.since) < dwell {
			return false
		}
		if a.inbound == r && !a.cfg.Controlling && !old.rtt.faster(&r.rtt) {
			return true // so that the two sides do not choose differently between equals
		}
	}
	return r.rtt.faster(&old.rtt)
}

// choose puts the best route in use.
func (a *Agent) choose() {
	best := a.use.route
	held := best != nil && best.validated // else anything that works is welcome
	for _, r := range a.routes {
		if r != best && r.validated && !(held && (r.shunned || a.now.Before(r.hold))) && a.better(r, best) {
			best = r
		}
	}
	if best != a.use.route {
		a.take(best)
	} else if best != nil && best.validated {
		a.use.lost = false
	}
}

// take puts a route in use. The old one, if it works, gets a copy for a round trip.
func (a *Agent) take(r *route) {
	old := a.use.route
	if old != nil {
		a.silence.change(a.now)
	}
	a.use.route, a.use.since, a.use.lost, a.use.old = r, a.now, false, nil
	if old != nil && old.validated {
		a.use.old = old
		a.use.until = a.now.Add(min(max(old.rtt.smooth, r.rtt.smooth, overlapMin), overlapMax))
	}
	a.watch = watch{}
	r.budget.verify = time.Time{} // what was asked long ago
	a.use.climb(a.now)
}

// fallback is the path that gets a copy while the one in use is in doubt: the relay over which the peer is heard now, the
// best other one, or another direct path. If it is the peer that has moved, other relays may not know where to.
func (a *Agent) fallback() (best *route) {
	rank := func(r *route) (n int) {
		if r.path.Relayed() {
			n += 2
		}
		if r.validated {
			n++
			if r == a.inbound && r.path.Relayed() {
				n++
			}
		}
		return n
	}
	for _, r := range a.routes {
		if r == a.use.route || !r.validated && !r.path.Relayed() {
			continue
		}
		if best == nil || rank(r) > rank(best) ||
			rank(r) == rank(best) && r.rtt.known() && (!best.rtt.known() || r.rtt.smooth < best.rtt.smooth) {
			best = r
		}
	}
	return best
}

// also is the path that gets a copy now, or nil.
func (a *Agent) also() *route {
	if a.watch.phase >= doubt || a.asleep() && a.direct() {
		return a.fallback()
	}
	return a.use.old
}

// announce asks for ActUse if what it says has changed.
func (a *Agent) announce() (Action, bool) {
	if a.use.route == nil {
		return Action{}, false
	}
	act := Action{Kind: ActUse, Path: a.use.route.path, Budget: a.use.route.budget.size}
	if r := a.also(); r != nil {
		act.Also = r.path
		act.Budget = min(act.Budget, r.budget.size)
	}
	told := a.use.told
	if told.Path == act.Path && told.Also == act.Also && told.Budget == act.Budget {
		return Action{}, false
	}
	a.use.told = act
	return act, true
}

// refreshAt is when the path in use is challenged for no other reason than time; zero for never.
func (a *Agent) refreshAt() time.Time {
	r := a.use.route
	if r == nil || a.watch.phase != calm {
		return time.Time{}
	}
	if t := r.asked.Add(refreshFlow); a.flowing() && !t.After(a.traffic.Add(flowFor)) {
		return t
	}
	if t := r.asked.Add(keepalive); !r.path.Relayed() && !a.asleep() && t.Before(a.traffic.Add(activeFor)) {
		return t
	}
	return time.Time{}
}

// spareAt is when a route that is not in use is challenged in order to know whether it works; zero for never.
func (a *Agent) spareAt(r *route) time.Time {
	if r == a.use.route || !a.flowing() || !r.path.Relayed() && !a.spare(r) {
		return time.Time{}
	}
	t := r.asked.Add(refreshOther)
	if r.validated && r.missed > 0 {
		t = r.asked.Add(refreshRetry)
	}
	if t.After(a.traffic.Add(flowFor)) {
		return time.Time{}
	}
	return t
}

// spare reports whether a direct route is among the best that are not in use.
func (a *Agent) spare(r *route) bool {
	if !r.validated || !r.rtt.known() {
		return false
	}
	ahead := 0
	for _, o := range a.routes {
		if o != r && o != a.use.route && o.validated && !o.path.Relayed() && o.rtt.known() && o.rtt.smooth < r.rtt.smooth {
			ahead++
		}
	}
	return ahead < spares
}
