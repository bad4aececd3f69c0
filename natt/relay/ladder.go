package relay

import (
	"slices"
	"time"
)

// A Rung is a kind of way to a server. A lower one is better.
type Rung uint8

// The rungs.
const (
	RungUDP    Rung = iota // UDP to the server's own port
	RungUDP443             // UDP to port 443
	RungTLS                // a Carrier
	RungProxy              // a Carrier through an HTTP proxy
)

func (r Rung) String() string {
	return [...]string{"udp", "udp-443", "tls", "proxy"}[r]
}

// Stream reports whether the rung is a carrier.
func (r Rung) Stream() bool { return r >= RungTLS }

// Timing of a ladder.
const (
	streamPatience = time.Second // with a stream in use, since TCP repeats what is lost
	retestUDP      = 25 * time.Second
	retestMost     = 10 * time.Minute
	flapping       = 10 * time.Second // back on a stream so soon: UDP is not to be trusted
	leaveAfter     = 2 * time.Second  // both ways are kept after a change
	closeAfter     = 4 * time.Second
	slowest        = 5 * time.Second // an answer that took longer says nothing of the round trip
	standbyWait    = 50 * time.Millisecond
	climbAgain     = time.Second // after a climb that found nothing, doubled
	climbMost      = 30 * time.Second
	askedLately    = 15 * time.Second // nobody climbs for a question older than this
)

// retestTries is when the questions of one test for UDP leave, the last ones only after
// a stream was taken: it may have won because the machine was busy.
var retestTries = [...]time.Duration{0, 200 * time.Millisecond, 600 * time.Millisecond, 1500 * time.Millisecond, 4500 * time.Millisecond}

// laterTries is how many of them a later test has.
const laterTries = 3

// A LadderActionKind says what a LadderAction asks for.
type LadderActionKind uint8

// What may be asked for.
const (
	// LadderProbe: ask the server something by UDP at Port (such as a VISIT to
	// nobody), and tell Heard of the answer.
	LadderProbe LadderActionKind = 1 + iota
	// LadderDial: open a carrier to Port, of kind Rung, and tell Opened or Failed.
	LadderDial
	// LadderUse: from now on everything for the server goes by Rung: to Port by UDP,
	// or through carrier ID. What came before still works for a while.
	LadderUse
	// LadderLeave: nothing is to be sent any more but by the way in use. ID is what
	// was left, at most 0 for UDP.
	LadderLeave
	// LadderClose: close carrier ID, or stop dialling it.
	LadderClose
)

// A LadderAction is something that the owner of a Ladder has to do.
type LadderAction struct {
	Kind LadderActionKind
	Rung Rung
	Port uint16
	ID   int
}

// LadderConfig describes the ways that there are.
type LadderConfig struct {
	Port  uint16 // the server's own
	Proxy bool   // there is one
}

// A Ladder decides how one server is reached: UDP to its own port, UDP to port
// 443, a carrier on 443 or the own port, a carrier through a proxy. It is a pure
// machine without bytes: the owner tells it of questions sent and answers heard,
// does what Advance returns, and calls Advance again at Next.
//
// A question that is not answered for RungWait starts a climb: the next rung is
// tried each RungWait after the one before, and all tried stay candidates. The
// best one that answers is used. While a stream is in use UDP is tested every 25 s
// (so that it is found well within 30 s) and taken as soon as it answers; then both
// ways work for some seconds more, so that nothing is lost.
//
// Not safe for concurrent use.
type Ladder struct {
	cfg     LadderConfig
	rung    Rung
	id      int       // of the carrier in use
	won     time.Time // when UDP last answered a test
	rtt     time.Duration
	ids     int
	dials   []dialed
	quit    []quit
	broken  []dialed  // what failed in this climb
	redial  time.Time // when that is tried again, though the rest is not over
	out     []LadderAction
	asked   time.Time // first question without an answer; zero: none
	last    time.Time // last question
	heard   bool      // something, ever or since Changed
	hurry   Rung
	step    int       // of the climb; 0: none
	stepAt  time.Time // when it is due
	hold    time.Time // no climb before
	wait    time.Duration
	standby time.Time // when port 443, which answered, is used if the own one has not
	testAt  time.Time // next question of the test for UDP
	test    int
	tests   int           // since a stream was taken
	every   time.Duration // between tests
}

