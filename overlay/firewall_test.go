package overlay

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/pilotnet/pilot/trust"
	"github.com/pilotnet/pilot/tun/tuntest"
)

const us, them, other = 1000, 2000, 3000

// A gate is a firewall with one peer.
type gate struct {
	*firewall
	t    *testing.T
	peer *peer
	pol  *policy
	now  time.Duration
	h    header
}

func newGate(t *testing.T, in, out string) *gate {
	r := newRig(us, &sinkDevice{})
	g := &gate{firewall: r.firewall, t: t, peer: r.know(them), now: time.Hour}
	g.grant(in, out)
	return g
}

// grant publishes another policy.
func (g *gate) grant(in, out string) {
	version := uint64(1)
	if g.pol != nil {
		version = g.pol.version + 1
	}
	g.pol = &policy{version: version, in: scope(g.t, in), out: scope(g.t, out)}
}

func scope(t testing.TB, s string) trust.Scope {
	p, err := trust.ParseScope(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (g *gate) in(p []byte) dropReason  { return g.admit(p, g.peer, g.pol, &g.h, g.now) }
func (g *gate) out(p []byte) dropReason { return g.sent(p, g.peer, g.pol, &g.h, g.now) }

func name(r dropReason) string {
	if r == parsed {
		return "pass"
	}
	return dropNames[r]
}

func (g *gate) wantIn(want dropReason, p []byte, what string) {
	g.t.Helper()
	if got := g.in(p); got != want {
		g.t.Errorf("%s: %s, want %s", what, name(got), name(want))
	}
}

func (g *gate) wantOut(want dropReason, p []byte, what string) {
	g.t.Helper()
	if got := g.out(p); got != want {
		g.t.Errorf("%s: %s, want %s", what, name(got), name(want))
	}
}

func theirTCP(sport, dport uint16, flags uint8) []byte {
	return segment(them, sport, us, dport, flags, 10).Complete()
}

func ourTCP(sport, dport uint16, flags uint8) []byte {
	return segment(us, sport, them, dport, flags, 10).Complete()
}

func theirUDP(sport, dport uint16) []byte { return datagram(them, sport, us, dport, 10).Complete() }
func ourUDP(sport, dport uint16) []byte   { return datagram(us, sport, them, dport, 10).Complete() }

func with(p []byte, at int, b ...byte) []byte {
	copy(p[at:], b)
	return p
}

// Every rule of the protocol page for packets that come in, on a fresh table.
func TestFirewallIn(t *testing.T) {
	udp, tcp := theirUDP(5000, 7), theirTCP(5000, 7, tuntest.SYN)
	long := make([]byte, 1200)
	for name, c := range map[string]struct {
		p    []byte
		want dropReason
	}{
		"granted UDP":                   {udp, parsed},
		"granted TCP":                   {tcp, parsed},
		"port not granted":              {theirUDP(5000, 8), dropInScope},
		"TCP port not granted":          {theirTCP(5000, 8, tuntest.SYN), dropInScope},
		"protocol not granted":          {theirUDP(5000, 80), dropInScope},
		"granted by protocol":           {theirTCP(5000, 80, tuntest.SYN), parsed},
		"TCP without SYN to no flow":    {theirTCP(5000, 8, tuntest.ACK), dropInScope},
		"TCP without flags":             {theirTCP(5000, 8, 0), dropInScope},
		"SYN and ACK to no flow":        {theirTCP(5000, 8, tuntest.SYN|tuntest.ACK), dropInScope},
		"foreign source":                {datagram(other, 5000, us, 7, 10).Complete(), dropInSource},
		"our own source":                {datagram(us, 5000, us, 7, 10).Complete(), dropInSource},
		"foreign source and target":     {datagram(other, 5000, other, 7, 10).Complete(), dropInSource},
		"to another agent":              {datagram(them, 5000, other, 7, 10).Complete(), dropInDestination},
		"into the LAN":                  {with(theirUDP(5000, 7), 24, 0xfd, 0, 0, 1), dropInDestination},
		"to loopback":                   {with(theirUDP(5000, 7), 24, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1), dropInDestination},
		"multicast, all nodes":          {with(theirUDP(5000, 7), 24, 0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1), dropInDestination},
		"link-local":                    {with(theirUDP(5000, 7), 24, 0xfe, 0x80), dropInDestination},
		"IPv4-mapped":                   {with(theirUDP(5000, 7), 24, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 1), dropInDestination},
		"UDP shorter than it says":      {with(theirUDP(5000, 7), 44, 0, 100), dropInHeader},
		"UDP longer than it says":       {with(theirUDP(5000, 7), 44, 0, 8), dropInHeader},
		"UDP length zero":               {with(theirUDP(5000, 7), 44, 0, 0), dropInHeader},
		"UDP header cut":                {raw(them, us, protoUDP, []byte{1, 2, 0, 7, 0, 7, 0}), dropInHeader},
		"TCP header cut":                {raw(them, us, protoTCP, make([]byte, 19)), dropInHeader},
		"TCP offset too small":          {with(theirTCP(5000, 7, 2), 52, 4<<4), dropInHeader},
		"TCP offset beyond the end":     {with(theirTCP(5000, 7, 2), 52, 15<<4), dropInHeader},
		"no payload":                    {raw(them, us, protoUDP, nil), dropInHeader},
		"hop-by-hop":                    {raw(them, us, 0, append([]byte{protoUDP, 0, 1, 4, 0, 0, 0, 0}, udp[40:]...)), dropInHeader},
		"jumbogram":                     {raw(them, us, 0, []byte{protoUDP, 0, 0xc2, 4, 0, 1, 0, 0}), dropInHeader},
		"routing header":                {raw(them, us, 43, append([]byte{protoUDP, 2, 0, 1, 7: 0}, udp[40:]...)), dropInHeader},
		"destination options":           {raw(them, us, 60, append([]byte{protoUDP, 0, 1, 4, 0, 0, 0, 0}, udp[40:]...)), dropInHeader},
		"authentication header":         {raw(them, us, 51, make([]byte, 32)), dropInHeader},
		"ESP":                           {raw(them, us, 50, make([]byte, 32)), dropInHeader},
		"no next header":                {raw(them, us, 59, udp[40:]), dropInHeader},
		"IPv6 in IPv6":                  {raw(them, us, 41, udp), dropInHeader},
		"IPv4 in IPv6":                  {raw(them, us, 4, make([]byte, 40)), dropInHeader},
		"GRE":                           {raw(them, us, 47, make([]byte, 40)), dropInHeader},
		"SCTP":                          {raw(them, us, 132, make([]byte, 40)), dropInHeader},
		"fragment header cut":           {raw(them, us, protoFragment, []byte{protoUDP, 0, 0, 0, 0, 0, 1}), dropInHeader},
		"extension behind the fragment": {fragment(them, us, 60, 1, 0, true, make([]byte, 64)), dropInHeader},
		"fragment behind the fragment":  {fragment(them, us, protoFragment, 1, 0, true, fragment(them, us, protoUDP, 2, 0, true, udp[40:56])[40:]), dropInHeader},
		"tiny first fragment of TCP":    {fragment(them, us, protoTCP, 1, 0, true, tcp[40:56]), dropInHeader},
		"first fragment not granted":    {fragment(them, us, protoUDP, 1, 0, true, theirUDP(5000, 8)[40:56]), dropInScope},
		"first fragment, granted":       {fragment(them, us, protoUDP, 1, 0, true, udp[40:56]), parsed},
		"first fragment, odd length":    {fragment(them, us, protoUDP, 1, 0, true, udp[40:57]), dropInHeader},
		"follower of nothing":           {fragment(them, us, protoUDP, 1, 128, false, long), dropInFragment},
		"follower in the header":        {fragment(them, us, protoUDP, 1, 8, false, long), dropInHeader},
		"follower beyond 64 KiB":        {fragment(them, us, protoUDP, 1, 65528, false, long), dropInHeader},
		"follower, odd length":          {fragment(them, us, protoUDP, 1, 128, true, long[:9]), dropInHeader},
		"follower, empty":               {fragment(them, us, protoUDP, 1, 128, false, nil), dropInHeader},
		"atomic fragment":               {fragment(them, us, protoUDP, 0xffff, 0, false, udp[40:]), parsed},
		"atomic fragment, overlong UDP": {fragment(them, us, protoUDP, 18<<16, 0, false, with(theirUDP(5000, 7), 44, 0, 100)[40:]), dropInHeader},
		"atomic fragment, not granted":  {fragment(them, us, protoUDP, 18<<16, 0, false, theirUDP(5000, 8)[40:]), dropInScope},
		"ping":                          {icmp(them, us, icmpEchoRequest, 0, nil), parsed},
		"pong":                          {icmp(them, us, icmpEchoReply, 0, nil), parsed},
		"ping in fragments":             {fragment(them, us, protoICMPv6, 1, 0, true, icmp(them, us, icmpEchoRequest, 0, nil)[40:]), parsed},
		"ICMPv6 cut":                    {raw(them, us, protoICMPv6, []byte{128, 0, 0, 0}), dropInHeader},
	} {
		g := newGate(t, "7,80/tcp", "all")
		g.wantIn(c.want, c.p, name)
		g.pol = nil
		if got := g.in(c.p); got == parsed {
			t.Errorf("%s: passes after revocation", name)
		}
	}
}

// All 256 types of ICMPv6: echo passes with any scope, errors only with a
// quotation, everything else never.
func TestFirewallICMPTypes(t *testing.T) {
	g := newGate(t, "none", "none")
	g.grant("none", "all")
	g.wantOut(parsed, ourUDP(6000, 53), "our packet")
	quote := ourUDP(6000, 53)
	for kind := range 256 {
		for _, rest := range [][]byte{nil, quote} {
			want := dropInICMP
			switch {
			case kind == icmpEchoRequest, kind == icmpEchoReply, kind >= 1 && kind <= 4 && rest != nil:
				want = parsed
			}
			if got := g.in(icmp(them, us, uint8(kind), 0, rest)); got != want {
				t.Errorf("type %d with %d bytes: %s, want %s", kind, len(rest), name(got), name(want))
			}
		}
	}
}

func TestFirewallICMPErrors(t *testing.T) {
	g := newGate(t, "7", "53")
	g.wantOut(parsed, ourUDP(6000, 53), "we ask")
	g.wantIn(parsed, theirUDP(5000, 7), "they ask")
	echo := icmp(us, them, icmpEchoRequest, 0, nil)
	for name, c := range map[string]struct {
		quote []byte
		want  dropReason
	}{
		"our question":                   {ourUDP(6000, 53), parsed},
		"cut after the ports":            {ourUDP(6000, 53)[:44], parsed},
		"cut in the ports":               {ourUDP(6000, 53)[:43], dropInICMP},
		"our answer":                     {ourUDP(7, 5000), parsed},
		"our ping":                       {echo, parsed},
		"our pong":                       {icmp(us, them, icmpEchoReply, 0, nil), parsed},
		"an error of ours":               {icmp(us, them, icmpTooBig, 0, nil), dropInICMP},
		"a router solicitation":          {icmp(us, them, 133, 0, nil), dropInICMP},
		"another port":                   {ourUDP(6001, 53), dropInICMP},
		"another protocol":               {ourTCP(6000, 53, 0), dropInICMP},
		"their own packet":               {theirUDP(5000, 7), dropInICMP},
		"to another agent":               {datagram(us, 6000, other, 53, 1).Complete(), dropInICMP},
		"from another agent":             {datagram(other, 6000, them, 53, 1).Complete(), dropInICMP},
		"not IPv6":                       {with(ourUDP(6000, 53), 0, 4<<4), dropInICMP},
		"behind an extension header":     {raw(us, them, 0, ourUDP(6000, 53)[40:]), dropInICMP},
		"in a fragment":                  {fragment(us, them, protoUDP, 1, 0, true, ourUDP(6000, 53)[40:56]), dropInICMP},
		"another kind with a port alike": {raw(us, them, 132, ourUDP(6000, 53)[40:]), dropInICMP},
		"nothing":                        {nil, dropInICMP},
	} {
		g.wantIn(c.want, icmp(them, us, icmpTooBig, 0, c.quote), name)
	}
	g.wantIn(dropInICMP, fragment(them, us, protoICMPv6, 5, 0, true, icmp(them, us, icmpUnreachable, 0, append(ourUDP(6000, 53), 0, 0, 0, 0, 0, 0))[40:]), "error in a fragment")
	g.grant("7", "53")
	g.wantIn(dropInICMP, icmp(them, us, icmpTooBig, 0, ourUDP(6000, 53)), "after a change of policy")
	g.wantOut(parsed, ourUDP(6000, 53), "we go on")
	g.wantIn(parsed, icmp(them, us, icmpTooBig, 0, ourUDP(6000, 53)), "under the new policy")
}

// Answers to what we opened pass without a grant, for as long as the flow is in
// use.
func TestFirewallFlows(t *testing.T) {
	g := newGate(t, "none", "53,80")
	g.wantIn(dropInScope, theirUDP(53, 6000), "UDP before we asked")
	g.wantOut(parsed, ourUDP(6000, 53), "question")
	g.wantIn(parsed, theirUDP(53, 6000), "answer")
	g.wantIn(dropInScope, theirUDP(53, 6001), "to another port")
	g.wantIn(dropInScope, theirUDP(54, 6000), "from another port")
	g.wantIn(dropInScope, theirTCP(53, 6000, tuntest.ACK), "of another protocol")
	g.wantOut(parsed, ourTCP(6000, 80, tuntest.SYN), "connect")
	g.wantIn(parsed, theirTCP(80, 6000, tuntest.SYN|tuntest.ACK), "accepted")
	g.wantIn(parsed, theirTCP(80, 6000, tuntest.ACK), "data")
	g.wantIn(dropInScope, theirTCP(80, 6000, tuntest.SYN), "a SYN is no answer")
	g.wantIn(parsed, fragment(them, us, protoTCP, 9, 0, true, theirTCP(80, 6000, tuntest.ACK)[40:64]), "data in a fragment")
	g.wantIn(parsed, fragment(them, us, protoTCP, 9, 64, false, make([]byte, 9)), "its follower")
	g.wantOut(dropOutScope, ourUDP(6000, 54), "a port they did not grant")
	g.wantOut(parsed, icmp(us, them, icmpEchoRequest, 0, nil), "ping")

	g.now += 3 * time.Minute
	g.wantIn(parsed, theirUDP(53, 6000), "an answer after three minutes")
	g.now += 3 * time.Minute
	g.wantIn(parsed, theirUDP(53, 6000), "and another one")
	g.now += 3*time.Minute + 2*flowTick
	g.wantIn(dropInScope, theirUDP(53, 6000), "idle for longer")
	g.now += 2*time.Hour - 10*time.Minute
	g.wantIn(parsed, theirTCP(80, 6000, tuntest.ACK), "TCP within two hours")
	g.now += 2*time.Hour + 2*flowTick
	g.wantIn(dropInScope, theirTCP(80, 6000, tuntest.ACK), "TCP idle for longer")
}

// A grant that is narrowed ends the flow under way, in both roles, and our own
// retransmissions do not make it ours.
func TestFirewallNarrowed(t *testing.T) {
	g := newGate(t, "7,9", "all")
	g.wantIn(parsed, theirTCP(5000, 9, tuntest.SYN), "they connect")
	g.wantOut(parsed, ourTCP(9, 5000, tuntest.SYN|tuntest.ACK), "we accept")
	g.wantIn(parsed, theirUDP(5001, 9), "they ask")
	g.wantOut(parsed, ourUDP(9, 5001), "we answer")
	g.grant("7", "all")
	for range 3 {
		g.wantIn(dropInScope, theirTCP(5000, 9, tuntest.ACK), "TCP under way")
		g.wantIn(dropInScope, theirUDP(5001, 9), "UDP under way")
		g.wantOut(parsed, ourTCP(9, 5000, tuntest.ACK), "our retransmission")
		g.wantOut(parsed, ourUDP(9, 5001), "our datagram")
		g.now += 10 * time.Second
	}
	g.wantOut(parsed, ourTCP(9, 5000, tuntest.SYN), "we connect from that port ourselves")
	g.wantIn(parsed, theirTCP(5000, 9, tuntest.ACK), "which opens it")
	g.grant("7,9", "all")
	g.wantIn(parsed, theirUDP(5001, 9), "granted again")

	// What we opened goes on under the new policy with our next packet.
	g.wantOut(parsed, ourTCP(6000, 80, tuntest.SYN), "we connect")
	g.grant("7", "80")
	g.wantIn(dropInScope, theirTCP(80, 6000, tuntest.ACK), "before we sent anything")
	g.wantOut(parsed, ourTCP(6000, 80, tuntest.ACK), "our next packet")
	g.wantIn(parsed, theirTCP(80, 6000, tuntest.ACK), "after it")
	g.grant("7", "81")
	g.wantOut(dropOutScope, ourTCP(6000, 80, tuntest.ACK), "the other side's grant is gone")
	g.wantIn(dropInScope, theirTCP(80, 6000, tuntest.ACK), "so is the flow")

	// The end of a grant needs no new policy.
	g.pol = &policy{version: 99, in: trust.AllPorts, out: trust.AllPorts, until: g.now + time.Second}
	g.wantIn(parsed, theirUDP(1, 2), "before the end")
	g.now += time.Second
	g.wantIn(dropInScope, theirUDP(1, 2), "at the end")
	g.wantIn(dropInScope, icmp(them, us, icmpEchoRequest, 0, nil), "ping at the end")
	g.wantOut(dropOutScope, ourUDP(2, 1), "out at the end")
}

// What a restart forgets does not make a withdrawn flow ours: our side sends again
// on a connection that the peer made to a port it has lost, and the peer's source
// port is one that it granted us.
func TestHostileFlowAfterRestart(t *testing.T) {
	g := newGate(t, "7,9", "all")
	g.wantIn(parsed, theirTCP(5000, 9, tuntest.SYN), "they connect")
	g.wantOut(parsed, ourTCP(9, 5000, tuntest.SYN|tuntest.ACK), "we accept")
	g.grant("7", "all")
	restarted := newGate(t, "7", "all")
	for range 3 {
		for _, flags := range []uint8{tuntest.ACK, tuntest.ACK | tuntest.PSH, tuntest.ACK | tuntest.FIN, tuntest.RST, 0} {
			restarted.wantOut(parsed, ourTCP(9, 5000, flags), "our side sends again")
			restarted.wantIn(dropInScope, theirTCP(5000, 9, tuntest.ACK), "their answer")
		}
	}
	// What we opened goes on, because its port says so, ...
	restarted.wantOut(parsed, ourTCP(40000, 80, tuntest.ACK), "our connection from before")
	restarted.wantIn(parsed, theirTCP(80, 40000, tuntest.ACK), "is answered")
	// ... or begins anew.
	restarted.wantOut(parsed, ourTCP(9, 5000, tuntest.SYN), "we connect from that port ourselves")
	restarted.wantIn(parsed, theirTCP(5000, 9, tuntest.SYN|tuntest.ACK), "which opens it")
	// The table forgets by itself what rested for two hours; that is no way either.
	g.now += 3 * time.Hour
	g.wantOut(parsed, ourTCP(9, 5000, tuntest.ACK), "our side sends again after hours")
	g.wantIn(dropInScope, theirTCP(5000, 9, tuntest.ACK), "their answer after hours")
}

// Followers pass for ten seconds after the first fragment, and never over it.
func TestFirewallFragments(t *testing.T) {
	g := newGate(t, "7", "none")
	whole := datagram(them, 5000, us, 7, 1400).Complete()[40:]
	first := fragment(them, us, protoUDP, 77, 0, true, whole[:800])
	follower := func(id uint32, at, n int) []byte {
		return fragment(them, us, protoUDP, id, at, at+n < len(whole), whole[at:at+n])
	}
	g.wantIn(dropInFragment, follower(77, 800, 608), "before the first")
	g.wantIn(parsed, first, "first")
	g.wantIn(parsed, follower(77, 800, 304), "follower")
	g.wantIn(parsed, follower(77, 1104, 304), "last")
	g.wantIn(dropInHeader, follower(77, 792, 80), "overlap by eight bytes")
	g.wantIn(dropInHeader, follower(77, 64, 80), "overlap near the header")
	g.wantIn(dropInFragment, follower(78, 800, 608), "another packet")
	g.wantIn(parsed, fragment(them, us, protoUDP, 77, 0, true, whole[:64]), "a shorter first one")
	g.wantIn(dropInHeader, follower(77, 400, 80), "does not uncover the longer")
	g.now += 10 * time.Second
	g.wantIn(parsed, follower(77, 800, 608), "after ten seconds")
	g.now += 2 * flowTick
	g.wantIn(dropInFragment, follower(77, 800, 608), "too late")
	g.wantIn(dropInScope, fragment(them, us, protoUDP, 80, 0, true, theirUDP(5000, 8)[40:56]), "a first one that is not granted")
	g.wantIn(dropInFragment, follower(80, 800, 608), "admits no follower")
	// Ours leave as the kernel made them, if the first one's port is granted.
	g.wantOut(dropOutScope, fragment(us, them, protoUDP, 1, 0, true, ourUDP(1, 2)[40:56]), "our first")
	g.wantOut(parsed, fragment(us, them, protoUDP, 1, 800, false, make([]byte, 9)), "our follower")
	g.wantOut(dropOutVersion, raw(us, them, 0, make([]byte, 8)), "our extension header")
}

// Entries do not come to life again when the short clock wraps, also when the
// host slept all the while.
func TestFirewallSweep(t *testing.T) {
	const wrap = flowTick << 16
	for name, sleep := range map[string]bool{"awake": false, "asleep": true} {
		g := newGate(t, "7", "all")
		g.sweep(g.now)
		g.wantOut(parsed, ourTCP(6000, 80, tuntest.SYN), "we connect")
		g.wantIn(parsed, fragment(them, us, protoUDP, 77, 0, true, theirUDP(5000, 7)[40:56]), "first fragment")
		for end := g.now + wrap; !sleep && g.now < end; g.now += 10 * time.Minute {
			if g.sweep(g.now); g.now < end-wrap+2*time.Hour {
				if got := g.in(theirTCP(80, 6000, tuntest.ACK)); got != parsed {
					t.Fatalf("%s: the flow ended: %v", name, g.now)
				}
			}
		}
		if sleep {
			g.now += wrap
			g.sweep(g.now)
		}
		g.wantIn(dropInScope, theirTCP(80, 6000, tuntest.ACK), name+": flow of a day ago")
		g.wantIn(dropInFragment, fragment(them, us, protoUDP, 77, 800, false, make([]byte, 9)), name+": follower of a day ago")
	}
}

// The two packet goroutines read the clock at different moments: an entry from
// a little later is as good as one of now.
func TestFirewallClocks(t *testing.T) {
	g := newGate(t, "7", "all")
	g.now += flowTick - 1
	g.now -= g.now % flowTick
	g.wantOut(parsed, ourUDP(6000, 53), "question at the edge of a tick")
	g.wantIn(parsed, theirUDP(5000, 7), "their question")
	g.now--
	g.wantIn(parsed, theirUDP(53, 6000), "answer seen a moment before")
	g.wantOut(parsed, ourUDP(7, 5000), "our answer, a moment before")
	g.grant("none", "all")
	g.wantIn(dropInScope, theirUDP(5000, 7), "the flow is theirs")
	if n := used(g.flows); n != 2 {
		t.Errorf("%d entries for two flows", n)
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

func TestParseReadsPorts(t *testing.T) {
	var h header
	if h.parse(theirTCP(5000, 7, tuntest.SYN)) != parsed || h.src != 5000 || h.dst != 7 || !h.opensTCP() {
		t.Errorf("%+v", h)
	}
	p := fragment(them, us, protoUDP, 0xdeadbeef, 1232, false, make([]byte, 5))
	if h.parse(p) != parsed || h.fragment != laterFragment || h.fragID != 0xdeadbeef || h.fragAt != 1232/8 || len(h.body) != 5 {
		t.Errorf("%+v", h)
	}
	if binary.BigEndian.Uint16(p[4:]) != 13 {
		t.Fatal("test packet is wrong")
	}
}
