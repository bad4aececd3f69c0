package portmap

import (
	"bytes"
	"context"
	crand "crypto/rand"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"
)

// queue is how many datagrams wait for a lease; more are dropped.
const queue = 16

// datagram is what a lease is told by its gateway.
type datagram struct {
	bytes     []byte
	overheard bool
}

// jitter returns a random part of d.
func jitter(d time.Duration) time.Duration { return rand.N(d) }

// begin starts a round: all protocols in parallel.
func (f *family) begin(ctx context.Context, at where, workers *sync.WaitGroup) {
	ctx, cancel := context.WithCancel(ctx)
	r := &round{family: f, where: at, cancel: cancel}
	f.round = r
	start := func(work func(kick <-chan struct{})) {
		kick := make(chan struct{}, 1)
		r.kicks = append(r.kicks, kick)
		workers.Go(func() { work(kick) })
	}
	exclude := f.mapper.config.Exclude
	byPCP := &pcp{client: at.self, internal: at.port}
	crand.Read(byPCP.nonce[:])
	wires := map[Protocol]wire{PCP: byPCP}
	if !f.ipv6 {
		wires[NATPMP] = &natpmp{internal: at.port}
	}
	var heard []chan datagram
	for p, w := range wires {
		in := make(chan datagram, queue)
		heard = append(heard, in)
		start(func(kick <-chan struct{}) {
			r.keep(ctx, p, newLease(w, at.port, exclude, jitter), in, kick)
		})
	}
	if !f.ipv6 {
		workers.Go(func() { r.overhear(ctx, heard) })
	}
	if f.ipv6 || behindNAT(at.self) {
		start(func(kick <-chan struct{}) { r.rent(ctx, kick) })
	} else {
		f.mapper.set(Mapping{Protocol: UPnP, Problem: "our own address is public"})
	}
}

// keep drives a lease over a socket of its own, which hears the gateway only.
func (r *round) keep(ctx context.Context, p Protocol, l *lease, in chan datagram, kick <-chan struct{}) {
	control := netip.AddrPortFrom(r.where.gateway, r.family.mapper.ports.control)
	for {
		conn, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(r.where.self, 0)), net.UDPAddrFromAddrPort(control))
		if err == nil {
			r.drive(ctx, p, l, conn, in, kick)
			return
		}
		r.say(p, report{problem: err.Error()})
		select {
		case <-ctx.Done():
			return
		case <-kick:
		case <-time.After(retryPause):
		}
	}
}

// drive runs a lease until ctx ends and the mapping is withdrawn, or the time for that is over.
func (r *round) drive(ctx context.Context, p Protocol, l *lease, conn *net.UDPConn, in chan datagram, kick <-chan struct{}) {
	refused := make(chan struct{}, 1)
	var reader sync.WaitGroup
	reader.Go(func() { listen(conn, in, refused) })
	defer reader.Wait()
	defer conn.Close()

	timer := time.NewTimer(0)
	defer timer.Stop()
	done, late := ctx.Done(), (<-chan time.Time)(nil)
	for {
		for _, b := range l.advance(time.Now()) {
			if _, err := conn.Write(b); errors.Is(err, syscall.ECONNREFUSED) {
				poke(refused)
			}
		}
		for _, n := range l.news() {
			r.say(p, n)
		}
		if l.gone() {
			return
		}
		timer.Reset(time.Until(l.next()))
		select {
		case <-timer.C:
		case b := <-in:
			l.receive(time.Now(), b.bytes, b.overheard)
		case <-refused:
			l.failed()
		case <-kick:
			l.renew(time.Now())
		case <-done:
			done, late = nil, time.After(leaveTime)
			l.leave(time.Now())
		case <-late:
			return
		}
	}
}

// listen hands on what the gateway sends until conn is closed.
func listen(conn *net.UDPConn, in chan<- datagram, refused chan struct{}) {
	b := make([]byte, pcpMaxSize+1)
	for {
		n, err := conn.Read(b)
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case errors.Is(err, syscall.ECONNREFUSED):
			poke(refused)
		case err == nil && n <= pcpMaxSize:
			select {
			case in <- datagram{bytes: bytes.Clone(b[:n])}:
			default:
			}
		}
	}
}

// overhear listens to the gateway's announcements, if the system lets us: it is a help, not a need.
func (r *round) overhear(ctx context.Context, heard []chan datagram) {
	m := r.family.mapper
	conn, err := net.ListenMulticastUDP("udp4", interfaceOf(r.where.self), net.UDPAddrFromAddrPort(m.ports.announce))
	if err != nil {
		m.config.Logger.Debug("announcements of gateways are not heard", "error", err)
		return
	}
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	defer conn.Close()
	b := make([]byte, pcpMaxSize+1)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(b)
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || n > pcpMaxSize || from != netip.AddrPortFrom(r.where.gateway, m.ports.control) {
			continue
		}
		for _, in := range heard {
			select {
			case in <- datagram{bytes.Clone(b[:n]), true}:
			default:
			}
		}
	}
}

// interfaceOf returns the interface that has an address, nil if it cannot be told.
func interfaceOf(a netip.Addr) *net.Interface {
	all, err := net.Interfaces()
	if err != nil {
		return nil
	}
	for i := range all {
		addrs, err := all[i].Addrs()
		if err != nil {
			continue
		}
		for _, n := range addrs {
			if p, err := netip.ParsePrefix(n.String()); err == nil && p.Addr().Unmap().WithZone("") == a.WithZone("") {
				return &all[i]
			}
		}
	}
	return nil
}
