package portmap

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"
)

const (
	rentTime    = time.Hour        // what a UPnP mapping is asked for
	checkEvery  = 10 * time.Minute // how often it is looked whether it is still there
	searchTries = 3
	searchWait  = 1200 * time.Millisecond // more than the time within which devices are asked to answer
	stepTime    = 15 * time.Second        // a look at one device
	maxDevices  = 4
	portTries   = 4
	firstPort   = 20000 // other external ports are taken from here
	otherPorts  = 40000
)

// tenant keeps a mapping at an Internet gateway device. Unlike a lease it talks in calls that block, so it runs in a
// goroutine of its own; what it decides depends on box and the clock only.
type tenant struct {
	find    func(ctx context.Context) ([]box, error)
	self    netip.Addr
	port    uint16
	exclude netip.Prefix
	random  func(n int) int
	report  func(report)

	box      box            // where we rent; nil if nowhere
	external netip.AddrPort // what we rent
	until    time.Time      // zero: for ever
	renewAt  time.Time
	holds    bool // the device may have a mapping of ours
}

// run keeps the mapping until ctx ends, then withdraws it.
func (t *tenant) run(ctx context.Context, kick <-chan struct{}) {
	for ctx.Err() == nil {
		timer := time.NewTimer(t.step(ctx))
		select {
		case <-timer.C:
		case <-kick:
			t.renewAt = time.Time{}
		case <-ctx.Done():
		}
		timer.Stop()
	}
	if t.box != nil {
		t.abandon(t.box)
	}
}

// step does what is due and returns when to come back.
func (t *tenant) step(ctx context.Context) time.Duration {
	if t.box != nil {
		err := t.rent(ctx, t.box)
		switch {
		case ctx.Err() != nil:
			return 0
		case err == nil:
			return t.rest()
		}
		t.abandon(t.box)
		t.lose(err)
	}
	boxes, err := t.find(ctx)
	for _, b := range boxes {
		if err = t.rent(ctx, b); err == nil {
			t.box = b
			return t.rest()
		}
		t.abandon(b)
	}
	if ctx.Err() == nil {
		t.lose(err)
	}
	return silentPause
}

func (t *tenant) rest() time.Duration {
	wait := checkEvery
	if !t.until.IsZero() {
		wait = min(wait, time.Until(t.until)/2)
	}
	return max(wait, shortest/2)
}

// lose reports that there is no mapping.
func (t *tenant) lose(err error) {
	t.box = nil
	why := "no gateway device answers"
	if err != nil {
		why = strings.TrimPrefix(err.Error(), "portmap: ")
	}
	t.report(report{problem: why})
}

// rent makes sure that a box maps a port to us: what is there is looked at before it is prolonged, and what was made is
// looked at too, since some devices say yes and do something else.
func (t *tenant) rent(ctx context.Context, b box) error {
	ctx, cancel := context.WithTimeout(ctx, stepTime)
	defer cancel()
	ip, err := b.external(ctx)
	if err != nil {
		return err
	}
	if why := unusable(ip, t.exclude); why != "" {
		return errors.New("portmap: " + why)
	}
	port := t.port
	if t.external.IsValid() {
		port = t.external.Port()
	}
	for range portTries {
		there, err := b.entry(ctx, port)
		switch {
		case err == nil && !t.ours(there):
			t.holds = false
			port = t.another()
			continue
		case err == nil && !t.due(there):
			t.hold(b, ip, port, there.left)
			return nil
		}
		if err = t.make(ctx, b, ip, port); !errors.Is(err, errConflict) {
			return err
		}
		t.holds = false
		port = t.another()
	}
	return errors.New("portmap: no free port found at the gateway")
}

// make maps a port that is free or ours.
func (t *tenant) make(ctx context.Context, b box, ip netip.Addr, port uint16) error {
	// Noted before the answer: if we have to leave meanwhile, the mapping is withdrawn.
	t.external, t.holds = netip.AddrPortFrom(ip, port), true
	lease := rentTime
	got, err := b.add(ctx, port, t.port, lease)
	if errors.Is(err, errPermanent) {
		lease = 0
		got, err = b.add(ctx, port, t.port, lease)
	}
	if err != nil {
		return err
	}
	if got == 0 {
		return errors.New("portmap: the gateway maps port 0")
	}
	t.external = netip.AddrPortFrom(ip, got)
	made, err := b.entry(ctx, got)
	if err == nil && !t.ours(made) {
		t.holds = false // whatever this is, it is not for us to remove
		return fmt.Errorf("portmap: the gateway maps port %d to %v, not to us", got, netip.AddrPortFrom(made.client, made.port))
	}
	if err == nil && made.left > 0 && (lease == 0 || made.left < lease) {
		lease = made.left
	}
	t.renewAt, t.until = time.Now().Add(longest), time.Time{}
	if lease > 0 {
		t.renewAt = time.Now().Add(max(lease/2, shortest/2))
	}
	t.hold(b, ip, got, lease)
	return nil
}

// ours reports whether a mapping leads to our port.
func (t *tenant) ours(e entry) bool { return e.client == t.self && e.port == t.port }

