package portmap

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what takes milliseconds on an idle machine.
const patience = 20 * time.Second

// setup is a mapper beside a fake gateway.
type setup struct {
	*Mapper
	news   chan Mapping
	cancel context.CancelFunc
	done   chan struct{}
	port   atomic.Uint32
	where  atomic.Pointer[netip.Addr] // the gateway; nil for none
}

var errOffline = errors.New("offline")

// start runs a mapper whose gateway is g. SSDP's group is the host search instead, if that is not nil.
func start(t *testing.T, g *gateway, search *gateway) *setup {
	t.Helper()
	s := &setup{news: make(chan Mapping, 100), done: make(chan struct{})}
	s.port.Store(8080)
	s.where.Store(&g.addr)
	m, err := New(Config{
		Port: func() uint16 { return uint16(s.port.Load()) },
		Gateway: func() (gateway, self netip.Addr, err error) {
			if a := s.where.Load(); a != nil {
				return *a, netip.MustParseAddr("127.0.0.1"), nil
			}
			return gateway, self, errOffline
		},
		Gateway6: func() (gateway, self netip.Addr, err error) { return gateway, self, errOffline },
		Exclude:  netip.MustParsePrefix("fd50:494c:4f54::/48"),
		OnChange: func(n Mapping) { s.news <- n },
	})
	if err != nil {
		t.Fatal(err)
	}
	if search == nil {
		search = g
	}
	m.ports = ports{
		control:  portOf(g.control.LocalAddr()),
		announce: netip.MustParseAddrPort("224.0.0.1:0"),
		search4:  netip.AddrPortFrom(search.addr, portOf(search.ssdp.LocalAddr())),
		wait:     150 * time.Millisecond,
	}
	s.Mapper = m
	ctx, cancel := context.WithCancel(t.Context())
	s.cancel = cancel
	go func() {
		defer close(s.done)
		_ = m.Run(ctx)
	}()
	t.Cleanup(s.stop)
	return s
}

func (s *setup) stop() {
	s.cancel()
	<-s.done
}

// await waits for news of a protocol that satisfy f.
func (s *setup) await(t *testing.T, p Protocol, f func(Mapping) bool) Mapping {
	t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case n := <-s.news:
			if n.Protocol == p && !n.IPv6 && f(n) {
				return n
			}
		case <-deadline:
			t.Fatalf("no such news of %v; the state is %+v", p, s.Mappings())
		}
	}
}

func mapped(n Mapping) bool { return n.External.IsValid() }

func problem(text string) func(Mapping) bool {
	return func(n Mapping) bool { return !n.External.IsValid() && strings.Contains(n.Problem, text) }
}

// awaitAll waits until all protocols have a mapping, in whatever order.
func (s *setup) awaitAll(t *testing.T) {
	t.Helper()
	got := map[Protocol]bool{}
	deadline := time.After(patience)
	for len(got) < 3 {
		select {
		case n := <-s.news:
			if mapped(n) && !n.IPv6 {
				got[n.Protocol] = true
			}
		case <-deadline:
			t.Fatalf("not all mapped: %+v", s.Mappings())
		}
	}
}

func TestAllProtocols(t *testing.T) {
	t.Parallel()
	g := newGateway(t, "127.0.0.1", "203.0.113.7:40000")
	s := start(t, g, nil)
	s.awaitAll(t)
	six := 0
	for _, n := range s.Mappings() {
		want := netip.MustParseAddrPort("203.0.113.7:40000")
		if n.Protocol == UPnP {
			want = netip.MustParseAddrPort("203.0.113.7:8080")
		}
		switch {
		case n.IPv6:
			if six++; n.Problem != errOffline.Error() {
				t.Errorf("IPv6: %+v", n)
			}
		case n.External != want || n.Gateway != g.addr || n.Until.IsZero():
			t.Errorf("%+v", n)
		}
	}
	if six != 2 {
		t.Errorf("%d entries for IPv6", six)
	}
	s.stop()
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.mapped) != 0 || len(g.igd) != 0 || g.gone != 2 {
		t.Errorf("left behind %v and %v", g.mapped, g.igd)
	}
	if len(s.Mappings()) != 0 {
		t.Errorf("holds %v", s.Mappings())
	}
}

func TestChangeOfNetwork(t *testing.T) {
	t.Parallel()
	g := newGateway(t, "127.0.0.1", "203.0.113.7:40000")
	s := start(t, g, nil)
	s.awaitAll(t)

	s.port.Store(9090) // a new socket
	s.Kick()
	s.await(t, PCP, func(n Mapping) bool { return !mapped(n) })
	s.awaitAll(t)
	deadline := time.After(patience)
	for {
		g.mu.Lock()
		old, current := g.mapped[8080], g.mapped[9090]
		_, igd := g.igd["8080"]
		g.mu.Unlock()
		if old == 0 && current > 0 && !igd {
			break
		}
		select {
		case <-deadline:
			t.Fatal("the mapping of the old port is still there")
		case <-time.After(10 * time.Millisecond):
		}
	}

	s.where.Store(nil)
	s.Kick()
	s.await(t, NATPMP, problem("offline"))
	s.where.Store(&g.addr)
	s.Kick()
	s.awaitAll(t)
}

func TestRebootOfGateway(t *testing.T) {
	t.Parallel()
	g := newGateway(t, "127.0.0.1", "203.0.113.7:40000", func(g *gateway) { g.born = time.Now().Add(-time.Hour) })
	s := start(t, g, nil)
	s.awaitAll(t)
	g.mu.Lock()
	g.born = time.Now()
	g.external = netip.MustParseAddrPort("203.0.113.9:50000")
	clear(g.igd)
	g.mu.Unlock()
	// One protocol notices, all ask again.
	s.Kick()
	s.awaitAll(t)
	for _, n := range s.Mappings() {
		if !n.IPv6 && n.External.Addr() != g.external.Addr() {
			t.Errorf("%+v", n)
		}
	}
}

