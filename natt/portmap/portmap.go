package portmap

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"time"
)

// Protocol is a way to ask a gateway.
type Protocol uint8

const (
	// PCP is the Port Control Protocol, RFC 6887.
	PCP Protocol = iota + 1
	// NATPMP is the NAT Port Mapping Protocol, RFC 6886.
	NATPMP
	// UPnP is an Internet gateway device of UPnP, version 1 or 2.
	UPnP
)

func (p Protocol) String() string {
	switch p {
	case PCP:
		return "PCP"
	case NATPMP:
		return "NAT-PMP"
	case UPnP:
		return "UPnP"
	}
	return fmt.Sprintf("protocol %d", uint8(p))
}

// A Mapping is what one protocol has got us in one address family.
type Mapping struct {
	Protocol Protocol
	IPv6     bool           // a pinhole in a firewall rather than a translation
	Gateway  netip.Addr     // who was asked
	External netip.AddrPort // where the Internet reaches our port; the zero value if there is no mapping
	Until    time.Time      // the mapping ends unless it is renewed; zero if it never does, or does not exist
	Problem  string         // why there is no mapping; empty while the question is open
}

// Config is what New needs.
type Config struct {
	// Port returns the UDP port of our socket, 0 while there is none. Nothing else is ever mapped.
	Port func() uint16
	// Gateway returns the default gateway of IPv4 and our address towards it. Nil stands for DefaultGateway.
	Gateway func() (gateway, self netip.Addr, err error)
	// Gateway6 is the same for IPv6, where the gateway has a link-local address with its zone. Nil stands for
	// DefaultGateway6.
	Gateway6 func() (gateway, self netip.Addr, err error)
	// Exclude is the overlay's own prefix: no address in it is asked from or believed.
	Exclude netip.Prefix
	// OnChange is told of each mapping that comes (External is valid), goes or fails (External is zero, Problem says
	// why). All calls come from the goroutine of Run; they must not block.
	OnChange func(Mapping)
	// Logger may be nil.
	Logger *slog.Logger
}

// A Mapper asks the gateway for mappings. It does nothing outside Run.
type Mapper struct {
	config Config
	kick   chan struct{}
	events chan event
	ports  ports

	mu    sync.Mutex
	table []Mapping
}

// ports is where the protocols live. Tests put them elsewhere.
type ports struct {
	control  uint16         // of PCP and NAT-PMP on the gateway
	announce netip.AddrPort // where gateways announce that they restarted
	search4  netip.AddrPort // SSDP
	search6  netip.AddrPort
	wait     time.Duration // for answers to a search
}

const (
	lookEvery  = time.Minute            // how often a change of the gateway is looked for, if nobody kicks
	leaveTime  = 400 * time.Millisecond // how long withdrawing may take: gateways are near
	retryPause = time.Minute            // after a socket could not be made
)

// New checks a configuration.
func New(c Config) (*Mapper, error) {
	if c.Port == nil {
		return nil, errors.New("portmap: no function for the port")
	}
	if c.Gateway == nil {
		c.Gateway = DefaultGateway
	}
	if c.Gateway6 == nil {
		c.Gateway6 = DefaultGateway6
	}
	if c.OnChange == nil {
		c.OnChange = func(Mapping) {}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return &Mapper{
		config: c, kick: make(chan struct{}, 1), events: make(chan event),
		ports: ports{
			control:  5351,
			announce: netip.MustParseAddrPort("224.0.0.1:5350"),
			search4:  netip.MustParseAddrPort("239.255.255.250:1900"),
			search6:  netip.MustParseAddrPort("[ff02::c]:1900"),
			wait:     searchWait,
		},
	}, nil
}

// Kick says that the network or our port may have changed. Mappings are renewed, or made anew at another gateway.
func (m *Mapper) Kick() { poke(m.kick) }

// Mappings returns what each protocol has got us, or why it got nothing; for a protocol that was not asked there is no
// entry.
func (m *Mapper) Mappings() []Mapping {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]Mapping(nil), m.table...)
}

// poke wakes whoever reads c.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Run asks all protocols until ctx ends, then withdraws all mappings, which takes less than half a second. It
// returns nil.
func (m *Mapper) Run(ctx context.Context) error {
	var workers sync.WaitGroup
	families := []*family{{mapper: m}, {mapper: m, ipv6: true}}
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	for _, f := range families {
		f.look(ctx, &workers)
	}
	for {
		select {
		case <-ctx.Done():
			m.drain(&workers)
			return nil
		case <-ticker.C:
			for _, f := range families {
				f.look(ctx, &workers)
			}
		case <-m.kick:
			for _, f := range families {
				if !f.look(ctx, &workers) {
					f.renew()
				}
			}
		case e := <-m.events:
			if e.round != e.round.family.round {
				continue // of a network that we left
			}
			if e.reset {
				m.config.Logger.Info("gateway lost its state", "gateway", e.round.where.gateway)
				e.round.family.renew()
				continue
			}
			m.set(e.Mapping)
		}
	}
}

