package portmap

import (
	"net/netip"
	"strings"
	"testing"
	"time"
)

// desk is a PCP or NAT-PMP gateway without a network: it answers what a lease asks, as it is told to.
type desk struct {
	t        *testing.T
	lease    *lease
	now      time.Time
	born     time.Time
	external netip.AddrPort
	life     uint32
	result   uint8
	silent   bool
	asked    int // requests for a mapping
	wishes   []netip.AddrPort
	gone     int // requests to withdraw
	news     []report
}

func newDesk(t *testing.T, w wire) *desk {
	start := time.Unix(1_000_000, 0)
	d := &desk{t: t, now: start, born: start.Add(-time.Hour), external: outside, life: 1200}
	d.lease = newLease(w, 8080, netip.MustParsePrefix("fd50:494c:4f54::/48"), func(time.Duration) time.Duration { return 0 })
	return d
}

// run lets the time pass.
func (d *desk) run(span time.Duration) {
	d.t.Helper()
	end := d.now.Add(span)
	for steps := 0; ; steps++ {
		if steps > 10_000 {
			d.t.Fatal("the lease does not come to rest")
		}
		out := d.lease.advance(d.now)
		for _, b := range out {
			if a := d.answer(b); a != nil && !d.silent {
				d.lease.receive(d.now, a, false)
			}
		}
		d.news = append(d.news, d.lease.news()...)
		if len(out) > 0 {
			continue
		}
		next := d.lease.next()
		if next.IsZero() || next.After(end) {
			break
		}
		if next.After(d.now) {
			d.now = next
		}
	}
	d.now = end
}

func (d *desk) epoch() uint32 { return uint32(d.now.Sub(d.born) / time.Second) }

func (d *desk) answer(b []byte) []byte {
	if r, ok := parsePCPRequest(b); ok {
		d.count(r.Lifetime, r.External)
		a := pcpReply{Opcode: pcpMap, Result: d.result, Lifetime: min(d.life, r.Lifetime), Epoch: d.epoch(), Nonce: r.Nonce, Protocol: protocolUDP, Internal: r.Internal, External: d.external}
		return a.append(nil)
	}
	r, ok := parseNATPMPRequest(b)
	if !ok {
		d.t.Errorf("request %x is malformed", b)
		return nil
	}
	a := natpmpReply{Op: r.Op, Result: uint16(d.result), Epoch: d.epoch(), Addr: d.external.Addr()}
	if r.Op == natpmpMapUDP {
		d.count(r.Lifetime, netip.AddrPortFrom(netip.IPv4Unspecified(), r.External))
		a.Internal, a.External, a.Lifetime = r.Internal, d.external.Port(), min(d.life, r.Lifetime)
	}
	return a.append(nil)
}

func (d *desk) count(life uint32, wish netip.AddrPort) {
	if life == 0 {
		d.gone++
		return
	}
	d.asked++
	d.wishes = append(d.wishes, wish)
}

// last returns the last report and forgets them all.
func (d *desk) last() report {
	d.t.Helper()
	if len(d.news) == 0 {
		d.t.Fatal("nothing was reported")
	}
	r := d.news[len(d.news)-1]
	d.news = nil
	return r
}

// eachWire runs a test with both protocols.
func eachWire(t *testing.T, test func(t *testing.T, d *desk)) {
	t.Parallel()
	t.Run("PCP", func(t *testing.T) {
		t.Parallel()
		test(t, newDesk(t, &pcp{client: somebody, nonce: nonce, internal: 8080}))
	})
	t.Run("NAT-PMP", func(t *testing.T) {
		t.Parallel()
		test(t, newDesk(t, &natpmp{internal: 8080}))
	})
}

func TestLeaseIsRenewedAtHalfLife(t *testing.T) {
	eachWire(t, func(t *testing.T, d *desk) {
		start := d.now
		d.run(0)
		if r := d.last(); r.external != outside || !r.until.Equal(start.Add(20*time.Minute)) || r.problem != "" {
			t.Fatalf("reported %+v", r)
		}
		d.run(time.Hour)
		if d.asked != 7 {
			t.Errorf("asked %d times in an hour, want 7: every 10 minutes", d.asked)
		}
		if w := d.wishes[6]; w.Port() != outside.Port() {
			t.Errorf("renewal wishes for port %d, want the %d that we have", w.Port(), outside.Port())
		}
		if d.wishes[0].Port() != 8080 {
			t.Errorf("first wish is port %d, want our own", d.wishes[0].Port())
		}
		for _, n := range d.news {
			if n.reset || n.external != outside {
				t.Errorf("reported %+v", n)
			}
		}
	})
}

