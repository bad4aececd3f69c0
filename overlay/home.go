package overlay

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/ipam"
	"github.com/pilotnet/pilot/natt/relay"
)

// A serverHost is a rendezvous server's name with its addresses. Homes and
// peers' legs that name the same server share one.
type serverHost struct {
	server    crypto.Server
	addrs     []netip.Addr
	using     int       // which of them
	answers   int       // which of them answered a probe last
	looked    time.Time // last look-up
	resolving bool
	err       error
	users     int
	ways
}

const (
	lookUpAgain = 5 * time.Minute
	lookUpRetry = 5 * time.Second
)

// maxServerAddrs bounds how many of a name's addresses are asked.
const maxServerAddrs = 6

// addr is the address to send to: the first of the name's, until another one answers
// and that does not.
func (h *serverHost) addr() (netip.AddrPort, bool) {
	if len(h.addrs) == 0 {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(h.addrs[h.using], h.server.Port), true
}

// setAddrs takes what the name resolves to now. What is in use stays so if it is
// still there.
func (h *serverHost) setAddrs(addrs []netip.Addr) {
	var using netip.Addr
	if len(h.addrs) > 0 {
		using = h.addrs[h.using]
	}
	h.addrs = addrs[:min(len(addrs), maxServerAddrs)]
	h.using = max(slices.Index(h.addrs, using), 0)
	h.answers = h.using
}

// host returns the shared entry of a server and sees to its address.
func (l *loop) host(s crypto.Server) *serverHost {
	name := s.String()
	h := l.hosts[name]
	if h == nil {
		h = &serverHost{server: s}
		if ip, err := netip.ParseAddr(s.Host); err == nil {
			h.addrs = []netip.Addr{ip.Unmap()}
		}
		h.ways = l.newWays(h)
		l.hosts[name] = h
	}
	h.users++
	l.resolve(h)
	return h
}

// resolve looks a server's name up beside the loop. The old addresses stand
// until there are new ones.
func (l *loop) resolve(h *serverHost) {
	if _, err := netip.ParseAddr(h.server.Host); err == nil {
		l.publishServers()
		return
	}
	since := l.clock.Now().Sub(h.looked)
	if h.resolving || len(h.addrs) > 0 && since < lookUpAgain || !h.looked.IsZero() && since < lookUpRetry {
		return
	}
	h.resolving = true
	l.jobs.do(func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		addrs, err := l.underlay.LookupNetIP(ctx, h.server.Host)
		l.post(func(now instant) {
			h.resolving, h.looked, h.err = false, now.wall, err
			switch {
			case len(addrs) > 0:
				h.setAddrs(addrs)
				h.standIn = false
			case len(h.addrs) == 0 && h.proxied:
				h.addrs, h.standIn = []netip.Addr{standIn(h.server)}, true
			}
			l.publishServers()
			for _, s := range l.servers {
				if s.host == h {
					s.advance(now)
				}
			}
		})
	})
}

// publishServers tells the reader which addresses are servers of ours or of our
// peers: messages of servers from elsewhere stop there.
func (l *loop) publishServers() {
	n := *l.snapshot.Load()
	n.servers = make(map[netip.AddrPort]bool)
	for _, h := range l.hosts {
		for _, a := range h.addrs {
			n.servers[netip.AddrPortFrom(a, h.server.Port)] = true
			n.servers[netip.AddrPortFrom(a, udpTLS)] = true
		}
		for _, c := range h.carriers {
			n.servers[c.remote] = true
		}
	}
	l.snapshot.Store(&n)
}

// A home is one of our home servers.
type home struct {
	loop    *loop
	host    *serverHost
	machine *relay.Home
	alarm   alarm

	claimed      bool
	left         bool  // our claim was taken back, or another instance has our place: nothing is said any more
	refused      error // the server will not have our address: it is not used
	lastErr      error
	tlsWarning   string
	head         homeHead
	busy         bool // a control channel is open or being opened
	claimDue     bool
	mailDue      bool
	retry        time.Time // no control channel before
	wait         time.Duration
	since        time.Time      // when the machine began to wait for an answer
	seenAs       netip.AddrPort // since the way or the network last changed
	registeredAt time.Time
}

func (l *loop) newHome(s crypto.Server, takeover bool) *home {
	h := &home{loop: l, host: l.host(s), machine: relay.NewHome(relay.HomeConfig{
		Server: s.Key, Static: l.secrets.registration, Key: l.id.Key.Public(),
		Instance: l.instance, Takeover: takeover,
	})}
	h.alarm.ring = h.advance
	h.claimed = l.claimedAt(s)
	h.claimDue = !h.claimed
	return h
}

func (h *home) kick(now instant) {
	for _, o := range h.loop.hosts {
		o.ladder.Changed(now.wall)
		h.loop.climb(now, o)
	}
	h.seenAs = netip.AddrPort{}
	h.machine.Kick(now.wall)
	h.advance(now)
}

