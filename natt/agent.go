package natt

// The Agent: how one peer is reached.
//
// An Agent is the part of a peer's state that knows paths. It is a pure machine: it has no goroutine, no clock and no
// socket, and never sees a packet. Its owner (one goroutine) tells it what happened and when; the agent answers, from
// Advance, with what to do now, and from Next with when it wants to be asked again. After every call of any method the
// owner calls Advance and looks at Next.
//
// # Paths
//
// A path is an address (direct) or a channel through a relay. The session is one for all paths and so is its replay
// window; a packet may travel on two paths at once and is delivered once. The agent uses a path for sending only after
// a handshake ran over it (Connected) or after it answered a challenge of ours: 8 random bytes sent over this path and
// returned over this path. What the peer claims about an address is never enough.
//
//	            Connected / own challenge answered
//	  known ------------------------------------------> validated ---> in use
//	    ^                                                    |            |
//	    +----------------------------------------------------+------------+
//	            three challenges in a row without an answer
//
// A direct path is better than a relay's, unless it loses more (loss.go). Among paths of one class the smoothed round trip
// of the challenges decides; a new one must be better by 10 % and by 3 ms. Between equals the side that does not control
// follows the other.
//
// # From relay to direct
//
// When the first path is connected, ActCandidates sends our addresses to the peer, inside the session. Whoever receives
// a list answers with its own (unless it has done so), sends to every public address of it two packets that open our NATs
// but die before the peer's (opener.go), and challenges every address at 0, 20, 60, 140 and 300 ms, counted from when the
// peer must have opened its NATs too. Both sides therefore send at nearly the same time, into NATs that are open. A challenge from an
// address that we did not know (the peer behind a NAT that picks ports) is answered there and challenged in turn. When
// a direct path has answered, ActUse names it together with the old one, for one round trip (20 ms to 500 ms), and
// then alone: nothing is lost, and reordering lasts no longer than the round trips differ.
//
// While traffic has to take the relay, the exchange is repeated 1, 5 and 30 s later and then every 70 s.
//
// # Limits
//
// The address that a peer names may be somebody else's. What may be sent there is in account.go: 20 packets at first, to 16
// addresses, and no attempt within a minute of one that failed. Lists are cut at 16; at most 32 addresses are remembered.
// Loopback, link-local, multicast, broadcast and unspecified addresses, those of the overlay itself and private ones that
// are on none of our links are never challenged on a peer's word. A path that worked and died gets 40 challenges in ten
// minutes.
//
// # Hard NATs
//
// See run.go, attest.go for the address that is searched, and fresh.go for NATs that have got a flow wrong.
//
// # Failure
//
// Traffic, not a timer, finds a dead path. If we sent and heard nothing over the path in use for half of
// max(3 RTT, 250 ms) it is challenged; without an answer at the end of this time a relay gets a copy of everything
// (Also) while two more challenges are sent; if these are lost too the path is dropped and the probing starts again.
// A path that dies repeatedly is taken back only after a growing pause, unless nothing else works. If the peer sends or
// challenges over another path than ours, ours is challenged too (at most four times a second): this finds a cut in one direction,
// and a NAT that gave the peer another address. If no path is left, ActLost says so.
//
// # Cost
//
// While user data flows, the path in use is challenged every second, and the other good ones every 20 s. After the data
// ends a direct path is kept open with one challenge in 20 s, for 3 minutes; then the peer costs nothing. What is sent
// first after such a silence goes on the direct path and on a relay, until the direct path has answered again.
//
// # Budget
//
// The budget of a path is the size of the largest outer IP packet that is known to pass. 1200 bytes are taken for
// granted; for the path in use challenges padded to 1372, 1452 and 1500 bytes find out more. If 1500 pass, the path is
// direct and a link of ours takes more (LinkMTU), 3900, 8896 and 9000 bytes are tried too, and what the link takes. Relays
// carry no more than 1500. Every 5 s under traffic, and whenever the path is in doubt, one challenge of full size goes
// with the small one: if the small one is answered and the big one is not within two round trips, the budget is 1200
// again and is searched anew. What never came back is tried again after 10 minutes.
//
// Sources: RFC 8445 (candidates, triggered checks, peer-reflexive addresses), RFC 9000 section 8.2 (path validation),
// RFC 8899 (packetization layer path MTU discovery), RFC 6298 (round trip estimate).

import (
	"crypto/rand"
	"io"
	"net/netip"
	"slices"
	"time"
)

