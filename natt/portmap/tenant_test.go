package portmap

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// fakeBox is a gateway device without a network.
type fakeBox struct {
	ip        netip.Addr
	table     map[uint16]entry
	added     []uint16
	permanent bool          // knows no leases
	wrong     bool          // maps to another inner port than it is told
	blind     bool          // cannot look up
	sayLeft   bool          // tells the time that is left
	dead      bool          // does not answer
	grants    time.Duration // 0: what was asked for
	ends      map[uint16]time.Time
}

func newFakeBox() *fakeBox {
	return &fakeBox{ip: outside.Addr(), table: map[uint16]entry{}, ends: map[uint16]time.Time{}, sayLeft: true}
}

func (f *fakeBox) host() netip.Addr { return netip.MustParseAddr("10.0.0.1") }

func (f *fakeBox) err(ctx context.Context) error {
	if f.dead {
		return errors.New("connection refused")
	}
	for p, end := range f.ends {
		if !end.IsZero() && !time.Now().Before(end) {
			delete(f.table, p)
			delete(f.ends, p)
		}
	}
	return ctx.Err()
}

func (f *fakeBox) external(ctx context.Context) (netip.Addr, error) { return f.ip, f.err(ctx) }

func (f *fakeBox) entry(ctx context.Context, port uint16) (entry, error) {
	if err := f.err(ctx); err != nil {
		return entry{}, err
	}
	if f.blind {
		return entry{}, errUnknown
	}
	e, ok := f.table[port]
	if !ok {
		return entry{}, errNoEntry
	}
	if end := f.ends[port]; f.sayLeft && !end.IsZero() {
		e.left = time.Until(end)
	}
	return e, nil
}

func (f *fakeBox) add(ctx context.Context, external, internal uint16, lease time.Duration) (uint16, error) {
	if err := f.err(ctx); err != nil {
		return 0, err
	}
	if f.permanent && lease > 0 {
		return 0, errPermanent
	}
	if e, ok := f.table[external]; ok && (e.client != somebody || e.port != internal && !f.wrong) {
		return 0, errConflict
	}
	f.added = append(f.added, external)
	if f.wrong {
		internal++
	}
	if f.grants > 0 {
		lease = f.grants
	}
	f.table[external] = entry{client: somebody, port: internal}
	f.ends[external] = time.Time{}
	if lease > 0 {
		f.ends[external] = time.Now().Add(lease)
	}
	return external, nil
}

func (f *fakeBox) remove(ctx context.Context, external uint16) error {
	if err := f.err(ctx); err != nil {
		return err
	}
	delete(f.table, external)
	return nil
}

// rented is a tenant, stepped through virtual time.
type rented struct {
	*tenant
	t    *testing.T
	due  time.Time
	news []report
}

// rentAt starts a tenant at boxes.
func rentAt(t *testing.T, boxes ...*fakeBox) *rented {
	r := &rented{t: t, due: time.Now()}
	r.tenant = &tenant{
		find: func(context.Context) ([]box, error) {
			var list []box
			for _, b := range boxes {
				list = append(list, b)
			}
			return list, nil
		},
		self: somebody, port: 8080, random: func(int) int { return 5 },
		report: func(n report) { r.news = append(r.news, n) },
	}
	r.pass(0)
	return r
}

// pass lets virtual time pass.
func (r *rented) pass(d time.Duration) {
	end := time.Now().Add(d)
	for !r.due.After(end) {
		<-time.After(time.Until(r.due))
		r.due = time.Now().Add(r.step(r.t.Context()))
	}
	<-time.After(time.Until(end))
}

// stop ends the tenant.
func (r *rented) stop() {
	ctx, cancel := context.WithCancel(r.t.Context())
	cancel()
	r.run(ctx, nil)
}

func (r *rented) last(t *testing.T) report {
	t.Helper()
	if len(r.news) == 0 {
		t.Fatal("nothing was reported")
	}
	return r.news[len(r.news)-1]
}

