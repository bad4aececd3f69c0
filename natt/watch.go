package natt

import "time"

// phase says how sure we are of the path in use.
type phase uint8

const (
	calm   phase = iota
	asking       // a challenge is on its way
	doubt        // data goes on the fallback too, challenges are repeated
	lost         // dead, and there is no other: now and then a challenge
)

const (
	doubtTries = 2 // challenges lost in doubt before the path is dropped
	aloneTries = 4 // the same if there is no other path
	lostPause  = 5 * time.Second
	hintPause  = 250 * time.Millisecond
)

// watch finds out whether the path in use is alive.
type watch struct {
	phase   phase
	waiting time.Time // first data sent since something was heard over the path
	silence bool      // it is because of this that the phase is not calm
	asked   int       // challenges in this phase
	next    time.Time // step of the phase
}

// begin asks the path whether it is alive.
func (w *watch) begin(now time.Time) {
	if w.phase == calm {
		w.phase, w.silence, w.asked, w.next = asking, false, 0, now
	}
}

// heard notes data over the path.
func (w *watch) heard() {
	w.waiting = time.Time{}
	if w.silence && w.phase < lost {
		w.phase = calm
	}
}

// answered notes the answer to a challenge over the path.
func (w *watch) answered() { *w = watch{} }

// suspect has the path in use asked because of a hint that it may be dead. Hints are followed four times a second at most: if the two
// sides use different paths, the challenges of one are hints for the other.
func (a *Agent) suspect() {
	r := a.use.route
	if r == nil || !a.flowing() || a.now.Sub(a.hinted) < hintPause || a.now.Sub(r.asked) < r.rtt.timeout() ||
		a.now.Sub(r.confirmed) < r.rtt.timeout() { // such a hint is older than the answer
		return
	}
	a.hinted = a.now
	a.watch.begin(a.now)
}

// wake has the path in use asked after a long silence. Until it answers, a direct one is not trusted alone, and nor is a
// relay that is gone.
func (a *Agent) wake() {
	r := a.use.route
	if r == nil {
		return
	}
	if a.changed {
		a.recheck()
	}
	if a.watch.phase == lost {
		return // it is asked now and then anyway
	}
	if !r.validated && a.fallback() == nil {
		a.lose()
		return
	}
	a.watch.begin(a.now)
	if a.watch.phase < doubt && (!r.validated || !r.path.Relayed()) {
		a.watch.phase = doubt
	}
}

// lose says that nothing answers any more.
func (a *Agent) lose() {
	a.watch = watch{phase: lost, next: a.now.Add(time.Second)}
	if !a.use.lost {
		a.use.lost = true
		a.actions = append(a.actions, Action{Kind: ActLost, Path: a.use.route.path})
	}
}

// watchAt is when the watch has something to do; zero for never.
func (a *Agent) watchAt() time.Time {
	w := &a.watch
	switch {
	case a.use.route == nil:
		return time.Time{}
	case w.phase == lost:
		if !a.flowing() || w.next.After(a.traffic.Add(flowFor)) {
			return time.Time{}
		}
		return w.next
	case w.phase != calm:
		return w.next
	case !w.waiting.IsZero():
		return w.waiting.Add(a.use.route.rtt.patience() / 2)
	}
	return time.Time{}
}

// look takes the step of the watch that is due. It reports whether another path was taken, which may make another step
// due.
func (a *Agent) look() bool {
	if t := a.refreshAt(); !t.IsZero() && !t.After(a.now) {
		a.watch.begin(a.now)
	}
	if t := a.watchAt(); t.IsZero() || t.After(a.now) {
		return false
	}
	w, r := &a.watch, a.use.route
	if w.phase == calm {
		w.begin(a.now)
		w.silence = true
	}
	if w.phase == asking {
		if w.asked == 0 {
			w.asked++
			w.next = a.now.Add(r.rtt.timeout())
			if t := w.waiting.Add(r.rtt.patience()); w.silence && t.After(w.next) {
				w.next = t
			}
			a.ask(r)
			return false
		}
		w.phase, w.asked = doubt, 0
		if a.choose(); a.use.route != r {
			return true
		}
	}
	other := a.fallback()
	if w.phase == lost {
		w.next = a.now.Add(min(time.Second<<min(w.asked, 3), lostPause))
		w.asked++
		a.ask(r)
		if other != nil {
			a.challenge(other, 0)
		}
		return false
	}
	tries, wait := doubtTries, r.rtt.timeout()
	if other == nil {
		tries, wait = aloneTries, wait<<w.asked
	}
	if w.asked < tries {
		w.asked++
		w.next = a.now.Add(wait)
		a.ask(r)
		if other != nil {
			a.challenge(other, 0) // which also tells the peer that we doubt
		}
		return false
	}
	a.fail()
	return true
}

// ask challenges the path in use, and asks too whether it still carries full frames.
func (a *Agent) ask(r *route) {
	if a.flowing() {
		if size := r.budget.verifying(a.now); size > 0 {
			a.challenge(r, size)
		}
	}
	a.challenge(r, 0)
}

// fail drops the path in use.
func (a *Agent) fail() {
	r := a.use.route
	if o := a.fallback(); o != nil && o.path.Relayed() && !r.path.Relayed() && r.loss.worse(&o.loss) {
		a.shun(r) // it will be back, and no better
	}
	a.died(r.path)
	r.drop(a.now)
	a.choose()
	if a.use.route == r {
		a.lose()
	}
	if !r.path.Relayed() {
		a.rounds.next = 0
		a.rounds.start = true
	}
}
