package firewall_test

import (
	"testing"
	"time"

	"github.com/pilotnet/pilot/ipam"
	"github.com/pilotnet/pilot/overlay/firewall"
	"github.com/pilotnet/pilot/overlay/firewall/firewalltest"
	"github.com/pilotnet/pilot/trust"
	"github.com/pilotnet/pilot/tun/tuntest"
)

const us, them, other = 1000, 2000, 3000

// Verdicts by the names that tables of tests have room for.
const (
	pass        = firewall.Pass
	source      = firewall.BadSource
	destination = firewall.BadDestination
	outOfScope  = firewall.OutOfScope
	badHeader   = firewall.BadHeader
	stray       = firewall.StrayFragment
	badICMP     = firewall.BadICMP
)

// tick is the unit of the tables' clock.
const tick = 2 * time.Second

// ends is us and the one peer of these tests.
func ends() (own [16]byte, peer *firewall.Peer) {
	own = ipam.Addr{Node: us}.ULA().As16()
	return own, &firewall.Peer{Node: them, ULA: ipam.Addr{Node: them}.ULA().As16()}
}

// A gate is a firewall with one peer.
type gate struct {
	*firewall.Firewall
	t    *testing.T
	peer *firewall.Peer
	pol  *firewall.Policy
	now  time.Duration
	h    firewall.Header
}

func newGate(t *testing.T, in, out string) *gate {
	own, peer := ends()
	g := &gate{Firewall: firewall.New(own), t: t, peer: peer, now: time.Hour}
	g.grant(in, out)
	return g
}

// grant publishes another policy.
func (g *gate) grant(in, out string) {
	version := uint64(1)
	if g.pol != nil {
		version = g.pol.Version + 1
	}
	g.pol = &firewall.Policy{Version: version, In: firewalltest.Scope(g.t, in), Out: firewalltest.Scope(g.t, out)}
}

func (g *gate) in(p []byte) firewall.Verdict  { return g.Admit(p, g.peer, g.pol, &g.h, g.now) }
func (g *gate) out(p []byte) firewall.Verdict { return g.Sent(p, g.peer, g.pol, &g.h, g.now) }

func (g *gate) wantIn(want firewall.Verdict, p []byte, what string) {
	g.t.Helper()
	if got := g.in(p); got != want {
		g.t.Errorf("%s: %v, want %v", what, got, want)
	}
}

func (g *gate) wantOut(want firewall.Verdict, p []byte, what string) {
	g.t.Helper()
	if got := g.out(p); got != want {
		g.t.Errorf("%s: %v, want %v", what, got, want)
	}
}

func theirTCP(sport, dport uint16, flags uint8) []byte {
	return firewalltest.Segment(them, sport, us, dport, flags, 10).Complete()
}

func ourTCP(sport, dport uint16, flags uint8) []byte {
	return firewalltest.Segment(us, sport, them, dport, flags, 10).Complete()
}