func (h *home) bye(now instant) {
	if b := h.machine.Bye(now.wall); b != nil {
		h.loop.toServer(h.host, b)
	}
}

// advance sends what the machine has to say and opens a control channel if one
// is wanted.
func (h *home) advance(now instant) {
	if h.left {
		return
	}
	next := now.wall.Add(lookUpRetry)
	if _, ok := h.host.addr(); ok {
		for _, b := range h.machine.Advance(now.wall) {
			if h.since.IsZero() {
				h.since = now.wall
			}
			h.loop.ask(now, h.host, b)
		}
		if h.events(now, h.machine.Events()); h.left {
			return
		}
		next = h.machine.Next()
		if h.machine.Registered() {
			h.loop.resolve(h.host)
		}
	} else {
		h.loop.resolve(h.host)
	}
	if (h.claimDue || h.mailDue || h.head.due && !h.head.deaf) && !h.busy && h.refused == nil {
		if now.wall.Before(h.retry) {
			if next.IsZero() || h.retry.Before(next) {
				next = h.retry
			}
		} else if _, ok := h.host.addr(); ok {
			h.control(now)
		}
	}
	h.loop.alarms.set(&h.alarm, next)
}

// events acts on what happened to the home session.
func (h *home) events(now instant, events []relay.HomeEvent) {
	l := h.loop
	for _, e := range events {
		switch e.Kind {
		case relay.Registered:
			h.since, h.lastErr, h.registeredAt = time.Time{}, nil, now.wall
			if len(l.facts.UDP) == 0 && !h.host.ladder.Rung().Stream() {
				l.surveyAgain()
			}
			l.log.Info("registered", "server", h.host.server.HostPort(), "observed", e.Addr)
			h.mailDue, h.head = true, homeHead{} // a server may have lost what it kept
			l.setSkew(now, e.Time)
			l.kickOutbox()
		case relay.Observed:
			if h.seenAs.IsValid() && h.seenAs != e.Addr {
				l.distrustLifetime(now)
			}
			h.seenAs = e.Addr
			l.updateCandidates(now)
		case relay.MailWaiting:
			h.mailDue = true
		case relay.Unknown:
			h.claimDue, h.claimed = true, false
		case relay.Superseded:
			l.supersede(now)
		case relay.ServerTime:
			l.setSkew(now, e.Time)
		case relay.Lost:
			h.lastErr = errors.New("no answer")
			h.since = now.wall
			if len(l.lifetimeServers()) == 0 {
				l.restartLifetime(now)
			}
			l.log.Warn("home server does not answer", "server", h.host.server.HostPort())
		case relay.Located:
			l.located(now, h.host, e.Channel, e.Addr)
		case relay.ChannelLost:
			l.channelLost(now, e.Channel)
		}
	}
}

// setSkew takes a home server's time for knock tags if our clock is plainly
// wrong.
func (l *loop) setSkew(now instant, server time.Time) {
	d := server.Sub(now.wall.Round(0))
	if server.IsZero() {
		return
	}
	if d > -clockTrusted && d < clockTrusted {
		d = 0
	}
	if d != l.skew {
		l.skew = d
		l.tags.advance(crypto.Epoch(l.epochTime(now.wall)))
		if d != 0 {
			l.log.Warn("this machine's clock is wrong; handshakes use the home server's", "off", -d)
		}
	}
}

// supersede stops the tunnels: a younger instance of this key has taken over. Peers
// are told, so that they turn to it at once; servers hear nothing of us any more, for
// whatever we said could only win back a place that is not ours.
func (l *loop) supersede(now instant) {
	if l.superseded.Swap(true) {
		return
	}
	l.log.Error("another instance with this key has taken over; this one carries nothing any more", "do", replacedHint)
	for _, k := range l.links {
		k.item(itemClose, []byte{closeReplaced})
		k.disconnect()
		k.advance(now)
	}
	for _, h := range l.servers {
		h.bye(now)
		h.left, h.lastErr = true, errReplaced
		l.alarms.set(&h.alarm, time.Time{})
	}
}

const (
	replacedHere = "another machine runs with the same identity"
	replacedHint = "pilotctl down there or here; to use this one, pilotctl down, then pilotctl up --takeover"
)

var errReplaced = errors.New(replacedHere + " and has the place here")

// inForce is an error where another instance of the identity has taken over: what this one
// asked or granted, the other would not know.
func (l *loop) inForce() error {
	if l.superseded.Load() {
		return Errorf(CodeConflict, replacedHere+", and trust is its to give").WithHint(replacedHint)
	}
	return nil
}

