package overlay

import (
	"bytes"
	"encoding/binary"
	"math"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/natt"
	"github.com/pilotnet/pilot/natt/natlab"
	"github.com/pilotnet/pilot/natt/relay"
	"github.com/pilotnet/pilot/trust"
	"github.com/pilotnet/pilot/tun"
)

// The seven tests of this file are the seven ways in which a published overlay
// for agents broke its own promises (2026-02): each is named after the fault and
// shows, with real nodes, that Pilot does not have it.

// A tap keeps what came to an agent's socket, and what any host of the lab sent.
type tap struct {
	mu   sync.Mutex
	came []wired
	sent [][]byte
	to   map[netip.AddrPort]int // bytes
}

// tapped are alice and bob, direct, with a tap on everything.
func tapped(t testing.TB) (w *world, alice, bob *agent, wire *middle, on *tap) {
	w = newWorld(t)
	alice = w.agent("alice", natlab.Linux)
	bob, wire = w.agentBehind("bob", natlab.Full)
	on = &tap{to: map[netip.AddrPort]int{}}
	wire.ask(func(d wired) []time.Duration {
		on.mu.Lock()
		defer on.mu.Unlock()
		on.came = append(on.came, d)
		return []time.Duration{0}
	})
	w.net.Observe(func(e natlab.Event) {
		if e.Kind == natlab.Sent {
			on.mu.Lock()
			defer on.mu.Unlock()
			on.sent = append(on.sent, bytes.Clone(e.Data))
			on.to[e.To] += len(e.Data)
		}
	})
	w.befriend(alice, bob, "7", "7")
	alice.pathTo("bob", "direct")
	bob.pathTo("alice", "direct")
	return w, alice, bob, wire, on
}

// of returns the datagrams to the agent whose tunnel message is of that type.
func (p *tap) of(kind crypto.MessageType) (list []wired) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, d := range p.came {
		if b := d.tunnel(); len(b) > 0 && b[0] == byte(kind) {
			list = append(list, d)
		}
	}
	return list
}

func (p *tap) all() []wired {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.came)
}

// flows shows that n packets get through, each once.
func flows(t *testing.T, from, to *agent, n int) {
	t.Helper()
	if r := stream(from, to, n, 5*time.Millisecond); r.lost != 0 || r.twice != 0 {
		t.Errorf("of %d packets: %+v; drops %v", n, r, to.Status().Drops)
	}
}

// endpoint is where an agent sends to its only peer.
func endpoint(t *testing.T, a *agent) (p natt.Path) {
	t.Helper()
	for _, peer := range a.plane.snapshot.Load().peers {
		if tx := peer.tx.Load(); tx != nil {
			return tx.path
		}
	}
	t.Fatalf("%s has no path", a.cfg.Name)
	return p
}

// Fault 1: frames in clear from anybody were delivered, and what was sent before
// the key exchange ended left in clear.
func TestHostilePlaintextFrames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, alice, bob, wire, on := tapped(t)
		defer w.close()
		packet := udp(alice.plane.own, bob.plane.own, 4000, 7, []byte("PLAINTEXT"))
		peer := endpoint(t, bob)
		header := func(index uint32, rest ...[]byte) []byte {
			b := binary.BigEndian.AppendUint32([]byte{byte(crypto.TypeData), 0, 0, 0}, index)
			return slices.Concat(binary.BigEndian.AppendUint64(b, 1<<20), slices.Concat(rest...))
		}
		live := alice.session(bob).Remote()
		frame := relayed(1, packet)
		for _, b := range [][]byte{
			packet, append([]byte("PILT"), packet...), append([]byte{0, 0, 0, 0}, packet...),
			header(live, packet), header(live, packet, make([]byte, 16)), header(0, packet, make([]byte, 16)),
			frame, relayed(1, header(live, packet, make([]byte, 16))),
		} {
			for _, from := range []netip.AddrPort{peer.Remote, stranger, netip.AddrPortFrom(w.server.Addr(), serverPort)} {
				wire.inject(wired{from, b})
			}
		}
		pass(time.Second)
		if n := bob.device.Waiting(); n != 0 {
			t.Errorf("%d plaintext packets were delivered", n)
		}
		// From silence: what waits for the handshake does not leave before it.
		pass(20 * time.Minute)
		if p := alice.peer("bob"); p.Path != "none" {
			t.Fatalf("a session survived idleness: %+v", p)
		}
		secret := []byte("what nobody on the way may read")
		for range 20 {
			if err := alice.device.Inject(tunPacket(udp(alice.plane.own, bob.plane.own, 4000, 7, secret))); err != nil {
				t.Fatal(err)
			}
			pass(5 * time.Millisecond)
		}
		for i := range 20 {
			p, err := bob.device.Receive(w.ctx(5 * time.Second))
			if err != nil || !bytes.Contains(p.Data, secret) {
				t.Fatalf("packet %d: %v", i, err)
			}
		}
		on.mu.Lock()
		defer on.mu.Unlock()
		for _, b := range on.sent {
			if bytes.Contains(b, secret[:8]) || bytes.Contains(b, alice.plane.own.AsSlice()) {
				t.Fatalf("in clear on the wire: %x", b)
			}
		}
	})
}

