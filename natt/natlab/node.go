package natlab

import (
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// A Node is a *Host or a *Router.
type Node interface{ base() *node }

// node is what hosts and routers have in common: a name and one uplink.
type node struct {
	net    *Net
	name   string
	host   *Host
	router *Router
	parent *Router // nil: the uplink goes to the core
	epoch  int     // raised when the address changes
	delay  time.Duration
	loss   float64
	mtu    int
}

func (n *node) base() *node { return n }

// String returns the name.
func (n *node) String() string { return n.name }

// segment is the core or a LAN: who has which address there.
type segment struct {
	owner *Router // nil: the core
	nodes map[netip.Addr]*node
}

func (n *node) segment() *segment {
	if n.parent != nil {
		return &n.parent.lan
	}
	return &n.net.core
}

// A Router joins a LAN to its uplink and treats what passes by its Kind.
type Router struct {
	node
	kind      Kind
	public    netip.Addr
	pinhole   bool // hairpin
	lan       segment
	routed    map[netip.Addr]struct{} // addresses behind it that the uplink knows
	nat       map[proto]*table
	firewall  *table
	prefix    [3]byte // of the LAN
	lastHost  byte
	firstHost *Host
}

// Host adds a host to the core. Without addresses it gets one of 192.0.2.0/24.
func (n *Net) Host(name string, addrs ...netip.Addr) *Host {
	n.mu.Lock()
	defer n.mu.Unlock()
	h := n.newHost(name, nil)
	if len(addrs) == 0 {
		addrs = []netip.Addr{n.freePublic()}
	}
	h.attach(addrs)
	return h
}

func (n *Net) freePublic() netip.Addr {
	for i := byte(1); ; i++ {
		if ip := netip.AddrFrom4([4]byte{192, 0, 2, i}); n.core.nodes[ip] == nil || i == 255 {
			return ip
		}
	}
}

func (n *Net) newHost(name string, parent *Router) *Host {
	if n.names[name] != nil {
		panic("natlab: two hosts named " + name)
	}
	h := &Host{sockets: map[uint16]*socket{}, listeners: map[uint16]*listener{}, nextPort: firstEphemeral}
	h.node = node{net: n, name: name, host: h, parent: parent, mtu: 1500}
	if parent == nil {
		h.delay = n.config.Delay
	}
	n.names[name] = h
	return h
}

// NAT adds a router to the core.
func (n *Net) NAT(kind Kind, public netip.Addr) *Router {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.newRouter(kind, public, nil)
}

// NAT adds a router to the LAN of r, as a home router behind a carrier's. The zero address takes a free one of the LAN.
func (r *Router) NAT(kind Kind, public netip.Addr) *Router {
	r.net.mu.Lock()
	defer r.net.mu.Unlock()
	if !public.IsValid() {
		public = r.freeAddr()
	}
	return r.net.newRouter(kind, public, r)
}

func (n *Net) newRouter(kind Kind, public netip.Addr, parent *Router) *Router {
	n.nodes++
	r := &Router{
		kind: kind, public: public, routed: map[netip.Addr]struct{}{},
		nat:      map[proto]*table{tcp: newTable(kind, tcp, public, n.rand), udp: newTable(kind, udp, public, n.rand)},
		firewall: newTable(Firewall, udp, public, n.rand),
		prefix:   [3]byte{10, byte(n.nodes >> 8), byte(n.nodes)}, lastHost: 1,
	}
	r.node = node{net: n, name: fmt.Sprintf("%v%d", kind, n.nodes), router: r, parent: parent, mtu: 1500}
	if parent == nil {
		r.delay = n.config.Delay
	}
	r.lan = segment{owner: r, nodes: map[netip.Addr]*node{}}
	if kind.translates() {
		r.segment().add(public, &r.node)
	}
	return r
}

func (s *segment) add(ip netip.Addr, n *node) {
	if old := s.nodes[ip]; old != nil && old != n {
		panic(fmt.Sprintf("natlab: %v has the address %v of %v already", old, ip, n))
	}
	s.nodes[ip] = n
}

func (r *Router) freeAddr() netip.Addr {
	r.lastHost++
	return netip.AddrFrom4([4]byte{r.prefix[0], r.prefix[1], r.prefix[2], r.lastHost})
}

// Host adds a host to the LAN of r. Without addresses it gets a private one or, behind None and Firewall, the router's own.
func (r *Router) Host(name string, addrs ...netip.Addr) *Host {
	r.net.mu.Lock()
	defer r.net.mu.Unlock()
	h := r.net.newHost(name, r)
	if len(addrs) == 0 {
		addrs = []netip.Addr{r.autoAddr(h)}
	}
	h.attach(addrs)
	return h
}

func (r *Router) autoAddr(h *Host) netip.Addr {
	if r.kind.translates() {
		return r.freeAddr()
	}
	if r.firstHost != nil && r.firstHost != h {
		panic("natlab: further hosts behind " + r.name + " need an address")
	}
	r.firstHost = h
	return r.public
}

// Public returns the router's own address on its uplink.
func (r *Router) Public() netip.Addr {
	r.net.mu.Lock()
	defer r.net.mu.Unlock()
	return r.public
}

// SetHairpin lets hosts of the LAN reach each other at the router's public address. Only kinds whose mapping is
// endpoint-independent can do that.
func (r *Router) SetHairpin(on bool) {
	r.net.mu.Lock()
	defer r.net.mu.Unlock()
	r.pinhole = on
}

// SetTimeout sets how long UDP mappings outlive their last packet.
func (r *Router) SetTimeout(d time.Duration) {
	r.net.mu.Lock()
	defer r.net.mu.Unlock()
	for _, t := range []*table{r.nat[udp], r.firewall} {
		t.timeout, t.unreplied = d, d
	}
}

// Flush forgets all mappings, as a reboot does.
func (r *Router) Flush() {
	r.net.mu.Lock()
	defer r.net.mu.Unlock()
	r.flush()
}

func (r *Router) flush() {
	r.nat[udp].flush()
	r.nat[tcp].flush()
	r.firewall.flush()
}

// ChangeIP gives the router another public address and forgets all mappings. Behind None and Firewall the host that has
// the router's address gets the new one.
func (r *Router) ChangeIP(public netip.Addr) {
	r.net.mu.Lock()
	defer r.net.mu.Unlock()
	old := r.public
	r.public = public
	r.epoch++
	r.flush()
	if !r.kind.translates() {
		if h := r.firstHost; h != nil && slices.Contains(h.addrs, old) {
			addrs := slices.Clone(h.addrs)
			addrs[slices.Index(addrs, old)] = public
			h.detach()
			h.attach(addrs)
		}
		return
	}
	delete(r.segment().nodes, old)
	r.segment().add(public, &r.node)
	r.nat[udp].public, r.nat[tcp].public = public, public
}

// SetDelay sets the one-way delay of a node's uplink.
func (n *Net) SetDelay(of Node, d time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	of.base().delay = d
}

// SetLoss sets which part of the datagrams on a node's uplink is lost, 0 to 1, in either direction.
func (n *Net) SetLoss(of Node, part float64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	of.base().loss = part
}

// SetMTU sets the largest IP packet that a node's uplink carries; 1500 at first.
func (n *Net) SetMTU(of Node, mtu int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	of.base().mtu = mtu
}

// cut is a one-way cut. nil stands for everybody.
type cut struct {
	from, to *node
	udpOnly  bool
}

func baseOf(n Node) *node {
	if n == nil {
		return nil
	}
	return n.base()
}

// Cut stops everything between two nodes silently; b nil means between a and everybody. A router stands for all that is
// behind it; hosts of one LAN still reach each other then.
func (n *Net) Cut(a, b Node) { n.setCuts(a, b, false, true) }

// CutUDP stops UDP between two nodes, and lets streams pass.
func (n *Net) CutUDP(a, b Node) { n.setCuts(a, b, true, true) }

// CutOneWay stops what goes from one node to another.
func (n *Net) CutOneWay(from, to Node) { n.setCuts(from, to, false, false) }

// Uncut takes back all cuts between exactly these two nodes, in both directions.
func (n *Net) Uncut(a, b Node) {
	n.mu.Lock()
	defer n.mu.Unlock()
	x, y := baseOf(a), baseOf(b)
	for _, udpOnly := range []bool{false, true} {
		delete(n.cuts, cut{x, y, udpOnly})
		delete(n.cuts, cut{y, x, udpOnly})
	}
}

func (n *Net) setCuts(a, b Node, udpOnly, both bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	x, y := baseOf(a), baseOf(b)
	n.cuts[cut{x, y, udpOnly}] = struct{}{}
	if both {
		n.cuts[cut{y, x, udpOnly}] = struct{}{}
	}
}

// isCut reports whether what has left the nodes out is kept from entering one of the nodes in.
func (n *Net) isCut(p proto, out []*node, in ...*node) bool {
	for c := range n.cuts {
		if (!c.udpOnly || p == udp) && (c.from == nil || slices.Contains(out, c.from)) && (c.to == nil || slices.Contains(in, c.to)) {
			return true
		}
	}
	return false
}

// packet is a datagram, or the first packet of a stream, under way.
type packet struct {
	proto    proto
	src, dst netip.AddrPort
	data     []byte
	ttl      int
	origin   *Host
	out, in  []*node // whose uplinks it has gone up and down
	dial     *dial   // of a stream
}

// coreHops is how many hops wide the core is: what enters it with a smaller time to live dies there.
const coreHops = 8

// size is that of the IP packet.
func (p *packet) size() int { return packetSize(p.dst.Addr(), len(p.data)) }

func packetSize(dst netip.Addr, payload int) int {
	if dst.Is4() {
		return 20 + 8 + payload
	}
	return 40 + 8 + payload
}

// up sends a packet up the uplink of a node.
func (n *Net) up(p *packet, from *node) {
	p.out = append(p.out, from)
	n.cross(p, from, func() { n.arrive(p, from.segment()) })
}

// down sends a packet down the uplink of a node.
func (n *Net) down(p *packet, to *node) {
	if n.isCut(p.proto, p.out, to) {
		n.drop(p, IsCut)
		return
	}
	p.in = append(p.in, to)
	n.cross(p, to, func() {
		if to.host != nil {
			to.host.receive(p)
		} else {
			to.router.inbound(p)
		}
	})
}

func (n *Net) cross(p *packet, link *node, then func()) {
	switch {
	case p.size() > link.mtu:
		n.drop(p, TooBig)
	case link.loss > 0 && n.rand.Float64() < link.loss:
		n.drop(p, Lost)
	default:
		n.after(link.delay, then)
	}
}

// arrive handles a packet that came up into a segment.
func (n *Net) arrive(p *packet, s *segment) {
	if s.owner == nil && p.ttl < coreHops && p.proto == udp {
		n.drop(p, Expired)
		return
	}
	if to := s.nodes[p.dst.Addr()]; to != nil {
		n.down(p, to)
	} else if s.owner != nil {
		if p.ttl--; p.ttl <= 0 && p.proto == udp {
			n.drop(p, Expired)
			return
		}
		s.owner.outbound(p)
	} else {
		n.drop(p, NoRoute)
	}
}

// outbound handles a packet that leaves the LAN.
func (r *Router) outbound(p *packet) {
	now := time.Now()
	_, routed := r.routed[p.src.Addr()]
	switch {
	case routed && r.kind == None:
	case routed:
		r.firewall.outbound(now, p.proto, p.src, p.dst)
	case !r.kind.translates() || !p.src.Addr().Is4():
		r.net.drop(p, NoRoute)
		return
	default:
		outer, ok := r.nat[p.proto].outbound(now, p.proto, p.src, p.dst)
		if !ok {
			r.net.drop(p, Refused)
			return
		}
		p.src = outer
	}
	if p.dst.Addr() != r.public || !r.kind.translates() {
		r.net.up(p, &r.node)
		return
	}
	if inner, ok := r.nat[p.proto].hairpin(now, p.proto, p.dst); ok && r.pinhole {
		r.enter(p, inner)
		return
	}
	r.net.drop(p, Refused)
}

// inbound handles a packet that came down the uplink.
func (r *Router) inbound(p *packet) {
	now := time.Now()
	if _, routed := r.routed[p.dst.Addr()]; routed {
		_, ok := r.firewall.inbound(now, p.proto, p.dst, p.src)
		if r.kind != None && !ok {
			r.net.drop(p, Refused)
			return
		}
		r.enter(p, p.dst)
		return
	}
	inner, ok := r.nat[p.proto].inbound(now, p.proto, p.dst, p.src)
	if !ok {
		r.net.drop(p, Refused)
		return
	}
	r.enter(p, inner)
}

// enter sends a packet into the LAN.
func (r *Router) enter(p *packet, dst netip.AddrPort) {
	p.dst = dst
	if to := r.lan.nodes[dst.Addr()]; to != nil {
		r.net.down(p, to)
	} else {
		r.net.drop(p, NoRoute) // the host has gone
	}
}