// A dialed is a carrier that is being opened, or open.
type dialed struct {
	id   int
	rung Rung
	port uint16
	up   bool
}

// A quit is a carrier (or UDP, with a number as Ladder.id says) that is not in use any more.
type quit struct {
	id          int
	leave, shut time.Time
	left        bool
}

// NewLadder returns a ladder that stands on RungUDP.
func NewLadder(cfg LadderConfig) *Ladder {
	return &Ladder{cfg: cfg, every: retestUDP}
}

// Rung returns the rung in use.
func (l *Ladder) Rung() Rung { return l.rung }

// Climbing reports whether the way in use is in doubt.
func (l *Ladder) Climbing() bool { return l.step > 0 }

// Hurry says by which rung another server was reached last. If that is a stream,
// the rungs up to it are all tried at once.
func (l *Ladder) Hurry(r Rung) { l.hurry = r }

// Asked says that a question was sent by the way in use.
func (l *Ladder) Asked(now time.Time) {
	l.last = now
	if l.asked.IsZero() {
		l.asked = now
	}
}

// Heard says that the server itself answered by a way.
func (l *Ladder) Heard(now time.Time, by Rung) {
	l.heard = true
	switch {
	case by == l.rung:
		if d := now.Sub(l.asked); !l.asked.IsZero() && d < slowest {
			l.rtt = max(d, l.rtt*7/8)
		}
		l.rest()
		if !l.rung.Stream() && now.Sub(l.won) > flapping {
			l.every = retestUDP
		}
	case by == RungUDP:
		l.descend(now, by)
	case by == RungUDP443 && (l.rung.Stream() || l.step > 0) && l.standby.IsZero():
		l.standby = now.Add(standbyWait) // the own port may answer yet
	}
}

// descend takes UDP, which has answered, into use.
func (l *Ladder) descend(now time.Time, r Rung) {
	if l.rung.Stream() {
		l.won = now
	}
	l.rest()
	l.use(now, r, -int(r))
}

// rest ends the climb and with it what is being dialled for nothing better.
func (l *Ladder) rest() {
	l.calm()
	for _, d := range slices.Clone(l.dials) {
		if d.id != l.id && d.rung >= l.rung && !l.quitting(d.id) {
			l.close(d.id)
		}
	}
}

func (l *Ladder) calm() {
	l.asked, l.step, l.wait, l.hold = time.Time{}, 0, 0, time.Time{}
	if !l.rung.Stream() {
		l.standby = time.Time{} // the way in use answers
	}
}

func (l *Ladder) quitting(id int) bool {
	return slices.ContainsFunc(l.quit, func(q quit) bool { return q.id == id })
}

// use changes the way.
func (l *Ladder) use(now time.Time, r Rung, id int) {
	if r.Stream() && !l.rung.Stream() && now.Sub(l.won) < flapping {
		l.every = min(2*l.every, retestMost)
	}
	l.quit = append(l.quit, quit{id: l.id, leave: now.Add(leaveAfter), shut: now.Add(closeAfter)})
	l.rung, l.id, l.rtt, l.standby = r, id, 0, time.Time{}
	l.quit = slices.DeleteFunc(l.quit, func(q quit) bool { return q.id == id })
	for _, d := range slices.Clone(l.dials) {
		if d.id != id && d.rung >= r && !l.quitting(d.id) {
			l.close(d.id)
		}
	}
	l.do(LadderAction{Kind: LadderUse, Rung: r, Port: l.port(r), ID: id})
	l.test, l.testAt = 0, time.Time{}
	if r.Stream() {
		l.tests = 0
		l.testAt = now // perhaps it was only slow
	}
}

