package overlay

import "github.com/pilotnet/pilot/natt"

// A jumboUnderlay is an Underlay that knows how large the packets of its links
// may be. Paths over any other are not tried for more than 1500 bytes.
type jumboUnderlay interface {
	Underlay
	// LinkMTU is the largest MTU of the host's links.
	LinkMTU() (int, error)
}

func (hostUnderlay) LinkMTU() (int, error) { return natt.LinkMTU() }

// lookAtMTU learns what the links take and tells the agents, if it is not what
// it was.
func (l *loop) lookAtMTU(now instant) {
	u, ok := l.underlay.(jumboUnderlay)
	if !ok {
		return
	}
	mtu, err := u.LinkMTU()
	if err != nil {
		l.log.Warn("cannot learn the MTU of the links", "err", err)
		return
	}
	if mtu == l.mtu {
		return
	}
	l.mtu = mtu
	for _, k := range l.links {
		k.agent.LinkMTU(now.wall, mtu)
		if k.active != nil {
			k.advance(now)
		}
	}
}
