package overlay

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/ipam"
	"github.com/pilotnet/pilot/natt"
	"github.com/pilotnet/pilot/natt/rendezvous"
	"github.com/pilotnet/pilot/trust"
	"github.com/pilotnet/pilot/tun/resolv"
	"github.com/pilotnet/pilot/tun/tuntest"
)

// counters of the identities of a crowd of a hundred, whose keys are the SHA-256
// of "crowd 0" and so on: to find them takes minutes.
var crowdCounters = [...]uint64{
	4, 158, 284, 430, 70, 141, 265, 54, 384, 205, 150, 509, 245, 32, 326, 203, 540, 307, 715, 129,
	521, 235, 205, 144, 215, 27, 174, 394, 79, 95, 249, 3, 20, 496, 394, 830, 119, 565, 340, 85,
	323, 151, 101, 126, 45, 45, 281, 208, 417, 652, 399, 435, 858, 48, 78, 706, 80, 81, 117, 91,
	437, 385, 149, 702, 87, 90, 36, 169, 139, 21, 321, 196, 86, 94, 156, 42, 85, 1, 392, 132,
	112, 125, 207, 524, 47, 636, 224, 183, 209, 685, 61, 47, 291, 160, 11, 569, 37, 116, 133, 307,
}

// crowdText is text that the server must not learn. It is computed, so that it does
// not stand in the program that the server runs.
func crowdText(what string) string {
	sum := sha256.Sum256([]byte("crowd text " + what))
	return fmt.Sprintf("x%x", sum[:6])
}

// A soul is one agent of the crowd, on the loopback of this machine.
type soul struct {
	*Node
	number int
	id     ipam.Identity
	name   string
	lan    netip.Addr // of a network of its own: a candidate
	stop   func() error
}

// loopUnderlay is the network of a machine that has one address of the loopback.
type loopUnderlay struct {
	own netip.Addr
	lan netip.Addr
}

func (u loopUnderlay) ListenUDP(port uint16) (natt.PacketConn, error) {
	return natt.Listen(natt.ListenConfig{Addr: netip.AddrPortFrom(u.own, port)})
}

func (u loopUnderlay) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(u.own, 0))}
	return d.DialContext(ctx, network, address)
}

func (loopUnderlay) LookupNetIP(_ context.Context, host string) ([]netip.Addr, error) {
	a, err := netip.ParseAddr(host)
	return []netip.Addr{a}, err
}

func (u loopUnderlay) Interfaces() ([]netip.Prefix, error) {
	return []netip.Prefix{netip.PrefixFrom(u.lan, 64)}, nil
}
func (loopUnderlay) MapPort(context.Context, uint16, func([]netip.AddrPort)) error { return nil }
func (loopUnderlay) Changes(context.Context) <-chan struct{}                       { return nil }

func crowdKey(number int) crypto.PrivateKey {
	return crypto.NewPrivateKey(sha256.Sum256(fmt.Append(nil, "crowd ", number)))
}

