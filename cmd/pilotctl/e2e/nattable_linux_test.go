package e2e_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// A row is one line of the table of pairs, with its goals in milliseconds.
type row struct {
	name     string
	first    int     // p95 of the first packet
	p50, p95 int     // of the time to direct; 0: stays on the relay
	rate     float64 // of direct runs, in percent
	many     string  // the cell that is measured 20 times, and the one that every "go test" has
}

// rows is the table; a pair belongs to the first row whose kinds it has.
var rows = []row{
	{name: "same LAN, also with an overlapping one behind the other NAT", first: 60, p50: 50, p95: 100, rate: 100, many: "linux: a1-a2"},
	{name: "hairpin", first: 100, p50: 150, p95: 300, rate: 100, many: "hairpin: a1-a2"},
	{name: "proxy - any", first: 150, many: "linux - proxy"},
	{name: "udpblock, web - any", first: 150, many: "linux - udpblock"},
	{name: "+v6 - +v6", first: 100, p50: 150, p95: 300, rate: 100, many: "sym+v6 - sym+v6"},
	{name: "sym+pmp - any with UDP", first: 100, p50: 150, p95: 500, rate: 100, many: "port - sym+pmp"},
	{name: "E - any with UDP", first: 100, p50: 100, p95: 250, rate: 100, many: "full - sym"},
	{name: "H - H", first: 100, p50: 150, p95: 300, rate: 100, many: "docker - docker"},
	{name: "H - S", first: 100, p50: 800, p95: 3000, rate: 99, many: "linux - sym"},
	{name: "H - sym-seq", first: 100, p50: 200, p95: 500, rate: 99, many: "port - sym-seq"},
	{name: "sym-seq - sym-seq", first: 100, p50: 300, p95: 1000, rate: 80, many: "sym-seq - sym-seq"},
	{name: "S - S, S - sym-seq", first: 100, many: "sym - sym"},
}

// natKinds are the kinds of the lab, with the letter of the group of each: as
// everybody can reach it (E), easy to open (H), hard (S), counting (Q), with
// port mapping (P), with IPv6 (6), without UDP (B) and with nothing but a proxy (X).
var natKinds = []struct{ name, group string }{
	{"none", "E"}, {"fw", "H"}, {"full", "E"}, {"addr", "E"}, {"port", "H"}, {"linux", "H"}, {"docker", "H"},
	{"sym", "S"}, {"sym-seq", "Q"}, {"sym-addr", "S"}, {"cgnat", "H"}, {"cgnat-full", "H"}, {"cgnat-sym", "S"},
	{"full+hairpin", "E"}, {"hairpin", "H"}, {"udpblock", "B"}, {"web", "B"}, {"proxy", "X"}, {"sym+pmp", "P"}, {"port+v6", "6"},
}

// coreHard are the pairs H - S that are pooled.
var coreHard = [2][]string{{"fw", "port", "linux", "docker", "cgnat"}, {"sym", "sym-addr", "cgnat-sym"}}

// How often a cell is measured: each; those of coreHard, of which there are 15;
// one of each row.
const (
	fewRuns  = 3
	hardRuns = 13
	manyRuns = 20
)

// A cell is one pair to measure.
type cell struct {
	name  string
	row   *row
	kinds []string // of the sites
	hosts [2]string
	env   []string
	from  func(netip.Addr) bool // what counts as direct; nil: all but a server
	runs  int
}

// delay is what every site's uplink has: 10 ms each way, 40 ms between two sites
// and back.
const delay = "+d10"

// rowOf finds the row of a pair by the groups of its kinds.
func rowOf(a, b string) *row {
	has := func(group string) bool { return strings.Contains(a+b, group) }
	name := "S - S, S - sym-seq"
	switch easy := strings.NewReplacer("6", "H").Replace(a + b); {
	case has("X"):
		name = "proxy - any"
	case has("B"):
		name = "udpblock, web - any"
	case a == "6" && b == "6":
		name = "+v6 - +v6"
	case has("P"):
		name = "sym+pmp - any with UDP"
	case has("E"):
		name = "E - any with UDP"
	case easy == "HH":
		name = "H - H"
	case easy == "HS", easy == "SH":
		name = "H - S"
	case easy == "HQ", easy == "QH":
		name = "H - sym-seq"
	case easy == "QQ":
		name = "sym-seq - sym-seq"
	}
	return rowNamed(name)
}

func rowNamed(name string) *row {
	for i := range rows {
		if rows[i].name == name {
			return &rows[i]
		}
	}
	panic("no row " + name)
}

