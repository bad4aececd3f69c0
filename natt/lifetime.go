package natt

import (
	"crypto/rand"
	"net/netip"
	"time"

	"github.com/pilotnet/pilot/natt/stun"
)

// A LifetimeResult is the outcome of a LifetimeTest.
type LifetimeResult uint8

const (
	// LifetimeUnclear: the server did not answer, or our address changed meanwhile.
	LifetimeUnclear LifetimeResult = iota
	// LifetimeAlive: a packet of the server came in after the silence.
	LifetimeAlive
	// LifetimeDead: none did.
	LifetimeDead
	// LifetimeNoHelp: the server does not answer to another port, or our sockets have different addresses outside.
	LifetimeNoHelp
)

// Timing of a LifetimeTest.
const (
	// primePause: Linux keeps a flow longer once packets have gone both ways two seconds after its first one, as those of
	// a session in use do.
	primePause  = 2500 * time.Millisecond
	askedEvery  = 500 * time.Millisecond
	askedTries  = 3
	shortSilent = time.Second // a silence so short needs no second exchange
)

// A LifetimeTest finds out whether the NATs and firewalls before this host still let the packets of a server in to a
// socket that has sent nothing for some time (RFC 5780, section 4.6). It is a pure machine with two sockets of its own: the
// sleeper (0) exchanges packets with the server, then is silent; then the caller (1) asks the server to answer
// to the sleeper's port. What the caller sends refreshes nothing of the sleeper's. If nothing comes in the caller asks
// who it is, to make sure that it is the sleeper's mapping that is gone.
type LifetimeTest struct {
	server netip.AddrPort
	idle   time.Duration

	phase  lifetimePhase
	at     time.Time // when the phase has something to do
	tries  int
	asked  []stun.TransactionID // in this phase
	mapped netip.AddrPort       // the sleeper's, as the server sees it
	result LifetimeResult
	slept  time.Duration
	since  time.Time // last exchange of the sleeper
}

type lifetimePhase uint8

const (
	lifetimePrime  lifetimePhase = iota // the sleeper asks
	lifetimeAgain                       // once more, after primePause
	lifetimeAsleep                      // nobody sends
	lifetimeCall                        // the caller asks for an answer to the sleeper
	lifetimeWho                         // and who it is
	lifetimeDone
)

// The sockets of a LifetimeTest.
const (
	Sleeper = 0
	Caller  = 1
)

// NewLifetimeTest returns a test of one silence with one server.
func NewLifetimeTest(now time.Time, server netip.AddrPort, idle time.Duration) *LifetimeTest {
	return &LifetimeTest{server: server, idle: idle, at: now}
}

// Done reports whether the test has ended.
func (t *LifetimeTest) Done() bool { return t.phase == lifetimeDone }

// Result returns the outcome and how long the silence was.
func (t *LifetimeTest) Result() (LifetimeResult, time.Duration) { return t.result, t.slept }

// Next returns when Advance is to be called next.
func (t *LifetimeTest) Next() time.Time { return t.at }

func (t *LifetimeTest) end(r LifetimeResult) { t.phase, t.result = lifetimeDone, r }

func (t *LifetimeTest) enter(p lifetimePhase, at time.Time) {
	t.phase, t.at, t.tries, t.asked = p, at, 0, nil
}

// Advance returns what to send now, and from which socket.
func (t *LifetimeTest) Advance(now time.Time) []Datagram {
	if t.phase == lifetimeAsleep && !now.Before(t.at) {
		t.enter(lifetimeCall, now)
		t.slept = now.Sub(t.since)
	}
	if t.Done() || t.phase == lifetimeAsleep || now.Before(t.at) {
		return nil
	}
	if t.tries == askedTries {
		if t.phase != lifetimeCall {
			t.end(LifetimeUnclear)
			return nil
		}
		t.enter(lifetimeWho, now)
	}
	t.tries++
	t.at = now.Add(askedEvery)
	var q stun.Query
	// crypto/rand never fails (it ends the process instead).
	_, _ = rand.Read(q.ID[:])
	t.asked = append(t.asked, q.ID)
	from := Sleeper
	switch t.phase {
	case lifetimeCall:
		from, q.ResponsePort = Caller, t.mapped.Port()
	case lifetimeWho:
		from = Caller
	}
	return []Datagram{{To: t.server, Data: stun.AppendQuery(nil, q), Socket: from}}
}

// Receive takes what came to one of the sockets. What answers no question of the present phase is ignored.
func (t *LifetimeTest) Receive(now time.Time, socket int, from netip.AddrPort, b []byte) {
	r, err := stun.ParseReply(b)
	asked := false
	for _, id := range t.asked {
		asked = asked || id == r.ID
	}
	if !asked || from != t.server || t.Done() {
		return
	}
	switch {
	case t.phase == lifetimeCall && socket == Sleeper && err == nil:
		t.end(LifetimeAlive)
	case t.phase == lifetimeCall && socket == Caller: // a refusal, or an answer to the wrong port
		t.end(LifetimeNoHelp)
	case err != nil:
		t.end(LifetimeUnclear)
	case t.phase == lifetimePrime && socket == Sleeper:
		t.mapped, t.since = r.Mapped, now
		if r.Mapped.Port() < stun.LeastResponsePort {
			t.end(LifetimeNoHelp)
		} else if t.idle < shortSilent {
			t.enter(lifetimeAsleep, now.Add(t.idle))
		} else {
			t.enter(lifetimeAgain, now.Add(primePause))
		}
	case t.phase == lifetimeAgain && socket == Sleeper:
		if t.since = now; r.Mapped != t.mapped {
			t.end(LifetimeUnclear)
			return
		}
		t.enter(lifetimeAsleep, now.Add(t.idle))
	case t.phase == lifetimeWho && socket == Caller:
		t.end(LifetimeDead)
		if r.Mapped.Addr() != t.mapped.Addr() {
			// A pool of public addresses, or another one after a change: the answer went elsewhere.
			t.end(LifetimeNoHelp)
		}
	}
}