// drain waits for the workers, who withdraw their mappings.
func (m *Mapper) drain(workers *sync.WaitGroup) {
	done := make(chan struct{})
	go func() {
		workers.Wait()
		close(done)
	}()
	for {
		select {
		case <-m.events:
		case <-done:
			m.mu.Lock()
			m.table = nil
			m.mu.Unlock()
			return
		}
	}
}

// set notes what a protocol got us, and passes on what is new.
func (m *Mapper) set(n Mapping) {
	m.mu.Lock()
	at := -1
	for i := range m.table {
		if m.table[i].Protocol == n.Protocol && m.table[i].IPv6 == n.IPv6 {
			at = i
		}
	}
	var old Mapping
	if at < 0 {
		m.table = append(m.table, n)
	} else {
		old, m.table[at] = m.table[at], n
	}
	m.mu.Unlock()
	if at >= 0 && old.External == n.External && old.Problem == n.Problem || at < 0 && n.Problem == "" && !n.External.IsValid() {
		return
	}
	m.config.Logger.Info("port mapping changed", "protocol", n.Protocol, "ipv6", n.IPv6, "gateway", n.Gateway,
		"external", n.External, "until", n.Until, "problem", n.Problem)
	m.config.OnChange(n)
}

// where is everything a round of mappings depends on.
type where struct {
	gateway, self netip.Addr
	port          uint16
}

// family is IPv4 or IPv6.
type family struct {
	mapper *Mapper
	ipv6   bool
	round  *round // nil: no gateway, or no port
}

// round is the time that a family spends with one gateway, one address and one port.
type round struct {
	family *family
	where  where
	cancel context.CancelFunc
	kicks  []chan struct{}
}

// event is what a worker has to say.
type event struct {
	round *round
	Mapping
	reset bool
}

// look finds out where we are, and begins a new round if that has changed. Withdrawing what the old round
// mapped goes on beside the new one.
func (f *family) look(ctx context.Context, workers *sync.WaitGroup) (changed bool) {
	m := f.mapper
	find := m.config.Gateway
	if f.ipv6 {
		find = m.config.Gateway6
	}
	var at where
	var err error
	if at.port = m.config.Port(); at.port == 0 {
		err = errNoPort
	} else if at.gateway, at.self, err = find(); err == nil {
		err = m.check(at, f.ipv6)
	}
	if err != nil {
		at = where{}
	}
	if f.round != nil && f.round.where == at {
		return false
	}
	if f.round != nil {
		f.round.cancel()
		f.round = nil
	}
	if err != nil {
		f.fail(strings.TrimPrefix(err.Error(), "portmap: "))
		return true
	}
	f.fail("")
	f.begin(ctx, at, workers)
	return true
}

var errNoPort = errors.New("there is no socket yet")

// check refuses to talk to what cannot be a gateway.
func (m *Mapper) check(at where, ipv6 bool) error {
	for _, a := range []netip.Addr{at.gateway, at.self} {
		if !a.IsValid() || a.Is4() == ipv6 || a.Is4In6() || a.IsUnspecified() || a.IsMulticast() || m.config.Exclude.Contains(a) {
			return fmt.Errorf("no usable gateway: %v by way of %v", at.gateway, at.self)
		}
	}
	if ipv6 && (at.self.IsLinkLocalUnicast() || at.self.IsPrivate()) {
		return fmt.Errorf("our IPv6 address %v is not public", at.self)
	}
	return nil
}

// fail notes for all protocols of the family that there is no mapping, for a reason or not yet.
func (f *family) fail(why string) {
	for _, p := range []Protocol{PCP, NATPMP, UPnP} {
		if f.ipv6 && p == NATPMP {
			continue
		}
		f.mapper.set(Mapping{Protocol: p, IPv6: f.ipv6, Problem: why})
	}
}

// renew has all workers ask again.
func (f *family) renew() {
	if f.round == nil {
		return
	}
	for _, k := range f.round.kicks {
		poke(k)
	}
}

// say passes news of a worker on to Run.
func (r *round) say(p Protocol, n report) {
	e := event{round: r, reset: n.reset, Mapping: Mapping{
		Protocol: p, IPv6: r.family.ipv6, Gateway: r.where.gateway, External: n.external, Until: n.until, Problem: n.problem,
	}}
	if n.gateway.IsValid() {
		e.Gateway = n.gateway
	}
	r.family.mapper.events <- e
}
