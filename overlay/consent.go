package overlay

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/ipam"
	"github.com/pilotnet/pilot/natt/relay"
	"github.com/pilotnet/pilot/trust"
)

// Request asks another agent for trust. It returns when the request is durable
// and on its way; Wait tells of the answer.
func (n *Node) Request(ctx context.Context, o RequestOptions) (TrustResult, error) {
	ask, offer, err := scopes(o.Ports, o.Offer)
	if err != nil {
		return TrustResult{}, err
	}
	if err := n.loop.inForce(); err != nil {
		return TrustResult{}, err
	}
	card, addr, err := n.cardFor(ctx, o.Contact)
	if err != nil {
		return TrustResult{}, err
	}
	p, serr := n.store.Request(trust.RequestOptions{
		Card: card, Addr: addr.Bytes(), As: o.As, Ask: ask, Offer: offer, TTL: o.TTL, Reason: o.Reason,
	})
	return n.requested(card.Key, addr, p, serr)
}

// requested finishes Request and Accept.
func (n *Node) requested(key crypto.PublicKey, addr ipam.Addr, p trust.Pending, err error) (TrustResult, error) {
	if err != nil {
		return TrustResult{}, publicError(err)
	}
	n.loop.kickOutbox()
	n.loop.post(func(now instant) { n.loop.refresh(now, key) })
	r := TrustResult{
		State: "pending", Name: p.Name, Fingerprint: key.Fingerprint().String(),
		Address: addr.String(), ULA: addr.ULA().String(), Ports: p.Ask.String(),
	}
	if p.Granted {
		r.State = "granted"
		if peer, ok := n.store.Peer(key); ok {
			r.Name, r.Ports = peer.Name, peer.Out.String()
		}
	}
	if p.Offer.All() {
		r.Listening = listeningSockets()
	}
	return r, nil
}

// scopes reads the two scopes of a request with their defaults.
func scopes(ports, offers string) (ask, offer trust.Scope, err error) {
	ask, offer = trust.DefaultAsk, trust.DefaultOffer
	if ports != "" {
		if ask, err = trust.ParseScope(ports); err != nil {
			return nil, nil, Errorf(CodeInvalidArgument, "ports %q: %v", ports, err).WithHint("write them like 80,8080/tcp,1000-1003, or all")
		}
	}
	if offers != "" {
		if offer, err = trust.ParseScope(offers); err != nil {
			return nil, nil, Errorf(CodeInvalidArgument, "offer %q: %v", offers, err).WithHint("write it like 7,8080/tcp, or all")
		}
	}
	return ask, offer, nil
}

// cardFor finds the card of who is to be asked: fetched from the server that a
// contact string names, or the one on file of a peer.
func (n *Node) cardFor(ctx context.Context, who string) (crypto.Card, ipam.Addr, error) {
	ref, err := ipam.ParseRef(who)
	if err != nil {
		return crypto.Card{}, ipam.Addr{}, Errorf(CodeInvalidArgument, "%v", err).
			WithHint("a contact looks like 0:0000.1A2B.3C4D#FINGERPRINT@HOST; the other agent prints its own with `pilotctl id`")
	}
	if ref.Kind != ipam.RefContact {
		key, err := n.resolvePeer(who)
		if err != nil {
			return crypto.Card{}, ipam.Addr{}, Errorf(CodeInvalidArgument, "%q is not a contact, and no peer is known by it", who).
				WithHint("a contact looks like 0:0000.1A2B.3C4D#FINGERPRINT@HOST; the other agent prints its own with `pilotctl id`")
		}
		p, ok := n.store.Peer(key)
		if !ok {
			return crypto.Card{}, ipam.Addr{}, Errorf(CodeNotFound, "the card of %q is not on file", who).WithHint("use its contact string")
		}
		return p.Card, ipam.AddrFromBytes(p.Addr), nil
	}
	c := ref.Contact
	if c.Fingerprint == n.cfg.Identity.Key.Public().Fingerprint() {
		return crypto.Card{}, ipam.Addr{}, Errorf(CodeInvalidArgument, "this is your own contact").WithHint("give it to the other side; use theirs here")
	}
	card, err := n.fetchCard(ctx, c)
	return card, c.Addr, err
}