// lifetimeSteps are the silences that are tried one after the other: each a little less than what NATs are usually set
// to. lifetimeLess are tried if the first is too long.
var (
	lifetimeSteps = [...]time.Duration{28 * time.Second, 57 * time.Second, 115 * time.Second, 175 * time.Second}
	lifetimeLess  = [...]time.Duration{18 * time.Second, 9 * time.Second}
)

const (
	lifetimePause = 30 * time.Second // before the first silence, so that an idle host stays a quiet one
	lifetimeCheck = 10 * time.Minute // between two checks of what was found
	lifetimeRetry = time.Minute      // after an unclear outcome, doubled
	lifetimeMost  = time.Hour        // and at most; also how long a fall is remembered
	// MaxKeepalive bounds Keepalive: servers forget who is silent for five minutes.
	MaxKeepalive = 2 * time.Minute
)

// A Lifetime is what is known of how long the NATs and firewalls before this host keep a mapping that nothing uses. It is a
// pure machine that says which silence to test next, and when. The zero value knows nothing.
type Lifetime struct {
	atLeast  time.Duration // longest silence that a mapping outlived; 0: not known
	below    time.Duration // shortest that it did not; 0: not known
	works    bool          // the server helps
	known    bool          // the search has ended
	trouble  string
	next     time.Time
	fails    int
	ceiling  time.Duration // mappings were lost although we sent so often; 0: never
	ceilings time.Time     // until when that counts
}

// Known reports what was found: a mapping outlives a silence of atLeast, and not one of below (0: none was tried that long).
// Both are 0 while nothing is known.
func (t *Lifetime) Known() (atLeast, below time.Duration) { return t.atLeast, t.below }

// Settled reports whether the search has ended.
func (t *Lifetime) Settled() bool { return t.known }

// Trouble says why nothing is known, if that is so for another reason than want of time.
func (t *Lifetime) Trouble() string { return t.trouble }

// Keepalive is how often to send, so that a mapping lives; 0 if not known. The owner takes off up to a tenth at random. What is
// left must be more than 20 s for the first of lifetimeSteps: then two servers and a check of what was found are never
// sent more than ten packets in a minute.
func (t *Lifetime) Keepalive() time.Duration { return min(t.atLeast*8/10, MaxKeepalive) }

// Reset forgets what was found, for example because the network changed, and begins anew after a pause.
func (t *Lifetime) Reset(now time.Time, pause time.Duration) {
	*t = Lifetime{next: now.Add(pause)}
}

// Fell tells that a mapping was lost although something was sent as often as Keepalive said. What was found is
// forgotten, and for an hour no silence as long as that is believed in.
func (t *Lifetime) Fell(now time.Time) {
	k := t.Keepalive()
	if t.ceiling != 0 && now.Before(t.ceilings) && (k == 0 || t.ceiling < k) {
		k = t.ceiling
	}
	t.Reset(now, lifetimeRetry)
	if k != 0 {
		t.ceiling, t.ceilings = k, now.Add(lifetimeMost)
	}
}

// Next returns when Step is due.
func (t *Lifetime) Next() time.Time { return t.next }

// Step returns the silence to test now.
func (t *Lifetime) Step(now time.Time) time.Duration {
	switch {
	case !t.works:
		return 0 // does the server help at all?
	case t.known:
		return t.atLeast
	}
	if idle, ok := t.step(now); ok {
		return idle
	}
	return 0
}

// step finds the next silence of the search, if there is one.
func (t *Lifetime) step(now time.Time) (time.Duration, bool) {
	tooLong := func(d time.Duration) bool {
		return t.below != 0 && d >= t.below || t.ceiling != 0 && now.Before(t.ceilings) && d >= t.ceiling
	}
	for _, d := range lifetimeSteps {
		if d > t.atLeast && !tooLong(d) {
			return d, true
		}
	}
	if t.atLeast == 0 {
		for _, d := range lifetimeLess {
			if !tooLong(d) {
				return d, true
			}
		}
	}
	return 0, false
}

// Told takes the outcome of the test that Step asked for. It reports whether Keepalive changed.
func (t *Lifetime) Told(now time.Time, r LifetimeResult, idle time.Duration) (changed bool) {
	before := t.Keepalive()
	t.next = now
	switch {
	case r == LifetimeUnclear:
		t.next = now.Add(min(lifetimeRetry<<min(t.fails, 6), lifetimeMost))
		t.fails++
		return false
	case r == LifetimeNoHelp:
		*t = Lifetime{next: now.Add(lifetimeMost), trouble: "no server of ours helps to measure it"}
		return before != 0
	case !t.works && r == LifetimeDead:
		*t = Lifetime{next: now.Add(lifetimeMost), trouble: "packets of the server to a second port do not come in"}
		return before != 0
	case !t.works:
		t.works = true
		t.next = now.Add(lifetimePause)
	case r == LifetimeDead && t.known: // it was longer once
		t.atLeast, t.known, t.below = 0, false, idle
	case r == LifetimeDead:
		t.below = idle
	default:
		t.atLeast = max(t.atLeast, idle)
	}
	t.fails = 0
	if _, more := t.step(now); t.known || !more {
		t.known, t.next = true, now.Add(lifetimeCheck)
		if t.atLeast == 0 {
			*t = Lifetime{next: now.Add(lifetimeMost), below: t.below, trouble: "mappings live shorter than is worth keeping"}
		}
	}
	return t.Keepalive() != before
}
