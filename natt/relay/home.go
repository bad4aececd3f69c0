package relay

import (
	crand "crypto/rand"
	"encoding/binary"
	"fmt"
	"io"
	"net/netip"
	"time"

	"github.com/pilotnet/pilot/crypto"
)

// Timing of a home session.
const (
	DefaultKeepalive = 20 * time.Second

	helloFirst   = 250 * time.Millisecond // doubled by every unanswered HELLO
	helloMax     = 4 * time.Second        // so that a server that comes back is found within 4 s
	pingWait     = 500 * time.Millisecond // for the first PONG, then 1 s, 1.5 s
	pingTries    = 3                      // unanswered PINGs until a session counts as lost
	probeAgain   = 150 * time.Millisecond // between PINGs that Probe has sent; those in between do not count
	unknownWait  = 30 * time.Second       // between HELLOs of an agent that must claim first
	hintHold     = 5 * time.Second        // one HINT is honoured in this time
	hintJitter   = 500 * time.Millisecond
	helloRepeats = 8 // HELLOs with one ephemeral key
	proofTries   = 2 // proofs of our address for one REVEAL
	probeRepeats = 4 // HELLOs beside a live session (after a HINT or Kick) until the session is believed again
)

// A HomeEventKind says what happened to a home session.
type HomeEventKind uint8

// What may happen.
const (
	Registered  HomeEventKind = 1 + iota // the server knows our source address: Addr, Time
	Observed                             // our address as the server sees it is Addr
	MailWaiting                          // fetch it
	Superseded                           // an instance that started later is registered; Home rests until Kick
	Unknown                              // claim first, then Kick
	ServerTime                           // the server's clock is Time (authenticated)
	Lost                                 // the server does not answer; Home goes on trying
	ChannelLost                          // the server does not know relay channel Channel
	Located                              // the server sees the other end of relay channel Channel at Addr
)

// A HomeEvent is something that the owner of a Home should know.
type HomeEvent struct {
	Kind    HomeEventKind
	Addr    netip.AddrPort
	Time    time.Time
	Channel uint64
}

// HomeConfig describes a home session. Server, Static and Key are required.
type HomeConfig struct {
	Server    crypto.DHPublic
	Static    crypto.DHPrivate // the registration key of our card
	Key       crypto.PublicKey // our identity
	Instance  uint64
	Takeover  bool          // become the current instance even if another started later
	Keepalive time.Duration // 0: DefaultKeepalive; SetKeepalive changes it
	Rand      io.Reader     // for jitter and attempt numbers; nil: crypto/rand
}

// Home keeps an agent registered with one home server over UDP. It is a pure
// machine: the owner sends what Advance returns to the server, passes every
// datagram of types 9 and 12 to 14 that comes from the server's address to
// Receive, and calls Advance again at Next. Not safe for concurrent use.
type Home struct {
	cfg     HomeConfig
	mac     MAC
	started time.Time // first Advance; told to the server

	hello  *helloAttempt // registration under way
	retry  time.Time     // when the next registration begins; zero: none planned
	link   *link         // registered session
	fresh  *link         // welcomed, not yet confirmed by a PONG
	last   uint64        // number of the last session lost: its HINT still counts
	hinted time.Time     // no HINT about a session is honoured before
	probed time.Time     // no HINT about a channel causes a PING before

	cookie      []byte
	cookieUntil time.Time
	observed    netip.AddrPort
	rtt         time.Duration
	events      []HomeEvent
	proof       uint64 // of our address, from the last SEEN
	proofs      int    // SEENs since the last Reveal that asked for another one
	again       []byte // the REVEAL with it
}

type helloAttempt struct {
	*request
	next    time.Time
	wait    time.Duration
	sent    int
	cookies int
}

// A link is one session with its keepalive.
type link struct {
	number  uint64
	tr      *crypto.Transport
	next    time.Time
	sentAt  time.Time
	echo    uint64
	waiting int  // PINGs sent since the last PONG
	again   bool // one more that does not count is due
}

// NewHome returns a machine that registers at its first Advance.
func NewHome(cfg HomeConfig) *Home {
	if cfg.Keepalive == 0 {
		cfg.Keepalive = DefaultKeepalive
	}
	if cfg.Rand == nil {
		cfg.Rand = crand.Reader
	}
	return &Home{cfg: cfg, mac: NewMAC(cfg.Server)}
}

// Registered reports whether the server has confirmed a session that still answers.
func (h *Home) Registered() bool { return h.link != nil }

