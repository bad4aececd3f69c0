package overlay

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/ipam"
	"github.com/pilotnet/pilot/natt"
	"github.com/pilotnet/pilot/natt/relay"
	"github.com/pilotnet/pilot/overlay/firewall"
	"github.com/pilotnet/pilot/trust"
)

// hostPrefix is the /128 of an address.
func hostPrefix(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// refresh brings one link in line with the trust store: it makes it, changes
// it, or ends it.
func (l *loop) refresh(now instant, key crypto.PublicKey) {
	book, ok := l.store.Peer(key)
	k := l.links[key]
	if !ok || book.State != trust.Active || book.Current == nil && book.Next == nil {
		if k != nil {
			l.expel(k)
		}
		return
	}
	named := k != nil && book.Name == k.book.Name && slices.Equal(book.Out, k.book.Out)
	if k == nil {
		if k = l.admit(now, book); k == nil {
			return
		}
	}
	if err := k.setSlots(book); err != nil {
		l.log.Error("pair state is unusable", "peer", book.Name, "err", err)
		l.expel(k)
		return
	}
	k.setPolicy(now, book, l.store.Now())
	k.setLegs(book.Card.Servers)
	if len(k.slots) > 0 && k.try != nil {
		k.try.next = now.wall
	}
	k.advance(now)
	if !named { // else its pair state changed only, as after each first handshake
		l.nudgeNames()
	}
}

// admit makes the link of a newly trusted peer.
func (l *loop) admit(now instant, book trust.Peer) *link {
	addr := ipam.AddrFromBytes(book.Addr)
	old := l.snapshot.Load()
	known := old.peers
	if l.first != nil {
		known = l.first
	}
	if other := known[addr.Node]; other != nil || addr == l.id.Addr() {
		l.log.Error("a second key claims the address of a peer; it is refused", "address", addr, "key", book.Key)
		return nil
	}
	p := &peer{Peer: firewall.Peer{Node: addr.Node, ULA: addr.ULA().As16()}, key: book.Key, addr: addr.ULA()}
	k := &link{
		peer: p, loop: l, seen: map[natt.Path]time.Time{},
		agent: natt.NewAgent(natt.AgentConfig{
			Controlling: l.id.Key.Public().Compare(book.Key) < 0, Exclude: ipam.Prefix(), Gate: &l.gate,
		}),
	}
	k.alarm.ring = k.advance
	if b, ok := l.store.GetMeta(endpointKey(book.Key)); ok {
		k.home, _ = netip.ParseAddrPort(string(b))
	}
	k.agent.Links(now.wall, l.ifaces)
	k.agent.LinkMTU(now.wall, l.mtu)
	k.agent.SetLocal(now.wall, l.candidates)
	k.agent.SetTraits(now.wall, l.facts.Traits())
	l.links[book.Key], l.byPeer[p] = k, k
	if l.first != nil {
		l.first[addr.Node] = p
		return k
	}
	n := *old
	n.peers = maps.Clone(old.peers)
	n.peers[addr.Node] = p
	l.snapshot.Store(&n)
	return k
}

// expel ends a link. After it returns no packet of the peer passes in either
// direction.
func (l *loop) expel(k *link) {
	k.peer.policy.Store(nil)
	delete(l.first, k.Node)
	old := l.snapshot.Load()
	n := *old
	n.peers = make(map[uint32]*peer, len(old.peers))
	for id, o := range old.peers {
		if o != k.peer {
			n.peers[id] = o
		}
	}
	l.snapshot.Store(&n)
	k.disconnect()
	k.keepHead(l.now(), true)
	for _, s := range k.slots {
		l.tags.remove(s.knock)
	}
	k.slots = nil
	for _, leg := range k.legs {
		l.release(leg.visitor.host)
	}
	k.legs = nil
	l.alarms.set(&k.alarm, time.Time{})
	delete(l.links, k.key)
	delete(l.byPeer, k.peer)
	l.nudgeNames()
}

// release gives up one use of a shared server entry.
func (l *loop) release(h *serverHost) {
	if h.users--; h.users == 0 {
		delete(l.hosts, h.server.String())
		l.shut(h)
		l.publishServers()
	}
}

// setPolicy publishes what the peer may do from now on.
func (k *link) setPolicy(now instant, book trust.Peer, wall time.Time) {
	old := k.peer.policy.Load()
	p := &firewall.Policy{In: book.In, Out: book.Out}
	if !book.Expires.IsZero() {
		p.Until = now.boot + max(book.Expires.Sub(wall), time.Nanosecond)
	}
	if old != nil && slices.Equal(old.In, p.In) && slices.Equal(old.Out, p.Out) {
		p.Version = old.Version
	} else {
		k.loop.version++
		p.Version = k.loop.version
	}
	k.peer.policy.Store(p)
}

// setLegs follows the home servers that the peer's card names.
func (k *link) setLegs(servers []crypto.Server) {
	var legs []*leg
	for _, s := range servers[:min(len(servers), legsUsed)] {
		found := false
		for _, o := range k.legs {
			if o.server == s {
				legs, found = append(legs, o), true
			}
		}
		if found {
			continue
		}
		legs = append(legs, &leg{server: s, visitor: visitor{
			host:    k.loop.host(s),
			Visitor: relay.NewVisitor(relay.VisitorConfig{Server: s.Key, Target: k.key.Fingerprint()}),
		}})
	}
	for _, o := range k.legs {
		kept := false
		for _, n := range legs {
			kept = kept || n == o
		}
		if !kept {
			k.loop.release(o.visitor.host)
		}
	}
	k.legs = legs
}

func endpointKey(k crypto.PublicKey) string { return "endpoint/" + k.Fingerprint().String() }

// remember keeps the peer's direct endpoint for a start without servers.
func (k *link) remember(p natt.Path) {
	if p.Relayed() || p.Remote == k.home {
		return
	}
	k.home = p.Remote
	key, text := endpointKey(k.key), []byte(p.Remote.String())
	k.loop.write(func() error { return k.loop.store.PutMeta(key, text) })
}

// confirmSlot makes a new pair state final, durably, beside the loop: until it
// is, both are answered.
func (l *loop) confirmSlot(key crypto.PublicKey, slot [32]byte) {
	l.write(func() error {
		if err := l.store.Confirmed(key, slot); err != nil {
			return err
		}
		l.post(func(now instant) { l.refresh(now, key) })
		return nil
	})
}

func claimedKey(s crypto.Server) string {
	b, _ := s.Key.MarshalText()
	return "claimed/" + string(b)
}

// claimedAt says whether a server accepted the address with the present card.
func (l *loop) claimedAt(s crypto.Server) bool {
	b, ok := l.store.GetMeta(claimedKey(s))
	return ok && string(b) == cardMark(l.secrets.card())
}

func (l *loop) storeClaimed(s crypto.Server) {
	mark := []byte(cardMark(l.secrets.card()))
	l.write(func() error { return l.store.PutMeta(claimedKey(s), mark) })
}

// cardMark is the end of a card's signature: enough to tell one card of ours
// from another.
func cardMark(card []byte) string { return string(card[max(0, len(card)-16):]) }

// write does one durable write beside the loop, since a disk may be slow.
func (l *loop) write(f func() error) {
	l.jobs.do(func(context.Context) {
		if err := f(); err != nil {
			l.log.Error("cannot write state", "err", err)
		}
	})
}

// nudgeNames asks for the names to be written again.
func (l *loop) nudgeNames() {
	select {
	case l.names <- struct{}{}:
	default:
	}
}