// fetchCard gets a card from a home server and checks it against the contact:
// the server is not believed.
func (n *Node) fetchCard(ctx context.Context, c ipam.Contact) (crypto.Card, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	b, err := relay.FetchCard(ctx, n.loop.dialConfig(crypto.Server{Host: c.Host, Port: c.Port}), c.Fingerprint)
	switch {
	case errors.Is(err, relay.ErrNotFound):
		return crypto.Card{}, Errorf(CodeNotFound, "%s knows no agent with fingerprint %s", c.HostPort(), c.Fingerprint).
			WithHint("check the contact; the other agent must be up and registered there (its `pilotctl status`)")
	case errors.Is(err, relay.ErrWrongCard):
		return crypto.Card{}, Errorf(CodeDenied, "%s sent the card of another key: %v", c.HostPort(), err).
			WithHint("do not trust this server; ask the other agent for its contact again")
	case err != nil:
		return crypto.Card{}, Errorf(CodeTimeout, "cannot fetch the card from %s: %v", c.HostPort(), err).
			WithHint("check that %s can be reached from here", c.HostPort()).Retry()
	}
	card, err := crypto.ParseCard(b)
	if err != nil {
		return crypto.Card{}, Errorf(CodeDenied, "%s sent a card that does not verify: %v", c.HostPort(), err)
	}
	if addr, err := checkCard(card); err != nil || addr != c.Addr.Bytes() {
		return crypto.Card{}, Errorf(CodeDenied, "the address in the contact does not belong to its key").
			WithHint("ask the other agent for its contact again")
	}
	return card, nil
}

// Wait returns when trust with this fingerprint is in force, or with a
// trust_pending error when ctx ends before.
func (n *Node) Wait(ctx context.Context, fingerprint string) (TrustResult, error) {
	fp, err := crypto.ParseFingerprint(fingerprint)
	if err != nil {
		return TrustResult{}, Errorf(CodeInvalidArgument, "%v", err)
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		if p, ok := n.store.Lookup(fp); ok && p.State == trust.Active && !n.asks(fp) {
			// The packet path has to know the peer too, or what is sent at once is lost.
			err := n.loop.call(ctx, func(now instant) { n.loop.refresh(now, p.Key) })
			return trustResult(p, p.Out), err
		}
		select {
		case <-ctx.Done():
			if !n.asks(fp) {
				return TrustResult{}, Errorf(CodeNotTrusted, "no request to %s waits any more", fingerprint)
			}
			return TrustResult{}, Errorf(CodeTrustPending, "the other side has not answered yet").
				WithHint("the request stays; the other side sees it with `pilotctl trust pending`").Retry()
		case <-n.loop.done:
			return TrustResult{}, Errorf(CodeNotRunning, "the node is shutting down")
		case <-tick.C:
		}
	}
}

// asks reports whether a request of ours to this key waits for its answer.
func (n *Node) asks(fp crypto.Fingerprint) bool {
	for _, p := range n.store.Outgoing() {
		if p.Fingerprint == fp {
			return true
		}
	}
	return false
}

// trustResult shows a peer with the ports that the caller asked about: what it
// may reach here, or what we may reach there.
func trustResult(p trust.Peer, ports trust.Scope) TrustResult {
	a := ipam.AddrFromBytes(p.Addr)
	return TrustResult{
		State: "granted", Name: p.Name, Fingerprint: p.Key.Fingerprint().String(),
		Address: a.String(), ULA: a.ULA().String(), Ports: ports.String(),
	}
}

