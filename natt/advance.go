package natt

import "time"

// Advance does what is due and returns what the owner has to do, in this order. The slice is valid until the next call
// of Advance.
func (a *Agent) Advance(now time.Time) []Action {
	a.at(now)
	a.due = false
	if a.use.old != nil && !a.now.Before(a.use.until) {
		a.use.old = nil
	}
	a.choose()
	a.measure()
	if r := a.use.route; r != nil {
		r.budget.judge(a.now, r.rtt)
		for a.look() {
		}
	}
	if r := a.use.route; r != nil && a.flowing() {
		for _, size := range r.budget.advance(a.now, r.rtt) {
			a.challenge(r, size)
		}
	}
	a.round()
	a.askServers()
	a.run()
	if a.connected {
		a.probe()
	}
	return a.collect()
}

// probe sends the challenges of bursts and those that keep the other paths known.
func (a *Agent) probe() {
	due := func(r *route) bool {
		t := a.spareAt(r)
		return !t.IsZero() && !t.After(a.now)
	}
	for _, r := range a.routes {
		if r.validated && r.missed >= lossLimit && due(r) {
			r.validated = false // and another may be a spare in its place
			r.asked = a.now
		}
	}
	for _, r := range a.routes {
		for r.probes.opens(a.now) {
			a.open(r)
		}
		if r.probes.advance(a.now) || due(r) {
			a.challenge(r, 0)
		}
	}
}

// collect returns the actions, ActUse first: what is sent in the session has to go the new way already.
func (a *Agent) collect() []Action {
	out := append(a.returned[:0], a.responses...)
	a.responses = a.responses[:0]
	if use, ok := a.announce(); ok {
		out = append(out, use)
	}
	out = append(out, a.actions...)
	a.actions = a.actions[:0]
	a.returned = out
	return out
}

// Next returns when Advance has something to do; zero if never, until something happens. A time that has passed means
// at once.
func (a *Agent) Next() time.Time {
	if a.due || len(a.responses)+len(a.actions) > 0 {
		return a.now
	}
	var next time.Time
	sooner := func(t time.Time) {
		if !t.IsZero() && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	if a.use.old != nil {
		sooner(a.use.until)
	}
	if r := a.use.route; r != nil {
		verify, climb := r.budget.deadline(r.rtt)
		sooner(verify)
		if a.flowing() && !climb.After(a.traffic.Add(flowFor)) {
			sooner(climb)
		}
		if !a.asleep() && a.direct() {
			sooner(a.traffic.Add(activeFor))
		}
	}
	sooner(a.watchAt())
	sooner(a.refreshAt())
	sooner(a.roundAt())
	sooner(a.sampleAt())
	sooner(a.rounds.again)
	sooner(a.runAt())
	for _, r := range a.routes {
		if a.connected {
			sooner(r.probes.next())
		}
		sooner(a.spareAt(r))
		sooner(a.attestAt(r))
		if r.validated && r.hold.After(a.now) {
			sooner(r.hold)
		}
	}
	return next
}

// Best returns the path that data takes, and whether it is known to work.
func (a *Agent) Best() (Path, bool) {
	r := a.use.route
	if r == nil {
		return Path{}, false
	}
	return r.path, r.validated
}