func newSoul(t *testing.T, number int, server crypto.Server) *soul {
	t.Helper()
	key := crowdKey(number)
	node, err := ipam.NodeID(key.Public(), crowdCounters[number])
	if err != nil {
		t.Fatal(err)
	}
	s := &soul{
		number: number, id: ipam.Identity{Key: key, Counter: crowdCounters[number], Node: node}, name: fmt.Sprint(crowdText("name"), number),
		lan: netip.AddrFrom16([16]byte{0xfd, 0x99, 0xde, 0xad, 0xbe, 0xef, 0, byte(number), 1, 2, 3, 4, 5, 6, 7, 8}),
	}
	s.Node, err = New(Config{
		StateDir: t.TempDir(), Name: s.name, Identity: s.id, Servers: []crypto.Server{server}, Device: tuntest.New(tuntest.Options{Depth: 64}),
		DNS: resolv.Off, Underlay: loopUnderlay{netip.AddrFrom4([4]byte{127, 1, byte(number), 1}), s.lan}, Version: "test",
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	s.stop = sync.OnceValue(func() error { cancel(); return <-ended })
	t.Cleanup(func() {
		if err := s.stop(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// soon waits for what other goroutines bring about, in real time.
func soon(ctx context.Context, what string, ok func() bool) error {
	late, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-late.Done():
			return fmt.Errorf("not in time: %s", what)
		case <-tick.C:
		}
	}
	return nil
}

// trusts makes b let a reach ports, by the real exchange, and speaks over it.
func trusts(ctx context.Context, a, b *soul) error {
	if _, err := a.Request(ctx, RequestOptions{Contact: b.ID().Contact, Reason: crowdText("reason"), Ports: "7", Offer: "7"}); err != nil {
		return err
	}
	print := a.id.Key.Public().Fingerprint().String()
	waits := func() bool {
		for _, r := range b.Pending() {
			if r.Fingerprint == print {
				return true
			}
		}
		return false
	}
	if err := soon(ctx, "the request arrives", waits); err != nil {
		return err
	}
	if _, err := b.Approve(ctx, ApproveOptions{Peer: print}); err != nil {
		return err
	}
	if _, err := a.Wait(ctx, b.ID().Fingerprint); err != nil {
		return err
	}
	_, err := a.Ping(ctx, b.name, 0)
	return err
}

// seizedServer runs a rendezvous server as a process of its own.
func seizedServer(t *testing.T) (server crypto.Server, pid int, dir string) {
	t.Helper()
	dir = t.TempDir()
	c := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.timeout=30m")
	c.Env = append(os.Environ(), "PILOT_TEST_SERVER="+dir)
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); c.Wait() })
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if text, ok := strings.CutPrefix(lines.Text(), "--server "); ok {
			if server, err = crypto.ParseServer(text); err != nil {
				t.Fatal(err)
			}
			go io.Copy(io.Discard, out)
			return server, c.Process.Pid, dir
		}
	}
	t.Fatal("the server did not get ready")
	return server, 0, ""
}

