package natlab

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"

	"github.com/pilotnet/pilot/natt"
)

// A Host has addresses, sockets and streams.
type Host struct {
	node
	addrs     []netip.Addr
	sockets   map[uint16]*socket
	listeners map[uint16]*listener
	nextPort  uint16
	counts    Counts
}

// Addrs returns the host's addresses.
func (h *Host) Addrs() []netip.Addr {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	return slices.Clone(h.addrs)
}

// Addr returns the host's first address.
func (h *Host) Addr() netip.Addr { return h.Addrs()[0] }

// Interfaces returns what natt.Interfaces returns on a real host.
func (h *Host) Interfaces() []netip.Prefix {
	var list []netip.Prefix
	for _, ip := range h.Addrs() {
		bits := 24
		if ip.Is6() {
			bits = 64
		}
		list = append(list, netip.PrefixFrom(ip, bits))
	}
	return list
}

// MTU returns that of the host's uplink, as natt.LinkMTU does on a real host.
func (h *Host) MTU() int {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	return h.mtu
}

// Counts returns what the host has sent and received so far.
func (h *Host) Counts() Counts {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	return h.counts
}

// Move unplugs the host and plugs it in behind another router (or the same), nil meaning the core. Without
// addresses it gets one as a new host does. Sockets stay open.
func (h *Host) Move(to *Router, addrs ...netip.Addr) {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	h.detach()
	h.parent = to
	if len(addrs) == 0 {
		if to == nil {
			addrs = []netip.Addr{h.net.freePublic()}
		} else {
			addrs = []netip.Addr{to.autoAddr(h)}
		}
	}
	h.delay = 0
	if to == nil {
		h.delay = h.net.config.Delay
	}
	h.attach(addrs)
}

// attach makes the host known in its segment, and its public addresses in those above.
func (h *Host) attach(addrs []netip.Addr) {
	h.addrs = slices.Clone(addrs)
	for _, ip := range addrs {
		h.segment().add(ip, &h.node)
		if ip.IsPrivate() {
			continue
		}
		for r := h.parent; r != nil; r = r.parent {
			r.routed[ip] = struct{}{}
			r.segment().add(ip, &r.node)
		}
	}
}

func (h *Host) detach() {
	h.epoch++
	for _, ip := range h.addrs {
		delete(h.segment().nodes, ip)
		if ip.IsPrivate() {
			continue
		}
		for r := h.parent; r != nil; r = r.parent {
			delete(r.routed, ip)
			delete(r.segment().nodes, ip)
		}
	}
	h.addrs = nil
}

// source returns the address of the host that packets to dst leave from.
func (h *Host) source(dst netip.Addr) (netip.Addr, bool) {
	for _, ip := range h.addrs {
		if ip.Is4() == dst.Is4() {
			return ip, true
		}
	}
	return netip.Addr{}, false
}

// Listen opens a UDP socket on all addresses of the host. Port 0 takes a free one. A port that is taken is a mistake of the
// test and panics.
func (h *Host) Listen(port uint16) natt.PacketConn {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	for port == 0 || h.sockets[port] != nil {
		if port != 0 {
			panic(fmt.Sprintf("natlab: %v has a socket on port %d already", h, port))
		}
		if port = h.freePort(); h.sockets[port] != nil {
			port = 0
		}
	}
	s := &socket{host: h, port: port, closed: h.net.closed}
	s.filled.L = &h.net.mu
	if !s.closed {
		h.sockets[port] = s
		h.net.closers[s] = struct{}{}
	}
	return s
}

func (h *Host) freePort() uint16 {
	p := h.nextPort
	if h.nextPort++; h.nextPort == 0 {
		h.nextPort = firstEphemeral
	}
	return p
}

func (h *Host) receive(p *packet) {
	if p.dial != nil {
		h.accept(p)
		return
	}
	s := h.sockets[p.dst.Port()]
	switch {
	case s == nil:
		h.net.drop(p, NoSocket)
	case len(s.queue) >= h.net.config.Queue:
		h.net.drop(p, QueueFull)
	default:
		h.net.flight--
		for _, c := range []*Counts{&h.counts, &h.net.counts} {
			c.Received++
			c.ReceivedBytes += uint64(len(p.data))
		}
		h.net.event(Received, "", p, h)
		s.queue = append(s.queue, p)
		s.filled.Signal()
	}
}

const (
	defaultTTL = 64

	// firstEphemeral is where the ports begin that a host chooses itself.
	firstEphemeral = 32768

	batchSize  = 32
	maxSegment = 64
	maxPayload = 65507
)

// socket is a natt.PacketConn. Everything is guarded by the Net's mutex.
type socket struct {
	host   *Host
	port   uint16
	queue  []*packet
	filled sync.Cond
	closed bool
}

func (s *socket) LocalAddr() netip.AddrPort {
	return netip.AddrPortFrom(netip.IPv6Unspecified(), s.port)
}

func (s *socket) BatchSize() int { return batchSize }

func (s *socket) Offload() natt.Offload {
	return natt.Offload{GSO: true, GRO: !s.host.net.config.NoGRO, Batch: true}
}

