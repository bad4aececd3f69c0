package natlab

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pilotnet/pilot/natt"
	"github.com/pilotnet/pilot/natt/nattest"
)

func addr(s string) netip.Addr         { return netip.MustParseAddr(s) }
func addrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// inLab runs f with a Net in virtual time. The bubble fails the test if a goroutine of the Net outlives it.
func inLab(t *testing.T, c Config, f func(t *testing.T, n *Net)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		n := New(c)
		defer n.Close()
		f(t, n)
	})
}

// pass lets virtual time pass, and everybody do what is to be done until then.
func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

// box is a socket with everything it has received.
type box struct {
	natt.PacketConn
	in chan nattest.Datagram
}

func openBox(h *Host, port uint16) *box {
	b := &box{h.Listen(port), make(chan nattest.Datagram, 4096)}
	go func() {
		m := make([]natt.Message, b.BatchSize())
		for i := range m {
			m[i].Buf = make([]byte, natt.MaxRun)
		}
		for {
			n, err := b.ReadBatch(m)
			if err != nil {
				return
			}
			for i := range m[:n] {
				for d := range nattest.Datagrams(&m[i]) {
					b.in <- nattest.Datagram{From: m[i].Addr, To: m[i].Local, Data: append([]byte(nil), d...)}
				}
			}
		}
	}()
	return b
}

func (b *box) send(t *testing.T, to netip.AddrPort, text string) {
	t.Helper()
	if _, err := b.WriteBatch([]natt.Message{{Buf: []byte(text), Addr: to}}); err != nil {
		t.Fatalf("send to %v: %v", to, err)
	}
}

// got returns the datagrams received within a second.
func (b *box) got() []nattest.Datagram {
	pass(time.Second)
	var list []nattest.Datagram
	for len(b.in) > 0 {
		list = append(list, <-b.in)
	}
	return list
}

// from returns where the one datagram received within a second came from, or the zero address.
func (b *box) from(t *testing.T) netip.AddrPort {
	t.Helper()
	switch list := b.got(); len(list) {
	case 0:
		return netip.AddrPort{}
	case 1:
		return list[0].From
	default:
		t.Fatalf("%d datagrams", len(list))
	}
	panic("unreachable")
}

func TestConformance(t *testing.T) {
	for name, config := range map[string]Config{"runs": {Delay: time.Millisecond}, "singles": {Delay: -1, NoGRO: true}} {
		t.Run(name, func(t *testing.T) {
			nattest.Conformance(t, func(t *testing.T) nattest.Pair {
				n := New(config)
				t.Cleanup(n.Close)
				a, b := n.Host("a"), n.Host("b", addr("2001:db8::1"), addr("192.0.2.77"))
				p := nattest.Pair{A: a.Listen(7), B: b.Listen(0)}
				p.AddrA = netip.AddrPortFrom(a.Addr(), 7)
				p.AddrB = netip.AddrPortFrom(addr("192.0.2.77"), p.B.LocalAddr().Port())
				return p
			})
		})
	}
}

// site is a host behind a router of some kind.
type site struct {
	*box
	host   *Host
	router *Router
}

func newSite(n *Net, kind Kind, name, public string) site {
	r := n.NAT(kind, addr(public))
	h := r.Host(name)
	return site{openBox(h, 4242), h, r}
}

// definitions holds what the lab's page says about each kind.
var definitions = map[Kind]struct {
	translated bool
	mapping    string // "independent" of the remote endpoint, or per "endpoint"
	preserved  bool
	anyone     bool // filtering: a stranger may send
	otherPort  bool // filtering: another port of a known address may send
}{
	None:     {mapping: "independent", preserved: true, anyone: true, otherPort: true},
	Firewall: {mapping: "independent", preserved: true},
	Full:     {translated: true, mapping: "independent", anyone: true, otherPort: true},
	Addr:     {translated: true, mapping: "independent", otherPort: true},
	Port:     {translated: true, mapping: "independent"},
	Linux:    {translated: true, mapping: "independent", preserved: true},
	Sym:      {translated: true, mapping: "endpoint"},
	Docker:   {translated: true, mapping: "endpoint", preserved: true}, // after strangers have called
	SymAddr:  {translated: true, mapping: "address"},
	SymSeq:   {translated: true, mapping: "endpoint"},
}

