package overlay

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/ipam"
	"github.com/pilotnet/pilot/natt"
	"github.com/pilotnet/pilot/natt/relay"
	"github.com/pilotnet/pilot/trust"
)

// instant is one moment on both clocks: wall for timers and machines (its
// monotonic part keeps differences right), boot for the age of keys.
type instant struct {
	wall time.Time
	boot time.Duration
}

// A loop is the control loop and all that it owns. One goroutine runs it; others
// reach it through plane.events and calls.
type loop struct {
	*plane
	log      *slog.Logger
	id       ipam.Identity
	instance uint64
	first    map[uint32]*peer // while begin makes the first snapshot: one for all peers
	store    *trust.Store
	secrets  *secrets
	underlay Underlay
	calls    chan func(instant)
	done     chan struct{} // closed when the loop has ended
	jobs     jobs
	send     *sender

	links      map[crypto.PublicKey]*link
	byPeer     map[*peer]*link
	waits      map[uint32]*link // our INITs under way
	alarms     alarms
	gate       natt.Gate // of searches for hard NATs' ports
	servers    []*home
	hosts      map[string]*serverHost
	proxies    Proxies
	stun       []STUNServer
	rung       atomic.Uint32 // relay.Rung by which a server was reached last
	lastSocket uint16
	pings      map[[pingBody]byte]*ping
	answered   *answerLog // INITs, over restarts
	forgetful  bool       // they cannot be written

	ran        instant    // when the loop last went round
	life       lifetime   // of NAT mappings
	facts      natt.Facts // of the last survey
	surveyed   time.Time
	resurvey   alarm
	surveys    int // in a row that found no UDP
	surveying  bool
	ifaces     []netip.Prefix
	mtu        int              // of the links, 0: not known
	mapped     []netip.AddrPort // what gateways mapped for us
	candidates []natt.Candidate
	version    uint64        // of policies
	skew       time.Duration // server's clock minus ours, where ours is plainly wrong
	superseded atomic.Bool   // another instance of this key has taken over
	minute     alarm
	live       int // sessions in the table
	outbox     *outbox
	heads      heads
	names      chan struct{} // kicks publishNames
}

// now reads both clocks.
func (l *loop) now() instant { return instant{wall: l.clock.Now(), boot: l.clock.Boot()} }

// run is the control loop. All state of loop and of what hangs on it belongs to
// this goroutine.
func (l *loop) run(ctx context.Context) error {
	defer close(l.done)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			l.shutdown()
			return nil
		case e := <-l.events:
			l.event(l.now(), e)
			l.drain()
		case e := <-l.outside:
			l.event(l.now(), e)
		case f := <-l.calls:
			f(l.now())
		case <-timer.C:
		}
		now := l.now()
		l.noticeSleep(now)
		l.alarms.ring(now)
		wait := time.Hour
		if at := l.alarms.next(); !at.IsZero() {
			wait = max(at.Sub(now.wall), 0)
		}
		timer.Reset(wait)
	}
}

// drain handles what already waits before timers are looked at again.
func (l *loop) drain() {
	for range cap(l.events) {
		select {
		case e := <-l.events:
			l.event(l.now(), e)
		default:
			return
		}
	}
}

// call runs f on the loop and waits for it. It fails only when ctx ends or the
// loop has ended.
func (l *loop) call(ctx context.Context, f func(now instant)) error {
	ran := make(chan struct{})
	select {
	case l.calls <- func(now instant) { f(now); close(ran) }:
	case <-ctx.Done():
		return Errorf(CodeTimeout, "the node did not answer in time").Retry()
	case <-l.done:
		return Errorf(CodeNotRunning, "the node is shutting down")
	}
	select {
	case <-ran:
		return nil
	case <-l.done:
		return Errorf(CodeNotRunning, "the node is shutting down")
	}
}

