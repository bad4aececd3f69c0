package natlab

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"
)

const (
	window       = 256 << 10              // bytes on the way and not yet read, each direction
	maxChunk     = 64 << 10               // bytes that travel together
	repeatAfter  = 200 * time.Millisecond // at first, then twice as long each time, but at most
	repeatMax    = 2 * time.Second
	streamGiveUp = time.Minute // without an answer
	synRepeat    = time.Second
	backlog      = 128
)

// route is the way that the first packet of a stream took.
type route struct {
	out, in []*node // uplinks up from the client, down to the server
	epochs  []int   // of all of them, when the stream was made
}

func newRoute(out, in []*node) *route {
	r := &route{out: slices.Clone(out), in: slices.Clone(in)}
	for _, n := range r.nodes() {
		r.epochs = append(r.epochs, n.epoch)
	}
	return r
}

func (r *route) nodes() []*node { return slices.Concat(r.out, r.in) }

// stale reports whether an address on the way has changed since.
func (r *route) stale() bool {
	for i, n := range r.nodes() {
		if n.epoch != r.epochs[i] {
			return true
		}
	}
	return false
}

func (r *route) delay() time.Duration {
	var d time.Duration
	for _, n := range r.nodes() {
		d += n.delay
	}
	return d
}

// loses draws whether a packet gets lost on the way.
func (r *route) loses(n *Net) bool {
	for _, hop := range r.nodes() {
		if hop.loss > 0 && n.rand.Float64() < hop.loss {
			return true
		}
	}
	return false
}

// dial is an attempt to open a stream.
type dial struct {
	host          *Host
	local, remote netip.AddrPort
	begun         time.Time
	server        *stream // accepted, if it was
	done          chan struct{}
	over          bool
	conn          *stream
	err           error
}

// DialContext opens a stream to an address or to a host by name, as net.Dialer does.
func (h *Host) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	fail := func(err error) error { return &net.OpError{Op: "dial", Net: network, Err: err} }
	d, err := h.startDial(network, address)
	if err != nil {
		return nil, fail(err)
	}
	select {
	case <-d.done:
	case <-ctx.Done():
		h.net.mu.Lock()
		d.finish(nil, ctx.Err())
		h.net.mu.Unlock()
	case <-h.net.end:
		return nil, fail(net.ErrClosed)
	}
	if d.err != nil {
		return nil, fail(d.err)
	}
	return d.conn, nil
}

func (h *Host) startDial(network, address string) (*dial, error) {
	if network != "tcp" && network != "tcp4" && network != "tcp6" {
		return nil, net.UnknownNetworkError(network)
	}
	name, service, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	port, err := strconv.ParseUint(service, 10, 16)
	if err != nil {
		return nil, err
	}
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	var targets []netip.Addr
	if ip, err := netip.ParseAddr(name); err == nil {
		targets = []netip.Addr{ip.Unmap()}
	} else if known := h.net.names[name]; known != nil {
		targets = known.addrs
	} else {
		return nil, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
	}
	for _, ip := range targets {
		src, ok := h.source(ip)
		if !ok || network == "tcp4" && !ip.Is4() || network == "tcp6" && ip.Is4() {
			continue
		}
		d := &dial{host: h, local: netip.AddrPortFrom(src, h.freePort()), remote: netip.AddrPortFrom(ip, uint16(port)),
			begun: time.Now(), done: make(chan struct{})}
		d.send(synRepeat)
		return d, nil
	}
	return nil, syscall.ENETUNREACH
}

// send sends the first packet of a stream, again and again.
func (d *dial) send(again time.Duration) {
	if d.over {
		return
	}
	n := d.host.net
	if time.Since(d.begun) > streamGiveUp {
		d.finish(nil, syscall.ETIMEDOUT)
		return
	}
	p := &packet{proto: tcp, src: d.local, dst: d.remote, origin: d.host, dial: d}
	if slices.Contains(d.host.addrs, p.dst.Addr()) {
		n.after(0, func() { d.host.accept(p) })
	} else {
		n.up(p, &d.host.node)
	}
	n.after(again, func() { d.send(2 * again) })
}

func (d *dial) finish(conn *stream, err error) {
	switch {
	case d.over && conn != nil && conn != d.conn:
		conn.shut()
		conn.peer.fail(syscall.ECONNRESET)
	case !d.over:
		d.over, d.conn, d.err = true, conn, err
		close(d.done)
	}
}