// Fault 2: the replay window moved before the tag was checked, so that one forged
// frame with a high counter ended a tunnel.
func TestHostileCounterBeforeTag(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, alice, bob, wire, on := tapped(t)
		defer w.close()
		flows(t, alice, bob, 20)
		data := on.of(crypto.TypeData)
		genuine := data[len(data)-1]
		for _, counter := range []uint64{math.MaxUint64, math.MaxUint64 - 1, 1 << 63, crypto.RejectAfterMessages, crypto.RejectAfterMessages - 1, 1 << 20, 9000} {
			b := bytes.Clone(genuine.tunnel())
			binary.BigEndian.PutUint64(b[8:], counter)
			for _, from := range []netip.AddrPort{genuine.from, stranger} {
				wire.inject(wired{from, b})
				wire.inject(wired{from, b[:crypto.Overhead]})
			}
		}
		flows(t, alice, bob, 20)
		if n := bob.Status().Drops["in_auth"]; n < 28 {
			t.Errorf("%d forged frames refused, 28 were sent", n)
		}
	})
}

// Fault 3: a key exchange could be replayed, which reset the replay window, after
// which old data passed again.
func TestHostileReplayedKeyExchange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, alice, bob, wire, on := tapped(t)
		defer w.close()
		const order = 100 // "pay 100"
		alice.send(bob, order, 64)
		if n, err := bob.receive(time.Second); err != nil || n != order {
			t.Fatalf("%d, %v", n, err)
		}
		attack := func(when string) {
			recorded := on.all()
			replay := func(pick func(byte) bool) {
				for i, d := range recorded {
					if b := d.tunnel(); len(b) > 0 && pick(b[0]) {
						wire.inject(d)
						if i%32 == 0 {
							pass(time.Millisecond)
						}
					}
				}
			}
			before := len(on.of(crypto.TypeInit))
			replay(func(kind byte) bool { return kind == byte(crypto.TypeInit) || kind == byte(crypto.TypeResp) })
			replay(func(kind byte) bool { return kind == byte(crypto.TypeData) })
			pass(time.Second)
			for bob.device.Waiting() > 0 {
				if n, err := bob.receive(time.Second); err == nil && n == order {
					t.Errorf("%s: the order was carried out again", when)
				}
			}
			if before == 0 {
				t.Fatal("no INIT was recorded")
			}
		}
		attack("at once")
		for range 26 { // until the keys are others
			pass(10 * time.Second)
			flows(t, alice, bob, 5)
		}
		attack("after rekeys")
		bob.stop()
		bob.start()
		bob.registered()
		attack("after a restart")
		flows(t, alice, bob, 20)
	})
}