func TestGarbage(t *testing.T) {
	t.Parallel()
	g := newGateway(t, "127.0.0.1", "203.0.113.7:40000", func(g *gateway) { g.garbage = true })
	s := start(t, g, nil)
	s.await(t, UPnP, problem("no gateway device"))
	for _, p := range []Protocol{PCP, NATPMP} {
		found := false
		for _, n := range s.Mappings() {
			found = found || n.Protocol == p && !n.External.IsValid()
		}
		if !found {
			t.Errorf("%v: %+v", p, s.Mappings())
		}
	}
}

// A gateway that restarts refuses at first, and answers later.
func TestGatewayStartsLate(t *testing.T) {
	t.Parallel()
	g := newGateway(t, "127.0.0.1", "203.0.113.7:40000")
	at := net.UDPAddrFromAddrPort(netip.MustParseAddrPort(g.control.LocalAddr().String()))
	g.control.Close()
	s := start(t, g, nil)
	s.await(t, UPnP, mapped)
	late, err := net.ListenUDP("udp", at)
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() { reply(late, g.answerControl) })
	defer all.Wait()
	defer late.Close()
	s.await(t, PCP, mapped)
	s.stop()
}

func TestDoubleNAT(t *testing.T) {
	t.Parallel()
	g := newGateway(t, "127.0.0.1", "192.168.0.7:40000")
	s := start(t, g, nil)
	for range 3 {
		n := <-s.news
		for n.IPv6 || mapped(n) {
			n = <-s.news
		}
		if !strings.Contains(n.Problem, "another NAT") {
			t.Errorf("%+v", n)
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.igd) != 0 {
		t.Errorf("mapped %v", g.igd)
	}
}

// A device on our network that is not the gateway is taken if the gateway is none.
func TestTwoGateways(t *testing.T) {
	t.Parallel()
	router := newGateway(t, "127.0.0.2", "203.0.113.7:40000", func(g *gateway) { g.handler = http.NotFound })
	other := newGateway(t, "127.0.0.3", "203.0.113.8:40000")
	s := start(t, router, other)
	if n := s.await(t, PCP, mapped); n.Gateway != router.addr {
		t.Errorf("%+v", n)
	}
	if n := s.await(t, UPnP, mapped); n.Gateway != other.addr || n.External.Addr() != other.external.Addr() {
		t.Errorf("%+v", n)
	}
}

// Wherever a device wants to lead us, nobody but it hears from us.
func TestHostileDevice(t *testing.T) {
	for name, c := range map[string]struct {
		location string // %s is the victim
		handler  func(victim string) http.HandlerFunc
	}{
		"location": {location: "http://%s/"},
		"redirect": {handler: func(v string) http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "http://"+v+"/", http.StatusFound) }
		}},
		"redirect to itself": {handler: func(string) http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path+"x", http.StatusFound) }
		}},
		"control URL": {handler: func(v string) http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.WriteString(w, strings.Replace(igdDescription, "/ctl", "http://"+v+"/ctl", 1))
			}
		}},
		"base URL": {handler: func(v string) http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodPost {
					http.NotFound(w, r)
					return
				}
				_, _ = io.WriteString(w, strings.Replace(igdDescription, "<device>", "<URLBase>http://"+v+"/</URLBase><device>", 1))
			}
		}},
		"control redirects": {handler: func(v string) http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodPost {
					http.Redirect(w, r, "http://"+v+"/ctl", http.StatusTemporaryRedirect)
					return
				}
				_, _ = io.WriteString(w, igdDescription)
			}
		}},
		"endless description": {handler: func(string) http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.WriteString(w, `<?xml version="1.0"?><root xmlns="urn:schemas-upnp-org:device-1-0">`)
				for r.Context().Err() == nil {
					if _, err := io.WriteString(w, strings.Repeat("<x>", 1000)); err != nil {
						return
					}
				}
			}
		}},
		"hangs": {handler: func(string) http.HandlerFunc {
			return func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
		}},
		"header without end": {handler: func(string) http.HandlerFunc {
			return func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("X", strings.Repeat("x", 1<<20))
				_, _ = io.WriteString(w, igdDescription)
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var hits atomic.Int32
			victim := newGateway(t, "127.0.0.4", "203.0.113.8:40000", func(g *gateway) {
				g.handler = func(http.ResponseWriter, *http.Request) { hits.Add(1) }
			})
			at := netip.AddrPortFrom(victim.addr, victim.port).String()
			g := newGateway(t, "127.0.0.1", "203.0.113.7:40000", func(g *gateway) {
				if c.handler != nil {
					g.handler = c.handler(at)
				}
				g.location = strings.Replace(c.location, "%s", at, 1)
			})
			s := start(t, g, nil)
			n := s.await(t, UPnP, func(n Mapping) bool { return n.Problem != "" })
			t.Log(n.Problem)
			if hits.Load() != 0 {
				t.Error("the victim was asked")
			}
		})
	}
}

func TestConfig(t *testing.T) {
	t.Parallel()
	if _, err := New(Config{}); err == nil {
		t.Error("New takes a configuration without a port")
	}
	m, err := New(Config{
		Port:    func() uint16 { return 0 },
		Gateway: func() (g, s netip.Addr, err error) { return g, s, nil },
		Gateway6: func() (g, s netip.Addr, err error) {
			return netip.MustParseAddr("fe80::1"), netip.MustParseAddr("fd00::2"), nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := m.Run(ctx); err != nil {
		t.Error(err)
	}
}
