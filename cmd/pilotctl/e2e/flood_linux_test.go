package e2e_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/ipam"
	book "github.com/pilotnet/pilot/trust"
	"golang.org/x/sys/unix"
)

const (
	floodMost    = 50_000           // packets a second
	floodIdle    = 0.15             // share of the processors that stays free beside traffic and flood
	floodLasts   = 60 * time.Second // with a handshake every 550 ms: about 109
	floodBefore  = 12 * time.Second
	goodputGoal  = 0.90
	floodP99Goal = 200 * time.Millisecond
)

// TestHostileFlood: beside a flood of tunnel messages from sources that are all
// forged, bob's traffic with alice and his handshakes with carol go on. The traffic
// is a quarter of what the machine can do, and the flood is made smaller until it
// leaves processor time free: flooder, bob, alice and carol share one machine here,
// and what is to be shown is not how fast that is.
func TestHostileFlood(t *testing.T) {
	if os.Getenv("PILOT_HOSTILE") == "" {
		t.Skip("measures for two minutes on a machine that does nothing else: PILOT_HOSTILE=1")
	}
	l := wire(t, "a1", "b1", "c1", "m1")
	s := l.server(t)
	alice, bob, carol := l.agent(t, "a1", "alice"), l.agent(t, "b1", "bob"), l.agent(t, "c1", "carol")
	for _, a := range []*agent{alice, bob, carol} {
		a.up(t, s)
	}
	trust(t, alice, bob, "8080")
	trust(t, carol, bob, "7")
	direct(t, alice, bob)
	direct(t, carol, bob)
	l.website(t, "b1", "[::]:8080")
	target := netip.AddrPortFrom(netip.MustParseAddr(wired("b1")), bob.status(t).Socket.Port)
	hands := l.handshakes(t, carol, bob, target)

	most := fetch(t, alice, 0, 4*time.Second)
	offered := most / 4
	f := l.flooder(t, "m1", "b1", target)
	f.calibrate(t, alice, offered)

	baseFetch := make(chan float64, 1)
	go func() { baseFetch <- fetch(t, alice, offered, floodBefore) }()
	base := hands.run(t, floodBefore)
	before := <-baseFetch

	refused, full := refusedFrames(t, bob), bob.socketDrops(t)
	f.start()
	floodFetch := make(chan float64, 1)
	go func() { floodFetch <- fetch(t, alice, offered, floodLasts) }()
	busy := processorTime(t)
	under := hands.run(t, floodLasts)
	free := busy()
	during := <-floodFetch
	sent, rate := f.stop()
	counted, dropped := refusedFrames(t, bob)-refused, bob.socketDrops(t)-full

	t.Logf("flood: %d packets, %.0f a second, from forged sources; bob refused %d, his kernel had no room for %d; processors free: %.0f %%", sent, rate, counted, dropped, 100*free)
	t.Logf("goodput: the machine's most %.0f Mbit/s; of %.0f offered %.0f without the flood, %.0f beside it: %.1f %%",
		mbit(most), mbit(offered), mbit(before), mbit(during), 100*during/before)
	t.Logf("handshakes without the flood: %v", base)
	t.Logf("handshakes beside it:         %v", under)
	if during < goodputGoal*before {
		t.Errorf("goodput is %.1f %%, want %.0f", 100*during/before, 100*goodputGoal)
	}
	if under.p(99) > floodP99Goal {
		t.Errorf("the 99th of 100 handshakes took %v, want at most %v", under.p(99), floodP99Goal)
	}
	if counted+dropped < uint64(sent)*9/10 {
		t.Errorf("only %d of %d packets arrived: that is no flood", counted+dropped, sent)
	}
}

func mbit(bytesPerSecond float64) float64 { return bytesPerSecond * 8 / 1e6 }