func theirUDP(sport, dport uint16) []byte {
	return firewalltest.Datagram(them, sport, us, dport, 10).Complete()
}
func ourUDP(sport, dport uint16) []byte {
	return firewalltest.Datagram(us, sport, them, dport, 10).Complete()
}

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
		want firewall.Verdict
	}{
		"granted UDP":                   {udp, pass},
		"granted TCP":                   {tcp, pass},
		"port not granted":              {theirUDP(5000, 8), outOfScope},
		"TCP port not granted":          {theirTCP(5000, 8, tuntest.SYN), outOfScope},
		"protocol not granted":          {theirUDP(5000, 80), outOfScope},
		"granted by protocol":           {theirTCP(5000, 80, tuntest.SYN), pass},
		"TCP without SYN to no flow":    {theirTCP(5000, 8, tuntest.ACK), outOfScope},
		"TCP without flags":             {theirTCP(5000, 8, 0), outOfScope},
		"SYN and ACK to no flow":        {theirTCP(5000, 8, tuntest.SYN|tuntest.ACK), outOfScope},
		"foreign source":                {firewalltest.Datagram(other, 5000, us, 7, 10).Complete(), source},
		"our own source":                {firewalltest.Datagram(us, 5000, us, 7, 10).Complete(), source},
		"foreign source and target":     {firewalltest.Datagram(other, 5000, other, 7, 10).Complete(), source},
		"to another agent":              {firewalltest.Datagram(them, 5000, other, 7, 10).Complete(), destination},
		"into the LAN":                  {with(theirUDP(5000, 7), 24, 0xfd, 0, 0, 1), destination},
		"to loopback":                   {with(theirUDP(5000, 7), 24, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1), destination},
		"multicast, all nodes":          {with(theirUDP(5000, 7), 24, 0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1), destination},
		"link-local":                    {with(theirUDP(5000, 7), 24, 0xfe, 0x80), destination},
		"IPv4-mapped":                   {with(theirUDP(5000, 7), 24, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 1), destination},
		"UDP shorter than it says":      {with(theirUDP(5000, 7), 44, 0, 100), badHeader},
		"UDP longer than it says":       {with(theirUDP(5000, 7), 44, 0, 8), badHeader},
		"UDP length zero":               {with(theirUDP(5000, 7), 44, 0, 0), badHeader},
		"UDP header cut":                {firewalltest.Raw(them, us, trust.ProtoUDP, []byte{1, 2, 0, 7, 0, 7, 0}), badHeader},
		"TCP header cut":                {firewalltest.Raw(them, us, trust.ProtoTCP, make([]byte, 19)), badHeader},
		"TCP offset too small":          {with(theirTCP(5000, 7, 2), 52, 4<<4), badHeader},
		"TCP offset beyond the end":     {with(theirTCP(5000, 7, 2), 52, 15<<4), badHeader},
		"no payload":                    {firewalltest.Raw(them, us, trust.ProtoUDP, nil), badHeader},
		"hop-by-hop":                    {firewalltest.Raw(them, us, 0, append([]byte{trust.ProtoUDP, 0, 1, 4, 0, 0, 0, 0}, udp[40:]...)), badHeader},
		"jumbogram":                     {firewalltest.Raw(them, us, 0, []byte{trust.ProtoUDP, 0, 0xc2, 4, 0, 1, 0, 0}), badHeader},
		"routing header":                {firewalltest.Raw(them, us, 43, append([]byte{trust.ProtoUDP, 2, 0, 1, 7: 0}, udp[40:]...)), badHeader},
		"destination options":           {firewalltest.Raw(them, us, 60, append([]byte{trust.ProtoUDP, 0, 1, 4, 0, 0, 0, 0}, udp[40:]...)), badHeader},
		"authentication header":         {firewalltest.Raw(them, us, 51, make([]byte, 32)), badHeader},
		"ESP":                           {firewalltest.Raw(them, us, 50, make([]byte, 32)), badHeader},
		"no next header":                {firewalltest.Raw(them, us, 59, udp[40:]), badHeader},
		"IPv6 in IPv6":                  {firewalltest.Raw(them, us, 41, udp), badHeader},
		"IPv4 in IPv6":                  {firewalltest.Raw(them, us, 4, make([]byte, 40)), badHeader},
		"GRE":                           {firewalltest.Raw(them, us, 47, make([]byte, 40)), badHeader},
		"SCTP":                          {firewalltest.Raw(them, us, 132, make([]byte, 40)), badHeader},
		"fragment header cut":           {firewalltest.Raw(them, us, 44, []byte{trust.ProtoUDP, 0, 0, 0, 0, 0, 1}), badHeader},
		"extension behind the fragment": {firewalltest.Fragment(them, us, 60, 1, 0, true, make([]byte, 64)), badHeader},
		"fragment behind the fragment":  {firewalltest.Fragment(them, us, 44, 1, 0, true, firewalltest.Fragment(them, us, trust.ProtoUDP, 2, 0, true, udp[40:56])[40:]), badHeader},
		"tiny first fragment of TCP":    {firewalltest.Fragment(them, us, trust.ProtoTCP, 1, 0, true, tcp[40:56]), badHeader},
		"first fragment not granted":    {firewalltest.Fragment(them, us, trust.ProtoUDP, 1, 0, true, theirUDP(5000, 8)[40:56]), outOfScope},
		"first fragment, granted":       {firewalltest.Fragment(them, us, trust.ProtoUDP, 1, 0, true, udp[40:56]), pass},
		"first fragment, odd length":    {firewalltest.Fragment(them, us, trust.ProtoUDP, 1, 0, true, udp[40:57]), badHeader},
		"follower of nothing":           {firewalltest.Fragment(them, us, trust.ProtoUDP, 1, 128, false, long), stray},
		"follower in the header":        {firewalltest.Fragment(them, us, trust.ProtoUDP, 1, 8, false, long), badHeader},
		"follower beyond 64 KiB":        {firewalltest.Fragment(them, us, trust.ProtoUDP, 1, 65528, false, long), badHeader},
		"follower, odd length":          {firewalltest.Fragment(them, us, trust.ProtoUDP, 1, 128, true, long[:9]), badHeader},
		"follower, empty":               {firewalltest.Fragment(them, us, trust.ProtoUDP, 1, 128, false, nil), badHeader},
		"atomic fragment":               {firewalltest.Fragment(them, us, trust.ProtoUDP, 0xffff, 0, false, udp[40:]), pass},
		"atomic fragment, overlong UDP": {firewalltest.Fragment(them, us, trust.ProtoUDP, 18<<16, 0, false, with(theirUDP(5000, 7), 44, 0, 100)[40:]), badHeader},
		"atomic fragment, not granted":  {firewalltest.Fragment(them, us, trust.ProtoUDP, 18<<16, 0, false, theirUDP(5000, 8)[40:]), outOfScope},
		"ping":                          {firewalltest.ICMP(them, us, 128, 0, nil), pass},
		"pong":                          {firewalltest.ICMP(them, us, 129, 0, nil), pass},
		"ping in fragments":             {firewalltest.Fragment(them, us, 58, 1, 0, true, firewalltest.ICMP(them, us, 128, 0, nil)[40:]), pass},
		"ICMPv6 cut":                    {firewalltest.Raw(them, us, 58, []byte{128, 0, 0, 0}), badHeader},
	} {
		g := newGate(t, "7,80/tcp", "all")
		g.wantIn(c.want, c.p, name)
		g.pol = nil
		if got := g.in(c.p); got == pass {
			t.Errorf("%s: passes after revocation", name)
		}
	}
}

