package natt

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// auditor runs an agent whose peer is an enemy and keeps the books.
type auditor struct {
	t      *testing.T
	a      *Agent
	now    time.Time
	probes map[netip.AddrPort][]time.Time // challenges and openers by address
	all    []time.Time
	relay  Path
}

func newAuditor(t *testing.T) *auditor {
	u := &auditor{
		t: t, now: epoch, probes: map[netip.AddrPort][]time.Time{},
		a:     NewAgent(AgentConfig{Rand: randReader{rand.New(rand.NewPCG(7, 7))}}),
		relay: Path{Remote: relayAddr(0), Channel: 9},
	}
	u.a.Links(u.now, []netip.Prefix{netip.MustParsePrefix("192.168.1.10/24"), netip.MustParsePrefix("fdaa::10/64")})
	u.a.SetLocal(u.now, []Candidate{{Host, netip.MustParseAddrPort("192.168.1.10:4242")}})
	u.a.Relays(u.now, []Path{u.relay})
	u.a.Connected(u.now, u.relay)
	return u
}

// step runs the agent. Relays answer everything, direct addresses nothing.
func (u *auditor) step() (acts []Action) {
	acts = slices.Clone(u.a.Advance(u.now))
	for _, act := range acts {
		if act.Kind == ActPunch || act.Kind == ActProbe {
			u.probes[act.Path.Remote] = append(u.probes[act.Path.Remote], u.now)
			u.all = append(u.all, u.now)
			if forbidden(act.Path.Remote) {
				u.t.Errorf("opens a way to %v", act.Path.Remote)
			}
		}
		if act.Kind != ActChallenge && act.Kind != ActResponse {
			continue
		}
		if act.Path.Relayed() {
			if act.Kind == ActChallenge {
				u.a.Responded(u.now, act.Path, act.Token)
			}
			continue
		}
		if forbidden(act.Path.Remote) {
			u.t.Errorf("sends to %v", act.Path.Remote)
		}
		if act.Kind == ActChallenge {
			u.probes[act.Path.Remote] = append(u.probes[act.Path.Remote], u.now)
			u.all = append(u.all, u.now)
			if act.Size != 0 {
				u.t.Errorf("probe of %d bytes to an address that has not answered", act.Size)
			}
		}
	}
	return acts
}

// check asserts the limits: 20 packets to an address in any minute and 80 in any hour, 16 addresses in any ten minutes,
// 96 in an hour.
func (u *auditor) check(addresses int) {
	u.t.Helper()
	fresh := map[time.Duration]int{} // most addresses in a span
	var firsts []time.Time
	for addr, times := range u.probes {
		if n := most(times, time.Minute); n > firstPackets {
			u.t.Errorf("%d packets to %v in a minute", n, addr)
		}
		if n := most(times, time.Hour); n > 160 {
			u.t.Errorf("%d packets to %v in an hour", n, addr)
		}
		firsts = append(firsts, times[0])
	}
	slices.SortFunc(firsts, time.Time.Compare)
	for span, limit := range map[time.Duration]int{10 * time.Minute: maxStrangers, time.Hour: 6 * maxStrangers} {
		if fresh[span] = most(firsts, span); fresh[span] > limit {
			u.t.Errorf("%d new addresses in %v", fresh[span], span)
		}
	}
	if n := most(u.all, time.Hour); n > 6*maxStrangers*firstPackets {
		u.t.Errorf("%d packets in an hour", n)
	}
	if len(u.probes) > addresses {
		u.t.Errorf("packets to %d addresses", len(u.probes))
	}
	if len(u.a.routes) > maxDirect+maxRelays {
		u.t.Errorf("%d routes", len(u.a.routes))
	}
	u.t.Logf("%d packets to %d addresses in %v", len(u.all), len(u.probes), u.now.Sub(epoch).Round(time.Second))
}

func forbidden(p netip.AddrPort) bool {
	ip := p.Addr()
	return !ip.IsValid() || p.Port() == 0 || ip.IsLoopback() || ip.IsMulticast() || ip.IsUnspecified() ||
		ip.IsLinkLocalUnicast() || overlayPrefix.Contains(ip) || ip == netip.MustParseAddr("255.255.255.255") || ip.Is4In6()
}

