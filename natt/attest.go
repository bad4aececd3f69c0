package natt

import (
	"net/netip"
	"slices"
	"time"
)

// attestWaits is the time between questions to one server where it sees the peer, which has to ask too.
var attestWaits = [...]time.Duration{
	50 * time.Millisecond, 100 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond,
	800 * time.Millisecond, 1600 * time.Millisecond,
}

const (
	attestAgain = 2               // questions in later rounds
	attestPause = 3 * time.Second // at least, before them, and four times as long each time
	attestMost  = time.Minute
	attestFor   = 10 * time.Minute // an answer is good for so long
)

// An attestation is what the server of a relay's path says about the peer's address.
type attestation struct {
	addr  netip.AddrPort // zero: nothing
	at    time.Time
	asked int
	next  time.Time     // question
	pause time.Duration // after the last one, until a new round has the server asked again
}

// Attested tells the agent at which address a server sees the peer: the server at which the relay's path p begins. The
// owner must have it from the server itself, which must have made sure that the peer reads there.
func (a *Agent) Attested(now time.Time, p Path, addr netip.AddrPort) {
	a.at(now)
	if r := a.find(p); r != nil && p.Relayed() && addr.IsValid() {
		r.attest.addr, r.attest.at = addr, a.now
	}
}

// attested reports whether a server sees the peer at an IP address.
func (a *Agent) attested(ip netip.Addr) bool {
	return slices.ContainsFunc(a.routes, func(r *route) bool { return a.attestedBy(r) && r.attest.addr.Addr() == ip })
}

func (a *Agent) attestedBy(r *route) bool {
	return r.attest.addr.IsValid() && a.now.Sub(r.attest.at) < attestFor
}

// peerSeen is the address from which a server sees the peer, a public one: the only one that is searched, or for which
// sockets are opened.
func (a *Agent) peerSeen() (netip.AddrPort, bool) {
	for _, r := range a.routes {
		if !a.attestedBy(r) {
			continue
		}
		if c := UsableCandidates([]Candidate{{Observed, r.attest.addr}}, a.links, a.cfg.Exclude); len(c) == 1 && !c[0].Addr.Addr().IsPrivate() {
			return r.attest.addr, true
		}
	}
	return netip.AddrPort{}, false
}

// attestAt is when a server is to be asked; zero for never.
func (a *Agent) attestAt(r *route) time.Time {
	if !r.path.Relayed() || !r.validated || !a.searchable() || a.direct() || !a.flowing() || a.attestedBy(r) {
		return time.Time{}
	}
	if r.attest.next.IsZero() {
		return a.now
	}
	if r.attest.asked >= len(attestWaits) {
		return time.Time{}
	}
	return r.attest.next
}

// askServers asks the servers that are due.
func (a *Agent) askServers() {
	for _, r := range a.routes {
		if t := a.attestAt(r); t.IsZero() || t.After(a.now) || len(a.actions) >= maxActions {
			continue
		}
		r.attest.next = a.now.Add(attestWaits[min(r.attest.asked, len(attestWaits)-1)])
		r.attest.asked++
		a.actions = append(a.actions, Action{Kind: ActAttest, Path: r.path})
	}
}

// askAgain has the servers asked once more in a new round.
func (a *Agent) askAgain() {
	for _, r := range a.routes {
		t := &r.attest
		if t.asked < len(attestWaits) || a.now.Sub(t.next) < t.pause {
			continue
		}
		t.asked = len(attestWaits) - attestAgain
		t.pause = min(max(4*t.pause, attestPause), attestMost)
	}
}
