package firewall

import (
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/pilotnet/pilot/trust"
)

// A modelFlow is what the table must know of a flow.
type modelFlow struct {
	opener  opener
	version uint64
	seen    uint64
}

// The table agrees with a map while time passes over several wraps of its short
// clock, policies change, and idle entries are swept away.
func TestFlowTableProperty(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	table := newFlowTable()
	model := map[flowKey]*modelFlow{}
	var now, swept uint64 = 1000, 1000
	version := uint64(1)
	live := func(k flowKey) *modelFlow {
		m := model[k]
		if m != nil && now-m.seen > uint64(idleLimit(k.proto)) {
			return nil
		}
		return m
	}
	for i := range 60_000 {
		switch r.IntN(400) {
		case 0:
			now += r.Uint64N(30)
		case 1:
			now += r.Uint64N(4000)
		case 2:
			version++
		}
		if now-swept >= 30 {
			swept = now
			table.sweep(uint16(now), false)
		}
		k := flowKey{peer: uint32(r.IntN(3)), proto: trust.ProtoTCP, local: uint16(r.IntN(20)), remote: uint16(r.IntN(20))}
		if r.IntN(2) == 0 {
			k.proto = trust.ProtoUDP
		}
		m := live(k)
		switch r.IntN(4) {
		case 0:
			opens := r.IntN(2) == 0
			table.outbound(k, version, uint16(now), opens, true)
			if m == nil || m.opener == byUs || opens {
				model[k] = &modelFlow{byUs, version, now}
			}
		case 1:
			want := m != nil && m.opener == byUs && m.version == version
			if _, got := table.inbound(k, version, uint16(now)); got != want {
				t.Fatalf("step %d: inbound %v at %d: %v, want %v (%+v)", i, k, now, got, want, m)
			}
			if want {
				m.seen = now
			}
		case 2:
			table.admitted(k, version, uint16(now))
			if m == nil || m.opener == byPeer {
				model[k] = &modelFlow{byPeer, version, now}
			}
		case 3:
			want := m != nil && m.version == version
			if got := table.known(k, version, uint16(now)); got != want {
				t.Fatalf("step %d: known %v at %d: %v, want %v (%+v)", i, k, now, got, want, m)
			}
		}
	}
	if now < 1<<17 {
		t.Errorf("the clock came to %d only", now)
	}
}

// A full set gives up its longest idle entry, and a flood of flows leaves the
// table's size as it is.
func TestFlowTableFull(t *testing.T) {
	const floods = 3 * flowSets * flowWays
	table := newFlowTable()
	kept := flowKey{peer: 9, proto: trust.ProtoTCP, local: 1, remote: 1}
	for i := range uint32(floods) {
		table.outbound(flowKey{peer: i, proto: trust.ProtoUDP, local: 1, remote: 1}, 1, uint16(i/1000), false, true)
		table.outbound(kept, 1, uint16(i/1000), false, true)
	}
	if _, ok := table.inbound(kept, 1, uint16(floods/1000)); !ok {
		t.Error("a flow in use was pushed out by idle ones")
	}
	if n := used(table); n > flowSets*flowWays || n < flowSets*flowWays*9/10 {
		t.Errorf("%d of %d entries used", n, flowSets*flowWays)
	}
	table.sweep(0, true)
	if n := used(table); n != 0 {
		t.Errorf("%d entries after all were swept", n)
	}
}

// Packet goroutines share the table without a lock; run with -race.
func TestFlowTableConcurrent(t *testing.T) {
	table := newFlowTable()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range 20_000 {
				k := flowKey{peer: 1, proto: trust.ProtoUDP, local: uint16(i % 50), remote: 1}
				table.outbound(k, 1, 5, false, true)
				if _, ok := table.inbound(k, 1, 5); !ok {
					t.Errorf("flow %d is lost", i)
					return
				}
				if i%1000 == 0 {
					table.sweep(5, false)
				}
			}
		})
	}
	wg.Wait()
}

func TestAgeOf(t *testing.T) {
	for _, c := range []struct{ seen, now, want uint16 }{
		{0, 0, 0}, {5, 7, 2}, {7, 5, 0}, {65535, 0, 1}, {0, 65535, 0}, {0, 65535 - flowAhead, 65535 - flowAhead}, {100, 99 - flowAhead, 65535 - flowAhead},
	} {
		if got := ageOf(c.seen, c.now); got != c.want {
			t.Errorf("ageOf(%d, %d) = %d, want %d", c.seen, c.now, got, c.want)
		}
	}
}

// A remembered flow passes only as long as nothing has changed: not under
// another policy, not at another time, not the other way, not when its entry has
// become another's.
func TestFlowMemo(t *testing.T) {
	table := newFlowTable()
	k := flowKey{peer: 9, proto: trust.ProtoTCP, local: 80, remote: 4000}
	pol, other := &Policy{Version: 1}, &Policy{Version: 1}
	var m flowMemo
	if m.holds(k, true, pol, 7) {
		t.Error("nothing was kept")
	}
	m.keep(k, true, pol, 7, table.outbound(k, 1, 7, false, true))
	if !m.holds(k, true, pol, 7) {
		t.Error("the same again")
	}
	if m.holds(k, false, pol, 7) || m.holds(k, true, other, 7) || m.holds(k, true, pol, 8) ||
		m.holds(flowKey{peer: 8, proto: trust.ProtoTCP, local: 80, remote: 4000}, true, pol, 7) {
		t.Error("something else passed")
	}
	table.sweep(7, true)
	if m.holds(k, true, pol, 7) {
		t.Error("the entry is gone")
	}
}

func used(f *flowTable) (n int) {
	for s := range f.sets {
		for i := range f.sets[s] {
			if f.sets[s][i].Load() != 0 {
				n++
			}
		}
	}
	return n
}
