package natt

import (
	"crypto/rand"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/pilotnet/pilot/natt/stun"
)

// Behavior is how a NAT maps or filters, in the terms of RFC 4787.
type Behavior uint8

const (
	// BehaviorUnknown: not found out, for want of answers or of a server with two addresses.
	BehaviorUnknown Behavior = iota
	// BehaviorNone: no translation (mapping only).
	BehaviorNone
	// EndpointIndependent: the same for every remote address.
	EndpointIndependent
	// AddressDependent: depends on the remote IP address.
	AddressDependent
	// AddressAndPortDependent: depends on the remote address and port.
	AddressAndPortDependent
)

func (b Behavior) String() string {
	switch b {
	case BehaviorNone:
		return "none"
	case EndpointIndependent:
		return "endpoint-independent"
	case AddressDependent:
		return "address"
	case AddressAndPortDependent:
		return "address-and-port"
	}
	return "unknown"
}

// Facts is what a survey found out about the way to the Internet. Facts are hints: nobody is believed or refused for them.
type Facts struct {
	Mapping   Behavior
	Filtering Behavior
	// Step is the distance of the ports that a NAT gives to flows opened one after the other, 0 if it is the same port,
	// random or not known.
	Step int
	// Mapped is our address as the first server saw it.
	Mapped netip.AddrPort
	// UDP lists the server ports that answered over UDP, Blocked those that were asked and did not.
	UDP, Blocked []uint16
}

// Timing of a survey: it ends within SurveyTime.
const (
	SurveyTime   = 500 * time.Millisecond
	surveyRepeat = 60 * time.Millisecond
	surveyTries  = 3
	filterWait   = 250 * time.Millisecond
)

// A Survey finds out how the NATs before a fresh socket map, or how they filter (RFC 5780, sections 4.3 and 4.4). It is a
// pure machine. Each survey needs a socket of its own: what other traffic of a socket has opened would pass for a NAT that
// filters nothing, and what a filter turned away may change the mapping (Linux routers that answer stray packets).
type Survey struct {
	filter bool
	local  []netip.Addr

	queries []*surveyQuery
	began   time.Time
	phase   surveyPhase
	phased  time.Time
	other   netip.AddrPort // the other address of home
	home    netip.AddrPort // the target that told it
	rtt     time.Duration  // to home
	done    bool
}

type surveyPhase uint8

const (
	surveyAsk    surveyPhase = iota // who is there, and has another address?
	surveyFilter                    // answer from there
	surveyMap                       // what do you see there?
)

type surveyQuery struct {
	stun.Query
	to     netip.AddrPort
	next   time.Time
	tries  int
	mapped netip.AddrPort // zero: no answer
}

// A Datagram is what a machine wants to be sent.
type Datagram struct {
	To     netip.AddrPort
	Data   []byte
	Socket int // which of the machine's sockets sends it; 0 if it has one only
}

// NewMappingSurvey asks the given STUN servers what they see. local are the addresses of this host: a mapping to one of
// them is none.
func NewMappingSurvey(now time.Time, targets []netip.AddrPort, local []netip.Addr) *Survey {
	s := &Survey{local: local, began: now}
	for _, t := range targets {
		s.ask(now, t, stun.Query{})
	}
	return s
}

// NewFilteringSurvey asks the given STUN servers to answer from another address.
func NewFilteringSurvey(now time.Time, targets []netip.AddrPort) *Survey {
	s := NewMappingSurvey(now, targets, nil)
	s.filter = true
	return s
}

func (s *Survey) ask(now time.Time, to netip.AddrPort, q stun.Query) {
	for _, o := range s.queries {
		if o.to == to && o.ChangeIP == q.ChangeIP && o.ChangePort == q.ChangePort {
			return
		}
	}
	// crypto/rand never fails (it ends the process instead).
	_, _ = rand.Read(q.ID[:])
	s.queries = append(s.queries, &surveyQuery{Query: q, to: to, next: now})
}

// Advance returns what to send now.
func (s *Survey) Advance(now time.Time) []Datagram {
	s.step(now)
	var out []Datagram
	for _, q := range s.queries {
		if q.mapped.IsValid() || q.tries == surveyTries || now.Before(q.next) || s.done {
			continue
		}
		q.tries++
		q.next = now.Add(surveyRepeat)
		out = append(out, Datagram{To: q.to, Data: stun.AppendQuery(nil, q.Query)})
	}
	return out
}

// step moves to the next phase when the present one has had its time or its answers.
func (s *Survey) step(now time.Time) {
	if now.Sub(s.began) >= SurveyTime {
		s.done = true
	}
	if s.done {
		return
	}
	switch s.phase {
	case surveyAsk:
		switch {
		case s.other.IsValid() && s.filter:
			s.phase, s.phased = surveyFilter, now
			s.ask(now, s.home, stun.Query{ChangeIP: true, ChangePort: true})
			s.ask(now, s.home, stun.Query{ChangePort: true})
		case s.other.IsValid():
			s.phase, s.phased = surveyMap, now
			s.ask(now, netip.AddrPortFrom(s.home.Addr(), s.other.Port()), stun.Query{})
			s.ask(now, netip.AddrPortFrom(s.other.Addr(), s.home.Port()), stun.Query{})
			s.ask(now, s.other, stun.Query{})
		default:
			s.done = !s.pending()
		}
	case surveyFilter:
		s.done = s.find(s.home, true, true).mapped.IsValid() || now.Sub(s.phased) >= filterWait
	case surveyMap:
		s.done = !s.pending()
	}
}

