package natlab

import (
	"errors"
	"math"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pilotnet/pilot/natt"
)

// pair is two sites whose sockets have met, and the address of each as the other sees it.
type pair struct {
	a, b     site
	toA, toB netip.AddrPort
}

// newPair joins a site of the given kind and a public server.
func newPair(t *testing.T, n *Net, kind Kind) pair {
	t.Helper()
	p := pair{a: newSite(n, kind, "a", "203.0.113.2")}
	p.b.host = n.Host("b")
	p.b.box = openBox(p.b.host, 9)
	p.toB = netip.AddrPortFrom(p.b.host.Addr(), 9)
	p.meet(t)
	return p
}

func (p *pair) meet(t *testing.T) {
	t.Helper()
	p.a.send(t, p.toB, "hello")
	if p.toA = p.b.from(t); !p.toA.IsValid() {
		t.Fatal("nothing arrives")
	}
}

// passes reports whether a datagram arrives, from a to b and from b to a.
func (p *pair) passes(t *testing.T) (there, back bool) {
	t.Helper()
	p.a.send(t, p.toB, "there")
	there = p.b.from(t).IsValid()
	p.b.send(t, p.toA, "back")
	return there, p.a.from(t).IsValid()
}

func (p *pair) expect(t *testing.T, when string, there, back bool) {
	t.Helper()
	if x, y := p.passes(t); x != there || y != back {
		t.Errorf("%s: there %v, back %v; want %v, %v", when, x, y, there, back)
	}
}

func TestDelay(t *testing.T) {
	inLab(t, Config{}, func(t *testing.T, n *Net) {
		p := newPair(t, n, Port)
		rtt := func() time.Duration {
			start := time.Now()
			p.a.send(t, p.toB, "ping")
			<-p.b.in
			p.b.send(t, p.toA, "pong")
			<-p.a.in
			return time.Since(start)
		}
		if got := rtt(); got != 40*time.Millisecond {
			t.Errorf("round trip of %v over two uplinks of 10 ms", got)
		}
		n.SetDelay(p.b.host, 100*time.Millisecond)
		n.SetDelay(p.a.host, time.Millisecond)
		if got := rtt(); got != 222*time.Millisecond {
			t.Errorf("round trip of %v over 1, 10 and 100 ms", got)
		}
	})
}

func TestMappingTimeout(t *testing.T) {
	for _, kind := range Kinds()[1:] {
		t.Run(kind.String(), func(t *testing.T) {
			inLab(t, Config{}, func(t *testing.T, n *Net) {
				p := newPair(t, n, kind)
				back := func(after time.Duration) bool {
					pass(after)
					p.b.send(t, p.toA, "back")
					return p.a.from(t).IsValid()
				}
				if kind == Linux {
					if back(31 * time.Second) {
						t.Error("Linux keeps a mapping without an answer for more than 30 s")
					}
					p.meet(t)
				}
				if !back(20*time.Second) || !back(110*time.Second) || !back(110*time.Second) {
					t.Error("a mapping in use ends")
				}
				if back(121 * time.Second) {
					t.Error("a mapping outlives 2 minutes")
				}
				p.a.router.SetTimeout(30 * time.Second)
				p.meet(t)
				if !back(25*time.Second) || back(31*time.Second) {
					t.Error("the timeout is not what was set")
				}
			})
		})
	}
}

func TestFlushAndChangeIP(t *testing.T) {
	for _, kind := range Kinds()[1:] {
		t.Run(kind.String(), func(t *testing.T) {
			inLab(t, Config{}, func(t *testing.T, n *Net) {
				p := newPair(t, n, kind)
				p.expect(t, "before", true, true)
				p.a.router.Flush()
				p.b.send(t, p.toA, "back")
				if p.a.from(t).IsValid() {
					t.Error("the mapping survives Flush")
				}
				old := p.toA
				p.meet(t)
				if kept := p.toA == old; kept != (definitions[kind].preserved && kind != Docker) {
					t.Errorf("%v before Flush, %v after", old, p.toA)
				}
				p.a.router.ChangeIP(addr("203.0.113.3"))
				p.b.send(t, p.toA, "back")
				if p.a.from(t).IsValid() {
					t.Error("the old address still works")
				}
				p.meet(t)
				if p.toA.Addr() != addr("203.0.113.3") {
					t.Errorf("seen as %v after the change", p.toA)
				}
				p.expect(t, "after", true, true)
			})
		})
	}
}

