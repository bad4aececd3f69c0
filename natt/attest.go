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
	attestAgain = 2 // questions in later rounds
	attestRenew = 4
	attestPause = 3 * time.Second // at least, before them, and four times as long each time
	attestMost  = time.Minute
	attestFor   = 10 * time.Minute // an answer is good for so long
)

// An attestation is what the server of a relay's path says about the peer's address.
type attestation struct {
	addr  netip.AddrPort // zero: nothing
	at    time.Time
	asked int
	renew int           // questions although there is an answer: our own address is another one, which the peer has to learn
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
		c := UsableCandidates([]Candidate{{Observed, r.attest.addr}}, a.links, a.cfg.Exclude)
		if len(c) == 1 && !c[0].Addr.Addr().IsPrivate() && a.listsIP(c[0].Addr.Addr()) {
			return r.attest.addr, true
		}
	}
	return netip.AddrPort{}, false
}

// listsIP reports whether the peer's list has an IP address, or no public one of its family at all. One that a server saw
// and the peer does not list is where the peer was before.
func (a *Agent) listsIP(ip netip.Addr) bool {
	others := false
	for _, c := range UsableCandidates(a.remote, a.links, a.cfg.Exclude) {
		if c.Addr.Addr() == ip {
			return true
		}
		others = others || c.Addr.Addr().Is4() == ip.Is4() && !c.Addr.Addr().IsPrivate()
	}
	return !others
}

// attestAt is when a server is to be asked; zero for never.
func (a *Agent) attestAt(r *route) time.Time {
	if !r.path.Relayed() || !r.validated || !a.searchable() || a.direct() || !a.flowing() || a.attestedBy(r) && r.attest.renew == 0 {
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
		r.attest.renew = max(r.attest.renew-1, 0)
		a.actions = append(a.actions, Action{Kind: ActAttest, Path: r.path})
	}
}

// doubtAttested forgets what servers said if the peer's new list does not have it: the peer has moved.
func (a *Agent) doubtAttested() {
	for _, r := range a.routes {
		ip := r.attest.addr.Addr()
		if ip.IsValid() && !slices.ContainsFunc(a.remote, func(c Candidate) bool { return c.Addr.Addr() == ip }) {
			r.attest = attestation{}
		}
	}
}

// renewAttested has the servers asked although they have answered: we have moved, and the peer has to learn it.
func (a *Agent) renewAttested() {
	for _, r := range a.routes {
		if t := &r.attest; r.path.Relayed() {
			t.asked, t.next, t.pause, t.renew = 0, time.Time{}, 0, attestRenew
		}
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