func TestTenant(t *testing.T) {
	our8080 := netip.AddrPortFrom(outside.Addr(), 8080)
	ours := entry{client: somebody, port: 8080}
	theirs := entry{client: netip.MustParseAddr("10.0.0.9"), port: 8080}
	for name, test := range map[string]func(t *testing.T){
		"maps, renews and withdraws": func(t *testing.T) {
			b := newFakeBox()
			r := rentAt(t, b)
			if n := r.last(t); n.external != our8080 || !n.until.Equal(time.Now().Add(rentTime)) {
				t.Errorf("reported %+v", n)
			}
			r.pass(4*time.Hour + time.Minute)
			if len(b.added) != 9 && len(b.added) != 8 {
				t.Errorf("made %d times in 4 hours, want every half hour", len(b.added))
			}
			for _, n := range r.news {
				if n.external != our8080 {
					t.Errorf("reported %+v", n)
				}
			}
			r.stop()
			if len(b.table) != 0 {
				t.Errorf("left behind %v", b.table)
			}
		},
		"device that does not tell the time left": func(t *testing.T) {
			b := newFakeBox()
			b.sayLeft = false
			r := rentAt(t, b)
			r.pass(4 * time.Hour)
			if _, ok := b.table[8080]; !ok || r.last(t).external != our8080 {
				t.Errorf("the mapping is lost: %+v", r.news)
			}
			r.stop()
		},
		"the port is another's": func(t *testing.T) {
			b := newFakeBox()
			b.table[8080] = theirs
			r := rentAt(t, b)
			if n := r.last(t); n.external.Port() != firstPort+5 {
				t.Errorf("reported %+v", n)
			}
			r.stop()
			if b.table[8080] != theirs || len(b.table) != 1 {
				t.Errorf("table is %v", b.table)
			}
		},
		"the port is another's and cannot be looked up": func(t *testing.T) {
			b := newFakeBox()
			b.table[8080], b.blind = theirs, true
			r := rentAt(t, b)
			if n := r.last(t); n.external.Port() != firstPort+5 {
				t.Errorf("reported %+v", n)
			}
			r.stop()
			if b.table[8080] != theirs || len(b.table) != 1 {
				t.Errorf("table is %v", b.table)
			}
		},
		"all ports are another's": func(t *testing.T) {
			b := newFakeBox()
			b.table[8080], b.table[firstPort+5] = theirs, theirs
			r := rentAt(t, b)
			if n := r.last(t); n.external.IsValid() || !strings.Contains(n.problem, "no free port") {
				t.Errorf("reported %+v", n)
			}
			r.stop()
			if len(b.table) != 2 {
				t.Errorf("table is %v", b.table)
			}
		},
		"left by an earlier run": func(t *testing.T) {
			b := newFakeBox()
			b.table[8080] = ours
			b.ends[8080] = time.Now().Add(time.Minute)
			r := rentAt(t, b)
			if n := r.last(t); n.external != our8080 || len(b.added) != 1 {
				t.Errorf("reported %+v, made %v", n, b.added)
			}
			r.stop()
		},
		"stolen between renewals": func(t *testing.T) {
			b := newFakeBox()
			r := rentAt(t, b)
			b.table[8080] = entry{client: somebody, port: 9999} // our host, not our port
			r.pass(checkEvery)
			if n := r.last(t); n.external.Port() != firstPort+5 {
				t.Errorf("reported %+v", n)
			}
			r.stop()
			if len(b.table) != 1 || b.table[8080].port != 9999 {
				t.Errorf("table is %v", b.table)
			}
		},
		"maps to the wrong port": func(t *testing.T) {
			b := newFakeBox()
			b.wrong = true
			r := rentAt(t, b)
			if n := r.last(t); n.external.IsValid() || !strings.Contains(n.problem, "not to us") {
				t.Errorf("reported %+v", n)
			}
			r.stop()
		},
		"permanent only": func(t *testing.T) {
			b := newFakeBox()
			b.permanent = true
			r := rentAt(t, b)
			r.pass(3 * time.Hour)
			if n := r.last(t); n.external != our8080 || !n.until.IsZero() || len(b.added) != 1 {
				t.Errorf("reported %+v, made %d times", n, len(b.added))
			}
			r.stop()
			if len(b.table) != 0 {
				t.Errorf("left behind %v", b.table)
			}
		},
		"short lease": func(t *testing.T) {
			b := newFakeBox()
			b.grants = 2 * time.Minute
			r := rentAt(t, b)
			for range 30 {
				r.pass(time.Minute)
				if err := b.err(t.Context()); err != nil || len(b.table) != 1 {
					t.Fatalf("the mapping is lost: %+v", r.news)
				}
			}
			r.stop()
		},
		"restarts": func(t *testing.T) {
			b := newFakeBox()
			r := rentAt(t, b)
			clear(b.table)
			r.renewAt, r.due = time.Time{}, time.Now() // as after a kick
			r.pass(0)
			if len(b.table) != 1 || len(b.added) != 2 {
				t.Errorf("not made again at once: %v", b.table)
			}
			b.ip = netip.MustParseAddr("198.51.100.4")
			r.pass(checkEvery)
			if n := r.last(t); n.external.Addr() != b.ip {
				t.Errorf("reported %+v", n)
			}
			r.stop()
		},
		"dies and returns": func(t *testing.T) {
			b := newFakeBox()
			r := rentAt(t, b)
			b.dead = true
			r.pass(checkEvery)
			if n := r.last(t); n.external.IsValid() || n.problem == "" {
				t.Errorf("reported %+v", n)
			}
			b.dead = false
			r.pass(silentPause)
			if n := r.last(t); n.external != our8080 {
				t.Errorf("reported %+v", n)
			}
			r.stop()
		},
		"double NAT, and a better device": func(t *testing.T) {
			inner, good := newFakeBox(), newFakeBox()
			inner.ip = netip.MustParseAddr("192.168.178.2")
			r := rentAt(t, inner)
			if n := r.last(t); n.external.IsValid() || !strings.Contains(n.problem, "another NAT") || len(inner.added) != 0 {
				t.Errorf("reported %+v", n)
			}
			r.stop()
			r = rentAt(t, inner, good)
			if n := r.last(t); n.external != our8080 || len(inner.added) != 0 || len(good.added) != 1 {
				t.Errorf("reported %+v", n)
			}
			r.stop()
		},
		"no device": func(t *testing.T) {
			r := rentAt(t)
			if n := r.last(t); n.external.IsValid() || n.problem != "no gateway device answers" {
				t.Errorf("reported %+v", n)
			}
			r.stop()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, test)
		})
	}
}