func (l *Ladder) port(r Rung) uint16 {
	switch r {
	case RungUDP:
		return l.cfg.Port
	case RungUDP443:
		return portTLS
	}
	return 0
}

func (l *Ladder) do(a LadderAction) { l.out = append(l.out, a) }

func (l *Ladder) close(id int) {
	l.dials = slices.DeleteFunc(l.dials, func(d dialed) bool { return d.id == id })
	l.do(LadderAction{Kind: LadderClose, ID: id})
}

// Opened says that carrier id is open.
func (l *Ladder) Opened(now time.Time, id int) {
	i := slices.IndexFunc(l.dials, func(d dialed) bool { return d.id == id })
	if i < 0 {
		l.do(LadderAction{Kind: LadderClose, ID: id})
		return
	}
	l.dials[i].up = true
	// A stream in use that is being climbed from has died: the new one is as good.
	if r := l.dials[i].rung; l.step > 0 || l.rung.Stream() && r < l.rung {
		l.calm()
		l.use(now, r, id)
		return
	}
	l.close(id)
}

// Failed says that carrier id could not be opened, or that it ended.
func (l *Ladder) Failed(now time.Time, id int) {
	if i := slices.IndexFunc(l.dials, func(d dialed) bool { return d.id == id && !d.up }); i >= 0 && l.step > 0 {
		l.broken = append(l.broken, l.dials[i])
	}
	l.dials = slices.DeleteFunc(l.dials, func(d dialed) bool { return d.id == id })
	l.quit = slices.DeleteFunc(l.quit, func(q quit) bool { return q.id == id })
	if id == l.id && l.rung.Stream() {
		l.id = 0
		l.use(now, RungUDP, 0)
		l.quit = slices.DeleteFunc(l.quit, func(q quit) bool { return q.id == 0 })
		l.climb(now)
		l.step = 2 // the last that is known of UDP is that it does not work
		return
	}
	if l.step > 0 && (l.step >= stepsOfClimb || !l.pending()) {
		l.stepAt = now // no reason to wait
	}
}

// Changed says that our network changed: what was found out counts no more.
func (l *Ladder) Changed(now time.Time) {
	l.every, l.wait, l.hold, l.heard = retestUDP, 0, time.Time{}, false
	if l.rung.Stream() {
		l.test, l.testAt = 0, now
	}
}

// Release says that nobody needs the server at present: a carrier is closed.
func (l *Ladder) Release(now time.Time) {
	l.rest()
	if l.rung.Stream() {
		l.use(now, RungUDP, 0)
	}
}

func (l *Ladder) pending() bool {
	return slices.ContainsFunc(l.dials, func(d dialed) bool { return !d.up })
}

func (l *Ladder) climb(now time.Time) {
	l.step, l.stepAt = 1, now
	l.broken, l.redial = nil, time.Time{}
}

// stepsOfClimb is how many steps a climb has, with the one that waits for the outcome.
const stepsOfClimb = 5

// wantRedial waits for what is still being dialled. A network that drops packets makes that
// last; what failed at once, such as a proxy that was not up yet, is tried again meanwhile.
func (l *Ladder) wantRedial(now time.Time) {
	l.stepAt = now.Add(time.Hour)
	switch {
	case len(l.broken) == 0:
	case l.redial.IsZero():
		l.redial = now.Add(climbAgain)
		l.stepAt = l.redial
	case now.Before(l.redial):
		l.stepAt = l.redial
	default:
		again := l.broken
		l.broken, l.redial = nil, time.Time{}
		for _, d := range again {
			l.dial(d.rung, d.port)
		}
	}
}

// climbAt is when the question without an answer starts a climb; zero for never.
func (l *Ladder) climbAt() time.Time {
	if l.asked.IsZero() || l.step > 0 {
		return time.Time{}
	}
	patience := max(RungWait, 2*l.rtt)
	switch {
	case l.rung.Stream():
		patience = max(streamPatience, 2*l.rtt)
	case l.hurry.Stream() && !l.heard:
		patience = 0
	}
	at := l.asked.Add(patience)
	if at.Before(l.hold) {
		at = l.hold
	}
	if at.Sub(l.last) > askedLately {
		return time.Time{}
	}
	return at
}