func (s *socket) Close() error {
	s.host.net.mu.Lock()
	defer s.host.net.mu.Unlock()
	if s.closed {
		return net.ErrClosed
	}
	s.shut()
	return nil
}

func (s *socket) shut() {
	s.closed = true
	s.queue = nil
	delete(s.host.sockets, s.port)
	delete(s.host.net.closers, s)
	s.filled.Broadcast()
}

func (s *socket) ReadBatch(m []natt.Message) (int, error) {
	s.host.net.mu.Lock()
	defer s.host.net.mu.Unlock()
	if len(m) == 0 {
		return 0, nil
	}
	for len(s.queue) == 0 {
		if s.closed {
			return 0, net.ErrClosed
		}
		s.filled.Wait()
	}
	n := 0
	for n < min(len(m), batchSize) && len(s.queue) > 0 {
		s.take(&m[n])
		n++
	}
	return n, nil
}

// take fills a message with the datagram at the head of the queue and those that continue it as a run.
func (s *socket) take(m *natt.Message) {
	p := s.pop()
	size := len(p.data)
	m.Addr, m.Local, m.Segment = p.src, p.dst.Addr(), 0
	if size > len(m.Buf) {
		m.N = 0
		s.host.net.counts.Dropped[Truncated]++
		return
	}
	m.N = copy(m.Buf, p.data)
	limit := min(len(m.Buf), maxPayload)
	for count := 1; !s.host.net.config.NoGRO && count < maxSegment && m.N == count*size && size > 0 && len(s.queue) > 0; count++ {
		q := s.queue[0]
		if q.src != p.src || q.dst != p.dst || len(q.data) > size || len(q.data) == 0 || m.N+len(q.data) > limit {
			break
		}
		m.N += copy(m.Buf[m.N:], s.pop().data)
		m.Segment = size
	}
}

func (s *socket) pop() *packet {
	p := s.queue[0]
	s.queue[0] = nil
	if s.queue = s.queue[1:]; len(s.queue) == 0 {
		s.queue = nil
	}
	return p
}

func (s *socket) WriteBatch(m []natt.Message) (int, error) { return s.writeBatch(m, defaultTTL) }

// WriteTTL implements natt.TTLWriter.
func (s *socket) WriteTTL(m []natt.Message, ttl int) (int, error) {
	single := slices.Clone(m)
	for i := range single {
		single[i].Segment = 0
	}
	return s.writeBatch(single, ttl)
}

func (s *socket) writeBatch(m []natt.Message, ttl int) (int, error) {
	s.host.net.mu.Lock()
	defer s.host.net.mu.Unlock()
	var fail *natt.WriteError
	for i := range m {
		if s.closed {
			return i, net.ErrClosed
		}
		if err := s.write(&m[i], ttl); err != nil {
			if fail == nil {
				fail = &natt.WriteError{Addr: m[i].Addr, Err: err}
			}
			fail.Failed = append(fail.Failed, i)
		}
	}
	if fail != nil {
		return fail.Failed[0], fail
	}
	return len(m), nil
}

// write sends one run, or nothing of it.
func (s *socket) write(m *natt.Message, ttl int) error {
	size := len(m.Buf)
	if m.Segment > 0 && m.Segment < size {
		size = m.Segment
	}
	if !m.Addr.IsValid() {
		return syscall.EDESTADDRREQ
	}
	if m.Addr.Port() == 0 {
		return syscall.EINVAL
	}
	dst := netip.AddrPortFrom(m.Addr.Addr().Unmap(), m.Addr.Port())
	src, ok := s.host.source(dst.Addr())
	if !ok {
		return syscall.ENETUNREACH
	}
	if m.Local.IsValid() {
		if src = m.Local.Unmap(); !slices.Contains(s.host.addrs, src) {
			return syscall.EADDRNOTAVAIL
		}
	}
	if size > maxPayload || packetSize(dst.Addr(), size) > s.host.mtu {
		return syscall.EMSGSIZE
	}
	data := slices.Clone(m.Buf)
	for {
		n := min(size, len(data))
		s.send(netip.AddrPortFrom(src, s.port), dst, data[:n:n], ttl)
		if data = data[n:]; len(data) == 0 {
			return nil
		}
	}
}

func (s *socket) send(src, dst netip.AddrPort, data []byte, ttl int) {
	h, n := s.host, s.host.net
	p := &packet{proto: udp, src: src, dst: dst, data: data, ttl: ttl, origin: h}
	for _, c := range []*Counts{&h.counts, &n.counts} {
		c.Sent++
		c.SentBytes += uint64(len(data))
	}
	n.flight++
	n.event(Sent, "", p, nil)
	switch {
	case n.filter != nil && !n.filter(src, dst, data):
		n.drop(p, Filtered)
	case n.flight > maxFlight:
		n.drop(p, QueueFull)
	case slices.Contains(h.addrs, dst.Addr()):
		h.receive(p) // it stays on the host
	default:
		n.up(p, &h.node)
	}
}
