package e2e_test

import (
	"context"
	"fmt"
	"io"
	"math"
	"net"
	"net/netip"
	"os/exec"
	"testing"
	"time"
)

// An event is something that happens to two agents while they talk, both with
// 1,000 numbered packets a second.
type natEvent struct {
	name    string
	kinds   []string
	servers int
	goals   map[string]float64 // p95 of what is measured, in milliseconds or packets
	measure func(*testing.T, *meeting) []measured
	slow    bool // in "make nat" only
	idle    bool // costs no processor time
}

const (
	gapName   = "gap (ms)"
	lostName  = "lost"
	twiceName = "twice"
	againName = "direct again after (ms)"
)

// natEvents is the table of events. A gap is the longest time without a packet
// in one of the two directions, from the event on.
var natEvents = []natEvent{
	{name: "upgrade from relay to direct, H - H", kinds: []string{"port", "linux"}, measure: upgrade, servers: 1,
		goals: map[string]float64{lostName: 0, twiceName: 0, "late (ms)": 40}},
	{name: "upgrade from relay to direct, H - S", kinds: []string{"linux", "sym"}, measure: upgrade, servers: 1, slow: true,
		goals: map[string]float64{lostName: 0, twiceName: 0, "late (ms)": 40}},
	{name: "no upgrade (control): both stay on the relay", kinds: []string{"sym", "sym"}, measure: noUpgrade, servers: 1, slow: true},
	{name: "a better path appears: a cable between the hosts", kinds: []string{"port", "linux"}, measure: joinLAN, servers: 1,
		goals: map[string]float64{"used after (ms)": 5000}},
	{name: "the direct path is cut silently (cut a-b:udp)", kinds: []string{"port", "linux"}, servers: 1,
		goals: map[string]float64{gapName: 500}, measure: happening(3*time.Second, func(t *testing.T, m *meeting) { m.do(t, "cut", "a-b:udp") })},
	{name: "one direction of the direct path is cut", kinds: []string{"port", "linux"}, servers: 1,
		goals: map[string]float64{gapName: 500}, measure: happening(3*time.Second, cutOneWay)},
	{name: "the NAT forgets everything (flush a), H - H", kinds: []string{"port", "linux"}, servers: 1,
		goals: map[string]float64{gapName: 1000, againName: 2000}, measure: happening(6*time.Second, func(t *testing.T, m *meeting) { m.do(t, "flush", "a") })},
	{name: "the NAT forgets everything (flush a), S - H", kinds: []string{"sym", "linux"}, servers: 1,
		goals: map[string]float64{gapName: 1000, againName: 5000}, measure: happening(10*time.Second, func(t *testing.T, m *meeting) { m.do(t, "flush", "a") })},
	{name: "the public address changes (change-ip a), H - H", kinds: []string{"port", "linux"}, servers: 1,
		goals: map[string]float64{gapName: 1000, againName: 2000}, measure: happening(6*time.Second, func(t *testing.T, m *meeting) { m.do(t, "change-ip", "a") })},
	{name: "the public address changes (change-ip a), S - H", kinds: []string{"sym", "linux"}, servers: 1, slow: true,
		goals: map[string]float64{gapName: 1000, againName: 5000}, measure: happening(10*time.Second, func(t *testing.T, m *meeting) { m.do(t, "change-ip", "a") })},
	{name: "a host goes to a third network (roam a1 c)", kinds: []string{"port", "linux", "linux"}, servers: 1,
		goals: map[string]float64{gapName: 1000, againName: 2000}, measure: happening(6*time.Second, func(t *testing.T, m *meeting) { m.do(t, "roam", "a1", "c") })},
	{name: "a host comes into the peer's LAN (roam a1 b)", kinds: []string{"port", "linux"}, servers: 1,
		goals: map[string]float64{gapName: 1000, againName: 2000}, measure: happening(6*time.Second, func(t *testing.T, m *meeting) { m.do(t, "roam", "a1", "b") })},
	{name: "the server in use dies, pair on the relay, second server warm", kinds: []string{"sym", "sym"}, servers: 2,
		goals: map[string]float64{gapName: 1000}, measure: serverDies},
	{name: "a server dies (cut rdv), pair direct", kinds: []string{"port", "linux"}, servers: 2,
		goals: map[string]float64{lostName: 0}, measure: happening(4*time.Second, func(t *testing.T, m *meeting) { m.do(t, "cut", "rdv") })},
	{name: "UDP is blocked (cut a:udp) and comes back", kinds: []string{"linux", "linux"}, servers: 1, slow: true,
		goals: map[string]float64{gapName: 2000, "off TLS after (ms)": 30000, "lost when back": 0}, measure: blockUDP},
	{name: "MTU 1400 without ICMP on both uplinks: 10 MiB over TCP", kinds: []string{"port+mtu1400+noicmp", "linux+mtu1400+noicmp"}, servers: 1,
		goals: map[string]float64{"longest stall (ms)": 1000}, measure: blackHole},
	{name: "5 % loss on both uplinks: first upgrade", kinds: []string{"port", "linux"}, servers: 1,
		goals: map[string]float64{"direct after (ms)": 600}, measure: lossy},
	{name: "idle for 10 min behind NATs with 30 s mappings, then a call", kinds: []string{"port+t30", "linux+t30"}, servers: 2, slow: true, idle: true,
		goals: idleGoals, measure: idle},
	{name: "idle for 10 min behind NATs with 120 s mappings, then a call", kinds: []string{"port", "sym"}, servers: 2, slow: true, idle: true,
		goals: idleGoals, measure: idle},
}