// Fault 4: a replayed key exchange also restarted the sender's counter under the
// same key, and both directions shared one key.
func TestHostileCounterRestarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, alice, bob, wire, on := tapped(t)
		defer w.close()
		both := func(n int) { flows(t, alice, bob, n); flows(t, bob, alice, n) }
		both(20)
		sent := bob.session(alice).Sent()
		for range 20 {
			for _, d := range on.all() {
				wire.inject(d)
			}
			pass(10 * time.Millisecond)
		}
		if n := bob.session(alice).Sent(); n < sent {
			t.Errorf("the counter went from %d back to %d", sent, n)
		}
		both(20)
		frames := map[[12]byte][]byte{} // by receiver's index and counter: one key and nonce
		on.mu.Lock()
		defer on.mu.Unlock()
		for _, b := range on.sent {
			b = wired{body: b}.tunnel()
			if len(b) < crypto.Overhead || b[0] != byte(crypto.TypeData) {
				continue
			}
			id := [12]byte(b[4:16])
			if other := frames[id]; other != nil && !bytes.Equal(other, b) {
				t.Fatalf("index and counter %x were used for two frames", id)
			}
			frames[id] = b
		}
		if len(frames) < 80 {
			t.Errorf("only %d frames", len(frames))
		}
	})
	// An INIT that is answered twice gives other keys each time, and never one key
	// for both directions.
	ours, theirs := testKnock(t, 1)
	init, err := theirs.Initiate(time.Now(), 1, crypto.InitPayload{})
	if err != nil {
		t.Fatal(err)
	}
	keys := map[[32]byte]bool{}
	for i := range uint32(100) {
		_, _, k, err := ours.pair.Respond(init.Message(), i+1, crypto.RespPayload{})
		if err != nil {
			t.Fatal(err)
		}
		keys[k.Send], keys[k.Recv] = true, true
	}
	if len(keys) != 200 {
		t.Errorf("%d keys in 100 answers, want 200", len(keys))
	}
}

// Fault 5: the tunnel's endpoint became whatever address a replayed frame came from.
func TestHostileEndpointMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, alice, bob, wire, on := tapped(t)
		defer w.close()
		flows(t, alice, bob, 20)
		path := endpoint(t, bob)
		there := netip.AddrPortFrom(w.net.Host("stranger").Addr(), 4000)
		for _, d := range on.all() {
			wire.inject(wired{there, d.body})
			wire.inject(wired{there, bytes.Clone(d.tunnel())})
		}
		pass(10 * time.Second)
		on.mu.Lock()
		if n := on.to[there]; n != 0 {
			t.Errorf("%d bytes went to where replayed frames came from", n)
		}
		on.mu.Unlock()
		if got := endpoint(t, bob); got != path {
			t.Errorf("bob sends to %v, was %v", got, path)
		}
		// A fresh frame that somebody on the way makes come from elsewhere is the
		// peer's word, but the place is not: it is asked, by no more than three times
		// what came from it, and answers nothing.
		diverted := 0
		wire.ask(func(d wired) []time.Duration {
			if b := d.tunnel(); len(b) > 0 && b[0] == byte(crypto.TypeData) {
				on.mu.Lock()
				diverted += len(b)
				on.mu.Unlock()
				wire.inject(wired{there, b})
				return nil
			}
			return []time.Duration{0}
		})
		for i := range uint32(20) {
			alice.send(bob, i, 64)
			pass(5 * time.Millisecond)
			if got := endpoint(t, bob); got.Remote == there {
				t.Fatalf("bob sends to %v", got)
			}
		}
		pass(time.Second)
		wire.ask(nil)
		bob.pathTo("alice", "direct")
		if got := endpoint(t, bob); got.Remote.Addr() != path.Remote.Addr() {
			t.Errorf("bob sends to %v, was %v", got, path)
		}
		on.mu.Lock()
		defer on.mu.Unlock()
		if n := on.to[there]; n == 0 || n > 3*diverted {
			t.Errorf("%d bytes went to where %d bytes of fresh frames seemed to come from", n, diverted)
		}
	})
}