// spend runs the agent for d, with data over the relay all the time, and calls evil each 100 ms, later each second.
func (u *auditor) spend(d time.Duration, evil func()) {
	step := 100 * ms
	for end := u.now.Add(d); u.now.Before(end); u.now = u.now.Add(step) {
		if u.now.Sub(epoch) > 2*time.Minute {
			step = time.Second
		}
		if u.now.Sub(u.a.traffic) > ActiveEvery {
			u.a.Active(u.now, true, true)
		}
		evil()
		u.step()
	}
}

var forbiddenList = []string{
	"127.0.0.1:80", "[::1]:80", "224.0.0.1:5353", "[ff02::1]:5353", "0.0.0.0:53", "[::]:53", "255.255.255.255:67",
	"[fd50:494c:4f54::1:2]:80", "169.254.169.254:80", "[fe80::1]:80", "10.9.9.9:22", "[fdbb::1]:22", "192.168.1.10:4242",
}

func TestForbiddenCandidates(t *testing.T) {
	t.Parallel()
	u := newAuditor(t)
	var list []Candidate
	for _, s := range forbiddenList {
		list = append(list, Candidate{Host, netip.MustParseAddrPort(s)})
	}
	list = append(list, Candidate{Host, netip.MustParseAddrPort("192.168.1.77:22")}, Candidate{99, netip.MustParseAddrPort("8.8.8.8:53")})
	u.spend(5*time.Second, func() { u.a.SetRemote(u.now, list) })
	for _, s := range forbiddenList {
		if n := len(u.probes[netip.MustParseAddrPort(s)]); n > 0 {
			t.Errorf("%d probes to %s", n, s)
		}
	}
	if len(u.probes[netip.MustParseAddrPort("192.168.1.77:22")]) == 0 {
		t.Error("an address on our own link was not tried")
	}
	for _, s := range forbiddenList[:10] { // as a source: no answer, no route, no use
		p := Path{Remote: netip.MustParseAddrPort(s)}
		u.a.Challenged(u.now, p, Token{1}, 80)
		u.a.Received(u.now, p)
		u.a.Connected(u.now, p)
		for _, act := range u.step() {
			if act.Path == p {
				t.Errorf("%s: %+v", s, act)
			}
		}
	}
	u.check(1)
	u.a.SetRemote(u.now, list[:10])
	u.spend(time.Second, func() {})
	if why := u.a.Status().WhyNotDirect; !strings.Contains(why, "none of the peer's 10 addresses can be tried") {
		t.Error(why)
	}
}

// The same list for ever, then other lists, then lists that come back: never more probes than allowed.
func TestHostileLists(t *testing.T) {
	t.Parallel()
	list := func(n int) (l []Candidate) {
		for i := range 10000 {
			ip := netip.AddrFrom4([4]byte{8, byte(n), byte(i >> 8), byte(i)})
			l = append(l, Candidate{Observed, netip.AddrPortFrom(ip, 53)})
		}
		return l
	}
	a, b := list(1), list(2)
	other := func(n int) []Candidate { return a[n%9000:] }
	t.Run("same", func(t *testing.T) {
		t.Parallel()
		u := newAuditor(t)
		u.spend(time.Hour, func() { u.a.SetRemote(u.now, a) })
		u.check(MaxCandidates)
		if n := len(u.all); n < maxListed*20 {
			t.Errorf("only %d probes: a fair peer would not be reached", n)
		}
	})
	t.Run("alternating", func(t *testing.T) {
		t.Parallel()
		u, n := newAuditor(t), 0
		u.spend(time.Hour, func() {
			n++
			u.a.SetRemote(u.now, [][]Candidate{a, b}[n%2])
		})
		u.check(maxDirect)
	})
	t.Run("always new", func(t *testing.T) {
		t.Parallel()
		u, n := newAuditor(t), 0
		u.spend(time.Hour, func() { n++; u.a.SetRemote(u.now, other(16*n)) })
		u.check(6 * maxStrangers)
	})
	t.Run("forged sources", func(t *testing.T) {
		t.Parallel()
		u, n := newAuditor(t), 0
		u.spend(time.Hour, func() {
			n++
			p := Path{Remote: netip.AddrPortFrom(netip.AddrFrom4([4]byte{9, 9, byte(n >> 8), byte(n)}), 53)}
			u.a.Challenged(u.now, p, Token{byte(n)}, 1500)
			u.a.Received(u.now, p)
		})
		u.check(6 * maxStrangers)
		if p, ok := u.a.Best(); !ok || p != u.relay {
			t.Errorf("moved to %v", p)
		}
	})
}