// run measures an event once in a lab of its own.
func (e natEvent) run(t *testing.T, p *plans, rate int) []measured {
	t.Helper()
	kinds := make([]string, len(e.kinds))
	for i, k := range e.kinds {
		kinds[i] = k + delay
	}
	m := newMeeting(t, p.get(e.servers), [2]string{"a1", "b1"}, kinds)
	m.rate = rate
	m.again(t)
	pass(t, pairSettle)
	values := e.measure(t, m)
	t.Logf("%s: %v; dropped: %s", e.name, values, m.lossPlaces(t))
	return values
}

// A talk is a stream each way.
type talk struct {
	m   *meeting
	way [2]*stream
}

func (m *meeting) talk(t *testing.T) *talk {
	t.Helper()
	return &talk{m: m, way: [2]*stream{m.stream(t, m.agents[0], m.agents[1]), m.stream(t, m.agents[1], m.agents[0])}}
}

// direct waits until both directions are, and for a second more.
func (k *talk) direct(t *testing.T) {
	t.Helper()
	within(t, pairWait, "direct both ways", func() bool {
		_, a := k.way[0].so().directAt(nil)
		_, b := k.way[1].so().directAt(nil)
		return a && b
	})
	pass(t, time.Second)
}

func (k *talk) end(t *testing.T) [2]record {
	t.Helper()
	var r [2]record
	k.way[0].halt()
	k.way[1].halt()
	r[0], r[1] = k.way[0].stop(300*time.Millisecond), k.way[1].stop(0)
	for i, way := range r {
		if text := way.missing(); text != "" {
			t.Logf("%s's packets that did not arrive: %s", k.m.agents[i].name, text)
		}
	}
	return r
}

// since is what the streams suffered from that time on.
func since(r [2]record, at time.Time) []measured {
	end := time.Now().Add(time.Hour)
	// What was under way when it happened may be lost, too.
	from := at.Add(-50 * time.Millisecond)
	return []measured{
		{gapName, float64(max(r[0].gap(at, end), r[1].gap(at, end)).Milliseconds())},
		{lostName, float64(r[0].lost(from, end) + r[1].lost(from, end))},
		{twiceName, float64(r[0].twice() + r[1].twice())},
	}
}

// again is when both directions were direct again.
func again(r [2]record, at time.Time) measured {
	a, okA := r[0].directAgain(at)
	b, okB := r[1].directAgain(at)
	if !okA || !okB {
		return measured{againName, math.NaN()}
	}
	return measured{againName, float64(max(a, b).Milliseconds())}
}

// happening is an event after both are direct, with what follows: until they are
// direct again, at most for some time.
func happening(watch time.Duration, event func(*testing.T, *meeting)) func(*testing.T, *meeting) []measured {
	return func(t *testing.T, m *meeting) []measured {
		k := m.talk(t)
		k.direct(t)
		at := time.Now().Round(0)
		event(t, m)
		done := time.Now().Round(0)
		poll(t.Context(), watch, func() bool {
			if time.Since(done) < 2*time.Second {
				return false
			}
			_, a := k.way[0].so().directAgain(at)
			_, b := k.way[1].so().directAgain(at)
			return a && b
		})
		pass(t, 300*time.Millisecond)
		r := k.end(t)
		return append(since(r, at), again(r, at), measured{"of these the event itself took (ms)", float64(done.Sub(at).Milliseconds())})
	}
}