// All 256 types of ICMPv6: echo passes with any scope, errors only with a
// quotation, everything else never.
func TestFirewallICMPTypes(t *testing.T) {
	g := newGate(t, "none", "none")
	g.grant("none", "all")
	g.wantOut(pass, ourUDP(6000, 53), "our packet")
	quote := ourUDP(6000, 53)
	for kind := range 256 {
		for _, rest := range [][]byte{nil, quote} {
			want := badICMP
			switch {
			case kind == 128, kind == 129, kind >= 1 && kind <= 4 && rest != nil:
				want = pass
			}
			if got := g.in(firewalltest.ICMP(them, us, uint8(kind), 0, rest)); got != want {
				t.Errorf("type %d with %d bytes: %v, want %v", kind, len(rest), got, want)
			}
		}
	}
}

func TestFirewallICMPErrors(t *testing.T) {
	g := newGate(t, "7", "53")
	g.wantOut(pass, ourUDP(6000, 53), "we ask")
	g.wantIn(pass, theirUDP(5000, 7), "they ask")
	echo := firewalltest.ICMP(us, them, 128, 0, nil)
	for name, c := range map[string]struct {
		quote []byte
		want  firewall.Verdict
	}{
		"our question":                   {ourUDP(6000, 53), pass},
		"cut after the ports":            {ourUDP(6000, 53)[:44], pass},
		"cut in the ports":               {ourUDP(6000, 53)[:43], badICMP},
		"our answer":                     {ourUDP(7, 5000), pass},
		"our ping":                       {echo, pass},
		"our pong":                       {firewalltest.ICMP(us, them, 129, 0, nil), pass},
		"an error of ours":               {firewalltest.ICMP(us, them, 2, 0, nil), badICMP},
		"a router solicitation":          {firewalltest.ICMP(us, them, 133, 0, nil), badICMP},
		"another port":                   {ourUDP(6001, 53), badICMP},
		"another protocol":               {ourTCP(6000, 53, 0), badICMP},
		"their own packet":               {theirUDP(5000, 7), badICMP},
		"to another agent":               {firewalltest.Datagram(us, 6000, other, 53, 1).Complete(), badICMP},
		"from another agent":             {firewalltest.Datagram(other, 6000, them, 53, 1).Complete(), badICMP},
		"not IPv6":                       {with(ourUDP(6000, 53), 0, 4<<4), badICMP},
		"behind an extension header":     {firewalltest.Raw(us, them, 0, ourUDP(6000, 53)[40:]), badICMP},
		"in a fragment":                  {firewalltest.Fragment(us, them, trust.ProtoUDP, 1, 0, true, ourUDP(6000, 53)[40:56]), badICMP},
		"another kind with a port alike": {firewalltest.Raw(us, them, 132, ourUDP(6000, 53)[40:]), badICMP},
		"nothing":                        {nil, badICMP},
	} {
		g.wantIn(c.want, firewalltest.ICMP(them, us, 2, 0, c.quote), name)
	}
	g.wantIn(badICMP, firewalltest.Fragment(them, us, 58, 5, 0, true, firewalltest.ICMP(them, us, 1, 0, append(ourUDP(6000, 53), 0, 0, 0, 0, 0, 0))[40:]), "error in a fragment")
	g.grant("7", "53")
	g.wantIn(badICMP, firewalltest.ICMP(them, us, 2, 0, ourUDP(6000, 53)), "after a change of policy")
	g.wantOut(pass, ourUDP(6000, 53), "we go on")
	g.wantIn(pass, firewalltest.ICMP(them, us, 2, 0, ourUDP(6000, 53)), "under the new policy")
}