func TestCut(t *testing.T) {
	inLab(t, Config{}, func(t *testing.T, n *Net) {
		p := newPair(t, n, Port)
		neighbour := openBox(p.a.router.Host("neighbour"), 1)
		stranger := n.Host("stranger")
		for name, test := range map[string]struct {
			cut, uncut  func()
			there, back bool
		}{
			"hosts":          {func() { n.Cut(p.a.host, p.b.host) }, func() { n.Uncut(p.b.host, p.a.host) }, false, false},
			"router":         {func() { n.Cut(p.b.host, p.a.router) }, func() { n.Uncut(p.a.router, p.b.host) }, false, false},
			"host from all":  {func() { n.Cut(p.a.host, nil) }, func() { n.Uncut(p.a.host, nil) }, false, false},
			"site from all":  {func() { n.Cut(p.a.router, nil) }, func() { n.Uncut(p.a.router, nil) }, false, false},
			"UDP":            {func() { n.CutUDP(p.a.router, nil) }, func() { n.Uncut(p.a.router, nil) }, false, false},
			"one way":        {func() { n.CutOneWay(p.a.host, p.b.host) }, func() { n.Uncut(p.a.host, p.b.host) }, false, true},
			"the other way":  {func() { n.CutOneWay(p.b.host, p.a.router) }, func() { n.Uncut(p.b.host, p.a.router) }, true, false},
			"somebody else":  {func() { n.Cut(p.a.host, stranger) }, func() { n.Uncut(p.a.host, stranger) }, true, true},
			"all to b":       {func() { n.CutOneWay(nil, p.b.host) }, func() { n.Uncut(nil, p.b.host) }, false, true},
			"nothing at all": {func() {}, func() {}, true, true},
		} {
			test.cut()
			p.expect(t, name, test.there, test.back)
			if strings.HasPrefix(name, "site") {
				p.a.send(t, netip.AddrPortFrom(neighbourAddr(p), 1), "over the LAN")
				if !neighbour.from(t).IsValid() {
					t.Error("cutting a site's uplink cuts its LAN")
				}
			}
			test.uncut()
			p.expect(t, name+", uncut", true, true)
		}
		if n.Counts().Dropped[IsCut] == 0 {
			t.Error("cut datagrams are not counted")
		}
	})
}

func neighbourAddr(p pair) netip.Addr {
	p.a.host.net.mu.Lock()
	defer p.a.host.net.mu.Unlock()
	return p.a.host.net.names["neighbour"].addrs[0]
}

func TestLoss(t *testing.T) {
	inLab(t, Config{Seed: 7, Queue: 1 << 20}, func(t *testing.T, n *Net) {
		p := newPair(t, n, None)
		n.SetLoss(p.a.router, 0.2)
		const count = 4000
		for range count {
			p.a.send(t, p.toB, "x")
		}
		if got := float64(len(p.b.got())) / count; math.Abs(got-0.8) > 0.03 {
			t.Errorf("%v of the datagrams arrive, want 0.8", got)
		}
	})
}

func TestMTU(t *testing.T) {
	inLab(t, Config{}, func(t *testing.T, n *Net) {
		p := newPair(t, n, Port)
		size := func(ipPacket int) string { return strings.Repeat("x", ipPacket-28) }
		_, err := p.a.WriteBatch([]natt.Message{{Buf: []byte(size(1501)), Addr: p.toB}})
		if !errors.Is(err, syscall.EMSGSIZE) {
			t.Errorf("1501 bytes over the host's own link: %v", err)
		}
		n.SetMTU(p.a.router, 1400)
		p.a.send(t, p.toB, size(1401))
		p.a.send(t, p.toB, size(1400))
		if got := p.b.got(); len(got) != 1 || len(got[0].Data) != 1372 {
			t.Errorf("%d datagrams over a link of 1400", len(got))
		}
		p.b.send(t, p.toA, size(1401))
		if p.a.from(t).IsValid() || n.Counts().Dropped[TooBig] != 2 {
			t.Errorf("dropped %v", n.Counts().Dropped)
		}
	})
}