// accept handles the first packet of a stream at the host it is for.
func (h *Host) accept(p *packet) {
	n, d, r := h.net, p.dial, newRoute(p.out, p.in)
	answer := func(conn *stream, err error) {
		if !n.isCut(tcp, r.in, r.out...) && !r.loses(n) {
			n.after(r.delay(), func() { d.finish(conn, err) })
		}
	}
	if d.server != nil {
		answer(d.server.peer, nil)
		return
	}
	l := h.listeners[p.dst.Port()]
	switch {
	case l == nil:
		answer(nil, syscall.ECONNREFUSED)
		return
	case len(l.waiting) >= backlog:
		return
	}
	client := newStream(n, r, d.local, d.remote)
	server := newStream(n, r, p.dst, p.src)
	client.client, client.peer, server.peer = true, server, client
	d.server = server
	l.waiting = append(l.waiting, server)
	l.arrived.Signal()
	answer(client, nil)
}

// ListenTCP takes streams to a port of the host. A port that is taken is a mistake of the test and panics.
func (h *Host) ListenTCP(port uint16) net.Listener {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	if port == 0 {
		port = h.freePort()
	}
	if h.listeners[port] != nil {
		panic(fmt.Sprintf("natlab: %v listens on port %d already", h, port))
	}
	l := &listener{host: h, port: port, closed: h.net.closed}
	l.arrived.L = &h.net.mu
	if !l.closed {
		h.listeners[port] = l
		h.net.closers[l] = struct{}{}
	}
	return l
}

type listener struct {
	host    *Host
	port    uint16
	waiting []*stream
	arrived sync.Cond
	closed  bool
}

func (l *listener) Accept() (net.Conn, error) {
	l.host.net.mu.Lock()
	defer l.host.net.mu.Unlock()
	for len(l.waiting) == 0 {
		if l.closed {
			return nil, net.ErrClosed
		}
		l.arrived.Wait()
	}
	s := l.waiting[0]
	l.waiting = l.waiting[1:]
	return s, nil
}

func (l *listener) Addr() net.Addr {
	l.host.net.mu.Lock()
	defer l.host.net.mu.Unlock()
	ip := netip.IPv6Unspecified()
	if len(l.host.addrs) > 0 {
		ip = l.host.addrs[0]
	}
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(ip, l.port))
}

func (l *listener) Close() error {
	l.host.net.mu.Lock()
	defer l.host.net.mu.Unlock()
	if l.closed {
		return net.ErrClosed
	}
	l.shut()
	return nil
}

func (l *listener) shut() {
	l.closed = true
	delete(l.host.listeners, l.port)
	delete(l.host.net.closers, l)
	for _, s := range l.waiting { // nobody will take them
		s.shut()
		s.peer.fail(syscall.ECONNRESET)
	}
	l.waiting = nil
	l.arrived.Broadcast()
}

// chunk is data of a stream on its way, or its end.
type chunk struct {
	data []byte
	end  bool
	at   time.Time // when it arrives
}

// stream is one end of a connection. Everything is guarded by the Net's mutex.
type stream struct {
	net           *Net
	route         *route
	client        bool
	local, remote netip.AddrPort
	peer          *stream
	changed       sync.Cond
	flight        []chunk // sent, in order
	flying        int     // bytes in flight
	stuck         time.Time
	received      []byte
	ended         bool // the peer has sent its end
	closed        bool
	err           error
	read, write   deadline
}

func newStream(n *Net, r *route, local, remote netip.AddrPort) *stream {
	s := &stream{net: n, route: r, local: local, remote: remote}
	s.changed.L = &n.mu
	n.closers[s] = struct{}{}
	return s
}

func (s *stream) LocalAddr() net.Addr  { return net.TCPAddrFromAddrPort(s.local) }
func (s *stream) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(s.remote) }

func (s *stream) Read(b []byte) (int, error) {
	s.net.mu.Lock()
	defer s.net.mu.Unlock()
	for {
		switch {
		case s.closed:
			return 0, net.ErrClosed
		case s.read.passed:
			return 0, os.ErrDeadlineExceeded
		case len(b) == 0:
			return 0, nil
		case len(s.received) > 0:
			n := copy(b, s.received)
			if s.received = s.received[n:]; len(s.received) == 0 {
				s.received = nil
			}
			s.peer.changed.Broadcast()
			return n, nil
		case s.err != nil:
			return 0, s.err
		case s.ended:
			return 0, io.EOF
		}
		s.changed.Wait()
	}
}

