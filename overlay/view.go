package overlay

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"net/netip"
	"sort"
	"strings"
	"time"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/ipam"
	"github.com/pilotnet/pilot/natt"
	"github.com/pilotnet/pilot/trust"
	"github.com/pilotnet/pilot/tun"
)

// viewTimeout bounds how long a question to the loop may wait.
const viewTimeout = 5 * time.Second

// ID says who this agent is.
func (n *Node) ID() ID {
	id := n.cfg.Identity
	claimed := len(n.cfg.Servers) > 0
	ctx, cancel := context.WithTimeout(context.Background(), viewTimeout)
	defer cancel()
	if n.loop.call(ctx, func(instant) {
		for _, h := range n.loop.servers {
			claimed = claimed && h.claimed
		}
	}) != nil {
		claimed = false
	}
	return ID{
		Name: n.cfg.Name, Address: id.Addr().String(), ULA: id.Addr().ULA().String(),
		Fingerprint: id.Key.Public().Fingerprint().String(), Contact: n.contact(), Claimed: claimed,
	}
}

// contact is what to give to others: it names the first home server.
func (n *Node) contact() string {
	if len(n.cfg.Servers) == 0 {
		return ""
	}
	s := n.cfg.Servers[0]
	return ipam.Contact{
		Addr: n.cfg.Identity.Addr(), Fingerprint: n.cfg.Identity.Key.Public().Fingerprint(), Host: s.Host, Port: s.Port,
	}.String()
}

// Status is everything that a user may see.
func (n *Node) Status() Status {
	s := Status{
		ID: n.ID(), Version: n.cfg.Version, Started: n.started, Requests: n.Pending(), Drops: n.plane.drops.counts(),
		Device: n.deviceStatus(),
		Socket: SocketStatus{Port: n.plane.conn.LocalAddr().Port(), Offload: socketOffload(n.plane.conn.Offload())},
	}
	ctx, cancel := context.WithTimeout(context.Background(), viewTimeout)
	defer cancel()
	s.State = "starting"
	_ = n.loop.call(ctx, func(now instant) { // a node that is stopping has no servers to show
		s.Servers = n.loop.serverStatus(now)
		s.State = n.loop.state(s.Servers)
		s.Lifetime = n.loop.lifetimeStatus()
		if k := n.loop.carriersDropped(); k > 0 {
			s.Drops[dropNames[dropOutStream]] += k
		}
		if n.loop.skew != 0 {
			s.Warnings = append(s.Warnings, fmt.Sprintf("this machine's clock is off by %v; set it", -n.loop.skew.Round(time.Second)))
		}
	})
	if err := n.store.Trouble(); err != nil {
		s.Warnings = append(s.Warnings, fmt.Sprintf("trust cannot be written: %v", err))
	}
	s.Peers, s.Services = n.Peers(), n.serviceStatus()
	if s.Suspended = n.suspension(); s.Suspended != nil && s.State != "conflict" {
		s.State = "suspended"
	}
	return s
}

func deviceOffload(o tun.Offload) string {
	return joined(feature{o.VNetHdr, "vnet"}, feature{o.TSO, "tso"}, feature{o.USO, "uso"})
}

func socketOffload(o natt.Offload) string {
	return joined(feature{o.GSO, "gso"}, feature{o.GRO, "gro"}, feature{o.Batch, "batch"})
}

type feature struct {
	on   bool
	name string
}

// joined names the features that are on.
func joined(list ...feature) string {
	var have []string
	for _, f := range list {
		if f.on {
			have = append(have, f.name)
		}
	}
	if len(have) == 0 {
		return "none"
	}
	return strings.Join(have, "+")
}

func (l *loop) state(servers []ServerStatus) string {
	if l.superseded.Load() {
		return "conflict"
	}
	if len(servers) == 0 {
		return "ready"
	}
	for _, s := range servers {
		if s.State == "registered" {
			return "ready"
		}
	}
	return "no_server"
}