// Next returns when Advance is to be called next; zero for not before something
// happens.
func (l *Ladder) Next() time.Time {
	var next time.Time
	at := func(t time.Time) {
		if !t.IsZero() && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	if len(l.out) > 0 {
		return time.Unix(0, 0)
	}
	at(l.climbAt())
	if l.step > 0 {
		at(l.stepAt)
	}
	at(l.testAt)
	at(l.standby)
	for _, q := range l.quit {
		if !q.left {
			at(q.leave)
		}
		at(q.shut)
	}
	return next
}

// Advance does what is due and returns what the owner has to do, in this order.
func (l *Ladder) Advance(now time.Time) []LadderAction {
	if at := l.climbAt(); !at.IsZero() && !now.Before(at) {
		l.climb(now)
		if l.hurry.Stream() && !l.heard {
			l.climbStep(now)
			l.climbStep(now)
			if l.hurry == RungProxy {
				l.climbStep(now)
			}
		}
	}
	if !l.standby.IsZero() && !now.Before(l.standby) {
		l.descend(now, RungUDP443)
	}
	for l.step > 0 && !now.Before(l.stepAt) {
		l.climbStep(now)
	}
	if !l.testAt.IsZero() && !now.Before(l.testAt) {
		l.testStep(now)
	}
	for i := 0; i < len(l.quit); i++ {
		q := &l.quit[i]
		if !q.left && !now.Before(q.leave) {
			q.left = true
			l.do(LadderAction{Kind: LadderLeave, ID: q.id})
		}
		if !now.Before(q.shut) {
			if q.id > 0 {
				l.close(q.id)
			}
			l.quit = slices.Delete(l.quit, i, i+1)
			i--
		}
	}
	out := l.out
	l.out = nil
	return out
}

// probe asks by UDP, on every port.
func (l *Ladder) probe() {
	l.do(LadderAction{Kind: LadderProbe, Rung: RungUDP, Port: l.cfg.Port})
	if l.cfg.Port != portTLS {
		l.do(LadderAction{Kind: LadderProbe, Rung: RungUDP443, Port: portTLS})
	}
}

func (l *Ladder) dial(r Rung, port uint16) {
	l.ids++
	l.dials = append(l.dials, dialed{id: l.ids, rung: r, port: port})
	l.do(LadderAction{Kind: LadderDial, Rung: r, Port: port, ID: l.ids})
}

// climbStep takes the next step of the climb.
func (l *Ladder) climbStep(now time.Time) {
	own := l.cfg.Port != portTLS
	l.stepAt = now.Add(RungWait)
	switch l.step {
	case 1:
		l.probe()
	case 2:
		l.dial(RungTLS, portTLS)
	case 3:
		if own {
			l.dial(RungTLS, l.cfg.Port)
		}
		if l.cfg.Proxy {
			l.dial(RungProxy, portTLS)
		} else {
			l.stepAt = now
		}
		l.probe()
	case 4:
		if l.cfg.Proxy && own {
			l.dial(RungProxy, l.cfg.Port)
		}
	default:
		if l.pending() {
			l.wantRedial(now)
			return
		}
		l.step = 0
		l.wait = min(max(2*l.wait, climbAgain), climbMost)
		l.hold = now.Add(l.wait)
		return
	}
	l.step++
}

// testStep asks whether UDP works again.
func (l *Ladder) testStep(now time.Time) {
	if !l.rung.Stream() {
		l.testAt = time.Time{}
		return
	}
	l.probe()
	tries := laterTries
	if l.tests == 0 {
		tries = len(retestTries)
	}
	if l.test++; l.test < tries {
		l.testAt = now.Add(retestTries[l.test] - retestTries[l.test-1])
		return
	}
	l.test = 0
	l.tests++
	l.testAt = now.Add(l.every - retestTries[tries-1])
}