func (s *stream) Write(b []byte) (int, error) {
	s.net.mu.Lock()
	defer s.net.mu.Unlock()
	for sent := 0; ; {
		switch {
		case s.closed:
			return sent, net.ErrClosed
		case s.write.passed:
			return sent, os.ErrDeadlineExceeded
		case s.err != nil:
			return sent, s.err
		}
		if n := min(len(b)-sent, maxChunk, window-s.flying-len(s.peer.received)); n > 0 {
			s.send(chunk{data: slices.Clone(b[sent : sent+n])})
			sent += n
			continue
		}
		if sent == len(b) {
			return sent, nil
		}
		s.changed.Wait()
	}
}

// send puts a chunk on its way. Chunks arrive in order; one that is lost holds up those behind it.
func (s *stream) send(c chunk) {
	d := s.route.delay()
	for s.route.loses(s.net) {
		d += repeatAfter + 2*s.route.delay()
	}
	c.at = time.Now().Add(d)
	if last := len(s.flight) - 1; last >= 0 && c.at.Before(s.flight[last].at) {
		c.at = s.flight[last].at
	}
	s.flight = append(s.flight, c)
	s.flying += len(c.data)
	if len(s.flight) == 1 {
		s.net.after(time.Until(c.at), func() { s.arrive(repeatAfter) })
	}
}

// arrive hands the first chunk in flight to the peer, or tries again later.
func (s *stream) arrive(again time.Duration) {
	if len(s.flight) == 0 {
		return // the stream broke
	}
	from, to := s.route.out, s.route.in
	if !s.client {
		from, to = to, from
	}
	stale := s.route.stale()
	switch {
	case stale && s.client: // comes from an address that the server does not know
		s.fail(syscall.ECONNRESET)
		return
	case stale || s.net.isCut(tcp, from, to...):
		if s.stuck.IsZero() {
			s.stuck = time.Now()
		}
		if time.Since(s.stuck) > streamGiveUp {
			s.fail(syscall.ETIMEDOUT)
			return
		}
		s.net.after(again, func() { s.arrive(min(2*again, repeatMax)) })
		return
	}
	s.stuck = time.Time{}
	c := s.flight[0]
	s.flight[0] = chunk{}
	s.flight = s.flight[1:]
	s.flying -= len(c.data)
	switch {
	case c.end:
		s.peer.ended = true
	case s.peer.closed:
		s.net.after(s.route.delay(), func() { s.fail(syscall.ECONNRESET) })
		return
	default:
		s.peer.received = append(s.peer.received, c.data...)
	}
	s.peer.changed.Broadcast()
	if len(s.flight) > 0 {
		s.net.after(time.Until(s.flight[0].at), func() { s.arrive(repeatAfter) })
	}
}

// fail breaks the stream for this end.
func (s *stream) fail(err error) {
	if s.err == nil {
		s.err = err
	}
	s.flight, s.flying = nil, 0
	s.changed.Broadcast()
}

// Close lets what was written arrive, then the end.
func (s *stream) Close() error {
	s.net.mu.Lock()
	defer s.net.mu.Unlock()
	if s.closed {
		return net.ErrClosed
	}
	if s.err == nil {
		s.send(chunk{end: true})
	}
	s.shut()
	return nil
}

func (s *stream) shut() {
	s.closed = true
	s.received = nil
	s.read.stop()
	s.write.stop()
	delete(s.net.closers, s)
	s.changed.Broadcast()
	s.peer.changed.Broadcast() // our buffer is empty now
}

func (s *stream) SetDeadline(t time.Time) error {
	return s.setDeadline(t, &s.read, &s.write)
}

func (s *stream) SetReadDeadline(t time.Time) error  { return s.setDeadline(t, &s.read) }
func (s *stream) SetWriteDeadline(t time.Time) error { return s.setDeadline(t, &s.write) }

func (s *stream) setDeadline(t time.Time, of ...*deadline) error {
	s.net.mu.Lock()
	defer s.net.mu.Unlock()
	if s.closed {
		return net.ErrClosed
	}
	for _, d := range of {
		d.set(t, s)
	}
	s.changed.Broadcast()
	return nil
}

// deadline becomes passed when its time has come.
type deadline struct {
	passed bool
	timer  *time.Timer
}

func (d *deadline) stop() {
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
}

func (d *deadline) set(t time.Time, s *stream) {
	d.stop()
	d.passed = false
	if t.IsZero() {
		return
	}
	wait := time.Until(t)
	if wait <= 0 {
		d.passed = true
		return
	}
	var timer *time.Timer
	timer = time.AfterFunc(wait, func() {
		s.net.mu.Lock()
		defer s.net.mu.Unlock()
		if d.timer == timer { // and not replaced meanwhile
			d.passed = true
			s.changed.Broadcast()
		}
	})
	d.timer = timer
}