// upgrade measures the change to the direct path alone.
func upgrade(t *testing.T, m *meeting) []measured {
	k := m.talk(t)
	k.direct(t)
	r := k.end(t)
	lost, elsewhere, gap, late := 0, 0, time.Duration(0), time.Duration(0)
	for _, way := range r {
		at, _ := way.directAt(nil)
		end := way.sent[len(way.sent)-1].Add(time.Second)
		around := way.lost(at.Add(-aroundUp), at.Add(aroundUp))
		lost, elsewhere = lost+around, elsewhere+way.lost(way.sent[0], end)-around
		gap, late = max(gap, way.gap(at.Add(-aroundUp), at.Add(aroundUp))), max(late, way.late())
	}
	name := lostName
	if elsewhere > 0 {
		name = "lost, in runs that lost packets at other times too"
	}
	return []measured{{name, float64(lost)}, {"lost at other times", float64(elsewhere)}, {gapName, float64(gap.Milliseconds())},
		{twiceName, float64(r[0].twice() + r[1].twice())}, {"late (ms)", float64(late.Milliseconds())}}
}

// noUpgrade is the same for a pair that cannot be direct.
func noUpgrade(t *testing.T, m *meeting) []measured {
	k := m.talk(t)
	pass(t, 3*time.Second)
	r := k.end(t)
	if len(r[0].got) == 0 || len(r[1].got) == 0 {
		t.Fatal("nothing arrives")
	}
	at := r[0].got[0].at
	for _, way := range r {
		if when, direct := way.directAt(nil); direct {
			t.Logf("direct after %v", when.Sub(at))
		}
	}
	return append(since(r, at), measured{"late (ms)", float64(max(r[0].late(), r[1].late()).Milliseconds())})
}

func (l *lab) ip(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), lookup("ip"), args...).CombinedOutput(); err != nil {
		t.Fatalf("ip %v: %v: %s", args, err, out)
	}
}

// joinLAN puts a cable between the hosts, beside what they have.
func joinLAN(t *testing.T, m *meeting) []measured {
	k := m.talk(t)
	k.direct(t)
	a, b := m.namespace("a1"), m.namespace("b1")
	at := time.Now().Round(0)
	m.ip(t, "-n", a, "link", "add", "name", "eth1", "type", "veth", "peer", "name", "eth1", "netns", b)
	for i, ns := range []string{a, b} {
		m.ip(t, "-n", ns, "addr", "add", fmt.Sprintf("192.168.77.%d/24", i+1), "dev", "eth1")
		m.ip(t, "-n", ns, "link", "set", "dev", "eth1", "up")
	}
	cable := func(a netip.Addr) bool { return netip.MustParsePrefix("192.168.77.0/24").Contains(a) }
	poll(t.Context(), 12*time.Second, func() bool {
		_, x := k.way[0].so().directAt(cable)
		_, y := k.way[1].so().directAt(cable)
		return x && y
	})
	pass(t, 500*time.Millisecond)
	r := k.end(t)
	used := measured{"used after (ms)", math.NaN()}
	x, okX := r[0].directAt(cable)
	y, okY := r[1].directAt(cable)
	if okX && okY {
		used.value = float64(max(x.Sub(at), y.Sub(at)).Milliseconds())
	}
	return append(since(r, at), used)
}

// cutOneWay drops what goes from site a to site b.
func cutOneWay(t *testing.T, m *meeting) {
	m.output(t, "inet", "nft", `add table inet oneway; add chain inet oneway f { type filter hook forward priority 5 ; };
		add rule inet oneway f iifname "a" oifname "b" meta l4proto udp drop`)
}

// serverDies cuts off the server over which most of the latest packets came.
func serverDies(t *testing.T, m *meeting) []measured {
	k := m.talk(t)
	pass(t, 4*time.Second) // also the search for a direct path is over
	uses := map[string]int{}
	for _, way := range k.way {
		wire := way.so().wire
		for _, p := range wire[max(0, len(wire)-200):] {
			if p.direct {
				t.Fatal("the pair is direct")
			}
			if p.from == netip.MustParseAddr("192.0.2.138") {
				uses["rdv2"]++
			} else {
				uses["rdv"]++
			}
		}
	}
	victim := "rdv"
	if uses["rdv2"] > uses["rdv"] {
		victim = "rdv2"
	}
	t.Logf("packets came over %v; %s is cut off", uses, victim)
	at := time.Now().Round(0)
	m.do(t, "cut", victim)
	pass(t, 4*time.Second)
	return since(k.end(t), at)
}

// blockUDP takes UDP away and gives it back.
func blockUDP(t *testing.T, m *meeting) []measured {
	k := m.talk(t)
	k.direct(t)
	at := time.Now().Round(0)
	m.do(t, "cut", "a:udp")
	pass(t, 6*time.Second)
	values := since(k.end(t), at)[:2]
	by := m.agents[0].viaNow(t.Context())
	if by != "tls" {
		t.Errorf("the way to the server is %q", by)
	}
	k = m.talk(t)
	pass(t, time.Second)
	at = time.Now().Round(0)
	m.do(t, "uncut", "a:udp")
	off := measured{"off TLS after (ms)", math.NaN()}
	if poll(t.Context(), 40*time.Second, func() bool { return m.agents[0].viaNow(t.Context()) == "udp" }) {
		off.value = float64(time.Since(at).Milliseconds())
	}
	pass(t, 3*time.Second)
	back := since(k.end(t), at)
	return append(values, off, measured{"gap when back (ms)", back[0].value}, measured{"lost when back", back[1].value})
}