// A peer that knows our tokens only from elsewhere proves nothing.
func TestForeignTokens(t *testing.T) {
	t.Parallel()
	u := newAuditor(t)
	victim := direct("8.8.8.8:53")
	u.a.SetRemote(u.now, []Candidate{{Observed, victim.Remote}})
	var tokens []Token
	u.spend(time.Second, func() {
		for _, act := range u.step() {
			if act.Kind == ActChallenge && act.Path == victim {
				tokens = append(tokens, act.Token)
				u.a.Responded(u.now, u.relay, act.Token)
				u.a.Responded(u.now, direct("9.9.9.9:53"), act.Token)
				u.a.Responded(u.now, victim, Token{1, 2, 3})
			}
		}
	})
	if p, _ := u.a.Best(); p != u.relay {
		t.Errorf("moved to %v", p)
	}
	if len(tokens) < 4 {
		t.Fatalf("%d challenges", len(tokens))
	}
	seen := map[Token]bool{}
	for _, tok := range tokens {
		if seen[tok] {
			t.Error("a token twice")
		}
		seen[tok] = true
	}
	u.now = u.now.Add(pendingFor + time.Second) // too late
	u.a.Responded(u.now, victim, tokens[0])
	if p, _ := u.a.Best(); p != u.relay {
		t.Error("an old answer validated the path")
	}
	u.a.Challenged(u.now, victim, Token{}, 80)
	for _, act := range u.step() {
		if act.Kind == ActChallenge && act.Path == victim {
			u.a.Responded(u.now, victim, act.Token)
		}
	}
	if p, ok := u.a.Best(); !ok || p != victim {
		t.Errorf("the right answer did not validate the path: %v\n%+v", p, u.a.Status())
	}
}

func TestFloodBounded(t *testing.T) {
	t.Parallel()
	u := newAuditor(t)
	for i := range 10000 {
		p := Path{Remote: netip.AddrPortFrom(netip.AddrFrom4([4]byte{9, byte(i >> 16), byte(i >> 8), byte(i)}), 53), Channel: uint64(i % 3)}
		u.a.Challenged(u.now, p, Token{}, 80)
		u.a.Received(u.now, p)
		u.a.Relays(u.now, []Path{{Remote: relayAddr(0), Channel: uint64(i + 1)}, u.relay})
		u.a.NetworkChanged(u.now)
	}
	if acts := u.step(); len(acts) > maxActions+maxResponses+maxDirect+8 {
		t.Errorf("%d actions", len(acts))
	}
}

