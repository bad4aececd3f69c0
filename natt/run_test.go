package natt

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

var (
	hardNAT  = Traits{Mapping: AddressAndPortDependent, Filtering: AddressAndPortDependent}
	counting = Traits{Mapping: AddressAndPortDependent, Filtering: AddressAndPortDependent, Step: 2}
	easyNAT  = Traits{Mapping: EndpointIndependent, Filtering: AddressAndPortDependent}
	openNAT  = Traits{Mapping: EndpointIndependent, Filtering: EndpointIndependent}
	seen     = Candidate{Observed, netip.MustParseAddrPort("203.0.113.9:4242")}
)

// searcher is an agent on a relay whose peer says what it likes.
type searcher struct {
	a      *Agent
	now    time.Time
	relay  Path
	probes []time.Time
	to     []netip.AddrPort
	pools  []time.Time
	ends   int
	server netip.AddrPort // what the server says about the peer
	asked  []time.Time
	aims   []Action
	base   uint16
}

func newSearcher(own Traits, gate *Gate) *searcher {
	s := &searcher{
		a:   NewAgent(AgentConfig{Rand: randReader{rand.New(rand.NewPCG(7, 7))}, Gate: gate}),
		now: epoch, relay: Path{Remote: relayAddr(0), Channel: 9}, server: seen.Addr,
	}
	s.a.SetLocal(s.now, []Candidate{{Observed, netip.MustParseAddrPort("198.51.100.2:4242")}})
	s.a.SetTraits(s.now, own)
	s.a.Relays(s.now, []Path{s.relay})
	s.a.Connected(s.now, s.relay)
	s.step()
	return s
}

// step does what is due.
func (s *searcher) step() {
	for _, act := range slices.Clone(s.a.Advance(s.now)) {
		switch act.Kind {
		case ActChallenge:
			if act.Path == s.relay {
				s.a.Responded(s.now, act.Path, act.Token)
			}
		case ActProbe:
			s.probes, s.to = append(s.probes, s.now), append(s.to, act.Path.Remote)
		case ActPool:
			s.pools, s.to = append(s.pools, s.now), append(s.to, act.Path.Remote)
			s.a.Pooled(s.now, Pool{Sockets: act.Pool.Sockets, Base: s.base})
		case ActAttest:
			s.asked = append(s.asked, s.now)
			s.a.Attested(s.now, act.Path, s.server)
		case ActAim:
			s.aims = append(s.aims, act)
		case ActPoolEnd:
			s.ends++
		}
	}
}

// run lets time pass. Each 100 ms data flows, if it does, and the peer speaks.
func (s *searcher) run(d time.Duration, data bool, speak func()) {
	for end := s.now.Add(d); s.now.Before(end); {
		if data {
			s.a.Active(s.now, true, true)
		}
		if speak != nil {
			speak()
		}
		for tick := s.now.Add(ActiveEvery); s.now.Before(tick); {
			s.step()
			next := s.a.Next()
			if next.IsZero() || next.After(tick) {
				next = tick
			}
			s.now = next
		}
	}
}

// most is the largest number of times in any span of d.
func most(times []time.Time, d time.Duration) (n int) {
	for i, j := 0, 0; j < len(times); j++ {
		for times[j].Sub(times[i]) >= d {
			i++
		}
		n = max(n, j-i+1)
	}
	return n
}

// TestHostileSearch lets a peer ask for searches all the time.
func TestHostileSearch(t *testing.T) {
	t.Parallel()
	s := newSearcher(easyNAT, nil)
	other := Candidate{Observed, netip.MustParseAddrPort("192.0.2.200:53")}
	i := 0
	s.run(40*time.Minute, true, func() {
		i++
		o := Offer{Candidates: []Candidate{seen}, Traits: counting, Pool: Pool{Sockets: 65535, Base: uint16(i)}}
		if i%7 == 0 {
			o.Candidates = []Candidate{other}
		}
		s.a.SetOffer(s.now, o)
	})
	t.Logf("%d probes", len(s.probes))
	if n := most(s.probes, runsIn); n > runsKept*maxProbes {
		t.Errorf("%d probes in ten minutes", n)
	}
	if n := most(s.probes, time.Second); n > 400 {
		t.Errorf("%d probes in a second", n)
	}
	for _, to := range s.to {
		if to.Addr() != seen.Addr.Addr() {
			t.Fatalf("searches %v, the server saw the peer at %v", to, seen.Addr)
		}
	}
	if len(s.probes) < 6*maxProbes/2 {
		t.Errorf("only %d probes", len(s.probes))
	}
	if len(s.pools) > 0 {
		t.Error("opens sockets, though our NAT is not hard")
	}
}