// Approve grants a waiting request, or changes what a peer may do.
func (n *Node) Approve(ctx context.Context, o ApproveOptions) (TrustResult, error) {
	key, err := n.resolveAny(o.Peer)
	if err != nil {
		return TrustResult{}, err
	}
	opt := trust.ApproveOptions{As: o.As, TTL: o.TTL}
	if o.Ports != nil {
		s, err := trust.ParseScope(*o.Ports)
		if err != nil {
			return TrustResult{}, Errorf(CodeInvalidArgument, "ports %q: %v", *o.Ports, err).WithHint("write them like 80,8080/tcp,1000-1003, or all")
		}
		opt.Ports, opt.All = &s, s.All()
	}
	if err := n.loop.inForce(); err != nil {
		return TrustResult{}, err
	}
	p, serr := n.store.Approve(key, opt)
	if serr != nil {
		return TrustResult{}, publicError(serr)
	}
	if err := n.loop.call(ctx, func(now instant) { n.loop.refresh(now, key) }); err != nil {
		return TrustResult{}, err
	}
	n.loop.kickOutbox()
	n.loop.tellHead(true)
	r := trustResult(p, p.In)
	if p.In.All() {
		r.Listening = listeningSockets()
	}
	return r, nil
}

// Reject answers a waiting request with silence.
func (n *Node) Reject(_ context.Context, peer string) error {
	key, err := n.resolveAny(peer)
	if err != nil {
		return err
	}
	return publicErrorOrNil(n.store.Reject(key))
}

// Revoke withdraws trust. The packet path is cut first, then the revocation is
// made durable, then the peer is told; when Revoke returns, no packet of the
// peer passes, also after a crash.
func (n *Node) Revoke(ctx context.Context, peer string) error {
	return n.cutOff(ctx, peer, n.store.Revoke)
}

// Block revokes and refuses every further request of the key.
func (n *Node) Block(ctx context.Context, peer string) error {
	return n.cutOff(ctx, peer, n.store.Block)
}

func (n *Node) cutOff(ctx context.Context, peer string, durable func(crypto.PublicKey) error) error {
	key, err := n.resolveAny(peer)
	if err != nil {
		return err
	}
	err = n.loop.call(ctx, func(instant) {
		if k := n.loop.links[key]; k != nil {
			k.farewell()
			n.loop.expel(k)
		}
	})
	if err != nil {
		return err
	}
	if err := durable(key); err != nil {
		return publicError(err)
	}
	n.loop.kickOutbox()
	n.loop.tellHead(true)
	n.loop.nudgeNames()
	return nil
}

// farewell is the one notice that a revoked peer gets, under the session that
// ends with it.
func (k *link) farewell() {
	tx := k.peer.tx.Swap(nil)
	k.peer.policy.Store(nil)
	if tx != nil {
		k.loop.send.item(k.peer, tx, appendItem(nil, itemClose, []byte{closeRevoked}), 0)
		k.loop.send.flush()
	}
}

// Invite makes a token for one use, or for a fleet.
func (n *Node) Invite(_ context.Context, o InviteOptions) (string, error) {
	if o.Ports == "" {
		return "", Errorf(CodeInvalidArgument, "an invite needs ports").WithHint("add --ports, e.g. --ports 80,8080/tcp")
	}
	s, err := trust.ParseScope(o.Ports)
	if err != nil {
		return "", Errorf(CodeInvalidArgument, "ports %q: %v", o.Ports, err)
	}
	opt := trust.InviteOptions{Ports: s, TTL: o.TTL, Name: o.Name, Contact: n.contact(), Uses: o.Uses, Trust: o.Trust}
	if o.Uses < 0 || o.Uses > trust.MaxInviteUses || o.Uses > 1 && o.For != "" {
		return "", Errorf(CodeInvalidArgument, "an invite is for 1 to %d agents, and for one if it names it", trust.MaxInviteUses)
	}
	if o.Trust < 0 {
		return "", Errorf(CodeInvalidArgument, "trust for less than no time")
	}
	if opt.Contact == "" {
		return "", Errorf(CodeInvalidArgument, "an invite needs a home server to come back to").WithHint("run `pilotctl up --server HOST#KEY`")
	}
	if o.For != "" {
		ref, err := ipam.ParseRef(o.For)
		if err != nil || ref.Fingerprint == (crypto.Fingerprint{}) {
			return "", Errorf(CodeInvalidArgument, "%q is neither a contact nor a fingerprint", o.For)
		}
		fp := ref.Fingerprint
		opt.For = &fp
	}
	if err := n.loop.inForce(); err != nil {
		return "", err
	}
	token, err := n.store.Invite(opt)
	return token, publicErrorOrNil(err)
}