// ActionKind says what an Action asks for.
type ActionKind uint8

const (
	// ActChallenge: send a path challenge with Token over Path, in a frame whose outer IP packet has Size bytes
	// (0: as small as it is).
	ActChallenge ActionKind = iota + 1
	// ActResponse: return Token over Path, in a small frame.
	ActResponse
	// ActCandidates: send Candidates, Traits and Pool to the peer in the session, the way data goes.
	ActCandidates
	// ActUse: from now on data goes over Path, and a copy over Also unless it is zero; no frame larger than Budget.
	ActUse
	// ActPunch: send a packet to Path that opens our NAT but does not arrive: its time to live is TTL. Owners that cannot
	// do that do nothing.
	ActPunch
	// ActPool: open Pool.Sockets sockets, let each send openers (the TTLs of OpenerTTL, one round after the other) to
	// Path.Remote unless its port is 0, and call Pooled. Paths that start at them carry their numbers.
	ActPool
	// ActPoolEnd: close the sockets of pools that the agent does not use (Uses).
	ActPoolEnd
	// ActProbe: send a path challenge with Token over Path, in as small a frame as can be. Nobody waits for the answer.
	ActProbe
	// ActAttest: ask the server at which Path begins to say where it sees the other end, and to tell that end where we are
	// (Attested). Owners that cannot do that do nothing.
	ActAttest
	// ActAim: let each socket of the pool send one packet to Path.Remote, in the order in which they were opened: one that
	// dies on the way after TTL routers, or a path challenge with any token if TTL is 0.
	ActAim
	// ActLost: no path answers any more. Path stays in use until the next ActUse, but the owner should try to reach
	// the peer anew, with a handshake wherever the peer may be.
	ActLost
)

// An Action is something that the owner of an Agent has to do now.
type Action struct {
	Kind       ActionKind
	Path       Path
	Also       Path        // ActUse
	Token      Token       // ActChallenge, ActResponse
	Size       int         // ActChallenge
	Candidates []Candidate // ActCandidates; not to be changed
	Traits     Traits      // ActCandidates
	Pool       Pool        // ActCandidates, ActPool
	TTL        int         // ActPunch, ActAim
	Count      bool        // ActPool: ask a server first which port our NAT gives out
	Budget     int         // ActUse
}

// AgentConfig configures an Agent. The zero value is usable.
type AgentConfig struct {
	// Controlling is set on one of the two sides (that of the lower key). Repeated attempts start there.
	Controlling bool
	// Rand makes tokens; crypto/rand if nil.
	Rand io.Reader
	// Exclude is the overlay's own prefix, into which nothing is sent; fd50:494c:4f54::/48 if zero.
	Exclude netip.Prefix
	// Gate is shared by agents of which one at a time may search for a hard NAT's ports; nil: this agent has its own.
	Gate *Gate
	// Loopback lets paths over loopback addresses exist where the peer itself was heard from there; for tests.
	Loopback bool
}

// ActiveEvery is how often the owner reports user data to an Agent, while there is any.
const ActiveEvery = 100 * time.Millisecond

const (
	maxDirect    = 2 * MaxCandidates // direct routes remembered
	maxRelays    = 4                 // relay routes remembered
	maxResponses = 32                // answers between two calls of Advance
	maxActions   = 256               // other actions between two calls

	flowFor   = 5 * time.Second  // user data flows for so long after the last packet
	activeFor = 3 * time.Minute  // a peer is active for so long after the last packet
	freshFor  = 45 * time.Second // an answer speaks for a path that is not in use for so long
)

var overlayPrefix = netip.MustParsePrefix("fd50:494c:4f54::/48")

// An Agent decides how one peer is reached. It is not safe for concurrent use. Time must not go backwards; if it does,
// the agent stands still.
type Agent struct {
	cfg AgentConfig
	now time.Time // of the last call
	due bool      // something happened; Advance has work at once

	connected bool
	links     []netip.Prefix
	mtu       int // of the links, 0: not known
	local     []Candidate
	remote    []Candidate // the peer's last list, before any filter
	traits    Traits      // of our NATs
	theirs    Traits      // of the peer's
	routes    []*route
	accounts  []account
	responses []Action
	actions   []Action // asked for since the last Advance
	returned  []Action // by the last Advance; its memory is used again

	use     usage
	watch   watch
	rounds  rounds
	runs    runs
	inbound *route    // over which the peer's data came last
	traffic time.Time // last user data in either direction
	told    time.Time // last call of Active
	hinted  time.Time // last time that a hint had the path in use asked
	changed bool      // our network, while nobody used this
	silence silence
	compare comparison
}

