package e2e_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/ipam"
	ledger "github.com/pilotnet/pilot/trust"
)

const (
	marked  = "a hostile packet" // in all that mallory sends
	control = "an honest packet"
)

// TestHostileConfinement: mallory has bob's trust for one port, and a program of her
// own that puts into the tunnel whatever she likes. Bob forwards, and has a neighbour
// in his LAN. Nothing of it comes out of bob's network device, let alone to the
// neighbour; each packet is counted under the reason why.
func TestHostileConfinement(t *testing.T) {
	t.Parallel()
	l := wire(t, "a1", "b1", "b2")
	s := l.server(t)
	mallory, bob := l.agent(t, "a1", "mallory"), l.agent(t, "b1", "bob")
	mallory.up(t, s)
	if o := bob.run(t, "sh", "-c", "ulimit -c unlimited; exec pilotctl up --name bob --server "+s.name); o.status != 0 {
		t.Fatal(o)
	}
	trust(t, mallory, bob, "7")
	const bobLAN, neighbour = "fd00:b::1", "fd00:b::2"
	for host, address := range map[string]string{"b1": bobLAN, "b2": neighbour} {
		l.output(t, host, "sh", "-ec", "echo 0 > /proc/sys/net/ipv6/conf/eth0/disable_ipv6; ip addr add "+address+"/64 dev eth0 nodad")
	}
	l.output(t, "b1", "sh", "-ec", "for f in all eth0 pilot0; do echo 1 > /proc/sys/net/ipv6/conf/$f/forwarding; done")
	tun, lan := l.watch(t, "b1", "pilot0"), l.watch(t, "b2", "eth0")

	// Bob's kernel would forward, and the capture at the neighbour sees what comes.
	if out := l.output(t, "b1", "ip", "-6", "route", "get", neighbour, "from", mallory.id(t).ULA, "iif", "pilot0"); !strings.Contains(out, "dev eth0") {
		t.Fatalf("bob does not forward: %s", out)
	}
	c := l.dial(t, "b1", "udp", net.JoinHostPort(neighbour, "9"))
	within(t, 10*time.Second, "the neighbour hears bob", func() bool { c.Write([]byte(control)); return lan.count(control) > 0 })

	port := bob.status(t).Socket.Port
	from, to := netip.MustParseAddr(mallory.id(t).ULA), netip.MustParseAddr(bob.id(t).ULA)
	mallory.pilot(t, "down")
	m := l.impostor(t, mallory, bob.id(t).Fingerprint, netip.AddrPortFrom(netip.MustParseAddr(wired("b1")), port))
	m.send(t, packet6(from, to, unix.IPPROTO_UDP, udp6(9, 7, control)), false)
	within(t, 10*time.Second, "what mallory may do arrives", func() bool { return tun.count(control) > 0 })

	limits, err := os.ReadFile(filepath.Join("/proc", itoa(bob.daemon()), "limits"))
	if err != nil || !strings.Contains(string(limits), "Max core file size        0 ") {
		t.Errorf("bob's daemon would leave a core dump, %v: %s", err, limits)
	}

	before := confined(t, bob)
	list := hostilePackets(from, to, netip.MustParseAddr(neighbour), netip.MustParseAddr(bobLAN))
	pace := time.NewTicker(time.Millisecond)
	defer pace.Stop()
	for i, h := range list {
		m.send(t, h.plain, h.partial)
		if i%10 == 9 {
			<-pace.C
		}
	}
	want := uint64(len(list))
	within(t, 20*time.Second, "bob has counted them", func() bool { return confined(t, bob)-before >= want })
	drops := bob.status(t).Drops
	t.Logf("%d hostile packets; bob's counters: %v", want, drops)
	if got := confined(t, bob) - before; got != want {
		t.Errorf("%d were refused, %d sent", got, want)
	}
	for _, reason := range confinement {
		if drops[reason] == 0 {
			t.Errorf("none was refused for the reason %s", reason)
		}
	}
	m.send(t, packet6(from, to, unix.IPPROTO_UDP, udp6(9, 7, "still "+control)), false)
	within(t, 10*time.Second, "what mallory may do still arrives", func() bool { return tun.count("still "+control) > 0 })
	if n := tun.count(marked); n > 0 {
		t.Errorf("%d hostile packets came out of bob's device", n)
	}
	if n := lan.count(marked); n > 0 {
		t.Errorf("%d hostile packets came to bob's neighbour", n)
	}
}