// Accept uses an invite: it sends a request that carries the invite's secret.
func (n *Node) Accept(ctx context.Context, token, as, offers string) (TrustResult, error) {
	inv, err := trust.ParseInvite(strings.TrimSpace(token))
	if err != nil {
		return TrustResult{}, publicError(err)
	}
	if err := inv.Check(n.store.Now()); err != nil {
		return TrustResult{}, publicError(err)
	}
	if err := n.loop.inForce(); err != nil {
		return TrustResult{}, err
	}
	_, offer, err := scopes("", offers)
	if err != nil {
		return TrustResult{}, err
	}
	card, addr, err := n.cardFor(ctx, inv.Contact)
	if err != nil {
		return TrustResult{}, err
	}
	p, serr := n.store.Request(trust.RequestOptions{
		Card: card, Addr: addr.Bytes(), As: as, Ask: inv.Ports, Offer: offer, Reason: "invited", Invite: inv.Secret[:],
	})
	return n.requested(card.Key, addr, p, serr)
}

// resolvePeer finds a trusted peer by any of its forms.
func (n *Node) resolvePeer(s string) (crypto.PublicKey, error) {
	ref, err := ipam.ParseRef(s)
	if err != nil {
		return crypto.PublicKey{}, Errorf(CodeInvalidArgument, "%v", err)
	}
	for _, p := range n.store.Peers() {
		if matches(ref, p.Name, p.Addr, p.Key.Fingerprint()) {
			return p.Key, nil
		}
	}
	return crypto.PublicKey{}, Errorf(CodeNotFound, "no peer %q", s).WithHint("`pilotctl peers` lists them")
}

// resolveAny finds a peer, or who sent a request that waits, or whom we asked.
// Two requests with one name are an error that shows both.
func (n *Node) resolveAny(s string) (crypto.PublicKey, error) {
	ref, err := ipam.ParseRef(s)
	if err != nil {
		return crypto.PublicKey{}, Errorf(CodeInvalidArgument, "%v", err)
	}
	found := map[crypto.PublicKey]bool{}
	var keys []crypto.PublicKey
	add := func(k crypto.PublicKey) {
		if !found[k] {
			found[k] = true
			keys = append(keys, k)
		}
	}
	for _, p := range n.store.Incoming() {
		if matches(ref, strings.ToLower(p.Name), p.Addr, p.Fingerprint) {
			add(p.Key)
		}
	}
	for _, p := range n.store.Peers() {
		if matches(ref, p.Name, p.Addr, p.Key.Fingerprint()) {
			add(p.Key)
		}
	}
	if len(keys) == 0 {
		for _, p := range n.store.Outgoing() {
			if matches(ref, p.Name, p.Addr, p.Fingerprint) {
				add(p.Key)
			}
		}
	}
	switch len(keys) {
	case 0:
		return crypto.PublicKey{}, Errorf(CodeNotFound, "no request and no peer %q", s).WithHint("`pilotctl trust pending` and `pilotctl peers` list them")
	case 1:
		return keys[0], nil
	}
	var prints []string
	for _, k := range keys {
		prints = append(prints, k.Fingerprint().String())
	}
	return crypto.PublicKey{}, Errorf(CodeConflict, "the name %q is claimed by %s", s, strings.Join(prints, " and ")).
		WithHint("say which one by its fingerprint, and name it with --as")
}

func matches(r ipam.Ref, name string, addr [6]byte, fp crypto.Fingerprint) bool {
	switch r.Kind {
	case ipam.RefName:
		return name == r.Name && name != ""
	case ipam.RefAddr:
		return r.Addr.Bytes() == addr
	case ipam.RefFingerprint:
		return r.Fingerprint == fp
	case ipam.RefContact:
		return r.Contact.Fingerprint == fp
	}
	return false
}