// Fault 6: an accept that nobody had asked for, unsigned, made its sender trusted;
// an unsigned revoke ended trust; and the signature covered neither the kind of the
// message nor the reason given.
func TestHostileUnsignedConsent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, alice, bob, _, _ := tapped(t)
		defer w.close()
		mallory := w.agent("mallory", natlab.Linux)
		mallory.registered()
		trusted := bob.store.Peers()
		him, her := mallory.cfg.Identity.Key, alice.cfg.Identity.Key
		tunnel, err := crypto.GenerateDH()
		if err != nil {
			t.Fatal(err)
		}
		serial := uint64(time.Now().Add(time.Hour).UnixMilli())
		say := func(as crypto.PrivateKey, a *agent, s trust.Statement) []byte {
			s.Issuer, s.Subject, s.Serial = as.Public(), bob.cfg.Identity.Key.Public(), serial
			if s.Random != [32]byte{} {
				s.Tunnel, s.Card = tunnel.Public(), a.loop.secrets.signed
			}
			b, err := s.Sign(as)
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
		change := func(b []byte, f func(b []byte)) []byte { b = bytes.Clone(b); f(b); return b }
		inName := func(b []byte) []byte {
			return change(b, func(b []byte) { key := her.Public(); copy(b[32:], key[:]) })
		}
		unsigned := func(b []byte) []byte {
			return change(b, func(b []byte) { clear(b[len(b)-crypto.SignatureSize:]) })
		}
		random, parent := [32]byte{1}, [32]byte{2}
		accept := trust.Statement{Kind: trust.KindGrant, Offer: trust.DefaultAsk, Random: random, Parent: parent}
		terms := trust.Statement{Kind: trust.KindGrant, Offer: trust.DefaultAsk}
		request := trust.Statement{Kind: trust.KindRequest, Ask: trust.DefaultAsk, Random: random, Reason: "to tidy up"}
		revoke := trust.Statement{Kind: trust.KindRevoke}
		genuine := say(her, alice, request)
		mailTo(t, w, mallory, bob, [][]byte{
			say(him, mallory, accept),                                         // that nobody asked for
			unsigned(say(him, mallory, accept)),                               // and without a signature
			inName(say(him, alice, accept)),                                   // in alice's name
			inName(say(him, alice, terms)),                                    // which would change what she may do
			inName(say(him, alice, revoke)),                                   // which would end it
			unsigned(say(her, alice, revoke)),                                 //
			change(genuine, func(b []byte) { b[4] = byte(trust.KindRevoke) }), // her request as something else
			change(genuine, func(b []byte) { b[4] = byte(trust.KindGrant) }),  //
			change(genuine, func(b []byte) { copy(b[bytes.Index(b, []byte(request.Reason)):], "to rob you") }),
		})
		// Mail is read in order: after this one, all have been.
		if _, err := mallory.Request(w.ctx(10*time.Second), RequestOptions{Contact: bob.ID().Contact, Reason: "control", Ports: "7"}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the control request arrives", func() bool { return len(bob.Pending()) > 0 })
		if p := bob.Pending(); len(p) != 1 || p[0].Name != "mallory" {
			t.Errorf("waiting: %+v", p)
		}
		if now := bob.store.Peers(); len(now) != 1 || now[0].Key != her.Public() || now[0].In.String() != trusted[0].In.String() ||
			now[0].Out.String() != trusted[0].Out.String() || now[0].Current.ID != trusted[0].Current.ID {
			t.Errorf("bob trusts %+v, before %+v", now, trusted)
		}
		flows(t, alice, bob, 20)
	})
}

// mailTo puts sealed statements into an agent's mailbox.
func mailTo(t *testing.T, w *world, from, to *agent, signed [][]byte) {
	t.Helper()
	card, err := crypto.ParseCard(to.loop.secrets.signed)
	if err != nil {
		t.Fatal(err)
	}
	ctx := w.ctx(30 * time.Second)
	c, err := relay.Dial(ctx, from.loop.dialConfig(w.serverRef()))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, b := range signed {
		sealed, err := card.Seal.Seal("pilot mail v1", b)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Put(ctx, card.Key.Fingerprint(), sealed); err != nil {
			t.Fatal(err)
		}
	}
}