// Observed returns our address as the server last saw it, zero if never.
func (h *Home) Observed() netip.AddrPort { return h.observed }

// RTT returns the smoothed round-trip time to the server, zero if unknown.
func (h *Home) RTT() time.Duration { return h.rtt }

// Keepalive returns how long the session is left silent at most.
func (h *Home) Keepalive() time.Duration { return h.cfg.Keepalive }

// SetKeepalive changes how long the session is left silent at most, 0 for DefaultKeepalive: NAT mappings have to
// outlive it.
func (h *Home) SetKeepalive(now time.Time, d time.Duration) {
	if d == 0 {
		d = DefaultKeepalive
	}
	h.cfg.Keepalive = d
	if l := h.link; l != nil && l.waiting == 0 && l.next.Sub(now) > d {
		l.next = now.Add(h.beat())
	}
}

// Kick says that the network changed, or that the claim was accepted, or that a
// superseded instance wants its place back: register again at once, from
// whatever source address datagrams have now. The old session serves until then
// and is moved by a PING at the same time.
func (h *Home) Kick(now time.Time) {
	h.hello, h.fresh, h.hinted = nil, nil, time.Time{}
	h.retry = now
	if h.link != nil {
		h.link.next, h.link.waiting = now, 0
	}
}

// Probe asks the server for a sign of life now, for example because relayed
// frames went unanswered. A restarted server answers with a HINT.
// While no answer comes, each call repeats the question, 150 ms apart at least: the
// first one may have met a router that was about to forget it.
func (h *Home) Probe(now time.Time) {
	switch l := h.link; {
	case l == nil:
	case l.waiting == 0:
		l.next = now
	case now.Sub(l.sentAt) >= probeAgain:
		l.again = true
	}
}

// Reveal returns the datagram that has the server tell the other end of a relay channel
// our address, and us its address (Located) if it asks too. It is nil without a session. A
// server that does not know the question does not answer.
func (h *Home) Reveal(channel uint64) []byte {
	h.proofs = 0
	return h.reveal(channel)
}

func (h *Home) reveal(channel uint64) []byte {
	if h.link == nil {
		return nil
	}
	b, err := AppendRecord(nil, h.link.number, h.link.tr, Record{Kind: Reveal, Echo: channel, Proof: h.proof})
	if err != nil {
		return nil
	}
	return b
}

// located takes the answer. The proof holds for one source address, which a NAT may change.
func (h *Home) located(r Record) {
	if r.Flags&FlagProve != 0 {
		if h.proofs++; h.proofs <= proofTries {
			h.proof = r.Proof
			h.again = h.reveal(r.Echo)
		}
		return
	}
	if r.Observed.IsValid() {
		h.event(HomeEvent{Kind: Located, Addr: r.Observed, Channel: r.Echo})
	}
}