// post runs f on the loop some time later; it is for the loop's own jobs.
func (l *loop) post(f func(now instant)) {
	select {
	case l.calls <- f:
	case <-l.done:
	}
}

// event dispatches what a packet goroutine reported, and lets the link that it
// concerns do what became due.
func (l *loop) event(now instant, e event) {
	e.take()
	var k *link
	switch e.kind {
	case evServer:
		l.serverMessage(now, e)
		return
	case evInit:
		k = l.knocked(now, e)
	case evResp:
		_, index, _ := crypto.RespHeader(e.body)
		if k = l.waits[index]; k == nil {
			l.drops.add(dropInRespIndex)
			return
		}
		k.response(now, e)
	default:
		p := e.peer
		if e.entry != nil {
			p = e.entry.peer
		}
		if k = l.byPeer[p]; k == nil {
			return // revoked meanwhile
		}
		l.linkEvent(now, k, e)
	}
	if k != nil {
		k.advance(now)
	}
}

func (l *loop) linkEvent(now instant, k *link, e event) {
	switch e.kind {
	case evWant:
		k.wanted.Store(false)
		if k.active != nil && k.peer.tx.Load() != nil {
			k.publish() // a session came while the event waited
		} else {
			k.wanted.Store(true)
			k.connect(now)
		}
	case evAwake:
		k.busy = now.boot
	case evConfirm:
		k.confirm(now, e)
	case evRoam:
		k.roamed.Store(false)
		k.agent.Received(now.wall, e.path)
		if e.path.Relayed() {
			k.seen[e.path] = now.wall
			k.relays(now)
		}
	case evItem:
		k.received(now, e)
	case evTooBig:
		k.agent.TooBig(now.wall, e.path, len(e.body)+outerSize(e.path))
	}
}

func outerSize(p natt.Path) int {
	if p.Remote.Addr().Is4() {
		return outerIPv4
	}
	return outerIPv6
}

// knocked finds whose INIT it is and answers it.
func (l *loop) knocked(now instant, e event) *link {
	r := dropInInitMAC
	for _, c := range e.knock {
		if !c.pair.CheckInit(e.body) {
			continue
		}
		k := l.links[c.peer]
		if k == nil || l.superseded.Load() {
			break
		}
		slot := k.slot(c.slot)
		if slot == nil || !k.peer.policy.Load().Live(now.boot) {
			break
		}
		if r = k.initiation(now, e, slot); r == carried {
			return k
		}
		break
	}
	l.drops.add(r)
	return nil
}

// await and forget keep the table of our INITs under way, in the loop and for
// the reader.
func (l *loop) await(index uint32, k *link) {
	l.waits[index] = k
	l.waiting.Store(index, struct{}{})
}

func (l *loop) forget(index uint32) {
	delete(l.waits, index)
	l.waiting.Delete(index)
}

// putSession makes a session known to the readers, in a larger table when the
// present one gets crowded.
func (l *loop) putSession(e *sessionEntry) {
	s := l.snapshot.Load()
	s.sessions.put(e)
	l.live++
	if size := len(s.sessions.entries); l.live*4 > size {
		bigger := newSessionTable(size * 4)
		for _, k := range l.links {
			for _, o := range k.sessions {
				bigger.put(o.sessionEntry)
			}
		}
		n := *s
		n.sessions = bigger
		l.snapshot.Store(&n)
	}
}

// datagram sends one datagram of the loop's own.
func (l *loop) datagram(to netip.AddrPort, b []byte) { l.datagramVia(0, to, b) }

func (l *loop) datagramVia(socket uint16, to netip.AddrPort, b []byte) {
	conn := l.socket(socket)
	if conn == nil {
		return
	}
	if _, err := conn.WriteBatch([]natt.Message{{Buf: b, Addr: to}}); err != nil {
		l.drops.add(dropOutSend)
	}
}

