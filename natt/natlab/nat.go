package natlab

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"
)

// Kind says how a router treats UDP.
type Kind uint8

// The kinds; the package comment defines them.
const (
	None Kind = iota
	Firewall
	Full
	Addr
	Port
	Linux
	Sym
	Docker
	SymAddr
	SymSeq
)

// Kinds lists all kinds.
func Kinds() []Kind {
	return []Kind{None, Firewall, Full, Addr, Port, Linux, Sym, Docker, SymAddr, SymSeq}
}

var kindNames = [...]string{"none", "fw", "full", "addr", "port", "linux", "sym", "docker", "sym-addr", "sym-seq"}

func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// translates reports whether hosts behind a router of this kind share its address.
func (k Kind) translates() bool { return k != None && k != Firewall }

type proto uint8

const (
	tcp proto = 6
	udp proto = 17
)

type filter uint8

const (
	byEndpoint filter = iota
	byAddress
	anyone
)

const (
	mappingTimeout  = 120 * time.Second
	unrepliedLinux  = 30 * time.Second
	streamTimeout   = 2 * time.Hour
	firstRandomPort = 1024
)

// table is the state of a NAT or a stateful firewall: addresses in, addresses out, pure.
type table struct {
	translate bool
	perFlow   bool // a mapping for each remote endpoint, which filters by endpoint
	perAddr   bool // a mapping for each remote address
	preserve  bool // the port is kept unless taken
	counts    bool // ports count up from flow to flow
	strays    bool // what no mapping lets in is taken by the router itself, and holds its flow
	filter    filter
	timeout   time.Duration
	unreplied time.Duration
	public    netip.Addr
	rand      *rand.Rand
	out, in   map[flow]*mapping
	taken     map[flow]time.Time // flows of the router itself, until when
	last      uint16             // port given out last, where they count
	swept     time.Time
}

// flow identifies a mapping from one side: near is the inner address (in table.out) or the outer one (in table.in),
// remote is zero unless mappings are made per flow.
type flow struct {
	proto        proto
	near, remote netip.AddrPort
}

type mapping struct {
	inner, outer, remote netip.AddrPort
	proto                proto
	replied              bool
	expires              time.Time
	permitted            map[netip.AddrPort]time.Time // until when; port 0 where the filter is by address
}

// newTable makes the table that a router of this kind has for a protocol.
func newTable(k Kind, p proto, public netip.Addr, r *rand.Rand) *table {
	t := &table{translate: k.translates(), timeout: mappingTimeout, public: public, rand: r}
	switch {
	case p == tcp:
		t.perFlow, t.preserve, t.timeout = true, true, streamTimeout
	case k == Full:
		t.filter = anyone
	case k == Addr:
		t.filter = byAddress
	case k == Port:
	case k == Linux || k == Docker:
		t.perFlow, t.preserve, t.strays = true, true, k == Docker
	case k == SymAddr:
		t.perAddr = true
	default:
		t.perFlow, t.counts = true, k == SymSeq
	}
	t.unreplied = t.timeout
	if t.preserve && p == udp {
		t.unreplied = unrepliedLinux
	}
	t.flush()
	return t
}

func (t *table) flush() {
	t.out, t.in, t.taken = map[flow]*mapping{}, map[flow]*mapping{}, map[flow]time.Time{}
	t.last = uint16(firstRandomPort + t.rand.IntN(1<<16-firstRandomPort))
}

func (t *table) key(p proto, near, remote netip.AddrPort) flow {
	switch {
	case t.perAddr:
		remote = netip.AddrPortFrom(remote.Addr(), 0)
	case !t.perFlow:
		remote = netip.AddrPort{}
	}
	return flow{p, near, remote}
}

// outbound returns the source that a packet from inner to remote gets.
func (t *table) outbound(now time.Time, p proto, inner, remote netip.AddrPort) (outer netip.AddrPort, ok bool) {
	t.sweep(now)
	m := t.out[t.key(p, inner, remote)]
	if m == nil || now.After(m.expires) {
		t.drop(m)
		if outer, ok = t.allocate(now, p, inner, remote); !ok {
			return outer, false
		}
		m = &mapping{inner: inner, outer: outer, remote: remote, proto: p, permitted: map[netip.AddrPort]time.Time{}}
		t.out[t.key(p, inner, remote)] = m
		t.in[t.key(p, outer, remote)] = m
	}
	t.refresh(m, now, remote)
	return m.outer, true
}

// inbound returns the destination that a packet from remote to outer gets, if it may pass.
func (t *table) inbound(now time.Time, p proto, outer, remote netip.AddrPort) (inner netip.AddrPort, ok bool) {
	m := t.in[t.key(p, outer, remote)]
	if m == nil || now.After(m.expires) {
		if t.strays {
			t.taken[t.key(p, outer, remote)] = now.Add(t.unreplied)
		}
		return inner, false
	}
	if t.filter != anyone && now.After(m.permitted[t.permission(remote)]) {
		return inner, false
	}
	m.replied = true
	t.refresh(m, now, remote)
	return m.inner, true
}

// hairpin returns the inner address behind an outer one, whoever asks.
func (t *table) hairpin(now time.Time, p proto, outer netip.AddrPort) (inner netip.AddrPort, ok bool) {
	m := t.in[flow{p, outer, netip.AddrPort{}}]
	if m == nil || now.After(m.expires) {
		return inner, false
	}
	return m.inner, true
}

func (t *table) permission(remote netip.AddrPort) netip.AddrPort {
	if t.filter == byAddress {
		return netip.AddrPortFrom(remote.Addr(), 0)
	}
	return remote
}

func (t *table) refresh(m *mapping, now time.Time, remote netip.AddrPort) {
	m.expires = now.Add(t.unreplied)
	if m.replied {
		m.expires = now.Add(t.timeout)
	}
	if t.filter != anyone {
		m.permitted[t.permission(remote)] = now.Add(t.timeout)
	}
}

func (t *table) allocate(now time.Time, p proto, inner, remote netip.AddrPort) (netip.AddrPort, bool) {
	if !t.translate {
		return inner, true
	}
	for tries := range 4096 {
		port := inner.Port()
		switch {
		case t.counts:
			if t.last++; t.last < firstRandomPort {
				t.last = firstRandomPort
			}
			port = t.last
		case !t.preserve || tries > 0:
			port = uint16(firstRandomPort + t.rand.IntN(1<<16-firstRandomPort))
		}
		outer := netip.AddrPortFrom(t.public, port)
		if now.Before(t.taken[t.key(p, outer, remote)]) {
			continue
		}
		if m := t.in[t.key(p, outer, remote)]; m == nil || now.After(m.expires) {
			t.drop(m)
			return outer, true
		}
	}
	return netip.AddrPort{}, false // the NAT is full
}

func (t *table) drop(m *mapping) {
	if m == nil {
		return
	}
	delete(t.out, t.key(m.proto, m.inner, m.remote))
	delete(t.in, t.key(m.proto, m.outer, m.remote))
}

// sweep forgets what has expired, once a timeout.
func (t *table) sweep(now time.Time) {
	if now.Sub(t.swept) < t.timeout {
		return
	}
	t.swept = now
	for f, until := range t.taken {
		if now.After(until) {
			delete(t.taken, f)
		}
	}
	for _, m := range t.out {
		if now.After(m.expires) {
			t.drop(m)
			continue
		}
		for a, until := range m.permitted {
			if now.After(until) {
				delete(m.permitted, a)
			}
		}
	}
}