// cells are all the pairs, with how often each is measured.
func cells() []cell {
	var list []cell
	for i, a := range natKinds {
		for _, b := range natKinds[i:] {
			list = append(list, cell{name: a.name + " - " + b.name, row: rowOf(a.group, b.group), kinds: []string{a.name, b.name}, hosts: [2]string{"a1", "b1"}})
		}
	}
	lan, hairpin, v6 := &rows[0], rowNamed("hairpin"), rowNamed("+v6 - +v6")
	private := func(a netip.Addr) bool { return a.IsPrivate() }
	one := [2]string{"a1", "a2"}
	for _, kind := range []string{"linux", "sym", "cgnat"} {
		list = append(list, cell{name: kind + ": a1-a2", row: lan, kinds: []string{kind}, hosts: one, from: private})
	}
	same := []string{"NATLAB_SAME_LAN=1"}
	list = append(list,
		cell{name: "port overlaps linux: a1-a2", row: lan, kinds: []string{"port", "linux"}, hosts: one, env: same, from: private},
		cell{name: "port overlaps linux: a1-b1", row: rowNamed("H - H"), kinds: []string{"port", "linux"}, hosts: [2]string{"a1", "b1"}, env: same},
		cell{name: "port overlaps linux: a1-b2", row: rowNamed("H - H"), kinds: []string{"port", "linux"}, hosts: [2]string{"a1", "b2"}, env: same},
	)
	for _, kind := range []string{"hairpin", "full+hairpin+isolate", "cgnat+isolate"} {
		list = append(list, cell{name: kind + ": a1-a2", row: hairpin, kinds: []string{kind}, hosts: one})
	}
	list = append(list, cell{name: "sym+v6 - sym+v6", row: v6, kinds: []string{"sym+v6", "sym+v6"}, hosts: [2]string{"a1", "b1"}})
	for i := range list {
		c := &list[i]
		c.runs = fewRuns
		if c.isCoreHard() {
			c.runs = hardRuns
		}
		if c.name == c.row.many {
			c.runs = manyRuns
		}
		for k := range c.kinds {
			c.kinds[k] += delay
		}
	}
	return list
}

func (c cell) isCoreHard() bool {
	for _, h := range coreHard[0] {
		for _, s := range coreHard[1] {
			if c.name == h+" - "+s || c.name == s+" - "+h {
				return true
			}
		}
	}
	return false
}

// A run is what was measured once; a zero duration says that there was none.
type pairRun struct {
	up            [2]time.Duration // until registered
	first, direct time.Duration    // after the first packet was offered
	atUpgrade     int              // lost around the first direct packet
	elsewhere     int              // lost at other times
	twice         int
	whyNot        string
}

const (
	pairSettle  = 700 * time.Millisecond
	pairWait    = 10 * time.Second        // for pairs that shall be direct
	relayWait   = 1200 * time.Millisecond // for the others
	afterDirect = 500 * time.Millisecond
	aroundUp    = 300 * time.Millisecond // before the upgrade; and after it
)

// measure lets the two meet once. The agents take turns in who begins.
func (c cell) measure(t *testing.T, m *meeting, run int) pairRun {
	t.Helper()
	var r pairRun
	r.up = m.again(t)
	pass(t, pairSettle) // they know their NATs
	from, to := m.agents[run%2], m.agents[(run+1)%2]
	wait := pairWait
	if c.row.p50 == 0 {
		wait = relayWait
	}
	s := m.stream(t, from, to)
	poll5(t.Context(), wait, func() bool {
		_, ok := s.so().directAt(c.from)
		return ok
	})
	pass(t, afterDirect)
	r.whyNot = from.other(t.Context()).WhyNot
	all := s.stop(500 * time.Millisecond)
	if text := all.missing(); text != "" {
		t.Logf("%s's packets that did not arrive: %s; dropped: %s", from.name, text, m.lossPlaces(t))
	}
	if len(all.got) == 0 {
		return r
	}
	r.first = all.got[0].at.Sub(all.sent[0])
	r.twice = all.twice()
	end := all.sent[len(all.sent)-1].Add(time.Second)
	r.elsewhere = all.lost(all.sent[0], end)
	if at, ok := all.directAt(c.from); ok {
		r.direct, r.whyNot = at.Sub(all.sent[0]), ""
		r.atUpgrade = all.lost(later(at.Add(-aroundUp), all.sent[all.got[0].number]), at.Add(aroundUp))
		r.elsewhere -= r.atUpgrade
	}
	return r
}

// later is the later of two times. What was sent before the first packet that
// arrived waited for the session and not for the upgrade.
func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

// run measures a cell some times in a lab of its own; done has what was measured
// also when a run failed.
func (c cell) run(t *testing.T, p *plans, runs int, done func(pairRun)) {
	t.Helper()
	m := newMeeting(t, p.get(1), c.hosts, c.kinds, c.env...)
	for n := range runs {
		r := c.measure(t, m, n)
		t.Logf("%s: %v", c.name, r)
		if r.first == 0 {
			t.Errorf("%s: not reached: %s", c.name, r.whyNot)
		}
		done(r)
	}
}

func (r pairRun) String() string {
	text := fmt.Sprintf("first %d ms, direct %s ms, lost %d/%d, twice %d, up %d/%d ms", r.first.Milliseconds(), ms(r.direct),
		r.atUpgrade, r.elsewhere, r.twice, r.up[0].Milliseconds(), r.up[1].Milliseconds())
	if r.whyNot != "" {
		text += "; " + r.whyNot
	}
	return text
}