// frame sends one tunnel message through a relay channel.
func (l *loop) frame(p natt.Path, b []byte) {
	f := make([]byte, relayHeader+len(b))
	relay.PutFrameHeader(f, p.Channel)
	copy(f[relayHeader:], b)
	l.datagramVia(p.Socket, p.Remote, f)
}

// epochTime is the time for knock tags and INIT timestamps: ours, or a home
// server's where ours is plainly wrong. It never decides on validity.
func (l *loop) epochTime(wall time.Time) time.Time { return wall.Add(l.skew) }

// everyMinute keeps the knock tags in step with time, ends links whose grant has
// expired (their packets stopped at the instant) and looks at the network.
func (l *loop) everyMinute(now instant) {
	l.tags.advance(crypto.Epoch(l.epochTime(now.wall)))
	l.firewall.Sweep(now.boot)
	for key, k := range l.links {
		if !k.peer.policy.Load().Live(now.boot) {
			l.refresh(now, key)
		}
		k.keepHead(now, false)
		if !k.agent.Searching() {
			k.prunePool(now)
		}
	}
	l.lookAtNetwork(now)
	l.releaseSpare(now)
	l.syncAnswers()
	if l.store.Trouble() != nil {
		l.write(l.store.Retry)
	}
	l.alarms.set(&l.minute, now.wall.Add(time.Minute))
}

// lookAtNetwork compares the host's addresses with those known.
func (l *loop) lookAtNetwork(now instant) {
	ifaces, err := l.underlay.Interfaces()
	if err != nil {
		l.log.Warn("cannot list interfaces", "err", err)
		return
	}
	changed := fmt.Sprint(ifaces) != fmt.Sprint(l.ifaces)
	l.ifaces = ifaces
	l.updateCandidates(now)
	if changed {
		l.networkChanged(now)
	}
	l.lookAtMTU(now)
}

// networkChanged asks everything anew at once: the facts, the servers, and those
// peers that there is traffic with.
func (l *loop) networkChanged(now instant) {
	l.surveyAgain()
	l.restartLifetime(now)
	for _, h := range l.servers {
		h.kick(now)
	}
	for _, k := range l.links {
		k.agent.Links(now.wall, l.ifaces)
		if k.active != nil {
			k.agent.NetworkChanged(now.wall)
			k.advance(now)
		}
	}
}

// updateCandidates tells every agent where we may be reached.
func (l *loop) updateCandidates(now instant) {
	c := natt.HostCandidates(l.ifaces, l.conn.LocalAddr().Port(), ipam.Prefix())
	for _, h := range l.servers {
		if a := h.machine.Observed(); a.IsValid() && !h.host.ladder.Rung().Stream() {
			c = append(c, natt.Candidate{Kind: natt.Observed, Addr: a})
		}
	}
	for _, a := range l.mapped {
		c = append(c, natt.Candidate{Kind: natt.Mapped, Addr: a})
	}
	l.candidates = c
	for _, k := range l.links {
		k.agent.SetLocal(now.wall, c)
		if k.active != nil {
			k.advance(now)
		}
	}
}

// shutdown says goodbye: peers and servers need not find out by waiting.
func (l *loop) shutdown() {
	for _, k := range l.links {
		k.closePool(l.now())
		k.keepHead(l.now(), true)
		if k.active != nil {
			k.item(itemClose, []byte{closeShutdown})
		}
	}
	now := l.now()
	for _, h := range l.servers {
		h.bye(now)
	}
	l.shutCarriers()
}

// jobs counts the work that runs beside the loop, so that Run ends after it.
type jobs struct {
	ctx     context.Context
	start   func(func())
	running atomic.Int64
}

// do runs f beside the loop.
func (j *jobs) do(f func(ctx context.Context)) {
	j.running.Add(1)
	j.start(func() {
		defer j.running.Add(-1)
		f(j.ctx)
	})
}

func describe(p natt.Path) string {
	if p.Relayed() {
		return "relay " + p.Remote.String()
	}
	return "direct " + p.Remote.String()
}
