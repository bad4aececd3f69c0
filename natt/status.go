package natt

import (
	"fmt"
	"strings"
	"time"
)

// PathStatus is what a user may want to know about the paths to a peer.
type PathStatus struct {
	Path   Path          // in use; zero if none ever was
	Also   Path          // gets a copy at present; zero if none
	Lost   bool          // nothing answers
	RTT    time.Duration // smoothed; 0 if not known
	Budget int           // size of the largest outer packet known to pass
	Since  time.Time     // when Path was taken
	// WhyNotDirect says in words why data takes a relay or nothing; empty if it goes straight to the peer.
	WhyNotDirect string
	Paths        []PathInfo // all known ones, the one in use first
}

// PathInfo is what is known about one path.
type PathInfo struct {
	Path       Path
	Validated  bool          // a handshake ran over it or a challenge of ours was answered, and nothing since says it is dead
	Listed     bool          // the peer names this address
	RTT        time.Duration // smoothed; 0 if not known
	Budget     int
	Confirmed  time.Time // last answer; zero if there was none
	Unanswered int       // challenges of the last ten minutes without an answer
}

// Status describes the agent as it is since the last call of another method.
func (a *Agent) Status() PathStatus {
	s := PathStatus{WhyNotDirect: a.whyNotDirect()}
	r := a.use.route
	if r != nil {
		s.Path, s.RTT, s.Budget, s.Since = r.path, r.rtt.smooth, r.budget.size, a.use.since
		s.Lost = !r.validated
		if o := a.also(); o != nil {
			s.Also = o.path
			s.Budget = min(s.Budget, o.budget.size)
		}
		s.Paths = append(s.Paths, a.info(r))
	}
	for _, o := range a.routes {
		if o != r {
			s.Paths = append(s.Paths, a.info(o))
		}
	}
	return s
}

func (a *Agent) info(r *route) PathInfo {
	return PathInfo{
		Path: r.path, Validated: r.validated, Listed: r.listed, RTT: r.rtt.smooth, Budget: r.budget.size,
		Confirmed: r.confirmed, Unanswered: r.spent.total(a.now),
	}
}

// whyNotDirect finds the first reason that holds.
func (a *Agent) whyNotDirect() string {
	if a.direct() {
		return ""
	}
	var listed, probing, sent, tried, full int
	var fell time.Time
	for _, r := range a.routes {
		if r.path.Relayed() {
			continue
		}
		if r.fell.After(fell) {
			fell = r.fell
		}
		if !r.listed {
			continue
		}
		listed++
		n := r.spent.total(a.now)
		sent += n
		if n > 0 {
			tried++
		}
		if r.probes.running() {
			probing++
		}
		if !a.allowed(r) {
			full++
		}
	}
	var why []string
	switch {
	case !a.connected:
		return "no session with the peer yet"
	case len(a.remote) == 0 && len(a.local) == 0:
		why = append(why, "neither side knows an address of its own yet")
	case len(a.remote) == 0:
		why = append(why, "the peer has sent no addresses yet")
	case listed == 0:
		why = append(why, fmt.Sprintf("none of the peer's %s can be tried from here (private to another network, or not allowed)",
			plural(len(a.remote), "address", "addresses")))
	case a.oneFamily() != "":
		why = append(why, a.oneFamily())
	case a.hardReason() != "":
		why = append(why, a.hardReason())
	case probing > 0:
		why = append(why, "trying "+plural(listed, "address", "addresses")+" now")
	case tried > 0:
		why = append(why, fmt.Sprintf("no answer to %s at %s: a NAT or firewall on the way lets no UDP in",
			plural(sent, "probe", "probes"), plural(tried, "address", "addresses")))
	default:
		why = append(why, plural(listed, "address", "addresses")+" not tried yet")
	}
	if !fell.IsZero() && a.now.Sub(fell) < 10*time.Minute {
		why = append(why, fmt.Sprintf("the direct path stopped answering %s ago", a.now.Sub(fell).Round(time.Second)))
	}
	switch next := a.roundAt(); {
	case listed > 0 && full == listed:
		why = append(why, "the limit of probes is reached, more follow within ten minutes")
	case probing > 0:
	case !a.flowing():
		why = append(why, "tried again when there is traffic")
	case next.After(a.now):
		why = append(why, fmt.Sprintf("tried again in %s", next.Sub(a.now).Round(time.Second)))
	}
	return strings.Join(why, "; ")
}

// hardReason says what hard NATs there are and what became of the search.
func (a *Agent) hardReason() string {
	var why string
	switch {
	case a.traits.Hard() && a.theirs.Hard():
		return fmt.Sprintf("both NATs are hard (ours maps by %s, the peer's by %s): ask for a port mapping or IPv6", a.traits.Mapping, a.theirs.Mapping)
	case a.traits.Hard():
		why = fmt.Sprintf("our NAT is hard (it maps by %s)", a.traits.Mapping)
	case a.theirs.Hard():
		why = fmt.Sprintf("the peer's NAT is hard (it maps by %s)", a.theirs.Mapping)
	default:
		return ""
	}
	n, _ := a.spentRuns()
	_, known := a.peerSeen()
	switch {
	case a.runs.phase == runSearch:
		return why + fmt.Sprintf(": searching its ports, %d of %d tried", len(a.runs.tried), maxProbes)
	case a.runs.phase != runIdle:
		return why + ": the peer searches our ports"
	case !known:
		return why + ", and no server told the peer its public address"
	case n > 0:
		return why + fmt.Sprintf(": %d of %d searches of these ten minutes found nothing", n, runsKept)
	case a.cfg.Gate.holder != nil:
		return why + ": waits for the search for another peer to end"
	}
	return why + ": its ports are searched when data has taken the relay for a moment"
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