// serverMessage gives a rendezvous server's datagram to whoever waits for it.
func (l *loop) serverMessage(now instant, e event) {
	for _, h := range l.servers {
		if !h.host.owns(e.path) {
			continue
		}
		events, err := h.machine.Receive(now.wall, e.body)
		if err == nil {
			l.heard(now, h.host, e.path)
		}
		h.events(now, events)
		h.advance(now)
		if err == nil {
			return
		}
	}
	for _, k := range l.links {
		for _, leg := range k.legs {
			if !leg.visitor.host.owns(e.path) || leg.visitor.Receive(now.wall, e.body) != nil {
				continue
			}
			leg.visitor.came(e.path)
			if p, ok := leg.visitor.path(); ok {
				k.agent.Attested(now.wall, p, leg.visitor.Located())
			}
			l.heard(now, leg.visitor.host, e.path)
			for _, b := range leg.visitor.Advance(now.wall) {
				l.datagramVia(e.path.Socket, e.path.Remote, b)
			}
			if leg.visitor.Stale() && k.active != nil {
				leg.visitor.open(now, l, nil) // the server was restarted, or we moved
			}
			k.relays(now)
			k.advance(now)
			return
		}
	}
	for _, h := range l.hosts {
		if h.owns(e.path) && l.probed(now, h, e) {
			return
		}
	}
}

// channelLost forgets a channel of our own server that a peer used.
func (l *loop) channelLost(now instant, channel uint64) {
	for _, k := range l.links {
		for p := range k.seen {
			if p.Channel == channel {
				delete(k.seen, p)
				k.relays(now)
				k.advance(now)
				return
			}
		}
	}
}

// Waits between control channels after a failure.
const (
	controlFirst = time.Second
	controlMost  = 2 * time.Minute
)

// control opens a control channel beside the loop, claims what is to be claimed
// and fetches the mail.
func (h *home) control(now instant) {
	h.busy = true
	todo := controlWork{claim: h.claimDue, mail: h.mailDue, head: h.head.wanted(), headDue: h.head.due}
	h.mailDue = false
	if todo.head {
		h.head.due = false
	}
	l := h.loop
	static := l.secrets.registration
	cfg := l.dialConfig(h.host.server)
	cfg.Static, cfg.Key = &static, l.id.Key.Public()
	l.jobs.do(func(ctx context.Context) {
		err := l.controlJob(ctx, cfg, &todo)
		l.post(func(now instant) {
			h.busy = false
			if todo.warning != "" {
				h.tlsWarning = todo.warning
			}
			h.controlled(now, todo, err)
		})
	})
}

// controlWork is what a control channel is for, and what came of it.
type controlWork struct {
	claim, mail, head bool
	headDue           bool   // head: a new one of ours is to be left
	held              uint64 // head: what the server keeps
	warning           string
}

// controlJob runs beside the loop. Heads go before mail: on a restored backup no mail
// is to grant anything.
func (l *loop) controlJob(ctx context.Context, cfg relay.DialConfig, todo *controlWork) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	c, err := relay.Dial(ctx, cfg)
	if err != nil {
		return err
	}
	defer c.Close()
	todo.warning = c.TLSWarning()
	if todo.claim {
		card := l.secrets.card()
		parsed, err := crypto.ParseCard(card)
		if err != nil {
			return fmt.Errorf("own card: %w", err)
		}
		own := ipam.Claim{
			Addr: l.id.Addr(), Key: l.id.Key.Public(), Counter: l.id.Counter,
			Registration: static(cfg), Serial: parsed.Serial,
		}
		if err := c.Claim(ctx, own.Sign(l.id.Key), card); err != nil {
			return err
		}
	}
	if todo.head {
		if todo.held, err = l.exchangeHead(ctx, c, cfg.Server.HostPort()); err != nil {
			return err
		}
	}
	if todo.mail {
		return l.fetchMail(ctx, c)
	}
	return nil
}

func static(c relay.DialConfig) crypto.DHPublic { return c.Static.Public() }

// controlled takes the result of a control channel.
func (h *home) controlled(now instant, did controlWork, err error) {
	l := h.loop
	if did.head {
		h.head.exchanged(did, err)
	}
	switch {
	case err == nil:
		h.wait, h.retry = 0, time.Time{}
		if did.claim {
			h.claimDue, h.claimed, h.lastErr = false, true, nil
			l.storeClaimed(h.host.server)
			h.machine.Kick(now.wall)
		}
	case errors.Is(err, relay.ErrAddressTaken):
		h.refused, h.lastErr = err, err
		l.log.Error("address refused; this server is not used", "server", h.host.server.HostPort(), "err", err)
	default:
		h.lastErr = err
		h.mailDue = h.mailDue || did.mail
		h.wait = min(max(2*h.wait, controlFirst), controlMost)
		h.retry = now.wall.Add(h.wait)
		l.log.Warn("control channel failed", "server", h.host.server.HostPort(), "err", err, "retry", h.wait)
	}
	h.advance(now)
}
