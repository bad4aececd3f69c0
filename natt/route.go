package natt

import (
	"io"
	"slices"
	"time"
)

const (
	maxPending = 32               // challenges of one route that may still be answered
	pendingFor = 10 * time.Second // how long they may
	maxSpent   = 40               // packets without an answer, in the time of a tally, to an address that answered before
	lossLimit  = 3                // challenges in a row without an answer after which a path is not validated
)

// A challenge is one of ours that is on its way.
type challenge struct {
	token  Token
	sent   time.Time
	size   int
	judged bool // counted as lost
}

// A route is a path with all that is known about it.
type route struct {
	path      Path
	listed    bool // in the peer's list
	heard     bool // the peer was
	validated bool
	proven    bool      // was validated once
	seen      time.Time // last time that the peer named it or was heard over it
	asked     time.Time // last challenge sent
	confirmed time.Time // last answer or handshake
	missed    int       // challenges since then
	pending   []challenge
	rtt       estimate
	guess     time.Duration // of the round trip, from the handshake; 0: none
	loss      loss
	attest    attestation
	probes    probes
	spent     tally
	budget    budget
	falls     int       // times in a row that it was dropped
	fell      time.Time // the last time
	hold      time.Time // not to be used before
	shunned   bool      // loses more than a relay
	shuns     int       // how often it was found to
	again     time.Time // it is looked at again
}

func newRoute(p Path, now time.Time) *route {
	return &route{path: p, seen: now, budget: newBudget(0)}
}

// validate notes a proof that the peer is there.
func (r *route) validate(now time.Time) {
	r.validated = true
	r.confirmed, r.seen = now, now
	r.missed = 0
	r.spent = tally{}
	r.probes.stop()
}

// answer takes the challenge with this token out of those on their way, if it is one.
func (r *route) answer(now time.Time, t Token) (challenge, bool) {
	i := slices.IndexFunc(r.pending, func(c challenge) bool { return c.token == t })
	if i < 0 {
		return challenge{}, false
	}
	c := r.pending[i]
	r.pending = slices.Delete(r.pending, i, i+1)
	if now.Sub(c.sent) > pendingFor {
		return challenge{}, false
	}
	r.validate(now)
	if c.size == 0 && !c.judged {
		r.loss.add(now, false)
	}
	if c.size <= minBudget { // the time of a padded challenge says less
		r.rtt.sample(now.Sub(c.sent))
	} else if !r.rtt.known() {
		r.rtt.sample(now.Sub(c.sent))
	}
	return c, true
}

// drop takes the validation away because the path is dead, and demands a pause before it is used again if that happens
// repeatedly.
func (r *route) drop(now time.Time) {
	r.validated = false
	if now.Sub(r.fell) > 5*time.Minute {
		r.falls = 0
	}
	if r.falls > 0 {
		r.hold = now.Add(min(time.Second<<min(r.falls, 6), time.Minute))
	}
	r.falls++
	r.fell = now
	r.rtt = estimate{}
	r.budget = newBudget(r.budget.link)
}

// An estimate is the smoothed round trip time of RFC 6298.
type estimate struct {
	smooth, variation time.Duration
}

func (e *estimate) known() bool { return e.smooth > 0 }

func (e *estimate) sample(d time.Duration) {
	d = max(d, time.Microsecond)
	if !e.known() {
		e.smooth, e.variation = d, d/2
		return
	}
	e.variation += ((e.smooth - d).Abs() - e.variation) / 4
	e.smooth += (d - e.smooth) / 8
}

// timeout is how long an answer may take.
func (e *estimate) timeout() time.Duration {
	if !e.known() {
		return 250 * time.Millisecond
	}
	return min(max(e.smooth+4*e.variation, e.smooth*3/2, 100*time.Millisecond), 2*time.Second)
}

// patience is how long traffic may go unanswered before the path is in doubt.
func (e *estimate) patience() time.Duration {
	if !e.known() {
		return 500 * time.Millisecond
	}
	return max(3*e.smooth, 250*time.Millisecond)
}

// faster reports whether e is better than o by so much that it is worth a change.
func (e *estimate) faster(o *estimate) bool {
	return e.known() && o.known() && e.smooth+max(3*time.Millisecond, o.smooth/10) < o.smooth
}

// A tally counts what happened in the last ten minutes and a little longer, by the minute since its start.
type tally struct {
	start  time.Time
	minute int64
	counts [11]uint16
}

func (t *tally) turn(now time.Time) {
	if t.start.IsZero() {
		t.start = now
	}
	m := int64(now.Sub(t.start) / time.Minute)
	for i := t.minute + 1; i <= m && i <= t.minute+int64(len(t.counts)); i++ {
		t.counts[i%int64(len(t.counts))] = 0
	}
	t.minute = max(t.minute, m)
}

func (t *tally) add(now time.Time) {
	t.turn(now)
	t.counts[t.minute%int64(len(t.counts))]++
}

func (t *tally) total(now time.Time) (n int) {
	if t.start.IsZero() {
		return 0
	}
	t.turn(now)
	for _, c := range t.counts {
		n += int(c)
	}
	return n
}

// burstTimes is when the challenges of a burst leave, counted from its start.
var burstTimes = [...]time.Duration{0, 20 * time.Millisecond, 60 * time.Millisecond, 140 * time.Millisecond, 300 * time.Millisecond}