func TestMove(t *testing.T) {
	inLab(t, Config{}, func(t *testing.T, n *Net) {
		p := newPair(t, n, Port)
		other := n.NAT(Linux, addr("203.0.113.34"))
		p.a.host.Move(other)
		p.b.send(t, p.toA, "back")
		if p.a.from(t).IsValid() {
			t.Error("reached at the place it left")
		}
		p.meet(t)
		if p.toA != addrPort("203.0.113.34:4242") {
			t.Errorf("seen as %v at the new place", p.toA)
		}
		p.a.host.Move(nil)
		p.meet(t)
		if p.toA.Addr() != p.a.host.Addr() || p.a.host.Interfaces()[0].Addr() != p.a.host.Addr() {
			t.Errorf("seen as %v in the core, want %v", p.toA, p.a.host.Addr())
		}
	})
}

// TestNested puts a home router behind a carrier's.
func TestNested(t *testing.T) {
	inLab(t, Config{}, func(t *testing.T, n *Net) {
		carrier := n.NAT(Full, addr("203.0.113.2"))
		home := carrier.NAT(Linux, netip.Addr{})
		if !home.Public().IsPrivate() {
			t.Errorf("the home router has %v", home.Public())
		}
		a := site{host: home.Host("a"), router: home}
		a.box = openBox(a.host, 4242)
		b := newSite(n, Port, "b", "203.0.113.18")
		if !punch(t, n, a, b) {
			t.Error("two cones, one of them double, do not meet")
		}
	})
	inLab(t, Config{}, func(t *testing.T, n *Net) {
		home := n.NAT(Sym, addr("203.0.113.2")).NAT(Linux, netip.Addr{})
		a := site{host: home.Host("a"), router: home}
		a.box = openBox(a.host, 4242)
		if punch(t, n, a, newSite(n, Port, "b", "203.0.113.18")) {
			t.Error("the carrier's NAT is not in force")
		}
	})
}

func TestHairpin(t *testing.T) {
	inLab(t, Config{}, func(t *testing.T, n *Net) {
		p := newPair(t, n, Port)
		neighbour := openBox(p.a.router.Host("neighbour"), 1)
		neighbour.send(t, p.toA, "through the router")
		if p.a.from(t).IsValid() {
			t.Error("hairpin without being asked")
		}
		p.a.router.SetHairpin(true)
		neighbour.send(t, p.toA, "through the router")
		if from := p.a.from(t); from.Addr() != addr("203.0.113.2") {
			t.Errorf("from %v, want the router's public address", from)
		}
	})
}

// TestIPv6 shows native addresses behind a NAT: not translated, filtered by what went out.
func TestIPv6(t *testing.T) {
	inLab(t, Config{}, func(t *testing.T, n *Net) {
		r := n.NAT(Sym, addr("203.0.113.2"))
		h := r.Host("a", addr("10.9.0.5"), addr("2001:db8:200:1::5"))
		a, server := openBox(h, 1), n.Host("server", addr("2001:db8::1"))
		x, y := openBox(server, 1), openBox(server, 2)
		y.send(t, addrPort("[2001:db8:200:1::5]:1"), "early")
		if a.from(t).IsValid() {
			t.Error("the firewall lets strangers in")
		}
		a.send(t, addrPort("[2001:db8::1]:1"), "hello")
		if from := x.from(t); from != addrPort("[2001:db8:200:1::5]:1") {
			t.Errorf("seen as %v", from)
		}
		x.send(t, addrPort("[2001:db8:200:1::5]:1"), "answer")
		if !a.from(t).IsValid() {
			t.Error("no answer passes")
		}
		_, err := y.WriteBatch([]natt.Message{{Buf: []byte("x"), Addr: addrPort("192.0.2.1:1")}})
		if !errors.Is(err, syscall.ENETUNREACH) {
			t.Errorf("IPv4 from a host without it: %v", err)
		}
	})
}