func TestLeaseOfSilentGateway(t *testing.T) {
	eachWire(t, func(t *testing.T, d *desk) {
		d.silent = true
		d.run(8 * time.Second)
		if r := d.last(); r.external.IsValid() || r.problem != "the gateway does not answer" || d.asked != askTries {
			t.Fatalf("reported %+v after %d requests", r, d.asked)
		}
		d.silent = false
		d.run(silentPause)
		if r := d.last(); r.external != outside {
			t.Fatalf("reported %+v", r)
		}
		// It falls silent: the mapping is held to its end, and asked for at 1/2, 3/4 ... of it.
		d.silent, d.asked = true, 0
		d.run(lifetime / 2)
		if len(d.news) > 0 && d.last().problem != "" || d.asked == 0 {
			t.Fatalf("asked %d times", d.asked)
		}
		d.run(lifetime)
		if r := d.last(); r.external.IsValid() || r.problem == "" {
			t.Fatalf("reported %+v", r)
		}
		if d.asked > 80 {
			t.Errorf("asked %d times in 30 minutes", d.asked)
		}
		d.silent = false
		d.run(silentPause)
		if r := d.last(); r.external != outside {
			t.Fatalf("reported %+v", r)
		}
	})
}

// A host that refuses may be a gateway that is about to start.
func TestLeaseOfDeafGateway(t *testing.T) {
	eachWire(t, func(t *testing.T, d *desk) {
		d.silent = true
		d.run(time.Second)
		d.lease.failed()
		if d.run(time.Second); len(d.news) > 0 {
			t.Fatalf("reported %+v", d.news)
		}
		d.run(6 * time.Second)
		if r := d.last(); r.problem != "the gateway does not speak it" {
			t.Fatalf("reported %+v", r)
		}
		d.lease.renew(d.now)
		d.silent = false
		d.run(0)
		if r := d.last(); r.external != outside {
			t.Fatalf("reported %+v", r)
		}
	})
}

func TestLeaseAfterReboot(t *testing.T) {
	eachWire(t, func(t *testing.T, d *desk) {
		d.run(time.Minute)
		d.last()
		// The gateway restarts, has another port for us, and announces itself.
		d.born, d.external = d.now, netip.AddrPortFrom(outside.Addr(), 41000)
		d.now = d.now.Add(3 * time.Second)
		asked := d.asked
		announce := pcpReply{Opcode: pcpAnnounce, Epoch: 3}.append(nil)
		if _, ok := d.lease.wire.(*natpmp); ok {
			announce = natpmpReply{Op: natpmpAddress, Epoch: 3, Addr: outside.Addr()}.append(nil)
		}
		d.lease.receive(d.now, announce, true)
		d.run(time.Second)
		if d.asked != asked+1 || !d.news[0].reset {
			t.Fatalf("asked %d times after the announcement, reported %+v", d.asked-asked, d.news)
		}
		if r := d.last(); r.external != d.external {
			t.Fatalf("reported %+v", r)
		}
		// Forged announcements cannot make us ask all the time.
		for range 100 {
			d.born = d.now.Add(-time.Duration(d.asked) * time.Hour)
			d.lease.receive(d.now, announce, true)
			d.run(100 * time.Millisecond)
		}
		if d.asked > asked+2 {
			t.Errorf("asked %d times", d.asked-asked)
		}
	})
}

func TestLeaseSeesRebootInAnswer(t *testing.T) {
	eachWire(t, func(t *testing.T, d *desk) {
		d.run(time.Minute)
		d.news = nil
		d.born = d.now
		d.lease.renew(d.now)
		d.run(0)
		if len(d.news) < 2 || !d.news[0].reset || d.last().external != outside {
			t.Errorf("reported %+v", d.news)
		}
	})
}

// The address of a gateway changes without a restart: it announces that too (RFC 6886 section 3.2.1).
func TestLeaseHearsNewAddress(t *testing.T) {
	t.Parallel()
	d := newDesk(t, &natpmp{internal: 8080})
	d.run(time.Minute)
	d.external = netip.MustParseAddrPort("198.51.100.9:40000")
	d.lease.receive(d.now, natpmpReply{Epoch: d.epoch(), Addr: d.external.Addr()}.append(nil), true)
	d.run(0)
	if r := d.last(); r.external != d.external {
		t.Errorf("reported %+v", r)
	}
	// What is overheard never makes a mapping.
	d.lease.receive(d.now, natpmpReply{Op: natpmpMapUDP, Epoch: d.epoch(), Internal: 8080, External: 666, Lifetime: 600}.append(nil), true)
	d.run(0)
	if len(d.news) > 0 {
		t.Errorf("reported %+v", d.news)
	}
}

