package natt

import (
	"fmt"
	"strings"
	"time"
)

// A Reason says why data does not go straight to the peer. The set is closed; its words (String) are for programs and
// do not change.
type Reason uint8

const (
	Direct           Reason = iota // it does
	NoSession                      // nobody has answered a handshake
	NoAddresses                    // one side knows no address of its own, or has not said so yet
	NoUDPHere                      // UDP is blocked on our side
	NoUDPThere                     // UDP is blocked on the peer's side
	Unusable                       // all of the peer's addresses are private to other networks, or not allowed
	OneFamily                      // IPv4 here and IPv6 there, or the other way round
	BothHard                       // both NATs give every flow a port that nobody can know
	HardHere                       // ours does, and the peer has not found one of our ports yet
	HardThere                      // the peer's does, and we have not found one of its ports yet
	NotAttested                    // one is hard, and no server says where it saw the peer
	Trying                         // the first attempts are under way
	NotTried                       // they will be when there is traffic
	Filtered                       // nothing answers: something on the way lets no UDP in
	StoppedAnswering               // there was a direct path, and it died
	Lossy                          // the direct path loses packets that the relay does not lose
)

var reasonWords = [...]string{
	"direct", "no-session", "no-addresses", "no-udp-here", "no-udp-there", "unusable-addresses", "one-family", "both-hard",
	"hard-here", "hard-there", "not-attested", "trying", "not-tried", "filtered", "stopped-answering", "lossy",
}

// Reasons lists all reasons.
func Reasons() []Reason {
	list := make([]Reason, len(reasonWords))
	for i := range list {
		list[i] = Reason(i)
	}
	return list
}

func (r Reason) String() string {
	if int(r) < len(reasonWords) {
		return reasonWords[r]
	}
	return fmt.Sprintf("reason %d", uint8(r))
}

// attempts is what was tried at the peer's own addresses.
type attempts struct {
	listed, probing, sent, tried, full int
	fell                               time.Time // the last time that a direct path died
}

func (a *Agent) attempts() (n attempts) {
	for _, r := range a.routes {
		if r.path.Relayed() {
			continue
		}
		if r.fell.After(n.fell) {
			n.fell = r.fell
		}
		if !r.listed {
			continue
		}
		n.listed++
		spent := r.spent.total(a.now)
		n.sent += spent
		if spent > 0 {
			n.tried++
		}
		if r.probes.running() {
			n.probing++
		}
		if !a.affords(r) {
			n.full++
		}
	}
	return n
}

// recently is how long the death of a direct path is remembered as a reason.
const recently = 10 * time.Minute

// reason finds the first reason that holds.
func (a *Agent) reason(n attempts) Reason {
	switch {
	case a.direct():
		return Direct
	case !a.connected:
		return NoSession
	case a.shunned() != nil:
		return Lossy
	case a.traits.Blocked:
		return NoUDPHere
	case a.theirs.Blocked:
		return NoUDPThere
	case len(a.remote) == 0:
		return NoAddresses
	case n.listed == 0:
		return Unusable
	case a.oneFamily() != "":
		return OneFamily
	}
	if r, _ := a.hardReason(); r != Direct {
		return r
	}
	switch {
	case !n.fell.IsZero() && a.now.Sub(n.fell) < recently:
		return StoppedAnswering
	case n.probing > 0:
		return Trying
	case n.tried > 0:
		return Filtered
	}
	return NotTried
}