func TestQueueFull(t *testing.T) {
	inLab(t, Config{Queue: 10}, func(t *testing.T, n *Net) {
		a, b := n.Host("a"), n.Host("b")
		from, to := openBox(a, 1), b.Listen(2)
		for range 15 {
			from.send(t, netip.AddrPortFrom(b.Addr(), 2), "x")
		}
		pass(time.Second)
		c := n.Counts()
		if c.Sent != 15 || c.Received != 10 || c.Dropped[QueueFull] != 5 || c.SentBytes != 15 || b.Counts().Received != 10 || a.Counts().Sent != 15 {
			t.Errorf("%+v", c)
		}
		m := []natt.Message{{Buf: make([]byte, 100)}}
		if k, err := to.ReadBatch(m); k != 1 || err != nil || m[0].N != 10 || m[0].Segment != 1 || m[0].Local != b.Addr() {
			t.Errorf("read %d messages, %v: %+v", k, err, m[0])
		}
	})
}

func TestObserveAndFilter(t *testing.T) {
	inLab(t, Config{}, func(t *testing.T, n *Net) {
		p := newPair(t, n, Port)
		var seen []Event
		n.Observe(func(e Event) { seen = append(seen, e) })
		n.Filter(func(_, _ netip.AddrPort, b []byte) bool { return string(b) != "bad" })
		p.a.send(t, p.toB, "bad")
		p.a.send(t, p.toB, "good")
		p.b.send(t, netip.AddrPortFrom(p.toB.Addr(), 77), "to itself")
		pass(time.Second)
		inner := netip.AddrPortFrom(p.a.host.Addr(), 4242)
		want := []Event{
			{Sent, "", p.a.host, nil, inner, p.toB, []byte("bad")},
			{Dropped, Filtered, p.a.host, nil, inner, p.toB, []byte("bad")},
			{Sent, "", p.a.host, nil, inner, p.toB, []byte("good")},
			{Sent, "", p.b.host, nil, p.toB, netip.AddrPortFrom(p.toB.Addr(), 77), []byte("to itself")},
			{Dropped, NoSocket, p.b.host, nil, p.toB, netip.AddrPortFrom(p.toB.Addr(), 77), []byte("to itself")},
			{Received, "", p.a.host, p.b.host, p.toA, p.toB, []byte("good")},
		}
		if len(seen) != len(want) {
			t.Fatalf("%d events: %+v", len(seen), seen)
		}
		for i, e := range seen {
			w := want[i]
			if string(e.Data) != string(w.Data) || e.Kind != w.Kind || e.Reason != w.Reason || e.Sender != w.Sender || e.Receiver != w.Receiver ||
				e.From != w.From || e.To != w.To {
				t.Errorf("event %d: %+v, want %+v", i, e, w)
			}
		}
		captured := 0
		n.Capture(func(from, to netip.AddrPort, b []byte) { captured++ })
		p.a.send(t, p.toB, "good")
		p.a.send(t, addrPort("198.51.100.99:1"), "to nobody")
		pass(time.Second)
		if captured != 1 || n.Counts().Dropped[NoRoute] != 1 {
			t.Errorf("captured %d, %+v", captured, n.Counts())
		}
	})
}

// TestOrder asserts that equal delays keep the order, also of datagrams sent at one instant.
func TestOrder(t *testing.T) {
	inLab(t, Config{}, func(t *testing.T, n *Net) {
		p := newPair(t, n, Sym)
		for i := range 1000 {
			p.a.send(t, p.toB, string(rune(i+0x100)))
		}
		for i, d := range p.b.got() {
			if string(d.Data) != string(rune(i+0x100)) {
				t.Fatalf("datagram %d out of order", i)
			}
		}
	})
}

func TestCloseWakesEverybody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(Config{})
		h := n.Host("a")
		ended := make(chan error, 3)
		u, l := h.Listen(1), h.ListenTCP(1)
		go func() { _, err := u.ReadBatch([]natt.Message{{Buf: make([]byte, 9)}}); ended <- err }()
		go func() { _, err := l.Accept(); ended <- err }()
		go func() {
			_, err := h.DialContext(t.Context(), "tcp", "198.51.100.1:1")
			ended <- err
		}()
		synctest.Wait()
		n.Close()
		n.Close()
		for range 3 {
			if err := <-ended; err == nil {
				t.Error("no error after Close")
			}
		}
		if k, err := h.Listen(9).ReadBatch(make([]natt.Message, 1)); err == nil {
			t.Errorf("a socket opened after Close read %d", k)
		}
	})
}