// fetch downloads from bob for a while, at most at a rate, and returns the bytes a
// second that came.
func fetch(t *testing.T, a *agent, rate float64, d time.Duration) float64 {
	ctx, cancel := context.WithTimeout(t.Context(), d+time.Second)
	defer cancel()
	args := []string{"curl", "-sS", "-N"}
	if rate > 0 {
		args = append(args, "--limit-rate", strconv.Itoa(int(rate)))
	}
	c := a.command(ctx, append(args, "http://bob.pilot.internal:8080/1000000")...)
	var count byteCount
	c.Stdout = &count
	if err := c.Start(); err != nil {
		t.Error(err)
		return 0
	}
	poll(ctx, 10*time.Second, func() bool { return count.Load() > 0 })
	begin, had := time.Now(), count.Load()
	<-time.After(d - time.Since(begin))
	speed := float64(count.Load()-had) / time.Since(begin).Seconds()
	cancel()
	_ = c.Wait() // killed
	return speed
}

// processorTime begins to watch; the returned function says which share of all
// processors' time since then was free.
func processorTime(t *testing.T) func() float64 {
	read := func() (free, all float64) {
		text, err := os.ReadFile("/proc/stat")
		if err != nil {
			t.Fatal(err)
		}
		line, _, _ := strings.Cut(string(text), "\n")
		for i, f := range strings.Fields(line)[1:] {
			v, _ := strconv.ParseFloat(f, 64)
			if all += v; i == 3 || i == 4 {
				free += v
			}
		}
		return free, all
	}
	free, all := read()
	return func() float64 {
		f, a := read()
		return (f - free) / max(a-all, 1)
	}
}

// A flooder sends frames with forged sources from a host of its own.
type flooder struct {
	socket int
	frames [][]byte
	rate   int
	sent   atomic.Int64
	begun  time.Time
	end    chan struct{}
	done   chan struct{}
}

// flooder makes the frames: INITs, DATA, RESPs and noise.
func (l *lab) flooder(t *testing.T, from, to string, target netip.AddrPort) *flooder {
	t.Helper()
	f := &flooder{rate: floodMost}
	var mac [12]byte // of the receiver, then of the sender
	for i, host := range []string{to, from} {
		l.inside(t, host, func() error {
			card, err := net.InterfaceByName("eth0")
			if err == nil {
				copy(mac[6*i:], card.HardwareAddr)
			}
			return err
		})
	}
	l.inside(t, from, func() error {
		card, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		if f.socket, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return unix.Bind(f.socket, &unix.SockaddrLinklayer{Ifindex: card.Index})
	})
	t.Cleanup(func() { unix.Close(f.socket) })
	for i := range 8192 {
		s := []shape{{[]byte{4, 1, 0, 0}, 104}, {[]byte{6, 0, 0, 0}, 256}, {[]byte{5, 1, 0, 0}, 100}, {nil, 64}}[i%4]
		b := make([]byte, s.length)
		_, _ = rand.Read(b)
		copy(b, s.head)
		source := netip.AddrFrom4([4]byte{192, 0, 2, byte(160 + b[4]%90)})
		f.frames = append(f.frames, ethernetUDP(mac, netip.AddrPortFrom(source, 1024+binary.BigEndian.Uint16(b[5:])%60000), target, b))
	}
	return f
}

// ethernetUDP makes an Ethernet frame that holds a UDP datagram without checksum
// (RFC 768 allows that over IPv4).
func ethernetUDP(mac [12]byte, from, to netip.AddrPort, payload []byte) []byte {
	b := append(mac[:], 8, 0)
	ip := make([]byte, 28, 28+len(payload))
	ip[0], ip[8], ip[9] = 0x45, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(ip[2:], uint16(28+len(payload)))
	copy(ip[12:], from.Addr().AsSlice())
	copy(ip[16:], to.Addr().AsSlice())
	sum := uint32(0)
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum))
	binary.BigEndian.PutUint16(ip[20:], from.Port())
	binary.BigEndian.PutUint16(ip[22:], to.Port())
	binary.BigEndian.PutUint16(ip[24:], uint16(8+len(payload)))
	return append(append(b, ip...), payload...)
}

// calibrate lowers the rate until processor time stays free beside traffic and flood.
func (f *flooder) calibrate(t *testing.T, alice *agent, offered float64) {
	t.Helper()
	for ; ; f.rate /= 2 {
		f.start()
		free := processorTime(t)
		got := fetch(t, alice, offered, 3*time.Second)
		left := free()
		_, rate := f.stop()
		t.Logf("calibrating: %.0f packets a second leave %.0f %% of the processors free, %.0f Mbit/s of traffic", rate, 100*left, mbit(got))
		if left >= floodIdle || f.rate < 5000 {
			return
		}
	}
}