func (l *loop) serverStatus(now instant) []ServerStatus {
	var list []ServerStatus
	for _, h := range l.servers {
		s := ServerStatus{
			Server: h.host.server.String(), State: "connecting", Claimed: h.claimed, TLSWarning: h.tlsWarning,
			RTTMillis: millis(h.machine.RTT()), Via: h.host.ladder.Rung().String(),
		}
		if s.TLSWarning == "" {
			s.TLSWarning = h.host.warning
		}
		if a := h.machine.Observed(); a.IsValid() {
			s.Observed = a.String()
		}
		switch {
		case h.refused != nil || l.superseded.Load():
			s.State = "refused"
		case h.machine.Registered():
			s.State = "registered"
		}
		switch {
		case h.lastErr != nil:
			s.Error = h.lastErr.Error()
		case h.host.err != nil && len(h.host.addrs) == 0:
			s.Error = fmt.Sprintf("cannot resolve %s: %v", h.host.server.Host, h.host.err)
		case s.State == "connecting" && !h.since.IsZero() && now.wall.Sub(h.since) > time.Second:
			s.Error = h.host.unanswered()
		}
		list = append(list, s)
	}
	return list
}

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// Peers lists everybody trusted, by name.
func (n *Node) Peers() []Peer {
	list := []Peer{}
	books := n.store.Peers()
	ctx, cancel := context.WithTimeout(context.Background(), viewTimeout)
	defer cancel()
	_ = n.loop.call(ctx, func(now instant) {
		for _, b := range books {
			list = append(list, n.loop.peerView(now, b))
		}
	})
	return list
}

func (l *loop) peerView(now instant, b trust.Peer) Peer {
	a := ipam.AddrFromBytes(b.Addr)
	p := Peer{
		Name: b.Name, Address: a.String(), ULA: a.ULA().String(), Fingerprint: b.Key.Fingerprint().String(),
		Trust: b.State.String(), In: b.In.String(), Out: b.Out.String(), Path: "none",
	}
	if !b.Expires.IsZero() {
		t := b.Expires
		p.Expires = &t
	}
	k := l.links[b.Key]
	if k == nil {
		return p
	}
	p.RxBytes, p.TxBytes, p.Note = k.rxBytes.Load(), k.txBytes.Load(), k.gone
	if at := k.lastSeen.Load(); at != 0 {
		t := now.wall.Add(time.Duration(at) - now.boot).Round(0)
		p.LastSeen = &t
	}
	if tx := k.peer.tx.Load(); tx != nil {
		st := k.agent.Status()
		p.Endpoint, p.RTTMillis, p.Budget, p.WhyNot = tx.path.Remote.String(), millis(st.RTT), tx.budget, st.WhyNotDirect
		p.Loss, p.GapMillis = st.Loss, millis(st.Gap)
		if p.Path = "direct"; tx.path.Relayed() {
			p.Path, p.Reason = "relay", st.Reason.String()
		}
		if !st.Changed.IsZero() {
			t := st.Changed.Round(0)
			p.Changed = &t
		}
	} else if k.try != nil && p.Note == "" {
		p.Note = "connecting"
	}
	if l.superseded.Load() {
		p.Note = replacedHere
	}
	return p
}

// Pending lists the requests that wait for us.
func (n *Node) Pending() []Request { return requests(n.store.Incoming(), "in") }

// Outgoing lists our own requests that wait for an answer.
func (n *Node) Outgoing() []Request { return requests(n.store.Outgoing(), "out") }

func requests(list []trust.Pending, direction string) []Request {
	out := []Request{}
	for _, p := range list {
		r := Request{
			Fingerprint: p.Fingerprint.String(), Address: ipam.AddrFromBytes(p.Addr).String(), Name: p.Name,
			Ports: p.Ask.String(), Offer: p.Offer.String(), Reason: p.Reason, Direction: direction,
			Received: p.Received, StateLost: p.StateLost, Untrusted: []string{},
		}
		if direction == "in" {
			r.Untrusted = []string{"name", "reason"}
		}
		if !p.Expires.IsZero() {
			t := p.Expires
			r.Expires = &t
		}
		out = append(out, r)
	}
	return out
}