// serveSeized is that process.
func serveSeized(t *testing.T, dir string) {
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	s, err := rendezvous.New(rendezvous.Config{
		StateDir: dir, Listen: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")},
		Limits: rendezvous.Limits{ClaimBits: 8, MailBits: 8}, Ready: func(line string) { fmt.Println(line) },
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Run(ctx); err != nil {
		t.Fatal(err)
	}
}

// A search looks for many byte strings at once. Each has at least eight bytes.
type search struct {
	first [1 << 16]bool
	by    map[uint64][]string
	found map[string][]string // with what stands around it
}

func newSearch(patterns ...[]byte) *search {
	s := &search{by: map[uint64][]string{}, found: map[string][]string{}}
	for _, p := range patterns {
		s.first[binary.LittleEndian.Uint16(p)] = true
		k := binary.LittleEndian.Uint64(p)
		s.by[k] = append(s.by[k], string(p))
	}
	return s
}

func (s *search) in(b []byte) {
	for i := 0; i+8 <= len(b); i++ {
		if !s.first[binary.LittleEndian.Uint16(b[i:])] {
			continue
		}
		for _, p := range s.by[binary.LittleEndian.Uint64(b[i:])] {
			if len(b)-i >= len(p) && string(b[i:i+len(p)]) == p {
				s.found[p] = append(s.found[p], fmt.Sprintf("%x", b[max(0, i-64):min(len(b), i+len(p)+64)]))
			}
		}
	}
}

// memoryOf is all that a process has in memory, in pieces that lie together there.
func memoryOf(t *testing.T, pid int) (pieces [][]byte) {
	t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Skipf("the memory of another process cannot be read here: %v", err)
	}
	defer mem.Close()
	pages, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer pages.Close()
	const page, present = 4096, 1 << 63
	for line := range strings.Lines(string(maps)) {
		var from, to uint64
		var mode string
		if n, _ := fmt.Sscanf(line, "%x-%x %s", &from, &to, &mode); n != 3 || mode[0] != 'r' || to-from > 4<<30 {
			continue // nothing, or the bookkeeping of the race detector
		}
		entries := make([]byte, (to-from)/page*8)
		n, _ := pages.ReadAt(entries, int64(from/page*8))
		var piece []byte
		for i := 0; i+8 <= n; i += 8 { // what was never touched is not read: it may be gigabytes of zeros
			var b [page]byte
			touched := binary.NativeEndian.Uint64(entries[i:])&present != 0
			if touched {
				_, err := mem.ReadAt(b[:], int64(from)+int64(i/8*page))
				touched = err == nil
			}
			if touched {
				piece = append(piece, b[:]...)
			} else if piece != nil {
				pieces, piece = append(pieces, piece), nil
			}
		}
		if piece != nil {
			pieces = append(pieces, piece)
		}
	}
	return pieces
}

// TestHostileSeized: whoever takes the disk of a server, and its memory while it
// runs, finds the agents that are at home there. He finds no edge between two of
// them, no name that they gave each other, no reason, no candidate and no secret.
// Nor does it tell him anything which fingerprints lie near each other.
//
// What he does find, and this test does not look for: the address of a visitor beside
// the fingerprint that it visits, as long as the channel lives (SECURITY.md). A relay
// cannot do without.
func TestHostileSeized(t *testing.T) {
	if os.Getenv("PILOT_HOSTILE") != "1" {
		t.Skip("a hundred agents, with make hostile; TestLongSeized has six")
	}
	testSeized(t, 100, 4, 33, 36, 39, 43, 47)
}

// TestLongSeized is TestHostileSeized with six agents.
func TestLongSeized(t *testing.T) { testSeized(t, 6, 1, 5) }

// testSeized lets each of a crowd, of which so many register at a time, trust those who
// are so far from it in the order of fingerprints.
func testSeized(t *testing.T, crowd, atOnce int, distances ...int) {
	t.Parallel()
	if raceEnabled {
		t.Skip("the race detector keeps gigabytes of its own in memory; the run without it has this test")
	}
	if dir := os.Getenv("PILOT_TEST_SERVER"); dir != "" {
		serveSeized(t, dir)
		return
	}
	server, pid, dir := seizedServer(t)
	// Pages of the server's database, also those of earlier, hold every few of the
	// fingerprints in their order, one beside the next, whether the agents know each
	// other or not. So the agents come in this order, and those who are near each other
	// in it do not trust each other here.
	order := make([]int, crowd)
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int {
		x, y := crowdKey(a).Public().Fingerprint(), crowdKey(b).Public().Fingerprint()
		return bytes.Compare(x[:], y[:])
	})
	var souls []*soul
	registered := func(s *soul) {
		t.Helper()
		if err := soon(t.Context(), s.name+" registers", func() bool { st := s.Status().Servers; return len(st) == 1 && st[0].Claimed }); err != nil {
			t.Fatal(err)
		}
	}
	for i, number := range order {
		if i >= atOnce {
			registered(souls[i-atOnce])
		}
		souls = append(souls, newSoul(t, number, server))
	}
	for _, s := range souls {
		registered(s)
	}
	var group errgroup.Group
	group.SetLimit(8)
	pairs := 0
	for i, a := range souls {
		for _, far := range distances {
			k := (i + far) % crowd
			if max(k-i, i-k) < seizedFar(crowd) {
				continue // round the end, and near
			}
			pairs++
			b := souls[k]
			group.Go(func() error {
				if err := trusts(t.Context(), a, b); err != nil {
					return fmt.Errorf("%s and %s: %w", a.name, b.name, err)
				}
				return nil
			})
		}
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	// Sealed mail lies there, too: for an agent that is away.
	away, writer := souls[crowd-1], souls[crowd/2-1]
	contact := away.ID().Contact
	if err := away.stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := writer.Request(t.Context(), RequestOptions{Contact: contact, Reason: crowdText("reason"), Ports: "22"}); err != nil {
		t.Fatal(err)
	}
	if err := soon(t.Context(), "the mail is delivered", func() bool { return len(writer.store.Outbox()) == 0 }); err != nil {
		t.Fatal(err)
	}

	known, secret := crowdSecrets(souls)
	if secret.pairs != 2*pairs {
		t.Fatalf("%d halves of pairs, want %d", secret.pairs, 2*pairs)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(files) < 3 {
		t.Fatalf("%v, %v", files, err)
	}
	var disk [][]byte
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		disk = append(disk, b)
	}
	for where, pieces := range map[string][][]byte{"memory": memoryOf(t, pid), "disk": disk} {
		s, size := newSearch(append(known, secret.bytes...)...), 0
		for _, b := range pieces {
			s.in(b)
			size += len(b)
		}
		for i, key := range known {
			if s.found[string(key)] == nil {
				t.Errorf("the %s does not even hold the key of agent %d: the search is blind", where, i)
			}
		}
		for _, p := range secret.bytes {
			for _, around := range s.found[string(p)] {
				t.Errorf("the %s holds a %s: %.40x in %s", where, secret.kinds[string(p)], p, around)
			}
		}
		t.Logf("%s: %d bytes, %d agents, %d pairs; searched for %d secrets", where, size, crowd, pairs, len(secret.bytes))
		seizedNear(t, where, souls, pieces)
	}
	// The search finds these very bytes where they are: in this process.
	s := newSearch(secret.bytes...)
	for _, b := range memoryOf(t, os.Getpid()) {
		s.in(b)
	}
	if len(s.found) < len(secret.kinds)/2 {
		t.Errorf("only %d of %d secrets were found in the memory of the agents", len(s.found), len(secret.kinds))
	}
}

// seizedFar is how far from each other in the order of fingerprints those are who
// trust each other: farther than the first records of two pages of the database that
// follow each other. A page has room for 24 heads, or for four agents.
func seizedFar(crowd int) int {
	if crowd < 2*30 { // all heads are in one page
		return 5
	}
	return 30
}

// seizedNear wants that of the agents whose fingerprints lie near each other by chance,
// such as in what is left of the arguments of two calls, no larger part trusts each
// other than of any two.
func seizedNear(t *testing.T, where string, souls []*soul, pieces [][]byte) {
	t.Helper()
	by, trusted := map[[8]byte]int{}, map[[2]int]bool{}
	keys := map[crypto.PublicKey]int{}
	for i, a := range souls {
		fp := a.id.Key.Public().Fingerprint()
		by[[8]byte(fp[:8])], keys[a.id.Key.Public()] = i, i
	}
	for i, a := range souls {
		for _, p := range a.store.Peers() {
			trusted[[2]int{i, keys[p.Key]}] = true
		}
	}
	const near = 64
	apart := seizedFar(len(souls))
	n, edges := 0, 0
	for _, b := range pieces {
		last, at := -1, 0
		for i := 0; i+8 <= len(b); i++ {
			k, ok := by[[8]byte(b[i:i+8])]
			if !ok {
				continue
			}
			if last >= 0 && i-at <= near && max(k-last, last-k) >= apart {
				n++
				if trusted[[2]int{last, k}] {
					edges++
				}
			}
			last, at = k, i
		}
	}
	far := (len(souls) - apart) * (len(souls) - apart + 1) // of all that are not near each other in their order
	chance := float64(len(trusted)) / float64(far)
	t.Logf("%s: %d times two fingerprints within %d bytes, %d of them of agents who trust each other; by chance %.0f", where, n, near, edges, chance*float64(n))
	if len(souls) == 100 && float64(edges) > 2*chance*float64(n)+10 {
		t.Error("what lies near each other tells who trusts whom")
	}
}

// A crowdKept is what a server must not have.
type crowdKept struct {
	bytes [][]byte
	kinds map[string]string
	pairs int // halves of
}

func (s *crowdKept) add(kind string, b []byte) {
	s.bytes = append(s.bytes, b)
	s.kinds[string(b)] = kind
}

// crowdSecrets are the keys of the agents, which the server knows, and what it must not.
func crowdSecrets(souls []*soul) (known [][]byte, secret crowdKept) {
	secret.kinds = map[string]string{}
	secret.add("name", []byte(crowdText("name")))
	secret.add("reason", []byte(crowdText("reason")))
	text := strings.TrimSuffix(netip.PrefixFrom(souls[0].lan, 48).Masked().Addr().String(), "::") // of all
	secret.add("candidate", []byte(text))
	for _, a := range souls {
		key, fp := a.id.Key.Public(), a.id.Key.Public().Fingerprint()
		known = append(known, key[:], fp[:])
		lan := a.lan.As16()
		secret.add("candidate", lan[:])
		for _, p := range a.store.Peers() {
			other, otherPrint := p.Key, p.Key.Fingerprint()
			secret.add("edge", slices.Concat(key[:], other[:]))
			secret.add("edge", slices.Concat(fp[:], otherPrint[:]))
			secret.add("edge", fmt.Append(nil, fp, otherPrint))
			for _, slot := range []*trust.Slot{p.Current, p.Next} {
				if slot != nil {
					secret.add("secret", bytes.Clone(slot.Secret[:]))
					secret.add("secret", bytes.Clone(slot.ID[:]))
				}
			}
			secret.pairs++
		}
	}
	return known, secret
}