// viaNow is the way to the first server.
func (a *agent) viaNow(ctx context.Context) string {
	s, err := a.client().Status(ctx)
	if err != nil || len(s.Servers) == 0 || s.Servers[0].State != "registered" {
		return ""
	}
	return s.Servers[0].Via
}

// blackHole sends 10 MiB over TCP as soon as the two know each other.
func blackHole(t *testing.T, m *meeting) []measured {
	const size = 10 << 20
	where := net.JoinHostPort(m.plan.ula["bob"], "7001")
	listener := m.listen(t, "b1", where)
	type result struct {
		stall, all time.Duration
		n          int64
	}
	done := make(chan result, 1)
	begin := time.Now()
	go func() {
		var r result
		defer func() { done <- r }()
		c, err := listener.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		last := time.Now()
		for b := make([]byte, 64<<10); ; {
			n, err := c.Read(b)
			r.n += int64(n)
			r.stall = max(r.stall, time.Since(last))
			last = time.Now()
			if err != nil {
				r.all = time.Since(begin)
				return
			}
		}
	}()
	c := m.dial(t, "a1", "tcp", where)
	c.SetDeadline(time.Now().Add(time.Minute))
	if _, err := io.CopyN(c, zeros{}, size); err != nil {
		t.Errorf("send: %v", err)
	}
	c.Close()
	r := <-done
	if r.n != size {
		t.Errorf("%d bytes arrived", r.n)
	}
	return []measured{{"longest stall (ms)", float64(r.stall.Milliseconds())}, {"whole transfer (ms)", float64(r.all.Milliseconds())},
		{"budget of the path (bytes)", float64(m.agents[0].other(t.Context()).Budget)}}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }

// lossy lets the two meet while packets are lost.
func lossy(t *testing.T, m *meeting) []measured {
	m.do(t, "loss", "a", "5")
	m.do(t, "loss", "b", "5")
	s := m.stream(t, m.agents[0], m.agents[1])
	poll5(t.Context(), pairWait, func() bool { _, ok := s.so().directAt(nil); return ok })
	pass(t, time.Second)
	r := s.stop(200 * time.Millisecond)
	if len(r.got) == 0 {
		t.Fatal("nothing arrives")
	}
	values := []measured{{"first packet (ms)", float64(r.got[0].at.Sub(r.sent[0]).Milliseconds())}, {"direct after (ms)", math.NaN()}}
	if at, ok := r.directAt(nil); ok {
		values[1].value = float64(at.Sub(r.sent[0]).Milliseconds())
	}
	return append(values, measured{"lost (percent)", math.Round(1000*float64(r.lost(r.sent[0], time.Now()))/float64(len(r.sent))) / 10})
}

var idleGoals = map[string]float64{
	"first packet (ms)": 200, lostName: 0, "packets to servers in minute 2": 15, "packets to servers in minute 10": 10, "packets to peers": 0,
}

// idle counts what two agents send that do nothing, and lets one call then.
func idle(t *testing.T, m *meeting) []measured {
	var looks [2]*outgoing
	for i, a := range m.agents {
		looks[i] = m.outgoing(t, a.host)
	}
	begin := time.Now()
	pass(t, 10*time.Minute)
	values := []measured{}
	peers := 0
	for _, minute := range []int{1, 2, 5, 10} {
		most := 0
		for _, o := range looks {
			from := begin.Add(time.Duration(minute-1) * time.Minute)
			n, _ := o.count(from, from.Add(time.Minute))
			most = max(most, n)
		}
		values = append(values, measured{fmt.Sprintf("packets to servers in minute %d", minute), float64(most)})
	}
	for _, o := range looks {
		_, n := o.count(begin, time.Now())
		peers += n
	}
	s := m.stream(t, m.agents[0], m.agents[1])
	pass(t, 2*time.Second)
	r := s.stop(300 * time.Millisecond)
	first := measured{"first packet (ms)", math.NaN()}
	if len(r.got) > 0 {
		first.value = float64(r.got[0].at.Sub(r.sent[0]).Milliseconds())
	}
	return append(values, measured{"packets to peers", float64(peers)}, first, measured{lostName, float64(r.lost(r.sent[0], time.Now()))})
}