// NewAgent returns an agent that knows no path.
func NewAgent(cfg AgentConfig) *Agent {
	if cfg.Rand == nil {
		cfg.Rand = rand.Reader
	}
	if !cfg.Exclude.IsValid() {
		cfg.Exclude = overlayPrefix
	}
	if cfg.Gate == nil {
		cfg.Gate = new(Gate)
	}
	return &Agent{cfg: cfg}
}

// at moves the agent's time. Whatever follows is worth a call of Advance.
func (a *Agent) at(now time.Time) {
	if now.After(a.now) {
		a.now = now
	}
	a.due = true
}

// SetLocal tells the agent our own addresses. A changed list is sent to the peer.
func (a *Agent) SetLocal(now time.Time, c []Candidate) {
	a.at(now)
	c = c[:min(len(c), MaxCandidates)]
	if slices.Equal(c, a.local) {
		return
	}
	a.local = slices.Clone(c)
	a.renewAttested()
	a.rounds.told = false
	if a.connected {
		a.rounds.start = true
	}
}

// SetTraits tells the agent how the NATs before us behave. The peer is told.
func (a *Agent) SetTraits(now time.Time, t Traits) {
	a.at(now)
	if t == a.traits {
		return
	}
	a.traits = t
	a.rounds.told = false
	if a.connected {
		a.rounds.start = true
	}
}

// Links tells the agent the addresses of our interfaces with the length of their networks, as Interfaces returns them.
// A peer's private address is tried only if it is on one of these networks.
func (a *Agent) Links(now time.Time, ifaces []netip.Prefix) {
	a.at(now)
	if slices.Equal(ifaces, a.links) {
		return
	}
	a.links = slices.Clone(ifaces)
	a.list()
}

// LinkMTU tells the agent the largest packet that a link of ours takes, as LinkMTU returns it. Direct paths are tried
// for more than 1500 bytes only if it is more; on those over another link the system refuses what is too large (TooBig).
func (a *Agent) LinkMTU(now time.Time, mtu int) {
	a.at(now)
	a.mtu = mtu
	for _, r := range a.routes {
		if !r.path.Relayed() {
			r.budget.over(a.now, mtu)
		}
	}
}

// SetOffer tells the agent that the peer's offer arrived in the session.
func (a *Agent) SetOffer(now time.Time, o Offer) {
	a.at(now)
	a.theirs = o.Traits
	if o.Pool.Sockets == 0 || !slices.Equal(o.Candidates, a.remote) {
		a.SetRemote(now, o.Candidates)
	}
	a.poolOffered(o.Pool)
}

// SetRemote tells the agent that the peer's list of addresses arrived in the session.
func (a *Agent) SetRemote(now time.Time, c []Candidate) {
	a.at(now)
	c = c[:min(len(c), MaxCandidates)]
	if !slices.Equal(c, a.remote) {
		a.remote = slices.Clone(c)
		a.doubtAttested()
	}
	fresh := a.list()
	if !a.connected {
		return
	}
	switch {
	case !a.direct():
		a.burst(a.goAfter(), func(r *route) bool { return r.listed || a.recent(r) })
		if a.follow() {
			a.rounds.told = false // it may have been lost
		}
	case len(fresh) > 0:
		a.burst(a.goAfter(), func(r *route) bool { return slices.Contains(fresh, r) })
	}
	if !a.rounds.told {
		a.tell()
	}
}

// list brings the routes in line with the peer's list and our links. It returns those that were not listed before.
func (a *Agent) list() (fresh []*route) {
	usable := UsableCandidates(a.remote, a.links, a.cfg.Exclude)
	slices.SortStableFunc(usable, func(x, y Candidate) int { return int(y.Kind) - int(x.Kind) }) // hosts last
	for _, r := range a.routes {
		listed := slices.ContainsFunc(usable, func(c Candidate) bool { return Path{Remote: c.Addr} == r.path })
		if listed && !r.listed {
			fresh = append(fresh, r)
		}
		r.listed = listed
	}
	for _, c := range usable {
		if r := a.find(Path{Remote: c.Addr}); r == nil {
			if r = a.add(Path{Remote: c.Addr}); r != nil {
				r.listed = true
				fresh = append(fresh, r)
			}
		}
	}
	return fresh
}