// whyNotDirect is the reason in words, with what is known beyond it.
func (a *Agent) whyNotDirect(r Reason, n attempts) string {
	var why []string
	switch r {
	case Direct:
		return ""
	case NoSession:
		return "no session with the peer yet"
	case Lossy:
		s := a.shunned()
		return fmt.Sprintf("the direct path loses more packets than the relay (%.0f %% of its challenges); looked at again in %s",
			100*s.loss.share(), max(s.again.Sub(a.now), 0).Round(time.Second))
	case NoUDPHere:
		return "UDP is blocked here, or passes to the ports of the web only"
	case NoUDPThere:
		return "UDP is blocked where the peer is, or passes to the ports of the web only"
	case NoAddresses:
		why = append(why, "the peer has sent no addresses yet")
		if len(a.local) == 0 {
			why[0] = "neither side knows an address of its own yet"
		}
	case Unusable:
		why = append(why, fmt.Sprintf("none of the peer's %s can be tried from here (private to another network, or not allowed)",
			plural(len(a.remote), "address", "addresses")))
	case OneFamily:
		why = append(why, a.oneFamily())
	case BothHard, HardHere, HardThere, NotAttested:
		_, text := a.hardReason()
		why = append(why, text)
	default:
		switch {
		case n.probing > 0:
			why = append(why, "trying "+plural(n.listed, "address", "addresses")+" now")
		case n.tried > 0:
			why = append(why, fmt.Sprintf("no answer to %s at %s: a NAT or firewall on the way lets no UDP in",
				plural(n.sent, "probe", "probes"), plural(n.tried, "address", "addresses")))
		default:
			why = append(why, plural(n.listed, "address", "addresses")+" not tried yet")
		}
	}
	if !n.fell.IsZero() && a.now.Sub(n.fell) < recently {
		why = append(why, fmt.Sprintf("the direct path stopped answering %s ago", a.now.Sub(n.fell).Round(time.Second)))
	}
	switch next := a.roundAt(); {
	case n.listed > 0 && n.full == n.listed:
		why = append(why, "the limit of probes is reached, more follow later")
	case n.probing > 0:
	case !a.flowing():
		why = append(why, "tried again when there is traffic")
	case next.After(a.now):
		why = append(why, fmt.Sprintf("tried again in %s", next.Sub(a.now).Round(time.Second)))
	}
	return strings.Join(why, "; ")
}

// hardReason says what hard NATs there are and what became of the search; Direct if there are none.
func (a *Agent) hardReason() (Reason, string) {
	var why string
	var r Reason
	switch {
	case a.traits.counting() && a.theirs.counting():
		r, why = BothHard, "both NATs are hard, but count their ports"
	case a.traits.Hard() && a.theirs.Hard():
		return BothHard, fmt.Sprintf("both NATs are hard (ours maps by %s, the peer's by %s): ask for a port mapping or IPv6",
			a.traits.Mapping, a.theirs.Mapping)
	case a.traits.Hard():
		r, why = HardHere, fmt.Sprintf("our NAT is hard (it maps by %s)", a.traits.Mapping)
	case a.theirs.Hard():
		r, why = HardThere, fmt.Sprintf("the peer's NAT is hard (it maps by %s)", a.theirs.Mapping)
	default:
		return Direct, ""
	}
	n, _ := a.spentRuns()
	_, known := a.peerSeen()
	switch {
	case a.runs.phase == runSearch:
		return r, why + fmt.Sprintf(": searching its ports, %d of %d tried", len(a.runs.tried), maxProbes)
	case r == BothHard && a.runs.phase != runIdle:
		return r, why + ": both sides aim at what will come next"
	case a.runs.phase != runIdle:
		return r, why + ": the peer searches our ports"
	case !known:
		return NotAttested, why + ", and no server says from where it sees the peer"
	case n > 0:
		return r, why + fmt.Sprintf(": %d of %d searches of these ten minutes found nothing", n, runsKept)
	case a.cfg.Gate.holder != nil:
		return r, why + ": waits for the search for another peer to end"
	}
	return r, why + ": its ports are searched when data has taken the relay for a moment"
}

// oneFamily says so if the two sides have addresses of different families only.
func (a *Agent) oneFamily() string {
	var ours, theirs [2]bool
	for _, c := range a.local {
		ours[family(c)] = true
	}
	for _, c := range a.remote {
		theirs[family(c)] = true
	}
	switch {
	case ours == [2]bool{true, false} && theirs == [2]bool{false, true}:
		return "we have only IPv4 addresses and the peer only IPv6"
	case ours == [2]bool{false, true} && theirs == [2]bool{true, false}:
		return "we have only IPv6 addresses and the peer only IPv4"
	}
	return ""
}

func family(c Candidate) int {
	if c.Addr.Addr().Is4() {
		return 0
	}
	return 1
}

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