// TestKinds measures every kind from inside and outside as the lab's probe does.
func TestKinds(t *testing.T) {
	for _, kind := range Kinds() {
		t.Run(kind.String(), func(t *testing.T) {
			inLab(t, Config{Seed: 1}, func(t *testing.T, n *Net) {
				want := definitions[kind]
				a := newSite(n, kind, "a", "203.0.113.2")
				x, y := n.Host("x"), n.Host("y")
				x1, x2, y1 := openBox(x, 1), openBox(x, 2), openBox(y, 1)
				x1Addr, x2Addr, y1Addr := netip.AddrPortFrom(x.Addr(), 1), netip.AddrPortFrom(x.Addr(), 2), netip.AddrPortFrom(y.Addr(), 1)

				a.send(t, x1Addr, "hello")
				seen := x1.from(t)
				if seen.Addr() != addr("203.0.113.2") {
					t.Fatalf("seen as %v", seen)
				}
				if translated := a.host.Addr() != seen.Addr(); translated != want.translated {
					t.Errorf("translated: %v, want %v", translated, want.translated)
				}
				if preserved := seen.Port() == 4242; preserved != want.preserved {
					t.Errorf("port preserved: %v, want %v", preserved, want.preserved)
				}
				for name, test := range map[string]struct {
					from *box
					pass bool
				}{"the one asked": {x1, true}, "another port": {x2, want.otherPort}, "a stranger": {y1, want.anyone}} {
					test.from.send(t, seen, name)
					if passed := a.from(t).IsValid(); passed != test.pass {
						t.Errorf("datagram of %s passes: %v, want %v", name, passed, test.pass)
					}
				}
				// The mapping is for the endpoint asked only after the filtering was tested.
				a.send(t, x2Addr, "hello")
				a.send(t, y1Addr, "hello")
				toPort, toHost := x2.from(t), y1.from(t)
				mapping := "endpoint"
				switch {
				case toPort == seen && toHost == seen:
					mapping = "independent"
				case toPort == seen:
					mapping = "address"
				}
				if mapping != want.mapping {
					t.Errorf("seen as %v, %v and %v, want mapping %s", seen, toPort, toHost, want.mapping)
				}
				a.send(t, x1Addr, "again")
				if again := x1.from(t); again != seen {
					t.Errorf("seen as %v, then as %v", seen, again)
				}
			})
		})
	}
}

// TestPortTaken lets two hosts behind Linux use one port towards one destination.
func TestPortTaken(t *testing.T) {
	inLab(t, Config{}, func(t *testing.T, n *Net) {
		a := newSite(n, Linux, "a", "203.0.113.2")
		b := openBox(a.router.Host("b"), 4242)
		x := n.Host("x")
		x1 := openBox(x, 1)
		a.send(t, netip.AddrPortFrom(x.Addr(), 1), "hello")
		first := x1.from(t)
		b.send(t, netip.AddrPortFrom(x.Addr(), 1), "hello")
		second := x1.from(t)
		if first.Port() != 4242 || second.Port() == 4242 || !second.IsValid() {
			t.Fatalf("seen as %v and %v", first, second)
		}
		x1.send(t, second, "answer")
		if len(a.got()) != 0 || len(b.in) != 1 {
			t.Error("the answer went to the wrong host")
		}
	})
}

// TestSimultaneousOpen lets a plain puncher try all pairs of kinds.
func TestSimultaneousOpen(t *testing.T) {
	sym := func(k Kind) bool { return k == Sym || k == SymAddr || k == SymSeq }
	hard := func(k Kind) bool { return sym(k) || k == Firewall || k == Port || k == Linux || k == Docker } // not met by these
	for i, one := range Kinds() {
		for _, other := range Kinds()[i:] {
			t.Run(one.String()+" "+other.String(), func(t *testing.T) {
				t.Parallel()
				inLab(t, Config{Seed: uint64(one)}, func(t *testing.T, n *Net) {
					want := !(sym(one) && hard(other) || sym(other) && hard(one))
					if met := punch(t, n, newSite(n, one, "a", "203.0.113.2"), newSite(n, other, "b", "203.0.113.18")); met != want {
						t.Errorf("connects: %v, want %v", met, want)
					}
				})
			})
		}
	}
}

// punch tells two sites each other's address as a server sees it, lets them send there for two seconds and answer what
// arrives, and reports whether an answer came: a round trip.
func punch(t *testing.T, n *Net, a, b site) bool {
	t.Helper()
	server := n.Host("server")
	rdv := openBox(server, 3478)
	observed := func(s site) netip.AddrPort {
		s.send(t, netip.AddrPortFrom(server.Addr(), 3478), "who am I")
		return rdv.from(t)
	}
	toA, toB := observed(a), observed(b)
	met := false
	for range 20 {
		a.send(t, toB, "ask")
		b.send(t, toA, "ask")
		pass(100 * time.Millisecond)
		for _, end := range []*box{a.box, b.box} {
			for len(end.in) > 0 {
				d := <-end.in
				if string(d.Data) == "ask" {
					end.send(t, d.From, "answer")
				} else {
					met = true
				}
			}
		}
	}
	return met
}

// TestStrays lets a packet come to a Docker router before anything was sent to where it is from: the port changes. An
// opener that dies on the way prevents it.
func TestStrays(t *testing.T) {
	for _, opened := range []bool{false, true} {
		inLab(t, Config{}, func(t *testing.T, n *Net) {
			a, b := newSite(n, Docker, "a", "203.0.113.2"), newSite(n, Docker, "b", "203.0.113.18")
			toA, toB := addrPort("203.0.113.2:4242"), addrPort("203.0.113.18:4242")
			if opened {
				m := []natt.Message{{Buf: []byte("opener"), Addr: toA}}
				if k, err := b.PacketConn.(natt.TTLWriter).WriteTTL(m, coreHops); k != 1 || err != nil {
					t.Fatal(k, err)
				}
			}
			a.send(t, toB, "early")
			pass(time.Second)
			b.send(t, toA, "late")
			if got := len(a.got()) == 1; got != opened {
				t.Errorf("opener %v: met %v", opened, got)
			}
			want := 0
			if opened {
				want = 1
			}
			if got := len(b.in); got != want {
				t.Errorf("opener %v: %d early datagrams", opened, got)
			}
			if got := n.Counts().Dropped[Expired]; got != uint64(want) {
				t.Errorf("opener %v: %d datagrams expired", opened, got)
			}
		})
	}
}