// TestSearchNeeds lists what keeps an agent from searching.
func TestSearchNeeds(t *testing.T) {
	t.Parallel()
	pool := Pool{Sockets: 256}
	private := netip.MustParseAddrPort("10.0.0.5:53")
	six := netip.MustParseAddrPort("[2001:db9::5]:53")
	for _, c := range []struct {
		name  string
		own   Traits
		offer Offer
		data  bool
		told  netip.AddrPort
		want  bool
	}{
		{"all", easyNAT, Offer{[]Candidate{seen}, hardNAT, pool}, true, seen.Addr, true},
		{"IPv6", easyNAT, Offer{nil, hardNAT, pool}, true, six, true},
		{"no candidates", easyNAT, Offer{nil, hardNAT, pool}, true, seen.Addr, true},
		{"no data", easyNAT, Offer{[]Candidate{seen}, hardNAT, pool}, false, seen.Addr, false},
		{"no pool", easyNAT, Offer{[]Candidate{seen}, hardNAT, Pool{}}, true, seen.Addr, false},
		{"not hard", easyNAT, Offer{[]Candidate{seen}, easyNAT, pool}, true, seen.Addr, false},
		{"both hard", hardNAT, Offer{[]Candidate{seen}, hardNAT, pool}, true, seen.Addr, false},
		{"private", easyNAT, Offer{[]Candidate{seen}, hardNAT, pool}, true, private, false},
		{"loopback", easyNAT, Offer{[]Candidate{seen}, hardNAT, pool}, true, netip.MustParseAddrPort("127.0.0.1:53"), false},
		{"only the peer's word", easyNAT, Offer{[]Candidate{seen}, hardNAT, pool}, true, netip.AddrPort{}, false},
	} {
		s := newSearcher(c.own, nil)
		s.server = c.told
		s.run(time.Second, c.data, func() { s.a.SetOffer(s.now, c.offer) })
		if got := len(s.probes) > 0; got != c.want {
			t.Errorf("%s: %d probes", c.name, len(s.probes))
		}
		for _, to := range s.to {
			if to.Addr() != c.told.Addr() || to.Port() < 1024 {
				t.Errorf("%s: to %v", c.name, to)
			}
		}
		if c.want && s.probes[0].Sub(epoch) < runAfter {
			t.Errorf("%s: begins after %v", c.name, s.probes[0].Sub(epoch))
		}
	}
}

// A NAT that counts is searched in its order first.
func TestCountedPorts(t *testing.T) {
	t.Parallel()
	s := newSearcher(easyNAT, nil)
	s.run(500*ms, true, func() {
		s.a.SetOffer(s.now, Offer{[]Candidate{seen}, counting, Pool{Sockets: 256, Base: 40000}})
	})
	for i, to := range s.to {
		if want := uint16(40000 + 2*(i+1)); to.Port() != want {
			t.Fatalf("probe %d to %v, want port %d", i, to, want)
		}
	}
	if len(s.to) < 40 {
		t.Errorf("%d probes", len(s.to))
	}
}

// TestPools looks at the hard side: three pools in ten minutes, each closed again, more when the network changes.
func TestPools(t *testing.T) {
	t.Parallel()
	s := newSearcher(hardNAT, nil)
	offer := func() { s.a.SetOffer(s.now, Offer{Candidates: []Candidate{seen}, Traits: easyNAT}) }
	s.run(25*time.Minute, true, offer)
	if n := most(s.pools, runsIn); n != runsKept || len(s.pools) < 2*runsKept {
		t.Errorf("%d pools in ten minutes, %d in all", n, len(s.pools))
	}
	if s.ends != len(s.pools) {
		t.Errorf("%d pools, %d closed", len(s.pools), s.ends)
	}
	if why := s.a.Status().WhyNotDirect; !strings.Contains(why, "our NAT is hard") {
		t.Error(why)
	}
	before := len(s.pools)
	s.a.NetworkChanged(s.now)
	s.run(time.Second, true, offer)
	if len(s.pools) != before+1 {
		t.Errorf("%d pools after a change of network", len(s.pools)-before)
	}
	s.a.Close(s.now)
	s.step()
	if s.ends != len(s.pools) || s.a.cfg.Gate.holder != nil {
		t.Error("Close leaves a pool open")
	}
}

// Where the other side does not filter, a pool is opened only if bursts did not do.
func TestPoolLast(t *testing.T) {
	t.Parallel()
	s := newSearcher(hardNAT, nil)
	s.run(5*time.Second, true, func() { s.a.SetOffer(s.now, Offer{Candidates: []Candidate{seen}, Traits: openNAT}) })
	if len(s.pools) != 1 || s.pools[0].Sub(epoch) < runLast {
		t.Errorf("pools at %v", s.pools)
	}
	both := newSearcher(hardNAT, nil)
	both.run(5*time.Second, true, func() { both.a.SetOffer(both.now, Offer{Candidates: []Candidate{seen}, Traits: hardNAT}) })
	if why := both.a.Status().WhyNotDirect; len(both.pools) > 0 || !strings.Contains(why, "both NATs are hard") {
		t.Errorf("%d pools; %s", len(both.pools), why)
	}
}