func TestWhyNotDirect(t *testing.T) {
	t.Parallel()
	relay := Path{Remote: relayAddr(0), Channel: 1}
	public := []Candidate{{Observed, netip.MustParseAddrPort("8.8.8.8:53")}}
	private := []Candidate{{Host, netip.MustParseAddrPort("10.0.0.1:53")}}
	six := []Candidate{{Host, netip.MustParseAddrPort("[2001:db9::1]:53")}}
	for _, c := range []struct {
		name          string
		local, remote []Candidate
		connect       bool
		wait          time.Duration
		want          string
		reason        Reason
	}{
		{"no session", public, nil, false, 0, "no session", NoSession},
		{"nothing known", nil, nil, true, 0, "neither side", NoAddresses},
		{"no list", public, nil, true, 0, "the peer has sent no addresses yet", NoAddresses},
		{"private", public, private, true, 0, "none of the peer's 1 address can be tried", Unusable},
		{"families", public, six, true, 0, "we have only IPv4 addresses and the peer only IPv6", OneFamily},
		{"trying", public, public, true, 50 * ms, "trying 1 address now", Trying},
		{"filtered", public, public, true, 900 * ms, "no answer to 7 probes at 1 address", Filtered},
		{"idle", public, public, true, 20 * time.Second, "when there is traffic", Filtered},
	} {
		a := NewAgent(AgentConfig{Controlling: true})
		now := epoch
		a.SetLocal(now, c.local)
		if c.connect {
			a.Connected(now, relay)
		}
		if c.remote != nil {
			a.SetRemote(now, c.remote)
		}
		for end := now.Add(c.wait); ; {
			for _, act := range a.Advance(now) {
				if act.Kind == ActChallenge && act.Path == relay {
					a.Responded(now, relay, act.Token)
				}
			}
			next := a.Next()
			if next.IsZero() || next.After(end) {
				a.Advance(end)
				break
			}
			now = next
		}
		if st := a.Status(); !strings.Contains(st.WhyNotDirect, c.want) || st.Reason != c.reason {
			t.Errorf("%s: %v, %q, want %v, %q", c.name, st.Reason, st.WhyNotDirect, c.reason, c.want)
		}
	}
}

// FuzzAgent drives an agent with any sequence of events.
func FuzzAgent(f *testing.F) {
	f.Add([]byte("\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f"))
	f.Add([]byte("\x00\x00\x30\x0a\x01\x20\x02\x05\x20\x0b\x0b\x0b\x0b\x03\x00\x0a\x09\x70\x0b\x05\x11"))
	seed := rand.New(rand.NewPCG(3, 4))
	for range 40 {
		b := make([]byte, 600)
		for i := range b {
			b[i] = byte(seed.Uint32())
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1500 {
			return
		}
		z := &fuzzer{t: t, in: b, now: epoch, proven: map[Path]bool{}, sentTo: map[netip.AddrPort][]time.Time{}}
		z.a = NewAgent(AgentConfig{Controlling: len(b)%2 == 0, Rand: randReader{rand.New(rand.NewPCG(uint64(len(b)), 1))}})
		for len(z.in) > 0 {
			z.event()
			if z.byte()%4 > 0 {
				z.advance()
			}
		}
		z.advance()
	})
}

// fuzzer reads events from bytes and checks what must always hold.
type fuzzer struct {
	t      *testing.T
	a      *Agent
	in     []byte
	now    time.Time
	sent   []Action // challenges
	proven map[Path]bool
	sentTo map[netip.AddrPort][]time.Time // challenges and openers while the address had not answered
}

func (z *fuzzer) byte() byte {
	if len(z.in) == 0 {
		return 0
	}
	b := z.in[0]
	z.in = z.in[1:]
	return b
}

func (z *fuzzer) path() Path {
	b := z.byte()
	if b&0x80 != 0 {
		return Path{Remote: relayAddr(int(b & 3)), Channel: uint64(b&7) + 1}
	}
	if b&0x40 != 0 {
		return Path{Remote: netip.MustParseAddrPort(forbiddenList[int(b&0x3f)%10])}
	}
	return Path{Remote: netip.AddrPortFrom(netip.AddrFrom4([4]byte{8, 8, 8, b}), 53)}
}