func (f *flooder) start() {
	f.sent.Store(0)
	f.begun, f.end, f.done = time.Now(), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(f.done)
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for n := 0; ; {
			select {
			case <-f.end:
				return
			case <-tick.C:
			}
			due := int(time.Since(f.begun).Seconds() * float64(f.rate))
			for ; n < due; n++ {
				if _, err := unix.Write(f.socket, f.frames[n%len(f.frames)]); err == nil {
					f.sent.Add(1)
				}
			}
		}
	}()
}

func (f *flooder) stop() (sent int, rate float64) {
	close(f.end)
	<-f.done
	n := f.sent.Load()
	return int(n), float64(n) / time.Since(f.begun).Seconds()
}

// handshakes lets the test speak for an agent that is down: with its pair secret,
// from its machine.
type handshakes struct {
	pair *crypto.Pair
	conn net.Conn
	next uint32
}

func (l *lab) handshakes(t *testing.T, a, with *agent, target netip.AddrPort) *handshakes {
	t.Helper()
	other := with.id(t).Fingerprint
	a.pilot(t, "down")
	text, err := os.ReadFile(filepath.Join(a.state, "identity"))
	if err != nil {
		t.Fatal(err)
	}
	id, err := ipam.ParseIdentity(text)
	if err != nil {
		t.Fatal(err)
	}
	store, err := book.Open(book.Config{
		Dir: a.state, Key: id.Key, Now: time.Now,
		CheckCard: func(c crypto.Card) ([6]byte, error) {
			node, err := ipam.NodeID(c.Key, c.Counter)
			return ipam.Addr{Node: node}.Bytes(), err
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	i := slices.IndexFunc(store.Peers(), func(p book.Peer) bool { return p.Key.Fingerprint().String() == other })
	if i < 0 {
		t.Fatalf("%s does not know %s", a.name, with.name)
	}
	p := store.Peers()[i]
	pair, err := crypto.NewPair(crypto.PairConfig{
		Local: id.Key.Public(), Remote: p.Key, LocalAddr: id.Addr().Bytes(), RemoteAddr: p.Addr,
		Static: p.Current.Static, RemoteStatic: p.Current.RemoteStatic, Secret: p.Current.Secret,
	})
	if err != nil {
		t.Fatal(err)
	}
	return &handshakes{pair: pair, conn: l.dial(t, a.host, "udp", target.String())}
}

// A tally is how long handshakes took, in order of length.
type tally []time.Duration

func (y tally) p(percent int) time.Duration { return y[min(len(y)*percent/100, len(y)-1)] }

func (y tally) String() string {
	return strconv.Itoa(len(y)) + ": half within " + y.p(50).String() + ", 99 % within " + y.p(99).String() + ", all within " + y[len(y)-1].String()
}

// run begins a handshake every 550 ms, since a peer gets two answers a second, and
// repeats INIT after 250 ms, as the daemon does.
func (h *handshakes) run(t *testing.T, d time.Duration) (y tally) {
	t.Helper()
	tick := time.NewTicker(550 * time.Millisecond)
	defer tick.Stop()
	for begin := time.Now(); time.Since(begin) < d; <-tick.C {
		y = append(y, h.one(t))
	}
	slices.Sort(y)
	return y
}

func (h *handshakes) one(t *testing.T) time.Duration {
	t.Helper()
	begin, buf := time.Now(), make([]byte, 2000)
	for range 20 {
		h.next++
		init, err := h.pair.Initiate(time.Now(), h.next, crypto.InitPayload{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := h.conn.Write(init.Message()); err != nil {
			t.Fatal(err)
		}
		if err := h.conn.SetReadDeadline(time.Now().Add(250 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		for {
			n, err := h.conn.Read(buf)
			if err != nil {
				break
			}
			if _, _, _, err := init.Complete(bytes.Clone(buf[:n])); err == nil {
				return time.Since(begin)
			}
		}
	}
	t.Fatal("no answer to 20 INITs")
	return 0
}
