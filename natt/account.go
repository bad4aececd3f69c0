package natt

import (
	"net/netip"
	"slices"
	"time"
)

// What is sent to addresses that have not answered, of which we know by the peer's word only.
const (
	maxStrangers = 16              // addresses at a time
	maxListed    = 12              // of them, that were only listed: a peer that is heard from elsewhere finds room
	firstPackets = 20              // to one of them
	laterPackets = 10              // after each pause
	seenPackets  = 80              // to one where a server saw the peer: several of our sockets may have met it
	pauseFirst   = time.Minute     // doubled each time,
	pauseMost    = 5 * time.Minute // up to this
	forgetAfter  = 10 * time.Minute
	attemptFor   = 2 * time.Second // what belongs to one attempt
)

// An account is what was sent to one address that has not answered. It outlives the route: naming the address again
// or from elsewhere buys nothing.
type account struct {
	addr  netip.AddrPort
	began time.Time // this attempt
	last  time.Time // packet
	sent  int       // in this attempt
	times int       // attempts before
}

func (a *Agent) limit(c *account) int {
	switch {
	case a.attested(c.addr.Addr()):
		return seenPackets
	case c.times == 0:
		return firstPackets
	}
	return laterPackets
}

// rest is how long after the last packet a new attempt may begin.
func (c *account) rest() time.Duration { return min(pauseFirst<<min(c.times, 8), pauseMost) }

// account returns the account of an address, or nil.
func (a *Agent) account(addr netip.AddrPort) *account {
	for i := range a.accounts {
		if a.accounts[i].addr == addr {
			return &a.accounts[i]
		}
	}
	return nil
}

// openAccount returns the account of a route's address, new if there is room for it; nil if not.
func (a *Agent) openAccount(r *route) *account {
	if c := a.account(r.path.Remote); c != nil {
		if a.now.Sub(c.last) >= c.rest() {
			c.began, c.sent, c.times = a.now, 0, c.times+1
		}
		return c
	}
	if !a.room(r) {
		return nil
	}
	a.accounts = append(a.accounts, account{addr: r.path.Remote, began: a.now, last: a.now})
	return &a.accounts[len(a.accounts)-1]
}

// room reports whether one more address may be sent to, and forgets the oldest if need be. Addresses where a server
// saw the peer always may, as long as there are routes for them.
func (a *Agent) room(r *route) bool {
	a.accounts = slices.DeleteFunc(a.accounts, func(c account) bool { return a.now.Sub(c.last) >= forgetAfter })
	if a.attested(r.path.Remote.Addr()) {
		return len(a.accounts) < maxStrangers+maxDirect
	}
	n := 0
	for _, c := range a.accounts {
		if !a.attested(c.addr.Addr()) {
			n++
		}
	}
	if r.heard {
		return n < maxStrangers
	}
	return n < maxListed
}

// mayBurst reports whether a burst may begin on a route: one that never answered is left alone for a minute and more after an
// attempt. NATs that got a flow wrong forget it in this time, and only then. A path that worked and died is another matter:
// what cut it may end at any moment.
func (a *Agent) mayBurst(r *route) bool {
	if r.proven {
		return true
	}
	c := a.account(r.path.Remote)
	return c == nil || a.now.Sub(c.began) < max(attemptFor, 4*a.relayRTT()) || a.now.Sub(c.last) >= c.rest()
}

// spend takes one packet from the account of a route's address. It reports false if there is none left.
func (a *Agent) spend(r *route) bool {
	if r.path.Relayed() || r.validated {
		return true
	}
	if r.proven {
		return a.spentAt(r.path.Remote) < maxSpent
	}
	c := a.openAccount(r)
	if c == nil || c.sent >= a.limit(c) {
		return false
	}
	c.sent++
	c.last = a.now
	return true
}

// affords reports whether spend would succeed.
func (a *Agent) affords(r *route) bool {
	if r.path.Relayed() || r.validated {
		return true
	}
	if r.proven {
		return a.spentAt(r.path.Remote) < maxSpent
	}
	if c := a.account(r.path.Remote); c != nil {
		return c.sent < a.limit(c) || a.now.Sub(c.last) >= c.rest()
	}
	return a.room(r)
}

// spentAt is how many packets went to an address in the last ten minutes without an answer.
func (a *Agent) spentAt(addr netip.AddrPort) (n int) {
	for _, r := range a.routes {
		if r.path.Remote == addr {
			n += r.spent.total(a.now)
		}
	}
	return n
}

// settle closes the account of an address that has answered.
func (a *Agent) settle(r *route) {
	if r.path.Relayed() {
		return
	}
	r.proven = true
	a.accounts = slices.DeleteFunc(a.accounts, func(c account) bool { return c.addr == r.path.Remote })
}