// due reports whether a mapping of ours has to be prolonged now. Not all devices tell the time that is left.
func (t *tenant) due(e entry) bool {
	return !time.Now().Before(t.renewAt) || e.left > 0 && e.left < rentTime/3
}

// hold notes what we have.
func (t *tenant) hold(b box, ip netip.Addr, port uint16, left time.Duration) {
	t.external, t.holds = netip.AddrPortFrom(ip, port), true
	if left > 0 {
		t.until = time.Now().Add(min(left, longest))
	}
	t.report(report{gateway: b.host(), external: t.external, until: t.until})
}

// another returns some other external port.
func (t *tenant) another() uint16 { return uint16(firstPort + t.random(otherPorts)) }

// abandon removes what we have made at a box, if it still is ours.
func (t *tenant) abandon(b box) {
	if t.holds {
		ctx, cancel := context.WithTimeout(context.Background(), leaveTime)
		defer cancel()
		port := t.external.Port()
		if e, err := b.entry(ctx, port); err == nil && t.ours(e) || err != nil && !errors.Is(err, errNoEntry) {
			_ = b.remove(ctx, port) // if this fails, the mapping ends by itself
		}
	}
	t.external, t.until, t.renewAt, t.holds = netip.AddrPort{}, time.Time{}, time.Time{}, false
}

// rent looks for gateway devices and keeps a mapping at the best one.
func (r *round) rent(ctx context.Context, kick <-chan struct{}) {
	t := &tenant{
		find: r.find, self: r.where.self, port: r.where.port, exclude: r.family.mapper.config.Exclude,
		random: func(n int) int { return int(jitter(time.Duration(n))) },
		report: func(n report) { r.say(UPnP, n) },
	}
	t.run(ctx, kick)
}

// found is a device that answered the search.
type found struct {
	addr netip.Addr
	at   *url.URL
}

// find searches for devices and reads their descriptions. If the gateway itself is one, nobody else is waited for.
func (r *round) find(ctx context.Context) ([]box, error) {
	devices, err := r.search(ctx, false)
	list, e := r.read(ctx, devices)
	if len(list) == 0 && slices.ContainsFunc(devices, r.isGateway) && ctx.Err() == nil {
		devices, err = r.search(ctx, true)
		list, _ = r.read(ctx, devices)
	}
	return list, cmp.Or(err, e)
}

func (r *round) isGateway(f found) bool { return f.addr.WithZone("") == r.where.gateway.WithZone("") }

// read reads the descriptions of devices.
func (r *round) read(ctx context.Context, devices []found) (list []box, err error) {
	for _, f := range devices {
		boxes, e := newDevice(f.addr, r.where.self).services(ctx, f.at)
		if e != nil {
			err = e
			r.family.mapper.config.Logger.Debug("device is of no use", "device", f.addr, "error", e)
		}
		list = append(list, boxes...)
	}
	return list, err
}

// search asks the gateway and the neighbourhood for gateway devices. It returns as soon as the gateway answers, unless
// that is to be passed over. The gateway is asked by multicast too, for that is what the standard has; it
// need not answer to anything else.
func (r *round) search(ctx context.Context, passOver bool) ([]found, error) {
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(r.where.self, 0)))
	if err != nil {
		return nil, fmt.Errorf("portmap: search: %w", err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	group := r.family.mapper.ports.search4
	if r.family.ipv6 {
		a := r.family.mapper.ports.search6
		group = netip.AddrPortFrom(a.Addr().WithZone(r.where.gateway.Zone()), a.Port())
	}
	targets := []netip.AddrPort{netip.AddrPortFrom(r.where.gateway, group.Port()), group}
	for range searchTries {
		for _, to := range targets {
			for _, kind := range searchFor {
				_, _ = conn.WriteToUDPAddrPort(search(to, kind), to) // one of them may be out of reach
			}
		}
		list, err := r.gather(conn, passOver)
		if len(list) > 0 || err != nil {
			return list, nil
		}
	}
	return nil, nil
}

// gather takes the answers to one search. The error says that there will be no more.
func (r *round) gather(conn *net.UDPConn, passOver bool) (list []found, err error) {
	_ = conn.SetReadDeadline(time.Now().Add(r.family.mapper.ports.wait))
	b := make([]byte, maxAnswer+1)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(b)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return list, nil
		}
		if err != nil {
			return list, err
		}
		f, err := r.judge(b[:n], from.Addr().Unmap())
		switch {
		case err != nil:
			r.family.mapper.config.Logger.Debug("answer to the search is of no use", "from", from, "error", err)
		case r.isGateway(f) && !passOver:
			return []found{f}, nil
		case !r.isGateway(f) && len(list) < maxDevices && !slices.ContainsFunc(list, f.same):
			list = append(list, f)
		}
	}
}

func (f found) same(o found) bool { return f.addr == o.addr }

// judge takes an answer to the search.
func (r *round) judge(b []byte, from netip.Addr) (found, error) {
	if !near(from, r.where.gateway, r.where.self) {
		return found{}, errors.New("portmap: search: answer from afar")
	}
	at, err := location(b, from)
	return found{from, at}, err
}