// Whois says which peer a source address belongs to. The answer is as good as
// the tunnel: a packet with this source can only have come from that key.
func (n *Node) Whois(s string) (Whois, error) {
	ip, err := netip.ParseAddr(strings.Trim(s, "[]"))
	if err != nil {
		ap, err := netip.ParseAddrPort(s)
		if err != nil {
			return Whois{}, Errorf(CodeInvalidArgument, "%q is neither an IP address nor ADDRESS:PORT", s).WithHint("write an IPv6 address with a port as [ADDRESS]:PORT")
		}
		ip = ap.Addr()
	}
	a, ok := ipam.FromULA(ip)
	if !ok {
		return Whois{}, Errorf(CodeNotFound, "%s is not an overlay address", ip).WithHint("overlay addresses lie in %s", ipam.Prefix())
	}
	if a == n.cfg.Identity.Addr() {
		id := n.ID()
		return Whois{Name: id.Name, Address: id.Address, ULA: id.ULA, Fingerprint: id.Fingerprint, Self: true}, nil
	}
	p := n.plane.snapshot.Load().peers[a.Node]
	if p == nil {
		return Whois{}, Errorf(CodeNotFound, "no peer has the address %s", ip)
	}
	b, ok := n.store.Peer(p.key)
	if !ok || b.State != trust.Active { // the snapshot may be a moment older
		return Whois{}, Errorf(CodeNotFound, "no peer has the address %s", ip)
	}
	w := Whois{
		Name: b.Name, Address: a.String(), ULA: ip.String(), Fingerprint: b.Key.Fingerprint().String(),
		In: b.In.String(), Out: b.Out.String(),
	}
	if !b.Expires.IsZero() {
		t := b.Expires
		w.Expires = &t
	}
	return w, nil
}

// A ping waits for its echo in the tunnel.
type ping struct {
	key  crypto.PublicKey
	sent time.Duration
	done chan Pong
	seq  int
}

// Ping sends one ping through the tunnel, opening it if need be, and waits for
// the answer until ctx ends.
func (n *Node) Ping(ctx context.Context, who string, seq int) (Pong, error) {
	key, err := n.resolvePeer(who)
	if err != nil {
		for _, p := range n.Outgoing() {
			if p.Name == who || p.Fingerprint == who {
				return Pong{}, Errorf(CodeTrustPending, "%s has not approved the request yet", who).Retry()
			}
		}
		return Pong{}, err
	}
	if p, ok := n.store.Peer(key); ok && p.State != trust.Active {
		if p.State == trust.Suspended {
			return Pong{}, Errorf(CodeNotTrusted, "trust with %s is suspended: this state is older than what others were told", who).WithHint(suspendedHint)
		}
		return Pong{}, Errorf(CodeNotTrusted, "trust with %s has expired", who).WithHint("ask again: pilotctl trust request %s", who)
	}
	if err := n.loop.inForce(); err != nil {
		return Pong{}, err
	}
	w := &ping{key: key, done: make(chan Pong, 1), seq: seq}
	var token [pingBody]byte
	// crypto/rand never fails (it ends the process instead).
	_, _ = rand.Read(token[:])
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for sent := false; ; {
		if !sent {
			if err := n.loop.call(ctx, func(now instant) { sent = n.loop.sendPing(now, w, token) }); err != nil {
				return Pong{}, err
			}
		}
		select {
		case p := <-w.done:
			return p, nil
		case <-ctx.Done():
			_ = n.loop.call(context.WithoutCancel(ctx), func(instant) { delete(n.loop.pings, token) })
			if !sent {
				return Pong{}, Errorf(CodePeerOffline, "%s: %s", who, noAnswer).WithHint("`pilotctl status` shows its servers and paths").Retry()
			}
			return Pong{}, Errorf(CodeTimeout, "%s did not answer in time", who).Retry()
		case <-tick.C:
		}
	}
}

// sendPing sends the ping if there is a session, or asks for one.
func (l *loop) sendPing(now instant, w *ping, token [pingBody]byte) bool {
	k := l.links[w.key]
	if k == nil {
		return false
	}
	l.wake(k.peer)
	if k.peer.tx.Load() == nil {
		k.connect(now)
		k.advance(now)
		return false
	}
	w.sent = now.boot
	l.pings[token] = w
	k.item(itemPing, token[:])
	k.txPackets.Add(1) // user data, as far as keeping the path is concerned
	return true
}

// pong finishes a ping.
func (l *loop) pong(now instant, e event) {
	if len(e.body) != pingBody {
		return
	}
	token := [pingBody]byte(e.body)
	w := l.pings[token]
	if w == nil || w.key != e.entry.peer.key {
		return
	}
	delete(l.pings, token)
	p := Pong{Seq: w.seq, RTTMillis: millis(now.boot - w.sent), Path: "direct", Endpoint: e.path.Remote.String()}
	if e.path.Relayed() {
		p.Path = "relay"
	}
	w.done <- p
}

// listeningSockets names what a grant of all ports exposes: the sockets of this
// machine that listen on an address that the overlay reaches.
func listeningSockets() []string {
	list := listening()
	sort.Strings(list)
	return list
}

// joinHostPort is how a socket is shown.
func joinHostPort(a netip.AddrPort) string {
	return net.JoinHostPort(a.Addr().String(), fmt.Sprint(a.Port()))
}