// Answers to what we opened pass without a grant, for as long as the flow is in
// use.
func TestFirewallFlows(t *testing.T) {
	g := newGate(t, "none", "53,80")
	g.wantIn(outOfScope, theirUDP(53, 6000), "UDP before we asked")
	g.wantOut(pass, ourUDP(6000, 53), "question")
	g.wantIn(pass, theirUDP(53, 6000), "answer")
	g.wantIn(outOfScope, theirUDP(53, 6001), "to another port")
	g.wantIn(outOfScope, theirUDP(54, 6000), "from another port")
	g.wantIn(outOfScope, theirTCP(53, 6000, tuntest.ACK), "of another protocol")
	g.wantOut(pass, ourTCP(6000, 80, tuntest.SYN), "connect")
	g.wantIn(pass, theirTCP(80, 6000, tuntest.SYN|tuntest.ACK), "accepted")
	g.wantIn(pass, theirTCP(80, 6000, tuntest.ACK), "data")
	g.wantIn(outOfScope, theirTCP(80, 6000, tuntest.SYN), "a SYN is no answer")
	g.wantIn(pass, firewalltest.Fragment(them, us, trust.ProtoTCP, 9, 0, true, theirTCP(80, 6000, tuntest.ACK)[40:64]), "data in a fragment")
	g.wantIn(pass, firewalltest.Fragment(them, us, trust.ProtoTCP, 9, 64, false, make([]byte, 9)), "its follower")
	g.wantOut(outOfScope, ourUDP(6000, 54), "a port they did not grant")
	g.wantOut(pass, firewalltest.ICMP(us, them, 128, 0, nil), "ping")

	g.now += 3 * time.Minute
	g.wantIn(pass, theirUDP(53, 6000), "an answer after three minutes")
	g.now += 3 * time.Minute
	g.wantIn(pass, theirUDP(53, 6000), "and another one")
	g.now += 3*time.Minute + 2*tick
	g.wantIn(outOfScope, theirUDP(53, 6000), "idle for longer")
	g.now += 2*time.Hour - 10*time.Minute
	g.wantIn(pass, theirTCP(80, 6000, tuntest.ACK), "TCP within two hours")
	g.now += 2*time.Hour + 2*tick
	g.wantIn(outOfScope, theirTCP(80, 6000, tuntest.ACK), "TCP idle for longer")
}

