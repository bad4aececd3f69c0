package portmap

import (
	"fmt"
	"net/netip"
	"time"
)

const (
	// lifetime is what we ask for. Renewal at half of it is also how a gateway that restarted in silence is noticed, and
	// what a killed agent leaves behind is gone soon.
	lifetime = 20 * time.Minute
	// longest and shortest bound what a gateway may grant: RFC 6887 section 15 allows no more than a day, and what ends
	// at once is of no use.
	longest  = 24 * time.Hour
	shortest = 10 * time.Second

	firstWait   = 250 * time.Millisecond // doubles with each repetition, as in RFC 6886 section 3.1
	askTries    = 5
	leaveTries  = 3
	leaveWait   = 100 * time.Millisecond // between them: nobody who stops waits for seconds
	silentPause = 10 * time.Minute       // before a gateway that said nothing is asked again
	errorPause  = 30 * time.Minute       // the same after a refusal that names no time
	leastPause  = 30 * time.Second
	resetJitter = time.Second // all clients of a gateway that restarted ask again at once
	resetPause  = time.Minute // announcements can be forged: they make us ask no more often than this
)

// wire is one of the two datagram protocols.
type wire interface {
	// ask returns the datagrams that ask for a mapping, the external address and port being a wish. A lifetime of 0
	// withdraws the mapping.
	ask(external netip.AddrPort, lifetime time.Duration) [][]byte
	// read understands an answer; false for anything that is none, or none to us.
	read(b []byte) (answer, bool)
}

// answer is what a datagram from the gateway says. NAT-PMP tells the external address and the mapping apart.
type answer struct {
	epoch    uint32
	dated    bool // epoch is valid
	failure  string
	pause    time.Duration // with failure: ask again after this; 0 if not said
	addr     netip.Addr    // external address, if it is told
	mapped   bool          // port and lifetime are told
	port     uint16
	lifetime uint32 // seconds
}

type leasePhase uint8

const (
	resting leasePhase = iota
	asking
	leaving
	left
)

// lease keeps one mapping alive by PCP or NAT-PMP. It is a pure machine: datagrams and the time go in, datagrams, the
// next deadline and reports come out.
type lease struct {
	wire    wire
	exclude netip.Prefix
	jitter  func(time.Duration) time.Duration // a random part of a time

	phase    leasePhase
	at       time.Time // when the phase has something to do
	tries    int
	deaf     bool           // in this round of asking, the gateway's host refused
	wish     netip.AddrPort // the external port to ask for
	external netip.AddrPort // held; zero if none
	until    time.Time
	heard    answer // parts of the answer of this round of asking
	clock    epochClock
	calmed   time.Time // no further loss of state is believed before
	out      [][]byte
	reports  []report
}

// report is a piece of news for the one who holds the lease.
type report struct {
	gateway  netip.Addr     // who maps, if not the default gateway
	external netip.AddrPort // zero: there is no mapping
	until    time.Time
	problem  string
	reset    bool // the gateway lost its state or changed its address; nothing else is said
}

func newLease(w wire, port uint16, exclude netip.Prefix, jitter func(time.Duration) time.Duration) *lease {
	return &lease{wire: w, exclude: exclude, jitter: jitter, wish: netip.AddrPortFrom(netip.Addr{}, port)}
}

// next is when advance wants to be called; zero for never.
func (l *lease) next() time.Time {
	if !l.until.IsZero() && l.until.Before(l.at) {
		return l.until
	}
	return l.at
}

// advance does what is due and returns what to send.
func (l *lease) advance(now time.Time) [][]byte {
	if !l.until.IsZero() && !now.Before(l.until) {
		l.lose("the mapping ran out and the gateway did not renew it")
	}
	if l.phase != left && !now.Before(l.at) {
		l.step(now)
	}
	out := l.out
	l.out = nil
	return out
}

func (l *lease) step(now time.Time) {
	switch l.phase {
	case resting:
		l.phase, l.tries, l.heard, l.deaf = asking, 0, answer{}, false
	case leaving:
		if l.tries == leaveTries {
			l.phase, l.at = left, time.Time{}
			return
		}
		l.send(now, 0)
		return
	}
	if l.tries < askTries {
		l.send(now, lifetime)
		return
	}
	if l.external.IsValid() {
		l.rest(now, max(l.until.Sub(now)/2, shortest/2))
		return
	}
	why := "the gateway does not answer"
	if l.deaf {
		why = "the gateway does not speak it"
	}
	l.refuse(now, why, silentPause)
}

// send asks once more.
func (l *lease) send(now time.Time, life time.Duration) {
	wish := l.wish
	if life == 0 {
		wish = netip.AddrPort{} // RFC 6886 section 3.4, RFC 6887 section 15: both zero
	}
	l.out = append(l.out, l.wire.ask(wish, life)...)
	l.at = now.Add(firstWait << l.tries)
	if life == 0 {
		l.at = now.Add(leaveWait)
	}
	l.tries++
}