// pending reports whether a question still may be answered.
func (s *Survey) pending() bool {
	for _, q := range s.queries {
		if !q.mapped.IsValid() && q.tries < surveyTries {
			return true
		}
	}
	return false
}

func (s *Survey) find(to netip.AddrPort, ip, port bool) *surveyQuery {
	for _, q := range s.queries {
		if q.to == to && q.ChangeIP == ip && q.ChangePort == port {
			return q
		}
	}
	return nil
}

// Next returns when Advance is to be called next.
func (s *Survey) Next() time.Time {
	next := s.began.Add(SurveyTime)
	if s.phase == surveyFilter {
		next = earliest(next, s.phased.Add(filterWait))
	}
	for _, q := range s.queries {
		if !q.mapped.IsValid() && q.tries < surveyTries {
			next = earliest(next, q.next)
		}
	}
	return next
}

func earliest(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// Receive takes an answer. What answers no question is ignored. An answer to a question that asked for another source
// is believed only from there.
func (s *Survey) Receive(now time.Time, from netip.AddrPort, b []byte) {
	r, err := stun.ParseReply(b)
	if err != nil {
		return
	}
	for _, q := range s.queries {
		if q.ID != r.ID || q.mapped.IsValid() {
			continue
		}
		want := q.to
		if q.ChangeIP {
			want = netip.AddrPortFrom(s.other.Addr(), want.Port())
		}
		if q.ChangePort {
			want = netip.AddrPortFrom(want.Addr(), s.other.Port())
		}
		if from != want {
			return
		}
		q.mapped = r.Mapped
		if !s.other.IsValid() && r.Other.IsValid() && !q.ChangeIP && !q.ChangePort &&
			r.Other.Addr() != q.to.Addr() && r.Other.Port() != q.to.Port() {
			s.home, s.other, s.rtt = q.to, r.Other, now.Sub(s.began)
		}
	}
	s.step(now)
}

// Done reports whether the survey has ended.
func (s *Survey) Done() bool { return s.done }

// Facts returns what is known: Filtering from a filtering survey, the rest from a mapping survey.
func (s *Survey) Facts() Facts {
	var f Facts
	var seen []*surveyQuery
	asked := map[uint16]bool{}
	for _, q := range s.queries {
		if q.ChangeIP || q.ChangePort {
			continue
		}
		asked[q.to.Port()] = asked[q.to.Port()] || q.mapped.IsValid()
		if q.mapped.IsValid() {
			seen = append(seen, q)
		}
	}
	for port, answered := range asked {
		if answered {
			f.UDP = append(f.UDP, port)
		} else {
			f.Blocked = append(f.Blocked, port)
		}
	}
	slices.Sort(f.UDP)
	slices.Sort(f.Blocked)
	if len(seen) == 0 {
		return f
	}
	f.Mapped = seen[0].mapped
	if !s.filter {
		f.Mapping = s.mapping(seen)
		f.Step = portStep(f.Mapping, seen)
		return f
	}
	if s.phase == surveyFilter && s.rtt+surveyRepeat < filterWait {
		f.Filtering = AddressAndPortDependent
		if s.find(s.home, false, true).mapped.IsValid() {
			f.Filtering = AddressDependent
		}
		if s.find(s.home, true, true).mapped.IsValid() {
			f.Filtering = EndpointIndependent
		}
	}
	return f
}

// mapping compares what servers at different addresses and ports saw.
func (s *Survey) mapping(seen []*surveyQuery) Behavior {
	if slices.Contains(s.local, seen[0].mapped.Addr()) {
		return BehaviorNone
	}
	samePort, sameIP, compared := true, true, false
	for i, a := range seen {
		for _, b := range seen[i+1:] {
			same := a.mapped == b.mapped
			if a.to.Addr() == b.to.Addr() {
				samePort = samePort && same
			} else {
				compared = true
				sameIP = sameIP && same
			}
		}
	}
	switch {
	case !samePort:
		return AddressAndPortDependent
	case !compared:
		return BehaviorUnknown
	case !sameIP:
		return AddressDependent
	}
	return EndpointIndependent
}

// portStep is the distance of mapped ports in the order in which flows were opened, if it is small and steady.
func portStep(m Behavior, seen []*surveyQuery) int {
	if m != AddressAndPortDependent || len(seen) < 3 {
		return 0
	}
	step := 0
	for i, q := range seen[1:] {
		d := int(q.mapped.Port()) - int(seen[i].mapped.Port())
		if d == 0 || d > 16 || d < -16 || step != 0 && d != step {
			return 0
		}
		step = d
	}
	return step
}

// Hard reports whether a peer cannot know beforehand which port our packets to it will come from.
func (f Facts) Hard() bool {
	return f.Mapping == AddressDependent || f.Mapping == AddressAndPortDependent
}

func (f Facts) String() string {
	if len(f.UDP) == 0 {
		return "no UDP"
	}
	return fmt.Sprintf("mapping %s, filtering %s", f.Mapping, f.Filtering)
}