// probes is the burst that runs on a route.
type probes struct {
	start  time.Time // of the challenges; zero: none
	step   int
	begun  time.Time // of the openers
	opened int       // openers sent
}

func (p *probes) running() bool { return !p.start.IsZero() }
func (p *probes) stop()         { *p = probes{} }

// begin starts a burst of challenges, without openers unless there is time for them.
func (p *probes) begin(now time.Time, after time.Duration) {
	*p = probes{start: now.Add(after), begun: now}
	if after == 0 {
		p.opened = len(openerTTL)
	}
}

// opens reports whether an opener leaves now.
func (p *probes) opens(now time.Time) bool {
	return p.running() && p.opened < len(openerTTL) && !p.next().After(now)
}

// next is when the next packet leaves; zero if none does.
func (p *probes) next() time.Time {
	if !p.running() {
		return time.Time{}
	}
	if p.opened < len(openerTTL) {
		return p.begun.Add(time.Duration(p.opened) * openerPause)
	}
	return p.start.Add(burstTimes[p.step])
}

// advance reports whether a challenge leaves now.
func (p *probes) advance(now time.Time) bool {
	if !p.running() || p.next().After(now) {
		return false
	}
	for p.running() && !p.next().After(now) { // what was missed is not made up for
		if p.step++; p.step == len(burstTimes) {
			p.stop()
		}
	}
	return true
}

// find returns the route of a path, or nil.
func (a *Agent) find(p Path) *route {
	for _, r := range a.routes {
		if r.path == p {
			return r
		}
	}
	return nil
}

// acceptable reports whether the peer, heard over a path, may be answered there.
func (a *Agent) acceptable(p Path) bool {
	if !p.Remote.IsValid() {
		return false
	}
	if p.Relayed() {
		return true
	}
	ip := p.Remote.Addr()
	return encodable(p.Remote) && (reachable(ip, a.cfg.Exclude) || a.cfg.Loopback && ip.IsLoopback())
}

// reached returns the route of a path over which the peer was heard, new if need be; nil if it cannot be one.
func (a *Agent) reached(p Path) *route {
	r := a.find(p)
	if r == nil && a.acceptable(p) {
		r = a.add(p)
	}
	if r != nil {
		r.seen, r.heard = a.now, true
	}
	return r
}

// add makes a route, in the place of one that is not needed any more if there are too many. It returns nil if all are.
func (a *Agent) add(p Path) *route {
	limit, count := maxDirect, 0
	if p.Relayed() {
		limit = maxRelays
	}
	var oldest *route
	for _, r := range a.routes {
		if r.path.Relayed() != p.Relayed() {
			continue
		}
		count++
		if r.listed || a.use.holds(r) || r.spent.total(a.now) > 0 {
			continue
		}
		if oldest == nil || r.seen.Before(oldest.seen) {
			oldest = r
		}
	}
	if count >= limit {
		if oldest == nil {
			return nil
		}
		a.forget(func(r *route) bool { return r == oldest })
	}
	r := newRoute(p, a.now)
	if !p.Relayed() {
		r.budget = newBudget(a.mtu)
	}
	a.routes = append(a.routes, r)
	return r
}

// forget removes routes, except the one in use.
func (a *Agent) forget(gone func(*route) bool) {
	a.routes = slices.DeleteFunc(a.routes, func(r *route) bool {
		if r == a.use.route || !gone(r) {
			return false
		}
		if a.inbound == r {
			a.inbound = nil
		}
		if a.use.old == r {
			a.use.old = nil
		}
		return true
	})
}

// recent reports whether the peer itself was heard over a route not long ago.
func (a *Agent) recent(r *route) bool {
	return !r.path.Relayed() && a.now.Sub(r.seen) < 30*time.Second
}

// challenge asks for a challenge over a route, padded to size if that is not zero. It reports whether one is sent.
func (a *Agent) challenge(r *route, size int) bool {
	if size == 0 {
		r.asked = a.now
	}
	if !a.sendChallenge(r, size) {
		return false
	}
	if size == 0 {
		r.missed++
	}
	return true
}

// sample asks for a challenge whose loss says nothing but that.
func (a *Agent) sample(r *route) { a.sendChallenge(r, 0) }

func (a *Agent) sendChallenge(r *route, size int) bool {
	var t Token
	if len(a.actions) >= maxActions || !a.spend(r) {
		return false
	}
	if _, err := io.ReadFull(a.cfg.Rand, t[:]); err != nil {
		return false
	}
	r.tallyLoss(a.now)
	if len(r.pending) == maxPending {
		r.pending = slices.Delete(r.pending, 0, 1)
	}
	r.pending = append(r.pending, challenge{token: t, sent: a.now, size: size})
	if !r.path.Relayed() {
		r.spent.add(a.now)
	}
	a.actions = append(a.actions, Action{Kind: ActChallenge, Path: r.path, Token: t, Size: size})
	return true
}

// burst starts a burst on the routes chosen that are not known to work, and whose turn it is: openers now, and challenges after a while where a
// NAT may have to be opened.
func (a *Agent) burst(after time.Duration, chosen func(*route) bool) {
	for _, r := range a.routes {
		if r.path.Relayed() || !chosen(r) || r.probes.running() || r.validated && a.now.Sub(r.confirmed) < freshFor || !a.mayBurst(r) {
			continue
		}
		if translated(r.path.Remote) {
			r.probes.begin(a.now, after)
		} else {
			r.probes.begin(a.now, 0)
		}
	}
}