func (l *lease) rest(now time.Time, d time.Duration) { l.phase, l.at = resting, now.Add(d) }

// renew asks again at once, because something changed.
func (l *lease) renew(now time.Time) {
	if l.phase == resting {
		l.at = now
	}
}

// leave withdraws the mapping. The machine is done when gone reports so.
func (l *lease) leave(now time.Time) {
	if l.phase == resting && !l.external.IsValid() {
		l.phase, l.at = left, time.Time{}
		return
	}
	l.phase, l.tries, l.at = leaving, 0, now
	l.external, l.until = netip.AddrPort{}, time.Time{}
}

func (l *lease) gone() bool { return l.phase == left }

// failed notes that the gateway's host says that nobody listens there. It may be about to start, so this only says
// what silence will mean.
func (l *lease) failed() {
	if l.phase == leaving {
		l.phase, l.at = left, time.Time{}
	}
	l.deaf = true
}

// receive takes a datagram that came from the gateway, as an answer or, if overheard, as an announcement to everybody.
// Only the former can tell of a mapping.
func (l *lease) receive(now time.Time, b []byte, overheard bool) {
	a, ok := l.wire.read(b)
	if !ok || l.phase == left || overheard && (l.phase != resting || a.mapped || a.failure != "") {
		return
	}
	reset := a.dated && !l.clock.follows(now, a.epoch)
	moved := l.phase == resting && a.addr.IsValid() && l.external.IsValid() && a.addr != l.external.Addr()
	if reset || moved {
		if reset = !now.Before(l.calmed); reset {
			l.calmed = now.Add(resetPause)
			l.reports = append(l.reports, report{reset: true})
		}
	}
	switch l.phase {
	case leaving:
		if a.failure != "" || a.mapped && a.lifetime == 0 {
			l.phase, l.at = left, time.Time{}
		}
	case resting:
		if reset { // told by an announcement
			l.at = now.Add(l.jitter(resetJitter))
		}
	case asking:
		l.listen(now, a)
	}
}

// listen takes an answer to a question that is open.
func (l *lease) listen(now time.Time, a answer) {
	if a.failure != "" {
		pause := min(max(a.pause, leastPause), errorPause)
		if a.pause == 0 {
			pause = errorPause
		}
		l.refuse(now, a.failure, pause)
		return
	}
	if a.addr.IsValid() {
		l.heard.addr = a.addr
	}
	if a.mapped {
		l.heard.mapped, l.heard.port, l.heard.lifetime = true, a.port, a.lifetime
	}
	if !l.heard.mapped || !l.heard.addr.IsValid() {
		return
	}
	life := min(time.Duration(l.heard.lifetime)*time.Second, longest)
	external := netip.AddrPortFrom(l.heard.addr, l.heard.port)
	why := unusable(external.Addr(), l.exclude)
	switch {
	case life < shortest:
		l.refuse(now, fmt.Sprintf("the gateway grants %v only", life), errorPause)
	case external.Port() == 0:
		l.refuse(now, "the gateway grants port 0", errorPause)
	case why != "":
		l.out = append(l.out, l.wire.ask(netip.AddrPort{}, 0)...)
		l.refuse(now, why, errorPause)
	default:
		l.external, l.until, l.wish = external, now.Add(life), external
		l.reports = append(l.reports, report{external: external, until: l.until})
		l.rest(now, life/2)
	}
}

// refuse gives up for a while.
func (l *lease) refuse(now time.Time, why string, pause time.Duration) {
	l.rest(now, pause)
	l.lose(why)
}

// lose reports that there is no mapping.
func (l *lease) lose(why string) {
	l.external, l.until = netip.AddrPort{}, time.Time{}
	l.reports = append(l.reports, report{problem: why})
}

// news returns what happened since the last call.
func (l *lease) news() []report {
	r := l.reports
	l.reports = nil
	return r
}

// epochClock notices by the rule of RFC 6887 section 8.5 that a gateway lost its state. NAT-PMP's own rule (RFC 6886
// section 3.6) allows for slower clocks, which at worst costs us one more request.
type epochClock struct {
	at    time.Time
	epoch uint32
}

// follows reports whether the gateway ran on since the last answer, and remembers the new one.
func (c *epochClock) follows(now time.Time, epoch uint32) bool {
	last := *c
	c.at, c.epoch = now, epoch
	if last.at.IsZero() {
		return true
	}
	client := int64(now.Sub(last.at) / time.Second)
	server := int64(epoch) - int64(last.epoch)
	return server >= -1 && client+2 >= server-server/16 && server+2 >= client-client/16
}