// Next returns when Advance is to be called next; a time in the past means now,
// the zero time means never (until Receive or Kick).
func (h *Home) Next() time.Time {
	if h.started.IsZero() {
		return time.Unix(0, 0)
	}
	var next time.Time
	at := func(t time.Time) {
		if !t.IsZero() && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	if h.again != nil {
		return time.Unix(0, 0)
	}
	at(h.retry)
	if h.hello != nil {
		at(h.hello.next)
	}
	for _, l := range []*link{h.link, h.fresh} {
		if l != nil {
			at(l.next)
		}
	}
	return next
}

// Events returns what happened without a datagram (Lost), and forgets it.
// Receive returns these too.
func (h *Home) Events() []HomeEvent {
	events := h.events
	h.events = nil
	return events
}

// Advance does what is due and returns the datagrams to send to the server now.
func (h *Home) Advance(now time.Time) [][]byte {
	if h.started.IsZero() {
		h.started, h.retry = now, now
	}
	var out [][]byte
	if h.again != nil {
		out, h.again = append(out, h.again), nil
	}
	for _, l := range []*link{h.link, h.fresh} {
		if l == nil {
			continue
		}
		if again := l.again; now.Before(l.next) {
			if l.again = false; again {
				out = append(out, h.repeat(now, l)...)
			}
			continue
		}
		if l.waiting >= pingTries {
			h.drop(now, l)
			continue
		}
		if b := h.ping(now, l); b != nil {
			out = append(out, b)
		}
	}
	if h.hello == nil && !h.retry.IsZero() && !now.Before(h.retry) {
		h.begin(now)
	}
	if h.hello != nil && !now.Before(h.hello.next) {
		if b := h.sendHello(now); b != nil {
			out = append(out, b)
		}
	}
	return out
}

// drop gives up a session that does not answer.
func (h *Home) drop(now time.Time, l *link) {
	if l == h.fresh {
		h.fresh = nil
	} else {
		h.link, h.last = nil, l.number
		h.events = append(h.events, HomeEvent{Kind: Lost})
	}
	if h.hello == nil && h.fresh == nil && h.link == nil {
		h.retry = now
	}
}

func (h *Home) ping(now time.Time, l *link) []byte {
	l.echo++
	l.sentAt = now
	l.waiting++
	l.next = now.Add(time.Duration(l.waiting) * pingWait)
	b, err := AppendRecord(nil, l.number, l.tr, Record{Kind: Ping, Echo: l.echo, Time: now})
	if err != nil { // a counter at its limit: this session is over
		l.waiting = pingTries
		l.next = now
		return nil
	}
	return b
}

// repeat is a PING beside those that decide whether the session is lost.
func (h *Home) repeat(now time.Time, l *link) (out [][]byte) {
	next, waiting := l.next, l.waiting
	if b := h.ping(now, l); b != nil {
		out = append(out, b)
		l.next, l.waiting = next, waiting
	}
	return out
}

// Bye returns the datagram that ends the session, or nil without one.
func (h *Home) Bye(now time.Time) []byte {
	if h.link == nil {
		return nil
	}
	b, err := AppendRecord(nil, h.link.number, h.link.tr, Record{Kind: Bye, Time: now})
	if err != nil {
		return nil
	}
	return b
}

func (h *Home) begin(now time.Time) {
	h.retry, h.hello = time.Time{}, nil
	var flags HelloFlags
	if h.cfg.Takeover {
		flags |= FlagTakeover
	}
	payload := appendHelloBody(nil, Hello{
		Fingerprint: h.cfg.Key.Fingerprint(), Instance: h.cfg.Instance,
		Time: now, Started: h.started, Flags: flags,
	})
	r, err := newRequest(h.cfg.Server, &h.cfg.Static, uint32(h.random()), payload, h.validCookie(now))
	if err != nil { // only with keys that no parser lets through
		h.retry = now.Add(unknownWait)
		return
	}
	h.hello = &helloAttempt{request: r, next: now, wait: helloFirst}
}

func (h *Home) validCookie(now time.Time) []byte {
	if now.Before(h.cookieUntil) {
		return h.cookie
	}
	return nil
}

func (h *Home) sendHello(now time.Time) []byte {
	a := h.hello
	if h.link != nil && a.sent >= probeRepeats {
		h.hello = nil // the old session still answers its PINGs, or will be dropped by them
		return nil
	}
	if a.sent >= helloRepeats { // a fresh ephemeral key and time
		wait := a.wait
		h.begin(now)
		if a = h.hello; a == nil {
			return nil
		}
		a.wait = wait
	}
	a.sent++
	a.next = now.Add(h.jitter(a.wait))
	a.wait = min(2*a.wait, helloMax)
	return a.msg
}

// jitter returns between 4/5 of d and d.
func (h *Home) jitter(d time.Duration) time.Duration {
	return d - time.Duration(h.random()%uint64(d/5+1))
}

// beat returns between 9/10 of the keepalive interval and the whole.
func (h *Home) beat() time.Duration {
	d := h.cfg.Keepalive
	return d - time.Duration(h.random()%uint64(d/10+1))
}

func (h *Home) random() uint64 {
	var b [8]byte
	if _, err := io.ReadFull(h.cfg.Rand, b[:]); err != nil {
		return 0 // without jitter and with attempt 0 everything still works
	}
	return binary.BigEndian.Uint64(b[:])
}

// Receive takes a datagram from the server's address. An error says that it was
// not for us and changed nothing.
func (h *Home) Receive(now time.Time, b []byte) ([]HomeEvent, error) {
	var err error
	switch {
	case len(b) == 0:
		err = ErrMalformed
	case b[0] == TypeWelcome:
		err = h.welcome(now, b)
	case b[0] == TypeRecord:
		err = h.record(now, b)
	case b[0] == TypeCookie:
		err = h.takeCookie(now, b)
	case b[0] == TypeHint:
		err = h.hint(now, b)
	default:
		err = fmt.Errorf("%w: type %d is not for a home session", ErrMalformed, b[0])
	}
	return h.Events(), err
}

func (h *Home) welcome(now time.Time, b []byte) error {
	if h.hello == nil {
		return ErrMalformed
	}
	w, hs, err := h.hello.complete(b)
	if err != nil {
		return err
	}
	h.event(HomeEvent{Kind: ServerTime, Time: w.Time})
	h.hello = nil
	switch w.Status {
	case StatusUnknown:
		h.event(HomeEvent{Kind: Unknown})
		h.retry = now.Add(h.jitter(unknownWait))
		return nil
	case StatusSuperseded:
		h.rest()
		return nil
	}
	keys, err := hs.Split()
	if err != nil {
		return fmt.Errorf("relay: open session: %w", err)
	}
	h.fresh = &link{number: w.Number, tr: crypto.NewTransport(keys), next: now}
	h.seen(w.Observed)
	return nil
}

func (h *Home) rest() {
	h.hello, h.link, h.fresh, h.last, h.retry = nil, nil, nil, 0, time.Time{}
	h.event(HomeEvent{Kind: Superseded})
}

func (h *Home) event(e HomeEvent) { h.events = append(h.events, e) }

func (h *Home) seen(a netip.AddrPort) {
	if a.IsValid() && a != h.observed {
		h.observed = a
		h.event(HomeEvent{Kind: Observed, Addr: a})
	}
}

func (h *Home) record(now time.Time, b []byte) error {
	number, sealed, ok := ParseRecord(b)
	if !ok {
		return ErrMalformed
	}
	for _, l := range []*link{h.fresh, h.link} {
		if l == nil || l.number != number {
			continue
		}
		r, err := OpenRecord(l.tr, sealed)
		if err != nil {
			return err
		}
		switch r.Kind {
		case Pong:
			h.pong(now, l, r)
		case Notice:
			h.notice(now, l, r)
		case Seen:
			h.located(r)
		default:
			return ErrMalformed
		}
		return nil
	}
	return fmt.Errorf("%w: record of another session", ErrMalformed)
}

func (h *Home) pong(now time.Time, l *link, r Record) {
	if r.Echo == l.echo {
		if rtt := now.Sub(l.sentAt); h.rtt == 0 {
			h.rtt = rtt
		} else {
			h.rtt += (rtt - h.rtt) / 8
		}
	}
	l.waiting = 0
	l.next = now.Add(h.beat())
	h.seen(r.Observed)
	if l == h.fresh {
		h.link, h.fresh, h.hello = l, nil, nil
		h.event(HomeEvent{Kind: Registered, Addr: r.Observed, Time: r.Time})
	}
	if r.Flags&FlagMail != 0 {
		h.event(HomeEvent{Kind: MailWaiting})
	}
}

func (h *Home) notice(now time.Time, l *link, r Record) {
	switch r.Echo {
	case NoticeMail:
		h.event(HomeEvent{Kind: MailWaiting})
		l.next, l.waiting = now, 0 // the answer
	case NoticeProbe:
		l.next, l.waiting = now, 0
	case NoticeSuperseded:
		h.rest()
	}
}

func (h *Home) takeCookie(now time.Time, b []byte) error {
	if h.hello == nil || h.hello.cookies >= probeRepeats {
		return ErrMalformed
	}
	cookie, ok := h.mac.openCookie(b, h.hello.msg)
	if !ok {
		return ErrMalformed
	}
	h.cookie, h.cookieUntil = cookie, now.Add(cookieLife)
	h.hello.cookies++
	h.hello.msg = setMAC2(append([]byte(nil), h.hello.msg...), cookie)
	h.hello.next = now
	return nil
}

func (h *Home) hint(now time.Time, b []byte) error {
	kind, number, ok := ParseHint(b)
	if !ok {
		return ErrMalformed
	}
	if kind == HintChannel {
		h.event(HomeEvent{Kind: ChannelLost, Channel: number})
		if !now.Before(h.probed) {
			h.probed = now.Add(time.Second)
			h.Probe(now)
		}
		return nil
	}
	ours := number == h.last && number != 0
	for _, l := range []*link{h.link, h.fresh} {
		ours = ours || l != nil && l.number == number
	}
	if !ours {
		return ErrMalformed
	}
	if now.Before(h.hinted) {
		return nil
	}
	h.hinted = now.Add(hintHold)
	soon := now.Add(time.Duration(h.random() % uint64(hintJitter)))
	switch {
	case h.hello == nil:
		h.retry = soon
	case h.hello.next.After(soon): // it waited long for a server that is back
		h.hello.next, h.hello.wait = soon, helloFirst
	}
	return nil
}
