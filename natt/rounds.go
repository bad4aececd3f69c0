package natt

import "time"

const (
	tellAgain  = 200 * time.Millisecond // a list that may have been lost is repeated
	sameRound  = 500 * time.Millisecond // a list that comes so soon after ours, or in two round trips, belongs to it
	followWait = 250 * time.Millisecond // the side that does not control leaves the start of a round to the other
)

// roundPauses is the time between attempts to become direct while traffic takes a relay.
var roundPauses = [...]time.Duration{time.Second, 5 * time.Second, 30 * time.Second, 70 * time.Second}

// rounds are the attempts to find a direct path together with the peer.
type rounds struct {
	told      bool // the peer was sent our list as it is
	sent      bool // and some list before
	sentAt    time.Time
	start     bool // a round is to start now
	heardPeer bool // a challenge came from one of the peer's own addresses since our list left
	next      int  // pause after the next round
	began     time.Time
	at        time.Time // the next round; zero: none
	again     time.Time // our list is repeated; zero: it is not
}

// count notes that a round begins and plans the next.
func (a *Agent) count() {
	o := &a.rounds
	o.began = a.now
	a.askAgain()
	o.at = a.now.Add(roundPauses[o.next])
	if !a.cfg.Controlling {
		o.at = o.at.Add(followWait)
	}
	o.next = min(o.next+1, len(roundPauses)-1)
}

// follow notes a round that the peer began. It reports false if the peer's list belongs to the round that runs already.
func (a *Agent) follow() bool {
	same := sameRound
	if r := a.use.route; r != nil {
		same = max(same, 2*r.rtt.smooth)
	}
	if !a.rounds.at.IsZero() && a.now.Sub(a.rounds.began) < same {
		return false
	}
	a.count()
	return true
}

// tell sends the peer our list.
func (a *Agent) tell() {
	o := &a.rounds
	o.told = true
	if len(a.local) == 0 && !o.sent {
		return
	}
	o.sent = true
	o.heardPeer = false
	o.again = a.now.Add(tellAgain)
	a.sendList()
}

func (a *Agent) sendList() {
	if r := a.use.route; r != nil {
		a.rounds.sentAt = a.now
		a.actions = append(a.actions, Action{
			Kind: ActCandidates, Path: r.path, Candidates: a.local, Traits: a.traits, Pool: a.runs.pool,
		})
	}
}

// roundAt is when the next round starts by itself; zero for never.
func (a *Agent) roundAt() time.Time {
	o := &a.rounds
	if o.at.IsZero() || a.direct() || !a.flowing() || o.at.After(a.traffic.Add(flowFor)) {
		return time.Time{}
	}
	return o.at
}

// round starts a round if one is due.
func (a *Agent) round() {
	o := &a.rounds
	if t := a.roundAt(); !t.IsZero() && !t.After(a.now) {
		o.start = true
	}
	if o.start && a.connected && !a.asleep() {
		o.start = false
		a.count()
		a.tell()
		if !a.direct() {
			a.burst(a.relayRTT()+goMargin, func(r *route) bool { return r.listed || a.recent(r) })
		}
	}
	if !o.again.IsZero() && !o.again.After(a.now) {
		o.again = time.Time{}
		if !o.heardPeer && !a.direct() {
			a.sendList()
		}
	}
}
