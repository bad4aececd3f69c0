package overlay

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime/debug"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/ipam"
	"github.com/pilotnet/pilot/ipam/dns"
	"github.com/pilotnet/pilot/natt"
	"github.com/pilotnet/pilot/overlay/firewall"
	"github.com/pilotnet/pilot/trust"
	"github.com/pilotnet/pilot/tun"
)

// DefaultMTU is the MTU of the TUN: full packets fill their frames without
// padding and fit an outer link of 1492 bytes over IPv6.
const DefaultMTU = 1408

// A Node is one agent: it joins the TUN, the tunnels, trust and the way to the
// others. Make it with New, then call Run once. All other methods may be called
// from any goroutine while Run runs; they return *Error.
type Node struct {
	cfg     Config
	log     *slog.Logger
	plane   *plane
	loop    *loop
	store   *trust.Store
	naming  naming
	serving *serving
	started time.Time
	running atomic.Bool
	lacks   error        // why there is no device of the kernel, where one was tried
	proxy   net.Listener // nil: none
}

// New opens the agent's state, its device and its socket, in this order, and
// leaves nothing open if it fails. Its errors are *Error.
func New(cfg Config) (*Node, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Underlay == nil {
		cfg.Underlay = hostUnderlay{cfg.Logger}
	}
	if cfg.Clock == nil {
		cfg.Clock = hostClock{}
	}
	if cfg.DeviceName == "" {
		cfg.DeviceName = "pilot0"
	}
	cfg.Servers = cfg.Servers[:min(len(cfg.Servers), MaxServers)]
	cfg.STUN = cfg.STUN[:min(len(cfg.STUN), MaxSTUN)]
	n := &Node{cfg: cfg, log: cfg.Logger, started: cfg.Clock.Now()}
	if err := n.open(); err != nil {
		n.closeAll()
		return nil, publicError(err)
	}
	return n, nil
}

func (n *Node) open() error {
	cfg := &n.cfg
	if err := os.MkdirAll(cfg.StateDir, 0o700); err != nil {
		return fmt.Errorf("overlay: state directory: %w", err)
	}
	sec, err := loadSecrets(cfg.StateDir, cfg.Identity, cfg.Clock.Now())
	if err != nil {
		return err
	}
	n.store, err = trust.Open(trust.Config{
		Dir: cfg.StateDir, Key: cfg.Identity.Key, Seal: sec.seals, Name: cfg.Name,
		Now: cfg.Clock.Now, Boot: cfg.Clock.Boot, Logger: cfg.Logger,
		CheckCard: checkCard, Card: sec.card, ValidName: ipam.ValidName,
	})
	if err != nil {
		return err
	}
	if err := sec.makeCard(cfg.Identity, cfg.Servers, n.store, cfg.Clock.Now()); err != nil {
		return err
	}
	if cfg.Device == nil {
		if cfg.Device, err = n.openDevice(); err != nil {
			return err
		}
	}
	conn, err := n.listen()
	if err != nil {
		return err
	}
	n.build(sec, conn)
	if err := n.openProxy(); err != nil {
		return err
	}
	n.loop.answered, err = openAnswerLog(cfg.StateDir)
	return err
}

// checkCard derives the address of a card's key, which costs some milliseconds
// and 8 MiB. These are given back at once: the next collection would find them in
// minutes, and they are more than all that an agent needs otherwise.
func checkCard(c crypto.Card) ([6]byte, error) {
	node, err := ipam.NodeID(c.Key, c.Counter)
	debug.FreeOSMemory()
	if err != nil {
		return [6]byte{}, err
	}
	return ipam.Addr{Node: node}.Bytes(), nil
}

// listen opens the UDP socket on the stored port, so that NAT mappings, and the
// endpoints that peers remember, outlive a restart.
func (n *Node) listen() (natt.PacketConn, error) {
	port := n.cfg.Port
	if port == 0 {
		if b, ok := n.store.GetMeta("port"); ok {
			p, _ := strconv.ParseUint(string(b), 10, 16)
			port = uint16(p)
		}
	}
	conn, err := n.cfg.Underlay.ListenUDP(port)
	if err != nil && n.cfg.Port == 0 && port != 0 {
		n.log.Warn("stored UDP port is taken; using another", "port", port, "err", err)
		conn, err = n.cfg.Underlay.ListenUDP(0)
	}
	if err != nil {
		return nil, fmt.Errorf("overlay: UDP port %d: %w", port, err)
	}
	if got := conn.LocalAddr().Port(); got != port {
		if err := n.store.PutMeta("port", []byte(strconv.Itoa(int(got)))); err != nil {
			n.log.Warn("cannot store the UDP port", "err", err)
		}
	}
	return conn, nil
}

func (n *Node) build(sec *secrets, conn natt.PacketConn) {
	own := n.cfg.Identity.Addr().ULA()
	n.naming = n.newNaming()
	n.plane = &plane{
		resolver: dns.NewResponder(n.naming.zone),
		own:      own, prefix: overlayNetwork(), device: n.cfg.Device, conn: conn, clock: n.cfg.Clock,
		tags: newTagTable(), firewall: firewall.New(own.As16()), events: make(chan event, 1024), outside: make(chan event, 256),
	}
	n.plane.snapshot.Store(&snapshot{peers: map[uint32]*peer{}, sessions: newSessionTable(256)})
	l := &loop{
		plane: n.plane, log: n.log, id: n.cfg.Identity, store: n.store, secrets: sec, underlay: n.cfg.Underlay,
		calls: make(chan func(instant)), done: make(chan struct{}), send: newSender(n.plane),
		links: map[crypto.PublicKey]*link{}, byPeer: map[*peer]*link{}, waits: map[uint32]*link{},
		hosts: map[string]*serverHost{}, proxies: n.cfg.Proxies, stun: n.cfg.STUN, pings: map[[pingBody]byte]*ping{}, names: make(chan struct{}, 1),
	}
	l.heads = newHeads()
	l.outbox = &outbox{loop: l, kick: make(chan struct{}, 1)}
	var b [8]byte
	// crypto/rand never fails (it ends the process instead).
	_, _ = rand.Read(b[:])
	l.instance = binary.BigEndian.Uint64(b[:])
	l.minute.ring = l.everyMinute
	l.life.alarm.ring = l.measureLifetime
	l.resurvey.ring = func(instant) { l.surveyAgain() }
	n.loop = l
	n.serving = n.newServing()
}