// confinement are the reasons that concern packets of a trusted peer.
var confinement = []string{"in_source", "in_destination", "in_header", "in_fragment", "in_icmp", "in_scope", "in_partial", "in_item", "in_frag"}

func confined(t *testing.T, a *agent) (n uint64) {
	t.Helper()
	drops := a.status(t).Drops
	for _, reason := range confinement {
		n += drops[reason]
	}
	return n
}

// An impostor is an agent without any of our rules: a session, and a socket.
type impostor struct {
	conn    net.Conn
	session *crypto.Session
}

// impostor takes the place of an agent that is down, with its keys.
func (l *lab) impostor(t *testing.T, a *agent, peer string, at netip.AddrPort) *impostor {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(a.state, "identity"))
	if err != nil {
		t.Fatal(err)
	}
	id, err := ipam.ParseIdentity(text)
	if err != nil {
		t.Fatal(err)
	}
	fp, err := crypto.ParseFingerprint(peer)
	if err != nil {
		t.Fatal(err)
	}
	var store *ledger.Store
	within(t, 10*time.Second, a.name+"'s daemon has let go of its store", func() bool {
		store, err = ledger.Open(ledger.Config{Dir: a.state, Key: id.Key, Now: time.Now,
			CheckCard: func(crypto.Card) ([6]byte, error) { return [6]byte{}, nil }})
		return err == nil
	})
	defer store.Close()
	book, ok := store.Lookup(fp)
	slot := book.Current
	if slot == nil {
		slot = book.Next
	}
	if !ok || slot == nil {
		t.Fatalf("%s does not know %s", a.name, peer)
	}
	pair, err := crypto.NewPair(crypto.PairConfig{
		Local: id.Key.Public(), Remote: book.Key, LocalAddr: id.Addr().Bytes(), RemoteAddr: book.Addr,
		Static: slot.Static, RemoteStatic: slot.RemoteStatic, Secret: slot.Secret,
	})
	if err != nil {
		t.Fatal(err)
	}
	conn := l.dial(t, a.host, "udp", at.String())
	for range 20 {
		init, err := pair.Initiate(time.Now(), 0x0badcafe, crypto.InitPayload{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write(init.Message()); err != nil {
			t.Fatal(err)
		}
		conn.SetReadDeadline(time.Now().Add(time.Second))
		b := make([]byte, 2000)
		for {
			n, err := conn.Read(b)
			if err != nil {
				break
			}
			if _, keys, remote, err := init.Complete(b[:n]); err == nil {
				return &impostor{conn, crypto.NewSession(keys, init.Index(), remote)}
			}
		}
	}
	t.Fatal("bob does not answer the impostor")
	return nil
}

func (m *impostor) send(t *testing.T, plain []byte, partial bool) {
	t.Helper()
	frame, err := m.session.Seal(nil, plain, partial)
	if err == nil {
		_, err = m.conn.Write(frame)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func packet6(from, to netip.Addr, next byte, payload []byte) []byte {
	b := make([]byte, 40, 40+len(payload))
	b[0], b[6], b[7] = 6<<4, next, 64
	binary.BigEndian.PutUint16(b[4:], uint16(len(payload)))
	copy(b[8:], from.AsSlice())
	copy(b[24:], to.AsSlice())
	return append(b, payload...)
}

func udp6(sport, dport uint16, text string) []byte {
	b := binary.BigEndian.AppendUint16(nil, sport)
	b = binary.BigEndian.AppendUint16(b, dport)
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(text)))
	return append(append(b, 0, 0), text...)
}

func tcp6(sport, dport uint16, flags byte, text string) []byte {
	b := binary.BigEndian.AppendUint16(nil, sport)
	b = binary.BigEndian.AppendUint16(b, dport)
	b = append(b, 0, 0, 0, 1, 0, 0, 0, 1, 5<<4, flags, 255, 255, 0, 0, 0, 0)
	return append(b, text...)
}

// fragment6 is a fragment header and a part.
func fragment6(next byte, id uint32, at int, more bool, part []byte) []byte {
	b := []byte{next, 0, byte(at >> 8), byte(at)}
	if more {
		b[3] |= 1
	}
	return append(binary.BigEndian.AppendUint32(b, id), part...)
}

// A hostilePacket is the plaintext of a frame of which nothing may pass and one
// thing is counted.
type hostilePacket struct {
	plain   []byte
	partial bool
}

func hostilePackets(from, to, neighbour, bobLAN netip.Addr) (list []hostilePacket) {
	const udp, tcp, icmp, frag = unix.IPPROTO_UDP, unix.IPPROTO_TCP, unix.IPPROTO_ICMPV6, 44
	add := func(p []byte) { list = append(list, hostilePacket{plain: p}) }
	good := udp6(9, 7, marked)
	pad := strings.Repeat(marked, 10)
	for _, src := range []string{"fd50:494c:4f54::1", to.String(), neighbour.String(), "::", "::1", "fe80::1", "ff02::1", "::ffff:10.0.0.1", "2001:db8::1"} {
		for _, dst := range []netip.Addr{to, neighbour, bobLAN} {
			add(packet6(netip.MustParseAddr(src), dst, udp, good))
		}
	}
	for _, dst := range []string{neighbour.String(), bobLAN.String(), "fd00:b::ffff", "ff02::1", "ff02::2", "ff02::fb", "ff05::2", "ff0e::1", "fe80::1", "::1", "::", "::ffff:127.0.0.1",
		"::ffff:192.0.2.32", "64:ff9b::192.0.2.32", "2002:c000:220::1", "2001:db8::1", "fd50:494c:4f54::1", "fd50:494c:4f54:1::", "fd50:494c:4f54::"} {
		for _, b := range [][]byte{good, udp6(9, 53, marked), udp6(53, 9, marked)} {
			add(packet6(from, netip.MustParseAddr(dst), udp, b))
		}
		add(packet6(from, netip.MustParseAddr(dst), tcp, tcp6(9, 7, 2, marked)))
		add(packet6(from, netip.MustParseAddr(dst), icmp, append([]byte{128, 0, 0, 0, 0, 1, 0, 1}, marked...)))
	}
	for kind := range 256 {
		if kind == 128 || kind == 129 { // a ping is granted with any trust
			continue
		}
		message := append([]byte{byte(kind), 0, 0, 0, 0, 0, 0, 0}, marked...)
		add(packet6(from, to, icmp, message))
		quote := packet6(to, from, udp, udp6(4242, 4243, marked)) // of nothing that bob sent
		add(packet6(from, to, icmp, append(message[:8:8], quote...)))
		add(packet6(from, netip.MustParseAddr("ff02::1"), icmp, message))
	}
	for next := range 256 {
		switch next {
		case udp, tcp, icmp, frag:
		default: // every extension header and every other protocol
			add(packet6(from, to, byte(next), append([]byte{udp, 0, 1, 4, 0, 0, 0, 0}, good...)))
		}
	}
	for port := 1; port < 65536; port += 97 {
		if port != 7 {
			add(packet6(from, to, udp, udp6(7, uint16(port), marked)))
			add(packet6(from, to, tcp, tcp6(7, uint16(port), byte(port), marked)))
		}
	}
	syn := tcp6(9, 7, 2, pad)
	add(packet6(from, to, frag, fragment6(tcp, 1, 0, true, syn[:16])))             // tiny first one
	add(packet6(from, to, frag, fragment6(udp, 2, 0, true, udp6(9, 8, pad)[:64]))) // not granted
	add(packet6(from, to, frag, fragment6(60, 3, 0, true, []byte(pad)[:64])))      // a header behind it
	add(packet6(from, to, frag, fragment6(frag, 4, 0, true, []byte(pad)[:64])))
	for at := 8; at < 64; at += 8 { // over the transport header
		add(packet6(from, to, frag, fragment6(udp, 5, at, false, []byte(marked))))
	}
	for id := range uint32(50) { // of nothing
		add(packet6(from, to, frag, fragment6(udp, 100+id, 64+8*int(id), id%2 == 0, []byte(marked))))
	}
	add(packet6(from, to, frag, fragment6(udp, 6, 65528, false, []byte(marked))))
	add(packet6(from, to, frag, []byte{udp, 0, 0, 0, 0, 0, 0}))
	for _, b := range [][]byte{good[:7], nil, append(udp6(9, 7, ""), marked...)} { // lengths that lie
		add(packet6(from, to, udp, b))
	}
	add(packet6(from, to, tcp, syn[:19]))
	long := bytes.Clone(syn)
	long[12] = 15 << 4
	add(packet6(from, to, tcp, long[:40]))
	whole := packet6(from, to, udp, good)
	for n := 1; n < len(whole); n++ { // over the end of the frame
		add(whole[:n])
	}
	jumbo := bytes.Clone(whole)
	jumbo[5]++
	add(jumbo)
	for kind := 1; kind < 16; kind++ { // control items over the end
		if kind != 6 {
			add(append([]byte{byte(kind << 4), 0xff, 0xff}, whole...))
		}
	}
	add(append(make([]byte, 3), whole...)) // behind padding
	half := func(second byte, part []byte) []byte {
		n := 3 + len(part)
		return append([]byte{0x15, byte(n >> 8), byte(n), 0, 1, second}, part...)
	}
	add(half(2, whole))
	add(append(half(0, whole[:30]), half(1, whole)...)) // halves that overlap
	foreign := packet6(netip.MustParseAddr("fd50:494c:4f54::1"), to, udp, good)
	add(append(half(0, foreign[:30]), half(1, foreign[30:])...))
	into := packet6(from, neighbour, udp, good)
	add(append(half(1, into[30:]), half(0, into[:30])...))
	for _, p := range [][]byte{ // PARTIAL where it is a lie
		packet6(from, to, icmp, append([]byte{128, 0, 0, 0, 0, 1, 0, 1}, marked...)),
		packet6(from, to, frag, fragment6(udp, 7, 0, true, udp6(9, 7, pad)[:64])),
		packet6(from, to, 0, append([]byte{udp, 0, 1, 4, 0, 0, 0, 0}, good...)),
		packet6(from, to, udp, append(udp6(9, 7, ""), marked...)),
		packet6(from, neighbour, udp, good), packet6(from, to, udp, udp6(9, 8, marked)),
	} {
		list = append(list, hostilePacket{p, true})
	}
	return list
}

// A watcher counts what passes a network device of a host, by what it contains.
type watcher struct {
	mu   sync.Mutex
	seen [][]byte
}

func (l *lab) watch(t *testing.T, host, device string) *watcher {
	t.Helper()
	w := &watcher{}
	var file *os.File
	l.inside(t, host, func() error {
		all := uint16(unix.ETH_P_ALL)<<8 | uint16(unix.ETH_P_ALL)>>8
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, int(all))
		if err != nil {
			return err
		}
		file = os.NewFile(uintptr(fd), "watch")
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20); err != nil {
			return err
		}
		card, err := net.InterfaceByName(device)
		if err != nil {
			return fmt.Errorf("%s: %w", device, err)
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: card.Index})
	})
	t.Cleanup(func() { file.Close() })
	go func() {
		b := make([]byte, 1<<17)
		for {
			n, err := file.Read(b)
			if err != nil {
				return
			}
			w.mu.Lock()
			w.seen = append(w.seen, bytes.Clone(b[:n]))
			w.mu.Unlock()
		}
	}()
	return w
}

// count is the number of packets with that text.
func (w *watcher) count(text string) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, b := range w.seen {
		if bytes.Contains(b, []byte(text)) {
			n++
		}
	}
	return n
}
