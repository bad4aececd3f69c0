package relay

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/pilotnet/pilot/crypto"
)

// A world is a home session and a server without sockets, on a clock that only
// the test moves. Datagrams take 20 ms each way.
type world struct {
	t       *testing.T
	now     time.Time
	key     crypto.DHPrivate
	home    *Home
	src     netip.AddrPort // of the agent, as the server sees it
	down    bool           // the server hears and says nothing
	status  WelcomeStatus
	session map[uint64]*crypto.Transport
	next    uint64
	sent    []byte // types of all datagrams of the agent
	flying  []flight
	events  []HomeEvent
	mail    bool
}

type flight struct {
	at      time.Time
	b       []byte
	toAgent bool
}

const oneWay = 20 * time.Millisecond

func newWorld(t *testing.T) *world {
	static := testKey(t)
	w := &world{t: t, now: testNow, key: testKey(t), src: testAddr, session: make(map[uint64]*crypto.Transport)}
	w.home = NewHome(HomeConfig{Server: w.key.Public(), Static: static, Instance: 1})
	return w
}

// run lets d pass.
func (w *world) run(d time.Duration) {
	w.t.Helper()
	end := w.now.Add(d)
	for range 100_000 {
		for _, b := range w.home.Advance(w.now) {
			w.sent = append(w.sent, b[0])
			w.flying = append(w.flying, flight{w.now.Add(oneWay), b, false})
		}
		w.events = append(w.events, w.home.Events()...)
		next := end
		if n := w.home.Next(); !n.IsZero() && n.Before(next) {
			next = n
		}
		for _, f := range w.flying {
			if f.at.Before(next) {
				next = f.at
			}
		}
		if w.now.Before(next) {
			w.now = next
		}
		w.deliver()
		if !w.now.Before(end) {
			return
		}
	}
	w.t.Fatal("the machine spins")
}

func (w *world) deliver() {
	flying := w.flying
	w.flying = nil
	for _, f := range flying {
		switch {
		case w.now.Before(f.at):
			w.flying = append(w.flying, f)
		case f.toAgent:
			events, _ := w.home.Receive(w.now, f.b)
			w.events = append(w.events, events...)
		case !w.down:
			w.serve(f.b)
		}
	}
}

func (w *world) answer(b []byte) { w.flying = append(w.flying, flight{w.now.Add(oneWay), b, true}) }

func (w *world) serve(b []byte) {
	w.t.Helper()
	if number, sealed, ok := ParseRecord(b); ok {
		tr := w.session[number]
		if tr == nil {
			w.answer(AppendHint(nil, HintSession, number))
			return
		}
		r, err := OpenRecord(tr, sealed)
		if err != nil {
			w.t.Fatal(err)
		}
		pong := Record{Kind: Pong, Echo: r.Echo, Time: w.now, Observed: w.src}
		if w.mail {
			pong.Flags = FlagMail
		}
		out, err := AppendRecord(nil, number, tr, pong)
		if err != nil {
			w.t.Fatal(err)
		}
		w.answer(out)
		return
	}
	a, err := Accept(w.key, b)
	if err != nil {
		w.t.Fatal(err)
	}
	welcome := Welcome{Status: w.status, Time: w.now, Observed: w.src}
	if w.status == StatusWelcome {
		w.next++
		welcome.Number = w.next
	}
	out, err := a.Answer(welcome)
	if err != nil {
		w.t.Fatal(err)
	}
	if w.status == StatusWelcome {
		if w.session[w.next], err = a.Transport(); err != nil {
			w.t.Fatal(err)
		}
	}
	w.answer(out)
}

// restart makes the server forget everything.
func (w *world) restart() { clear(w.session) }

func (w *world) saw(kind HomeEventKind) bool {
	return slices.ContainsFunc(w.events, func(e HomeEvent) bool { return e.Kind == kind })
}

func (w *world) expect(kinds ...HomeEventKind) {
	w.t.Helper()
	var got []HomeEventKind
	for _, e := range w.events {
		got = append(got, e.Kind)
	}
	if !slices.Equal(got, kinds) {
		w.t.Fatalf("events %v, want %v", got, kinds)
	}
	w.events = nil
}

func TestHomeRegisters(t *testing.T) {
	w := newWorld(t)
	w.run(100 * time.Millisecond) // two round trips of 40 ms
	w.expect(ServerTime, Observed, Registered)
	if !w.home.Registered() || w.home.Observed() != w.src || w.home.RTT() != 2*oneWay {
		t.Errorf("registered %v, observed %v, RTT %v", w.home.Registered(), w.home.Observed(), w.home.RTT())
	}
	if !slices.Equal(w.sent, []byte{TypeHello, TypeRecord}) {
		t.Errorf("sent %v", w.sent)
	}
}

// An idle agent sends three or four packets a minute to a server.
func TestHomeIdle(t *testing.T) {
	w := newWorld(t)
	w.run(time.Second)
	w.sent = nil
	w.run(time.Hour)
	if n := len(w.sent); n < 3*60 || n > 4*60 {
		t.Errorf("%d packets in an hour", n)
	}
	w.mail = true
	w.events = nil
	w.run(DefaultKeepalive)
	if !w.saw(MailWaiting) {
		t.Error("mail is not announced")
	}
}

// Without an answer an agent sends at most 20 packets a minute, and finds a
// server that comes back within 5 s.
func TestHomeServerDown(t *testing.T) {
	w := newWorld(t)
	w.down = true
	w.run(10 * time.Minute)
	if n := len(w.sent); n > 20*10 {
		t.Errorf("%d packets in ten minutes", n)
	}
	w.expect()
	w.down = false
	w.run(5 * time.Second)
	w.expect(ServerTime, Observed, Registered)
}