// A grant that is narrowed ends the flow under way, in both roles, and our own
// retransmissions do not make it ours.
func TestFirewallNarrowed(t *testing.T) {
	g := newGate(t, "7,9", "all")
	g.wantIn(pass, theirTCP(5000, 9, tuntest.SYN), "they connect")
	g.wantOut(pass, ourTCP(9, 5000, tuntest.SYN|tuntest.ACK), "we accept")
	g.wantIn(pass, theirUDP(5001, 9), "they ask")
	g.wantOut(pass, ourUDP(9, 5001), "we answer")
	g.grant("7", "all")
	for range 3 {
		g.wantIn(outOfScope, theirTCP(5000, 9, tuntest.ACK), "TCP under way")
		g.wantIn(outOfScope, theirUDP(5001, 9), "UDP under way")
		g.wantOut(pass, ourTCP(9, 5000, tuntest.ACK), "our retransmission")
		g.wantOut(pass, ourUDP(9, 5001), "our datagram")
		g.now += 10 * time.Second
	}
	g.wantOut(pass, ourTCP(9, 5000, tuntest.SYN), "we connect from that port ourselves")
	g.wantIn(pass, theirTCP(5000, 9, tuntest.ACK), "which opens it")
	g.grant("7,9", "all")
	g.wantIn(pass, theirUDP(5001, 9), "granted again")

	// What we opened goes on under the new policy with our next packet.
	g.wantOut(pass, ourTCP(6000, 80, tuntest.SYN), "we connect")
	g.grant("7", "80")
	g.wantIn(outOfScope, theirTCP(80, 6000, tuntest.ACK), "before we sent anything")
	g.wantOut(pass, ourTCP(6000, 80, tuntest.ACK), "our next packet")
	g.wantIn(pass, theirTCP(80, 6000, tuntest.ACK), "after it")
	g.grant("7", "81")
	g.wantOut(outOfScope, ourTCP(6000, 80, tuntest.ACK), "the other side's grant is gone")
	g.wantIn(outOfScope, theirTCP(80, 6000, tuntest.ACK), "so is the flow")

	// The end of a grant needs no new policy.
	g.pol = &firewall.Policy{Version: 99, In: trust.AllPorts, Out: trust.AllPorts, Until: g.now + time.Second}
	g.wantIn(pass, theirUDP(1, 2), "before the end")
	g.now += time.Second
	g.wantIn(outOfScope, theirUDP(1, 2), "at the end")
	g.wantIn(outOfScope, firewalltest.ICMP(them, us, 128, 0, nil), "ping at the end")
	g.wantOut(outOfScope, ourUDP(2, 1), "out at the end")
}

// What a restart forgets does not make a withdrawn flow ours: our side sends again
// on a connection that the peer made to a port it has lost, and the peer's source
// port is one that it granted us.
func TestHostileFlowAfterRestart(t *testing.T) {
	g := newGate(t, "7,9", "all")
	g.wantIn(pass, theirTCP(5000, 9, tuntest.SYN), "they connect")
	g.wantOut(pass, ourTCP(9, 5000, tuntest.SYN|tuntest.ACK), "we accept")
	g.grant("7", "all")
	restarted := newGate(t, "7", "all")
	for range 3 {
		for _, flags := range []uint8{tuntest.ACK, tuntest.ACK | tuntest.PSH, tuntest.ACK | tuntest.FIN, tuntest.RST, 0} {
			restarted.wantOut(pass, ourTCP(9, 5000, flags), "our side sends again")
			restarted.wantIn(outOfScope, theirTCP(5000, 9, tuntest.ACK), "their answer")
		}
	}
	// What we opened goes on, because its port says so, ...
	restarted.wantOut(pass, ourTCP(40000, 80, tuntest.ACK), "our connection from before")
	restarted.wantIn(pass, theirTCP(80, 40000, tuntest.ACK), "is answered")
	// ... or begins anew.
	restarted.wantOut(pass, ourTCP(9, 5000, tuntest.SYN), "we connect from that port ourselves")
	restarted.wantIn(pass, theirTCP(5000, 9, tuntest.SYN|tuntest.ACK), "which opens it")
	// The table forgets by itself what rested for two hours; that is no way either.
	g.now += 3 * time.Hour
	g.wantOut(pass, ourTCP(9, 5000, tuntest.ACK), "our side sends again after hours")
	g.wantIn(outOfScope, theirTCP(5000, 9, tuntest.ACK), "their answer after hours")
}