func TestLeaseRefusals(t *testing.T) {
	for name, c := range map[string]struct {
		set  func(d *desk)
		want string
		gone int // requests to withdraw
	}{
		"refusal":       {func(d *desk) { d.result = 2 }, "not authorised", 0},
		"no lifetime":   {func(d *desk) { d.life = 0 }, "grants 0s only", 0},
		"short":         {func(d *desk) { d.life = 5 }, "grants 5s only", 0},
		"port 0":        {func(d *desk) { d.external = netip.AddrPortFrom(outside.Addr(), 0) }, "grants port 0", 0},
		"double NAT":    {func(d *desk) { d.external = netip.MustParseAddrPort("192.168.1.5:40000") }, "another NAT", 1},
		"carrier's NAT": {func(d *desk) { d.external = netip.MustParseAddrPort("100.66.1.5:40000") }, "another NAT", 1},
		"no address":    {func(d *desk) { d.external = netip.MustParseAddrPort("0.0.0.0:40000") }, "no external address", 1},
		"loopback":      {func(d *desk) { d.external = netip.MustParseAddrPort("127.0.0.1:40000") }, "no address of the Internet", 1},
	} {
		t.Run(name, func(t *testing.T) {
			eachWire(t, func(t *testing.T, d *desk) {
				c.set(d)
				d.run(8 * time.Second)
				if r := d.last(); r.external.IsValid() || !strings.Contains(r.problem, c.want) {
					t.Errorf("reported %+v, want a problem with %q", r, c.want)
				}
				if d.gone != c.gone {
					t.Errorf("withdrew %d times, want %d", d.gone, c.gone)
				}
				d.run(errorPause - 10*time.Second)
				asked := d.asked
				*d = desk{t: t, lease: d.lease, now: d.now, born: d.born, external: outside, life: 1200}
				d.run(errorPause)
				if asked > 2 || d.last().external != outside {
					t.Errorf("asked %d times in half an hour; not mapped when the gateway became willing", asked)
				}
			})
		})
	}
}

func TestLeaseIsWithdrawn(t *testing.T) {
	eachWire(t, func(t *testing.T, d *desk) {
		d.run(time.Minute)
		d.lease.leave(d.now)
		d.run(0)
		if !d.lease.gone() || d.gone != 1 {
			t.Errorf("gone %v after %d requests", d.lease.gone(), d.gone)
		}
	})
	eachWire2(t, "silent", func(t *testing.T, d *desk) {
		d.run(time.Minute)
		d.silent = true
		d.lease.leave(d.now)
		d.run(leaveTime)
		if !d.lease.gone() || d.gone != leaveTries {
			t.Errorf("gone %v after %d requests", d.lease.gone(), d.gone)
		}
	})
	eachWire2(t, "nothing to withdraw", func(t *testing.T, d *desk) {
		d.silent = true
		d.run(time.Minute)
		d.lease.leave(d.now)
		d.run(0)
		if !d.lease.gone() || d.gone != 0 {
			t.Errorf("gone %v after %d requests", d.lease.gone(), d.gone)
		}
	})
}

func eachWire2(t *testing.T, name string, test func(t *testing.T, d *desk)) {
	t.Run(name, func(t *testing.T) { eachWire(t, test) })
}

// A gateway whose clock jumps about must not keep us busy.
func TestLeaseWithMadClock(t *testing.T) {
	eachWire(t, func(t *testing.T, d *desk) {
		for i := range 60 {
			d.born = d.now.Add(-time.Duration(i*7919%1000) * time.Hour)
			d.run(time.Minute)
			for _, n := range d.news {
				if n.reset {
					d.lease.renew(d.now) // as Run does
				}
			}
			d.news = nil
		}
		if d.asked > 70 {
			t.Errorf("asked %d times in an hour", d.asked)
		}
	})
}

func TestEpochClock(t *testing.T) {
	t.Parallel()
	start := time.Unix(1_000_000, 0)
	for name, c := range map[string]struct {
		after  time.Duration
		epoch  uint32
		reboot bool
	}{
		"same time": {0, 1000, false}, "a second back": {0, 999, false}, "two seconds back": {0, 998, true},
		"in step": {time.Hour, 4600, false}, "6 % slow": {time.Hour, 1000 + 3390, false}, "10 % slow": {time.Hour, 1000 + 3200, true},
		"6 % fast": {time.Hour, 1000 + 3820, false}, "10 % fast": {time.Hour, 1000 + 4000, true}, "restarted": {time.Hour, 5, true},
	} {
		var clock epochClock
		if !clock.follows(start, 1000) {
			t.Error("the first epoch is held for a restart")
		}
		if got := clock.follows(start.Add(c.after), c.epoch); got == c.reboot {
			t.Errorf("%s: follows is %v", name, got)
		}
	}
}

// FuzzLease holds that no answers of a gateway bring a lease to panic, to ask without end, or to report what is no
// address of the Internet.
func FuzzLease(f *testing.F) {
	f.Add(pcpGrant, uint16(10))
	f.Add(natpmpGrant, uint16(2000))
	f.Add(append(append([]byte{}, natpmpTells...), natpmpGrant...), uint16(700))
	f.Fuzz(func(t *testing.T, b []byte, step uint16) {
		for _, w := range []wire{&pcp{client: somebody, nonce: nonce, internal: 8080}, &natpmp{internal: 8080}} {
			d := newDesk(t, w)
			d.silent = true
			for i := 0; len(b)-i >= 4 && i < 1024; i += 4 {
				d.run(time.Duration(step) * time.Second)
				d.lease.receive(d.now, b[i:], i%8 == 4)
				d.run(0)
			}
			for _, n := range d.news {
				if n.external.IsValid() && (unusable(n.external.Addr(), netip.Prefix{}) != "" || n.external.Port() == 0) {
					t.Errorf("reported %+v", n)
				}
			}
		}
	})
}
