package natt

import "time"

// PathStatus is what a user may want to know about the paths to a peer.
type PathStatus struct {
	Path   Path          // in use; zero if none ever was
	Also   Path          // gets a copy at present; zero if none
	Lost   bool          // nothing answers
	RTT    time.Duration // smoothed; 0 if not known
	Budget int           // size of the largest outer packet known to pass
	Since  time.Time     // when Path was taken
	// Loss is the share of small challenges over Path that were not answered in time, 0 to 1, of the last 64.
	Loss float64
	// Changed is when data last moved from one path to another; zero: never.
	Changed time.Time
	// Gap is the longest time without anything authenticated from the peer in the 5 s before and after Changed, while
	// data flowed. It is known to within ActiveEvery; silences shorter than this are 0.
	Gap time.Duration
	// Reason says why data takes a relay or nothing.
	Reason Reason
	// WhyNotDirect is Reason in words, with what is known beyond it; empty if data goes straight to the peer.
	WhyNotDirect string
	Paths        []PathInfo // all known ones, the one in use first
}

// PathInfo is what is known about one path.
type PathInfo struct {
	Path       Path
	Validated  bool          // a handshake ran over it or a challenge of ours was answered, and nothing since says it is dead
	Listed     bool          // the peer names this address
	RTT        time.Duration // smoothed; 0 if not known
	Loss       float64       // share of small challenges not answered in time, 0 to 1
	Budget     int
	Confirmed  time.Time // last answer; zero if there was none
	Unanswered int       // challenges of the last ten minutes without an answer
}

// Status describes the agent as it is since the last call of another method.
func (a *Agent) Status() PathStatus {
	n := a.attempts()
	s := PathStatus{Reason: a.reason(n), Changed: a.silence.changed, Gap: a.silence.gap}
	s.WhyNotDirect = a.whyNotDirect(s.Reason, n)
	r := a.use.route
	if r != nil {
		s.Path, s.RTT, s.Budget, s.Since = r.path, r.rtt.smooth, r.budget.size, a.use.since
		s.Lost = !r.validated
		s.Loss = r.loss.share()
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
		Path: r.path, Validated: r.validated, Listed: r.listed, RTT: r.rtt.smooth, Loss: r.loss.share(), Budget: r.budget.size,
		Confirmed: r.confirmed, Unanswered: r.spent.total(a.now),
	}
}
