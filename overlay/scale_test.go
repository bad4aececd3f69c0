package overlay

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/ipam"
	"github.com/pilotnet/pilot/natt"
	"github.com/pilotnet/pilot/trust"
	"github.com/pilotnet/pilot/tun/tuntest"
)

// A hub is one agent with many peers that are nothing but keys: they answer its
// handshakes and challenges over a socket in memory.
type hub struct {
	t     testing.TB
	dir   string
	id    ipam.Identity
	peers []*spoke
	conn  *crowdConn
	node  *Node
	stop  func()

	mu   sync.Mutex
	byIP map[netip.AddrPort]*spoke
	done chan *spoke // a handshake is complete
}

// A spoke is a peer of the hub: what the trust exchange left it with.
type spoke struct {
	pair    *crypto.Pair
	addr    netip.AddrPort
	init    *crypto.Initiation
	session *crypto.Session
}

// A crowdConn is the socket of the hub.
type crowdConn struct {
	in     chan natt.Message
	out    chan natt.Message
	closed chan struct{}
	once   sync.Once
}

func (c *crowdConn) LocalAddr() netip.AddrPort {
	return netip.AddrPortFrom(netip.IPv6Unspecified(), 4242)
}
func (*crowdConn) BatchSize() int        { return 32 }
func (*crowdConn) Offload() natt.Offload { return natt.Offload{} }
func (c *crowdConn) Close() error        { c.once.Do(func() { close(c.closed) }); return nil }

func (c *crowdConn) ReadBatch(m []natt.Message) (int, error) {
	select {
	case <-c.closed:
		return 0, net.ErrClosed
	case got := <-c.in:
		m[0].N, m[0].Addr, m[0].Segment = copy(m[0].Buf, got.Buf), got.Addr, 0
		return 1, nil
	}
}

func (c *crowdConn) WriteBatch(m []natt.Message) (int, error) {
	for i := range m {
		size := m[i].Segment
		if size == 0 {
			size = len(m[i].Buf)
		}
		for b := m[i].Buf; len(b) > 0; {
			n := min(size, len(b))
			select {
			case c.out <- natt.Message{Buf: append([]byte(nil), b[:n]...), Addr: m[i].Addr}:
			case <-c.closed:
				return i, net.ErrClosed
			}
			b = b[n:]
		}
	}
	return len(m), nil
}

type crowdUnderlay struct{ conn natt.PacketConn }

func (u crowdUnderlay) ListenUDP(uint16) (natt.PacketConn, error) { return u.conn, nil }
func (crowdUnderlay) DialContext(context.Context, string, string) (net.Conn, error) {
	return nil, errors.New("no streams")
}
func (crowdUnderlay) LookupNetIP(context.Context, string) ([]netip.Addr, error) {
	return nil, errors.New("no names")
}
func (crowdUnderlay) Interfaces() ([]netip.Prefix, error) { return nil, nil }
func (crowdUnderlay) MapPort(context.Context, uint16, func([]netip.AddrPort)) error {
	return nil
}
func (crowdUnderlay) Changes(context.Context) <-chan struct{} { return nil }

// newHub makes an agent that trusts n peers, by the real exchange. Only the
// addresses do not follow from the keys: deriving ten thousand takes hours.
func newHub(t testing.TB, n int) *hub {
	h := &hub{t: t, dir: quickDir(t), id: identity(t, "alice"), byIP: map[netip.AddrPort]*spoke{}, done: make(chan *spoke, 1)}
	own, err := loadSecrets(h.dir, h.id, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	nodes := map[crypto.PublicKey]uint32{h.id.Key.Public(): h.id.Node}
	config := func(dir string, key crypto.PrivateKey, seal []crypto.SealPrivate, card func() []byte) trust.Config {
		return trust.Config{
			Dir: dir, Key: key, Seal: seal, Name: "peer", Now: time.Now, Boot: hostClock{}.Boot, NoSync: true, Card: card,
			CheckCard: func(c crypto.Card) ([6]byte, error) { return ipam.Addr{Node: nodes[c.Key]}.Bytes(), nil },
		}
	}
	book, err := trust.Open(config(h.dir, h.id.Key, own.seals, own.card))
	if err != nil {
		t.Fatal(err)
	}
	if err := own.makeCard(h.id, nil, book, time.Now()); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		key, err := crypto.GenerateKey()
		if err != nil {
			t.Fatal(err)
		}
		id := ipam.Identity{Key: key, Node: uint32(1000 + i)}
		nodes[key.Public()] = id.Node
		h.peers = append(h.peers, h.befriend(book, config, id, i))
	}
	if err := book.Close(); err != nil {
		t.Fatal(err)
	}
	return h
}