func (z *fuzzer) event() {
	a := z.a
	switch z.byte() % 13 {
	case 0:
		p := z.path()
		a.Connected(z.now, p)
		z.prove(p)
	case 1:
		a.Received(z.now, z.path())
	case 2:
		a.Challenged(z.now, z.path(), Token{z.byte()}, int(z.byte()))
	case 3, 4, 5: // an answer, right or wrong
		if len(z.sent) > 0 {
			act := z.sent[int(z.byte())%len(z.sent)]
			p := act.Path
			if z.byte()%8 == 0 {
				p = z.path()
			}
			a.Responded(z.now, p, act.Token)
			if p == act.Path {
				z.prove(p)
			}
		}
	case 6:
		var list []Candidate
		for range z.byte() % 40 {
			list = append(list, Candidate{CandidateKind(z.byte() % 5), z.path().Remote})
		}
		a.SetRemote(z.now, list)
	case 7:
		a.SetLocal(z.now, []Candidate{{Host, z.path().Remote}})
	case 8:
		var list []Path
		for range z.byte() % 8 {
			list = append(list, z.path())
		}
		a.Relays(z.now, list)
	case 9:
		b := z.byte()
		a.Active(z.now, b&1 != 0, b&2 != 0)
	case 10:
		a.TooBig(z.now, z.path(), 1100+2*int(z.byte()))
	case 11:
		z.wait()
	case 12:
		if z.byte()%4 == 0 {
			a.NetworkChanged(z.now)
			clear(z.sentTo)
		}
	}
}

// prove notes that the peer may have been heard over a path; it never validates what is forbidden.
func (z *fuzzer) prove(p Path) {
	z.proven[p] = true
}

// wait lets some time pass; the agent is asked when it wants to be, mostly.
func (z *fuzzer) wait() {
	end := z.now.Add(time.Duration(binary.BigEndian.Uint16([]byte{z.byte(), z.byte()})) * 11 * ms)
	for range 2000 {
		next := z.a.Next()
		if next.IsZero() || next.After(end) {
			break
		}
		if next.After(z.now) {
			z.now = next
		}
		z.advance()
	}
	z.now = end
}

func (z *fuzzer) advance() {
	a, t := z.a, z.t
	acts := a.Advance(z.now)
	if len(acts) > maxActions+maxResponses+maxDirect+8 {
		t.Fatalf("%d actions", len(acts))
	}
	for _, act := range acts {
		switch act.Kind {
		case ActPunch:
			if !z.proven[act.Path] {
				z.sentTo[act.Path.Remote] = append(z.sentTo[act.Path.Remote], z.now)
			}
		case ActChallenge, ActResponse:
			if !act.Path.Relayed() && forbidden(act.Path.Remote) {
				t.Fatalf("sends to %v", act.Path)
			}
			if act.Kind == ActResponse {
				break
			}
			if act.Size != 0 && (act.Size <= minBudget || act.Size > 1500 || !z.proven[act.Path]) {
				t.Fatalf("padded: %+v", act)
			}
			z.sent = append(z.sent, act)
			if !act.Path.Relayed() && !z.proven[act.Path] {
				z.sentTo[act.Path.Remote] = append(z.sentTo[act.Path.Remote], z.now)
				if n := most(z.sentTo[act.Path.Remote], time.Minute); n > firstPackets {
					t.Fatalf("%d packets to %v in a minute", n, act.Path)
				}
			}
		case ActUse:
			if act.Budget < minBudget || act.Budget > 1500 || act.Path == act.Also || !z.proven[act.Path] {
				t.Fatalf("use %+v", act)
			}
			if act.Also != (Path{}) && !act.Also.Relayed() && !z.proven[act.Also] {
				t.Fatalf("a copy goes over a path that proved nothing: %+v", act)
			}
		case ActCandidates:
			if len(act.Candidates) > MaxCandidates {
				t.Fatalf("%d candidates", len(act.Candidates))
			}
		}
	}
	if p, ok := a.Best(); ok && !z.proven[p] {
		t.Fatalf("best path %v proved nothing", p)
	}
	if next := a.Next(); !next.IsZero() && !next.After(z.now) {
		t.Fatalf("work left for %v at %v", next, z.now)
	}
	if len(a.routes) > maxDirect+maxRelays+1 {
		t.Fatalf("%d routes", len(a.routes))
	}
	if s := a.Status(); len(s.Paths) != len(a.routes) || s.WhyNotDirect == "" && s.Path.Relayed() {
		t.Fatalf("status %+v", s)
	}
	for _, r := range a.routes {
		if len(r.pending) > maxPending || r.probes.running() && r.probes.next().Before(z.now) {
			t.Fatalf("route %+v", r)
		}
	}
}