// Followers pass for ten seconds after the first fragment, and never over it.
func TestFirewallFragments(t *testing.T) {
	g := newGate(t, "7", "none")
	whole := firewalltest.Datagram(them, 5000, us, 7, 1400).Complete()[40:]
	first := firewalltest.Fragment(them, us, trust.ProtoUDP, 77, 0, true, whole[:800])
	follower := func(id uint32, at, n int) []byte {
		return firewalltest.Fragment(them, us, trust.ProtoUDP, id, at, at+n < len(whole), whole[at:at+n])
	}
	g.wantIn(stray, follower(77, 800, 608), "before the first")
	g.wantIn(pass, first, "first")
	g.wantIn(pass, follower(77, 800, 304), "follower")
	g.wantIn(pass, follower(77, 1104, 304), "last")
	g.wantIn(badHeader, follower(77, 792, 80), "overlap by eight bytes")
	g.wantIn(badHeader, follower(77, 64, 80), "overlap near the header")
	g.wantIn(stray, follower(78, 800, 608), "another packet")
	g.wantIn(pass, firewalltest.Fragment(them, us, trust.ProtoUDP, 77, 0, true, whole[:64]), "a shorter first one")
	g.wantIn(badHeader, follower(77, 400, 80), "does not uncover the longer")
	g.now += 10 * time.Second
	g.wantIn(pass, follower(77, 800, 608), "after ten seconds")
	g.now += 2 * tick
	g.wantIn(stray, follower(77, 800, 608), "too late")
	g.wantIn(outOfScope, firewalltest.Fragment(them, us, trust.ProtoUDP, 80, 0, true, theirUDP(5000, 8)[40:56]), "a first one that is not granted")
	g.wantIn(stray, follower(80, 800, 608), "admits no follower")
	// Ours leave as the kernel made them, if the first one's port is granted.
	g.wantOut(outOfScope, firewalltest.Fragment(us, them, trust.ProtoUDP, 1, 0, true, ourUDP(1, 2)[40:56]), "our first")
	g.wantOut(pass, firewalltest.Fragment(us, them, trust.ProtoUDP, 1, 800, false, make([]byte, 9)), "our follower")
	g.wantOut(badHeader, firewalltest.Raw(us, them, 0, make([]byte, 8)), "our extension header")
}

// Entries do not come to life again when the short clock wraps, also when the
// host slept all the while.
func TestFirewallSweep(t *testing.T) {
	const wrap = tick << 16
	for name, sleep := range map[string]bool{"awake": false, "asleep": true} {
		g := newGate(t, "7", "all")
		g.Sweep(g.now)
		g.wantOut(pass, ourTCP(6000, 80, tuntest.SYN), "we connect")
		g.wantIn(pass, firewalltest.Fragment(them, us, trust.ProtoUDP, 77, 0, true, theirUDP(5000, 7)[40:56]), "first fragment")
		for end := g.now + wrap; !sleep && g.now < end; g.now += 10 * time.Minute {
			if g.Sweep(g.now); g.now < end-wrap+2*time.Hour {
				if got := g.in(theirTCP(80, 6000, tuntest.ACK)); got != pass {
					t.Fatalf("%s: the flow ended: %v", name, g.now)
				}
			}
		}
		if sleep {
			g.now += wrap
			g.Sweep(g.now)
		}
		g.wantIn(outOfScope, theirTCP(80, 6000, tuntest.ACK), name+": flow of a day ago")
		g.wantIn(stray, firewalltest.Fragment(them, us, trust.ProtoUDP, 77, 800, false, make([]byte, 9)), name+": follower of a day ago")
	}
}

// The two packet goroutines read the clock at different moments: an entry from
// a little later is as good as one of now.
func TestFirewallClocks(t *testing.T) {
	g := newGate(t, "7", "all")
	g.now += tick - 1
	g.now -= g.now % tick
	g.wantOut(pass, ourUDP(6000, 53), "question at the edge of a tick")
	g.wantIn(pass, theirUDP(5000, 7), "their question")
	g.now--
	g.wantIn(pass, theirUDP(53, 6000), "answer seen a moment before")
	g.wantOut(pass, ourUDP(7, 5000), "our answer, a moment before")
	g.grant("none", "all")
	g.wantIn(outOfScope, theirUDP(5000, 7), "the flow is theirs")
}

func BenchmarkFirewall(b *testing.B) {
	own, peer := ends()
	f := firewall.New(own)
	all := &firewall.Policy{Version: 1, In: trust.AllPorts, Out: trust.AllPorts}
	answers := &firewall.Policy{Version: 1, Out: trust.AllPorts}
	var h firewall.Header
	ask, answer, granted := ourUDP(6000, 53), theirUDP(53, 6000), theirUDP(5000, 7)
	now := time.Hour
	f.Sent(ask, peer, answers, &h, now)
	for name, decide := range map[string]func() firewall.Verdict{
		"out":        func() firewall.Verdict { return f.Sent(ask, peer, answers, &h, now) },
		"in, answer": func() firewall.Verdict { return f.Admit(answer, peer, answers, &h, now) },
		"in, scope":  func() firewall.Verdict { return f.Admit(granted, peer, all, &h, now) },
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if decide() != pass {
					b.Fatal("refused")
				}
			}
		})
	}
}