// Run carries traffic until ctx ends, and returns when every goroutine has
// ended and device, socket and store are closed. It returns nil after an
// orderly stop. The order of the stop: services and the proxy begin nothing new, and
// what is under way gets services.DrainTime to end; goodbye to peers and servers; then
// socket and device are closed, so that the readers return; then the store.
func (n *Node) Run(ctx context.Context) error {
	if !n.running.CompareAndSwap(false, true) {
		return Errorf(CodeInternal, "the node runs already")
	}
	defer n.closeAll()
	asked, stop := context.WithCancel(ctx)
	defer stop()
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	g, ctx := errgroup.WithContext(life)
	defer context.AfterFunc(ctx, stop)()
	l := n.loop
	l.jobs = jobs{ctx: ctx, start: func(f func()) { g.Go(func() error { f(); return nil }) }}
	l.begin(n.cfg.Servers, n.cfg.Takeover)
	g.Go(func() error {
		err := l.run(ctx)
		n.plane.conn.Close()
		n.plane.device.Close()
		return err
	})
	g.Go(newOutbound(n.plane).run)
	g.Go(newInbound(n.plane, n.plane.conn, 0).run)
	g.Go(func() error { return l.outbox.run(ctx) })
	g.Go(func() error { return l.runHeads(ctx) })
	g.Go(func() error { n.publishNames(ctx); return nil })
	g.Go(func() error { return n.mapPort(ctx) })
	n.serve(asked, g, end)
	if changes := n.cfg.Underlay.Changes(ctx); changes != nil {
		g.Go(func() error { return n.watchNetwork(ctx, changes) })
	}
	l.nudgeNames()
	if err := g.Wait(); err != nil && ctx.Err() != nil && !errors.Is(err, context.Canceled) {
		return publicError(err)
	}
	return nil
}

// begin readies the loop's state before its goroutine starts.
func (l *loop) begin(servers []crypto.Server, takeover bool) {
	now := l.now()
	l.tags.advance(crypto.Epoch(l.epochTime(now.wall)))
	var err error
	if l.ifaces, err = l.underlay.Interfaces(); err != nil {
		l.log.Warn("cannot list interfaces", "err", err)
	}
	l.lookAtMTU(now)
	for _, s := range servers {
		l.servers = append(l.servers, l.newHome(s, takeover))
	}
	l.first = map[uint32]*peer{}
	for _, p := range l.store.Peers() {
		l.refresh(now, p.Key)
	}
	all := *l.snapshot.Load()
	all.peers, l.first = l.first, nil
	l.snapshot.Store(&all)
	l.publishServers()
	l.updateCandidates(now)
	for _, h := range l.servers {
		l.alarms.set(&h.alarm, now.wall)
	}
	l.alarms.set(&l.minute, now.wall.Add(time.Minute))
	l.restartLifetime(now)
	l.kickOutbox()
	l.surveyAgain()
}

// mapPort keeps what the gateways map for us among our candidates, at once and
// unproved: waiting for a proof would cost the time that a mapping is to save. The
// proof is the peer's. A path carries data only after a challenge over it was
// answered, hence after a packet came in through the mapping; and a gateway that
// errs or lies has a peer send a few small packets to an address, as any wrong
// candidate does.
func (n *Node) mapPort(ctx context.Context) error {
	err := n.cfg.Underlay.MapPort(ctx, n.plane.conn.LocalAddr().Port(), func(at []netip.AddrPort) {
		n.loop.post(func(now instant) {
			n.loop.mapped = at
			n.loop.updateCandidates(now)
		})
	})
	if err != nil {
		n.log.Info("no port mapping", "err", err) // an agent without one works
	}
	return nil
}

func (n *Node) watchNetwork(ctx context.Context, changes <-chan struct{}) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case _, ok := <-changes:
			if !ok {
				return nil
			}
			n.loop.post(n.loop.lookAtNetwork)
			if d, ok := n.plane.device.(tun.Rerouter); ok {
				if err := d.Reroute(); err != nil {
					n.log.Debug("cannot follow the host's routes", "err", err)
				}
			}
		}
	}
}

// closeAll closes what is open. Closing twice is harmless.
func (n *Node) closeAll() {
	if n.plane != nil {
		n.plane.conn.Close()
	}
	if n.proxy != nil {
		n.proxy.Close()
	}
	if n.cfg.Device != nil {
		n.cfg.Device.Close()
	}
	if n.store != nil {
		if err := n.store.Close(); err != nil {
			n.log.Error("closing the store", "err", err)
		}
	}
	if n.loop != nil && n.loop.answered != nil {
		if err := n.loop.answered.close(); err != nil && !errors.Is(err, os.ErrClosed) {
			n.log.Error("closing the memory of handshakes", "err", err)
		}
	}
}