// quickDir is a directory in memory where there is one: an exchange syncs a file
// or two, and there are ten thousand.
func quickDir(t testing.TB) string {
	dir, err := os.MkdirTemp("/dev/shm", "pilot")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

type trustConfig func(string, crypto.PrivateKey, []crypto.SealPrivate, func() []byte) trust.Config

// befriend is one request of the hub and its grant.
func (h *hub) befriend(book *trust.Store, config trustConfig, id ipam.Identity, i int) *spoke {
	dir := filepath.Join(h.dir, "peer")
	if err := os.Mkdir(dir, 0o700); err != nil {
		h.t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	sec, err := loadSecrets(dir, id, time.Now())
	if err != nil {
		h.t.Fatal(err)
	}
	theirs, err := trust.Open(config(dir, id.Key, sec.seals, sec.card))
	if err != nil {
		h.t.Fatal(err)
	}
	defer theirs.Close()
	if err := sec.makeCard(id, nil, theirs, time.Now()); err != nil {
		h.t.Fatal(err)
	}
	card, err := crypto.ParseCard(sec.card())
	if err != nil {
		h.t.Fatal(err)
	}
	_, err = book.Request(trust.RequestOptions{
		Card: card, Addr: id.Addr().Bytes(), As: fmt.Sprint("peer", i), Ask: trust.AllPorts, Offer: trust.AllPorts, Reason: "scale",
	})
	if err != nil {
		h.t.Fatal(err)
	}
	pass := func(from, to *trust.Store) {
		for _, m := range from.Outbox() {
			if _, err := to.Receive(m.Sealed); err != nil {
				h.t.Fatal(err)
			}
			if err := from.Delivered(m.ID); err != nil {
				h.t.Fatal(err)
			}
		}
	}
	pass(book, theirs)
	all := trust.AllPorts
	if _, err := theirs.Approve(h.id.Key.Public(), trust.ApproveOptions{Ports: &all}); err != nil {
		h.t.Fatal(err)
	}
	pass(theirs, book)
	p, ok := theirs.Peer(h.id.Key.Public())
	slot := p.Next
	if slot == nil {
		slot = p.Current
	}
	if !ok || slot == nil {
		h.t.Fatalf("peer %d has no pair state", i)
	}
	pair, err := crypto.NewPair(crypto.PairConfig{
		Local: id.Key.Public(), Remote: h.id.Key.Public(), LocalAddr: id.Addr().Bytes(), RemoteAddr: h.id.Addr().Bytes(),
		Static: slot.Static, RemoteStatic: slot.RemoteStatic, Secret: slot.Secret,
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return &spoke{pair: pair, addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}), 4242)}
}

// start runs the hub and returns how long it took until it knew all its peers.
func (h *hub) start() time.Duration {
	h.conn = &crowdConn{in: make(chan natt.Message), out: make(chan natt.Message, 1024), closed: make(chan struct{})}
	began := time.Now()
	n, err := New(Config{StateDir: h.dir, Name: "alice", Identity: h.id, Underlay: crowdUnderlay{h.conn}, Device: tuntest.New(tuntest.Options{})})
	if err != nil {
		h.t.Fatal(err)
	}
	h.node = n
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	group.Go(func() {
		if err := n.Run(ctx); err != nil {
			h.t.Error(err)
		}
	})
	group.Go(h.answer)
	h.stop = func() { cancel(); group.Wait() }
	patience, enough := context.WithTimeout(ctx, 2*time.Minute)
	defer enough()
	if err := n.loop.call(patience, func(instant) {}); err != nil {
		h.t.Fatal(err)
	}
	took := time.Since(began)
	if s := n.Status(); s.State != "ready" || len(s.Peers) != len(h.peers) || len(n.plane.snapshot.Load().peers) != len(h.peers) {
		h.t.Fatalf("%s with %d peers", s.State, len(s.Peers))
	}
	return took
}

// answer is what all peers do together.
func (h *hub) answer() {
	for {
		select {
		case <-h.conn.closed:
			return
		case m := <-h.conn.out:
			h.mu.Lock()
			p := h.byIP[m.Addr]
			h.mu.Unlock()
			if p != nil {
				h.datagram(p, m.Buf)
			}
		}
	}
}

func (h *hub) datagram(p *spoke, b []byte) {
	switch b[0] {
	case byte(crypto.TypeResp):
		_, keys, remote, err := p.init.Complete(b)
		if err != nil {
			return // the answer to one before
		}
		p.session = crypto.NewSession(keys, p.init.Index(), remote)
		p.send(h, appendItem(nil, itemKeepalive, nil))
		h.done <- p
	case byte(crypto.TypeData):
		if p.session == nil {
			return
		}
		plain, _, _, err := p.session.Open(nil, b)
		if err != nil {
			h.t.Errorf("the hub's frame: %v", err)
			return
		}
		for {
			kind, item, rest, err := nextItem(plain)
			if err != nil || item == nil {
				return
			}
			switch plain = rest; kind {
			case itemChallenge:
				p.send(h, appendItem(nil, itemResponse, item))
			case itemPing:
				p.send(h, appendItem(nil, itemPong, item))
			}
		}
	}
}

func (p *spoke) send(h *hub, plain []byte) {
	b, err := p.session.Seal(nil, plain, false)
	if err != nil {
		h.t.Error(err)
		return
	}
	h.inject(p, b)
}

func (h *hub) inject(p *spoke, b []byte) {
	select {
	case h.conn.in <- natt.Message{Buf: b, Addr: p.addr}:
	case <-h.conn.closed:
	}
}

// shake makes a session between the hub and every peer.
func (h *hub) shake() time.Duration {
	began := time.Now()
	for i, p := range h.peers {
		init, err := p.pair.Initiate(time.Now(), uint32(i+1), crypto.InitPayload{Millis: uint64(time.Now().UnixMilli())})
		if err != nil {
			h.t.Fatal(err)
		}
		p.init = init
		h.mu.Lock()
		h.byIP[p.addr] = p
		h.mu.Unlock()
		h.inject(p, init.Message())
		select {
		case <-h.done:
		case <-time.After(30 * time.Second):
			h.t.Fatalf("no handshake with peer %d; drops %v", i, h.node.plane.drops.counts())
		}
	}
	took := time.Since(began)
	if len(h.peers) == 0 {
		return took
	}
	last := h.node.plane.snapshot.Load().peers[uint32(1000+len(h.peers)-1)]
	for end := time.Now().Add(10 * time.Second); last.tx.Load() == nil; {
		if time.Now().After(end) {
			h.t.Fatal("the last session was not confirmed")
		}
		<-time.After(time.Millisecond)
	}
	return took
}

func heapInUse() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// A crowdCost is what a hub with a number of idle peers takes.
type crowdCost struct {
	ready, shaken time.Duration
	heap          uint64  // bytes
	cpu           float64 // share of one, while paths are kept open after the last traffic
	asleep        float64 // the same after that; only if waited for
}

// drowsy is longer than an agent keeps the path to a silent peer open.
const drowsy = 3*time.Minute + 10*time.Second

// crowdCostOf measures a hub with n peers, each with a completed handshake, soon
// after that, and when all are asleep.
func crowdCostOf(t *testing.T, n int, settle time.Duration, asleep bool) (c crowdCost) {
	before := heapInUse()
	h := newHub(t, n)
	c.ready = h.start()
	defer h.stop()
	c.shaken = h.shake()
	share := func() float64 {
		<-time.After(settle)
		began, cpu := time.Now(), cpuTime()
		<-time.After(settle)
		return float64(cpuTime()-cpu) / float64(time.Since(began))
	}
	c.cpu = share()
	known := h.node.plane.snapshot.Load().peers
	connected := 0
	for _, p := range known {
		if p.tx.Load() != nil {
			connected++
		}
	}
	if len(known) != n || connected != n {
		t.Errorf("%d peers, %d of them connected", len(known), connected)
	}
	if asleep {
		<-time.After(drowsy) // their sessions end meanwhile
		c.asleep = share()
	}
	h.mu.Lock()
	h.peers, h.byIP = nil, nil // what is not the hub's
	h.mu.Unlock()
	c.heap = heapInUse() - before
	return c
}

// What an idle peer costs, in memory and CPU, with 1, 100 and 10,000 of them; how
// fast the handshakes are, and how long an agent with so many trusted peers needs
// to start. PILOT_SCALE=1 adds the 10,000, another number as many, and waits with
// 1,000 until all are asleep. Their answers are the work of this process, too.
func TestScalePeers(t *testing.T) {
	counts, settle, drowsing := []int{1, 100}, time.Second, 0
	if os.Getenv("PILOT_SCALE") != "" {
		many, _ := strconv.Atoi(os.Getenv("PILOT_SCALE"))
		if many <= 1 {
			many = 10_000
		}
		counts, settle, drowsing = append(counts, many), 10*time.Second, min(many, 1000)
	} else if raceEnabled || testing.Short() {
		counts = []int{1, 20}
	}
	none := crowdCostOf(t, 0, time.Millisecond, false)
	t.Logf("no peer: ready after %v, %.1f MiB", none.ready.Round(time.Millisecond), float64(none.heap)/(1<<20))
	for _, n := range counts {
		c := crowdCostOf(t, n, settle, false)
		per := (float64(c.heap) - float64(none.heap)) / float64(n)
		t.Logf("%d peers: ready after %v; %.0f handshakes/s with both ends in this process; idle: %.1f KiB and %.5f %% of a CPU a peer (%.1f MiB and %.2f %% in all)",
			n, c.ready.Round(time.Millisecond), float64(n)/c.shaken.Seconds(), per/1024, 100*c.cpu/float64(n), float64(c.heap)/(1<<20), 100*c.cpu)
		if n >= 100 && per > 64<<10 {
			t.Errorf("%.0f bytes a peer", per)
		}
	}
	if drowsing > 0 {
		c := crowdCostOf(t, drowsing, settle, true)
		t.Logf("%d peers asleep: %.6f %% of a CPU a peer (%.2f %% in all)", drowsing, 100*c.asleep/float64(drowsing), 100*c.asleep)
	}
}

// A whole handshake: INIT, RESP, and the session confirmed by data, the work of
// both ends in this process. Each peer does one, as its budget allows no more at
// once.
func BenchmarkHandshakes(b *testing.B) {
	const peers = 200
	var h *hub
	b.ReportAllocs()
	for i := range b.N {
		if i%peers == 0 {
			b.StopTimer()
			if h != nil {
				h.stop()
			}
			h = newHub(b, peers)
			h.start()
			b.StartTimer()
		}
		p := h.peers[i%peers]
		h.mu.Lock()
		h.byIP[p.addr] = p
		h.mu.Unlock()
		init, err := p.pair.Initiate(time.Now(), binary.LittleEndian.Uint32(p.addr.Addr().AsSlice())+uint32(i), crypto.InitPayload{Millis: uint64(time.Now().UnixMilli())})
		if err != nil {
			b.Fatal(err)
		}
		p.init = init
		h.inject(p, init.Message())
		select {
		case <-h.done:
		case <-time.After(10 * time.Second):
			b.Fatalf("%d handshakes done; drops %v", i, h.node.plane.drops.counts())
		}
	}
	b.StopTimer()
	h.stop()
}
