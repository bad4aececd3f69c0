package natt

import (
	"net/netip"
	"time"
)

// Openers are packets that die on the way. A NAT that has seen one lets the peer's packets in, and the peer's NAT has
// seen none of ours yet: a router that answers packets which nobody asked for would otherwise take the flow for its own
// and give it another port when the peer sends (Docker and libvirt hosts, plain Linux routers). The first has to pass
// the NATs of a home, the second those of a carrier as well.
var openerTTL = [...]int{3, 5}

// OpenerTTL returns the times to live of the openers, in their order.
func OpenerTTL() []int { return openerTTL[:] }

const (
	openerPause = 5 * time.Millisecond  // between the openers of a route
	goMargin    = 20 * time.Millisecond // for what the relay's round trip varies
	guessedRTT  = 100 * time.Millisecond
	guessedMost = time.Second // a handshake may have been lost in between
)

// relayRTT is the round trip by which lists travel, guessed if need be.
func (a *Agent) relayRTT() time.Duration {
	switch r := a.use.route; {
	case r == nil:
	case r.rtt.known():
		return r.rtt.smooth
	case r.guess > 0:
		return min(r.guess, guessedMost)
	}
	return guessedRTT
}

// goAfter is how long after the peer's list the burst starts: when the peer, which gets ours half a round trip after we
// send it, has sent its openers. If the list is the answer to ours it has done so already, and if the peer's NAT lets
// everybody in there is nothing to wait for: then our challenges open our own NAT, without openers.
func (a *Agent) goAfter() time.Duration {
	rtt := a.relayRTT()
	if since := a.now.Sub(a.rounds.sentAt); a.rounds.sent && since >= rtt*3/4 && since <= 3*rtt+goMargin {
		return 0
	}
	if a.theirs.Filtering == EndpointIndependent {
		return 0
	}
	return rtt/2 + goMargin
}

// translated reports whether a NAT may stand before an address.
func translated(p netip.AddrPort) bool { return !p.Addr().IsPrivate() && !p.Addr().IsLoopback() }

// open sends the next opener of a burst.
func (a *Agent) open(r *route) {
	ttl := openerTTL[r.probes.opened]
	r.probes.opened++
	if len(a.actions) >= maxActions || !a.spend(r) {
		return
	}
	r.spent.add(a.now)
	a.actions = append(a.actions, Action{Kind: ActPunch, Path: r.path, TTL: ttl})
}