func TestHomeLost(t *testing.T) {
	w := newWorld(t)
	w.run(time.Second)
	w.events, w.down = nil, true
	w.run(DefaultKeepalive + 4*time.Second)
	w.expect(Lost)
	if w.home.Registered() {
		t.Error("still registered")
	}
	w.down = false
	w.run(5 * time.Second)
	w.expect(ServerTime, Registered)
}

// A hint of a restarted server brings the agent back within a second; its own
// frames do so too.
func TestHomeRestart(t *testing.T) {
	w := newWorld(t)
	w.run(time.Second)
	w.restart()
	w.events = nil
	w.answer(AppendHint(nil, HintSession, 1))
	w.run(time.Second)
	w.expect(ServerTime, Registered)

	w.run(hintHold)
	w.restart()
	w.home.Probe(w.now)
	w.run(time.Second)
	w.expect(ServerTime, Registered)
}

// Forged hints cost one handshake in five seconds and never the session.
func TestHomeForgedHints(t *testing.T) {
	w := newWorld(t)
	w.run(time.Second)
	w.sent, w.events = nil, nil
	for range 600 {
		w.answer(AppendHint(nil, HintSession, w.home.link.number))
		w.answer(AppendHint(nil, HintSession, 12345))
		w.run(100 * time.Millisecond)
		if !w.home.Registered() {
			t.Fatal("not registered")
		}
	}
	hellos := 0
	for _, typ := range w.sent {
		if typ == TypeHello {
			hellos++
		}
	}
	if hellos == 0 || hellos > 13 {
		t.Errorf("%d HELLOs in a minute", hellos)
	}
	if w.saw(Lost) {
		t.Error("lost")
	}
	w.sent = nil
	for range 600 { // hints about channels cost at most a PING a second
		w.answer(AppendHint(nil, HintChannel, 1))
		w.run(100 * time.Millisecond)
	}
	if len(w.sent) > 65 {
		t.Errorf("%d packets in a minute", len(w.sent))
	}
}

func TestHomeUnknownAndSuperseded(t *testing.T) {
	w := newWorld(t)
	w.status = StatusUnknown
	w.run(3 * time.Minute)
	if n := len(w.sent); n < 5 || n > 9 {
		t.Errorf("%d HELLOs of an unknown agent in three minutes", n)
	}
	if !w.saw(Unknown) {
		t.Error("no event")
	}
	w.status, w.events = StatusWelcome, nil
	w.home.Kick(w.now)
	w.run(100 * time.Millisecond)
	w.expect(ServerTime, Observed, Registered)

	w.status = StatusSuperseded
	w.home.Kick(w.now)
	w.run(100 * time.Millisecond)
	w.expect(ServerTime, Superseded)
	w.sent = nil
	w.run(time.Hour)
	if len(w.sent) != 0 || w.home.Registered() {
		t.Errorf("a superseded instance sent %d packets", len(w.sent))
	}
}

// After a change of network the agent is reached at its new address half a round
// trip later, by its PING, whether or not the server still knows the session.
func TestHomeKick(t *testing.T) {
	w := newWorld(t)
	w.run(time.Second)
	w.sent, w.events = nil, nil
	w.src = netip.MustParseAddrPort("198.51.100.9:1")
	w.home.Kick(w.now)
	w.run(50 * time.Millisecond)
	if !slices.Equal(w.sent[:2], []byte{TypeRecord, TypeHello}) {
		t.Errorf("sent %v", w.sent)
	}
	w.run(time.Second)
	w.expect(Observed, ServerTime, Registered)
	if w.home.Observed() != w.src {
		t.Errorf("observed %v", w.home.Observed())
	}
}

func TestVisitor(t *testing.T) {
	key := testKey(t)
	v := NewVisitor(VisitorConfig{Server: key.Public(), Target: crypto.Fingerprint{5}})
	if !v.Stale() || v.Keepalive(testNow) != nil {
		t.Error("a channel from nowhere")
	}
	var answers [][]byte
	for i := range uint64(6) {
		msg, err := v.Open(testNow, []byte("init"))
		if err != nil {
			t.Fatal(err)
		}
		a, err := Accept(key, msg)
		if err != nil || a.Visit.Target != (crypto.Fingerprint{5}) || string(a.Visit.Inner) != "init" {
			t.Fatalf("%+v, %v", a.Visit, err)
		}
		b, err := a.Answer(Welcome{Number: 100 + i, Time: testNow, Observed: testAddr})
		if err != nil {
			t.Fatal(err)
		}
		answers = append(answers, b)
	}
	if v.Receive(testNow, answers[1]) == nil {
		t.Error("an answer to a VISIT long ago counts")
	}
	if err := v.Receive(testNow, answers[4]); err != nil || v.Channel() != 104 || v.Stale() || v.Observed() != testAddr {
		t.Fatalf("channel %d, stale %v, %v", v.Channel(), v.Stale(), err)
	}
	if v.Receive(testNow, answers[5]) == nil {
		t.Error("a second answer counts")
	}
	if v.Receive(testNow, AppendHint(nil, HintChannel, 9)) == nil || v.Stale() {
		t.Error("a hint about another channel counts")
	}
	if err := v.Receive(testNow, AppendHint(nil, HintChannel, 104)); err != nil || !v.Stale() || v.Channel() != 104 {
		t.Errorf("hint: %v, stale %v, channel %d", err, v.Stale(), v.Channel())
	}
	if _, err := v.Open(testNow, make([]byte, MaxInner+1)); err == nil {
		t.Error("a long inner frame is taken")
	}
}
