package natt

import (
	"net/netip"
	"time"
)

// Fresh sockets: how a path is found again that a NAT has got wrong.
//
// A router that forgets its flows while the peer goes on sending may take the peer's packets for its own and give our flow
// another port, which the peer's NAT does not let in; what either side sends keeps it so. A provider's NAT may lose one flow
// for good. Both are healed by another local port only. So when a path that worked has died and the burst that follows
// is not answered, a socket is opened, a server says which port it has got, and the peer, which is told this port in
// the offer, is met as in the first burst. NATs that nobody can predict need a search instead.
const (
	freshAfter = 700 * time.Millisecond // without an answer to the burst
	freshUntil = 30 * time.Second       // after the death
	freshKept  = 3                      // in ten minutes
)

// died notes that the direct path in use is dead.
func (a *Agent) died(p Path) {
	if !p.Relayed() {
		a.runs.dead, a.runs.diedAt = p.Remote, a.now
	}
}

// freshAt is when a fresh socket is tried; zero for never.
func (a *Agent) freshAt() time.Time {
	o := &a.runs
	if o.phase != runIdle || !o.dead.IsValid() || a.direct() || !a.connected || !a.flowing() || a.shunned() != nil ||
		a.traits.Hard() || a.theirs.Hard() || a.traits.Mapping == BehaviorNone || a.cfg.Gate.holder != nil ||
		a.now.Sub(o.diedAt) > freshUntil || o.fresh.total(a.now) >= freshKept {
		return time.Time{}
	}
	return o.diedAt.Add(max(freshAfter, 2*a.relayRTT()))
}

// startFresh asks for a socket if one is due.
func (a *Agent) startFresh() {
	o := &a.runs
	if t := a.freshAt(); t.IsZero() || t.After(a.now) {
		return
	}
	a.cfg.Gate.holder = a
	o.fresh.add(a.now)
	o.phase, o.hit = runOpening, time.Time{}
	o.target, o.until, o.next = o.dead, a.now.Add(poolWait), time.Time{}
	o.dead, o.alone = netip.AddrPort{}, true
	a.actions = append(a.actions, Action{Kind: ActPool, Path: Path{Remote: o.target}, Pool: Pool{Sockets: 1}, Count: true})
}

// freshPort takes the port of a socket that the peer has opened for us.
func (a *Agent) freshPort(p Pool) {
	if p.Base == 0 || a.theirs.Hard() || a.traits.Hard() || a.direct() || !a.connected {
		return
	}
	for _, c := range UsableCandidates(a.remote, a.links, a.cfg.Exclude) {
		if c.Kind != Observed {
			continue
		}
		path := Path{Remote: netip.AddrPortFrom(c.Addr.Addr(), p.Base)}
		r := a.find(path)
		if r == nil {
			r = a.add(path)
		}
		if r != nil && !r.probes.running() && !r.validated && a.mayBurst(r) {
			r.probes.begin(a.now, 0) // the peer's NAT is open already
		}
	}
}