// Fault 7: whoever was registered got a tunnel and was delivered, trusted or not,
// on any port.
func TestHostileRegisteredStranger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, alice, bob, _, _ := tapped(t)
		defer w.close()
		mallory := w.agent("mallory", natlab.None)
		mallory.registered()
		// He knows bob's address, key, contact and server, and has a pair secret of
		// his own making.
		local, err := crypto.GenerateDH()
		if err != nil {
			t.Fatal(err)
		}
		remote, err := crypto.GenerateDH()
		if err != nil {
			t.Fatal(err)
		}
		pair, err := crypto.NewPair(crypto.PairConfig{
			Local: mallory.cfg.Identity.Key.Public(), Remote: bob.cfg.Identity.Key.Public(),
			LocalAddr: mallory.cfg.Identity.Addr().Bytes(), RemoteAddr: bob.cfg.Identity.Addr().Bytes(),
			Static: local, RemoteStatic: remote.Public(), Secret: crypto.PairSecret{1, 2, 3},
		})
		if err != nil {
			t.Fatal(err)
		}
		conn := mallory.host.Listen(4242)
		var mu sync.Mutex
		var heard []wired
		go func() {
			m := []natt.Message{{Buf: make([]byte, natt.MaxRun)}}
			for {
				if _, err := conn.ReadBatch(m); err != nil {
					return
				}
				mu.Lock()
				heard = append(heard, wired{m[0].Addr, bytes.Clone(m[0].Buf[:m[0].N])})
				mu.Unlock()
			}
		}()
		defer conn.Close()
		v := relay.NewVisitor(relay.VisitorConfig{Server: w.key.Public(), Target: bob.cfg.Identity.Key.Public().Fingerprint()})
		server := netip.AddrPortFrom(w.server.Addr(), serverPort)
		target := netip.AddrPortFrom(bob.router.Public(), netip.MustParseAddrPort(alice.peer("bob").Endpoint).Port())
		send := func(to netip.AddrPort, b []byte) {
			t.Helper()
			if _, err := conn.WriteBatch([]natt.Message{{Buf: b, Addr: to}}); err != nil {
				t.Fatal(err)
			}
		}
		refused := bob.Status().Drops["in_init_tag"]
		for i := range uint32(40) {
			init, err := pair.Initiate(time.Now(), i+1, crypto.InitPayload{})
			if err != nil {
				t.Fatal(err)
			}
			send(target, init.Message())
			b, err := v.Open(time.Now(), init.Message())
			if err != nil {
				t.Fatal(err)
			}
			send(server, b)
			if v.Channel() != 0 {
				send(server, relayed(v.Channel(), init.Message()))
			}
			pass(time.Second)
			mu.Lock()
			for _, d := range heard {
				if _, _, ok := relay.ParseFrame(d.body); ok || d.from != server {
					t.Errorf("%v said %x", d.from, d.body)
				} else if err := v.Receive(time.Now(), d.body); err != nil {
					t.Log(err)
				}
			}
			heard = nil
			mu.Unlock()
		}
		if v.Channel() == 0 {
			t.Error("the relay did not even open a channel: the attack did not take place")
		}
		if n := bob.Status().Drops["in_init_tag"] - refused; n < 80 {
			t.Errorf("%d INITs reached bob, by the relay and directly", n)
		}
		if n := bob.device.Waiting(); n != 0 || len(bob.Peers()) != 1 {
			t.Errorf("%d packets delivered, %d peers", n, len(bob.Peers()))
		}
		// And whom bob trusts gets the port that was granted, no other.
		for _, port := range []uint16{1, 8, 22, 80, 443, 1001, 65535} {
			if err := alice.device.Inject(tunPacket(udp(alice.plane.own, bob.plane.own, 4000, port, []byte("hello")))); err != nil {
				t.Fatal(err)
			}
			pass(100 * time.Millisecond)
		}
		if n := bob.device.Waiting(); n != 0 {
			t.Errorf("%d packets to ports that were not granted", n)
		}
		flows(t, alice, bob, 20)
	})
}

func tunPacket(b []byte) tun.Packet { return tun.Packet{Data: b} }

// relayed puts a message into a frame of a relay channel.
func relayed(channel uint64, inner []byte) []byte {
	b := append(make([]byte, relayHeader), inner...)
	relay.PutFrameHeader(b, channel)
	return b
}