// One run at a time, of all agents of a gate.
func TestGate(t *testing.T) {
	t.Parallel()
	var g Gate
	one, two := newSearcher(hardNAT, &g), newSearcher(hardNAT, &g)
	o := Offer{Candidates: []Candidate{seen}, Traits: easyNAT}
	for range 120 {
		for _, s := range []*searcher{one, two} {
			s.run(ActiveEvery, true, func() { s.a.SetOffer(s.now, o) })
		}
	}
	if len(one.pools) != 1 || len(two.pools) != 1 {
		t.Fatalf("%d and %d pools in 12 s", len(one.pools), len(two.pools))
	}
	if d := two.pools[0].Sub(one.pools[0]); d < runTime-ActiveEvery {
		t.Errorf("the second after %v", d)
	}
}

// A server that does not know the question is asked a few times, and the user is told what is missing.
func TestUnattested(t *testing.T) {
	t.Parallel()
	s := newSearcher(hardNAT, nil)
	s.server = netip.AddrPort{}
	offer := func() { s.a.SetOffer(s.now, Offer{Candidates: []Candidate{seen}, Traits: easyNAT}) }
	s.run(10*time.Minute, true, offer)
	if n := most(s.asked, 10*time.Second); n > len(attestWaits)+2*attestAgain {
		t.Errorf("%d questions in ten seconds", n)
	}
	if n := len(s.asked); n < 8 || n > 40 {
		t.Errorf("%d questions in ten minutes", n)
	}
	if st := s.a.Status(); len(s.pools) > 0 || st.Reason != NotAttested || !strings.Contains(st.WhyNotDirect, "no server says") {
		t.Errorf("%d pools, %v: %s", len(s.pools), st.Reason, st.WhyNotDirect)
	}
	easy := newSearcher(easyNAT, nil)
	easy.run(time.Minute, true, func() { easy.a.SetOffer(easy.now, Offer{Candidates: []Candidate{seen}, Traits: easyNAT}) })
	if len(easy.asked) > 0 {
		t.Error("servers are asked about a peer that needs no search")
	}
}

// A hard side for which a router has mapped a port waits for the bursts.
func TestMappedFirst(t *testing.T) {
	t.Parallel()
	mapped := Candidate{Mapped, netip.MustParseAddrPort("203.0.113.9:6000")}
	s := newSearcher(easyNAT, nil)
	s.run(2500*ms, true, func() {
		s.a.SetOffer(s.now, Offer{[]Candidate{seen, mapped}, hardNAT, Pool{Sockets: 256}})
	})
	own := newSearcher(hardNAT, nil)
	own.a.SetLocal(own.now, []Candidate{{Mapped, netip.MustParseAddrPort("198.51.100.2:6000")}})
	own.run(2500*ms, true, func() { own.a.SetOffer(own.now, Offer{[]Candidate{seen}, easyNAT, Pool{}}) })
	if len(s.probes) > 0 || len(own.pools) > 0 {
		t.Errorf("%d probes and %d pools though a port is mapped", len(s.probes), len(own.pools))
	}
	own.run(time.Second, true, func() { own.a.SetOffer(own.now, Offer{[]Candidate{seen}, easyNAT, Pool{}}) })
	if len(own.pools) != 1 {
		t.Errorf("%d pools after the bursts did not do", len(own.pools))
	}
}

// Two that count: each aims once at what the other's NAT gives out next, openers first, and only when both know.
func TestAim(t *testing.T) {
	t.Parallel()
	s := newSearcher(counting, nil)
	s.base = 30000
	s.run(500*ms, true, func() { s.a.SetOffer(s.now, Offer{[]Candidate{seen}, counting, Pool{}}) })
	if len(s.pools) != 1 || s.to[0] != netip.AddrPortFrom(seen.Addr.Addr(), 0) || len(s.aims) > 0 {
		t.Fatalf("%d pools to %v, %d aims before the peer has counted", len(s.pools), s.to, len(s.aims))
	}
	s.a.SetOffer(s.now, Offer{[]Candidate{seen}, counting, Pool{CountSockets, 40000}})
	s.run(2*time.Second, true, nil)
	if len(s.aims) != len(openerTTL)+aimRounds {
		t.Fatalf("aims %+v", s.aims)
	}
	for i, act := range s.aims {
		if act.Path.Remote != netip.AddrPortFrom(seen.Addr.Addr(), 40000+25*2) || (act.TTL > 0) != (i < len(openerTTL)) {
			t.Errorf("aim %d: %+v", i, act)
		}
	}
	if s.ends != 1 || s.a.cfg.Gate.holder != nil {
		t.Error("a run in vain does not end")
	}
	if why := s.a.Status(); why.Reason != BothHard || !strings.Contains(why.WhyNotDirect, "count") {
		t.Error(why.WhyNotDirect)
	}
}
