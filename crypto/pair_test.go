package crypto

import (
	"bytes"
	"errors"
	"net/netip"
	"testing"
	"time"
)

var testNow = time.Unix(1_800_000_000, 0)

// testPairConfig is one side of a pair; the other side is mirror(c).
func testPairConfig() (a, b PairConfig) {
	secret := NewPairSecret([32]byte{1}, [32]byte{2}, [32]byte{3}, [32]byte{4})
	a = PairConfig{
		Local: testKey(1).Public(), Remote: testKey(2).Public(),
		LocalAddr: [6]byte{0, 0, 1, 2, 3, 4}, RemoteAddr: [6]byte{0, 0, 5, 6, 7, 8},
		Static: *testDH(11), RemoteStatic: testDH(12).Public(), Secret: secret,
	}
	b = PairConfig{
		Local: a.Remote, Remote: a.Local, LocalAddr: a.RemoteAddr, RemoteAddr: a.LocalAddr,
		Static: *testDH(12), RemoteStatic: testDH(11).Public(), Secret: secret,
	}
	return a, b
}

func mustPair(t testing.TB, c PairConfig) *Pair {
	t.Helper()
	p, err := NewPair(c)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func testPairs(t testing.TB) (a, b *Pair) {
	ca, cb := testPairConfig()
	return mustPair(t, ca), mustPair(t, cb)
}

func TestTunnelHandshake(t *testing.T) {
	t.Parallel()
	a, b := testPairs(t)
	in := InitPayload{Millis: 1<<48 - 1, Features: 0xfedc, Instance: 1<<64 - 2, Head: 77}
	out := RespPayload{Features: 0xfedc, Start: 0xba98, Observed: netip.MustParseAddrPort("192.0.2.1:4242")}
	init, err := a.Initiate(testNow, 100, in)
	if err != nil || len(init.Message()) != InitSize || init.Index() != 100 {
		t.Fatal(len(init.Message()), err)
	}
	sender, tag, ok := InitHeader(init.Message())
	if !ok || sender != 100 || tag != b.InboundTag(Epoch(testNow)) || tag != a.OutboundTag(Epoch(testNow)) {
		t.Errorf("INIT header: %d, %x, %t", sender, tag, ok)
	}
	resp, gotIn, kb, err := b.Respond(init.Message(), 200, out)
	if err != nil || len(resp) != RespSize || gotIn != in {
		t.Fatal(len(resp), gotIn, err)
	}
	if sender, receiver, ok := RespHeader(resp); !ok || sender != 200 || receiver != 100 {
		t.Errorf("RESP header: %d, %d, %t", sender, receiver, ok)
	}
	gotOut, ka, remote, err := init.Complete(resp)
	if err != nil || gotOut != out || remote != 200 {
		t.Fatal(gotOut, remote, err)
	}
	if ka.Send != kb.Recv || ka.Recv != kb.Send || ka.Export != kb.Export ||
		ka.Send == ka.Recv || ka.Export == ka.Send || ka.Export == ka.Recv {
		t.Error("keys do not fit")
	}
	sa, sb := NewSession(ka, 100, 200), NewSession(kb, 200, 100)
	frame, _ := sa.Seal(nil, []byte("hello"), false)
	if got, _, _, err := sb.Open(nil, frame); err != nil || string(got) != "hello" {
		t.Errorf("%q, %v", got, err)
	}
	// The same RESP again must not give the same keys again.
	if _, k, _, err := init.Complete(resp); !errors.Is(err, ErrClosed) || k != (Keys{}) {
		t.Errorf("completed twice: %v", err)
	}
	// The same INIT again gives other keys.
	if _, _, again, err := b.Respond(init.Message(), 201, out); err != nil || again.Send == kb.Send {
		t.Errorf("replayed INIT: %v", err)
	}
}

func TestInitFillsTime(t *testing.T) {
	t.Parallel()
	a, b := testPairs(t)
	init, err := a.Initiate(testNow, 1, InitPayload{})
	if err != nil {
		t.Fatal(err)
	}
	if _, in, _, err := b.Respond(init.Message(), 2, RespPayload{}); err != nil || in.Millis != uint64(testNow.UnixMilli()) {
		t.Errorf("%d, %v", in.Millis, err)
	}
	if _, err := a.Initiate(testNow, 1, InitPayload{Millis: 1 << 48}); err == nil {
		t.Error("49 bits accepted")
	}
	if _, err := a.Initiate(time.Unix(-5, 0), 1, InitPayload{}); err != nil {
		t.Errorf("clock before 1970: %v", err)
	}
}

func TestRespPayload(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"192.0.2.1:1", "[2001:db8::1]:65535", "[::1]:9"} {
		p := RespPayload{Features: 1, Start: 2, Observed: netip.MustParseAddrPort(s)}
		b, err := p.encode()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := parseRespPayload(b); err != nil || got != p {
			t.Errorf("%s: %v, %v", s, got, err)
		}
	}
	mapped := RespPayload{Observed: netip.MustParseAddrPort("[::ffff:192.0.2.1]:1")}
	b, _ := mapped.encode()
	if got, _ := parseRespPayload(b); got.Observed.String() != "192.0.2.1:1" {
		t.Errorf("mapped: %v", got)
	}
	for _, s := range []string{"0.0.0.0:1", "[::]:1", "192.0.2.1:0"} {
		if _, err := (RespPayload{Observed: netip.MustParseAddrPort(s)}).encode(); err == nil {
			t.Errorf("%s: encoded", s)
		}
	}
	for i, v := range map[int]byte{22: 1, 23: 1, 20: 1, 4: 1} { // zero bytes; port alone; address alone
		var b [payloadSize]byte
		b[i] = v
		if _, err := parseRespPayload(b); err == nil {
			t.Errorf("byte %d = %d: accepted", i, v)
		}
	}
}

// TestTunnelBitFlips: every bit of INIT and RESP matters, with and without a
// valid mac1, and no forgery disturbs the handshake under way.
func TestTunnelBitFlips(t *testing.T) {
	t.Parallel()
	a, b := testPairs(t)
	init, err := a.Initiate(testNow, 1, InitPayload{})
	if err != nil {
		t.Fatal(err)
	}
	msg := init.Message()
	for bit := range len(msg) * 8 {
		bad := bytes.Clone(msg)
		bad[bit/8] ^= 1 << (bit % 8)
		if b.CheckInit(bad) {
			t.Fatalf("INIT with bit %d flipped passes mac1", bit)
		}
		if _, _, _, err := b.Respond(bad, 2, RespPayload{}); !errors.Is(err, ErrAuth) {
			t.Fatalf("INIT with bit %d flipped: %v", bit, err)
		}
		if bit/8 < initMAC && bit%8 == 3 { // one bit a byte: each costs a handshake
			bad = b.inbound.appendMAC(bad[:initMAC])
			if _, _, _, err := b.Respond(bad, 2, RespPayload{}); err == nil {
				t.Fatalf("INIT with bit %d flipped and mac1 mended: accepted", bit)
			}
		}
	}
	resp, _, kb, err := b.Respond(msg, 2, RespPayload{})
	if err != nil {
		t.Fatal(err)
	}
	for bit := range len(resp) * 8 {
		bad := bytes.Clone(resp)
		bad[bit/8] ^= 1 << (bit % 8)
		if _, _, _, err := init.Complete(bad); !errors.Is(err, ErrAuth) {
			t.Fatalf("RESP with bit %d flipped: %v", bit, err)
		}
		if bit/8 >= respHeader && bit/8 < respMAC && bit%8 == 3 {
			bad = a.outbound.appendMAC(bad[:respMAC])
			if _, _, _, err := init.Complete(bad); err == nil {
				t.Fatalf("RESP with bit %d flipped and mac1 mended: accepted", bit)
			}
		}
	}
	for n := range msg {
		if b.CheckInit(msg[:n]) {
			t.Fatalf("INIT cut to %d bytes passes", n)
		}
	}
	for n := range resp {
		if _, _, _, err := init.Complete(resp[:n]); err == nil {
			t.Fatalf("RESP cut to %d bytes: accepted", n)
		}
	}
	if _, ka, _, err := init.Complete(resp); err != nil || ka.Send != kb.Recv {
		t.Errorf("the real RESP after the forged ones: %v", err)
	}
}

// TestRespHeaderIsCovered: the Noise messages do not cover the header of RESP,
// so mac1 must. Whoever could mend mac1 holds the pair secret.
func TestRespHeaderIsCovered(t *testing.T) {
	t.Parallel()
	a, b := testPairs(t)
	init, _ := a.Initiate(testNow, 1, InitPayload{})
	resp, _, _, err := b.Respond(init.Message(), 2, RespPayload{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range respHeader {
		bad := bytes.Clone(resp)
		bad[i] ^= 1
		if _, _, _, err := init.Complete(bad); !errors.Is(err, ErrAuth) {
			t.Errorf("byte %d: %v", i, err)
		}
	}
}

// TestTunnelBinds changes one thing on one side that both must agree on.
func TestTunnelBinds(t *testing.T) {
	t.Parallel()
	ca, cb := testPairConfig()
	init, err := mustPair(t, ca).Initiate(testNow, 1, InitPayload{})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change    func(*PairConfig)
		passesMAC bool // the Noise handshake has to catch it
	}{
		"our identity":     {func(c *PairConfig) { c.Local = testKey(3).Public() }, false},
		"peer's identity":  {func(c *PairConfig) { c.Remote = testKey(3).Public() }, false},
		"swapped roles":    {func(c *PairConfig) { c.Local, c.Remote = c.Remote, c.Local }, false},
		"secret":           {func(c *PairConfig) { c.Secret[0] ^= 1 }, false},
		"our address":      {func(c *PairConfig) { c.LocalAddr[5] ^= 1 }, true},
		"peer's address":   {func(c *PairConfig) { c.RemoteAddr[0] ^= 1 }, true},
		"our static key":   {func(c *PairConfig) { c.Static = *testDH(13) }, true},
		"peer's static":    {func(c *PairConfig) { c.RemoteStatic = testDH(13).Public() }, true},
		"nothing, control": {func(*PairConfig) {}, true},
	} {
		cb := cb
		c.change(&cb)
		b := mustPair(t, cb)
		if got := b.CheckInit(init.Message()); got != c.passesMAC {
			t.Errorf("%s: mac1 passes: %t", name, got)
		}
		_, _, _, err := b.Respond(init.Message(), 2, RespPayload{})
		if want := name == "nothing, control"; (err == nil) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestNewPairRefuses(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*PairConfig){
		"zero identity":     func(c *PairConfig) { c.Local = PublicKey{} },
		"small-order peer":  func(c *PairConfig) { c.Remote = PublicKey{1} },
		"ourselves":         func(c *PairConfig) { c.Remote = c.Local },
		"zero static":       func(c *PairConfig) { c.Static = DHPrivate{} },
		"zero secret":       func(c *PairConfig) { c.Secret = PairSecret{} },
		"low-order static":  func(c *PairConfig) { c.RemoteStatic = DHPublic{1} },
		"unreduced static":  func(c *PairConfig) { c.RemoteStatic[31] |= 0x80 },
		"no remote static ": func(c *PairConfig) { c.RemoteStatic = DHPublic{} },
	} {
		c, _ := testPairConfig()
		change(&c)
		if _, err := NewPair(c); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestKnockTags(t *testing.T) {
	t.Parallel()
	a, b := testPairs(t)
	seen := make(map[uint64]bool)
	for e := range uint64(50) {
		if a.OutboundTag(e) != b.InboundTag(e) || b.OutboundTag(e) != a.InboundTag(e) {
			t.Fatal("the sides do not agree")
		}
		seen[a.OutboundTag(e)], seen[a.InboundTag(e)] = true, true
	}
	if len(seen) != 100 {
		t.Errorf("%d different tags, want 100", len(seen))
	}
	for unix, want := range map[int64]uint64{0: 0, 7199: 0, 7200: 1, 1_800_000_000: 250000, -1: 0} {
		if got := Epoch(time.Unix(unix, 0)); got != want {
			t.Errorf("Epoch(%d) = %d, want %d", unix, got, want)
		}
	}
}

func TestPairSecretUsesEveryInput(t *testing.T) {
	t.Parallel()
	in := [4][32]byte{{1}, {2}, {3}, {4}}
	base := NewPairSecret(in[0], in[1], in[2], in[3])
	if base != NewPairSecret(in[0], in[1], in[2], in[3]) || base != NewPairSecret([32]byte{1}, [32]byte{2}, [32]byte{3}, [32]byte{4}) {
		t.Error("not deterministic")
	}
	for i := range in {
		other := in
		other[i][31] ^= 1
		if NewPairSecret(other[0], other[1], other[2], other[3]) == base {
			t.Errorf("input %d does not matter", i)
		}
	}
}

func TestHeaderShapes(t *testing.T) {
	t.Parallel()
	a, b := testPairs(t)
	init, _ := a.Initiate(testNow, 1, InitPayload{})
	resp, _, _, _ := b.Respond(init.Message(), 2, RespPayload{})
	s, _ := testSessions()
	data, _ := s.Seal(nil, nil, true)
	for i := range 4 { // type, version or flags, zeros
		for _, msg := range [][]byte{init.Message(), resp, data} {
			bad := bytes.Clone(msg)
			bad[i] ^= 0x40
			_, _, isInit := InitHeader(bad)
			_, _, isResp := RespHeader(bad)
			_, isData := DataIndex(bad)
			if isInit || isResp || isData {
				t.Errorf("type %d with byte %d changed: %t %t %t", msg[0], i, isInit, isResp, isData)
			}
		}
	}
	if mac := InitMAC(init.Message()); !bytes.Equal(mac[:], init.Message()[88:]) || InitMAC(resp) != [16]byte{} {
		t.Error("InitMAC")
	}
	if _, ok := DataIndex(make([]byte, MaxFrame+1)); ok {
		t.Error("long frame")
	}
}

// The second handshake of a pair uses what the first one computed of the static
// keys: with the same ephemeral keys it is the same handshake, and one with a
// pair made anew, as after a restart of one side, too.
func TestKeptStatic(t *testing.T) {
	config, other := testPairConfig()
	a, b := mustPair(t, config), mustPair(t, other)
	run := func(a, b *Pair) (init, resp []byte, keys Keys) {
		t.Helper()
		i, err := a.initiate(testNow, 1, InitPayload{Millis: 1}, testDH(21))
		if err != nil {
			t.Fatal(err)
		}
		resp, _, kb, err := b.respond(i.Message(), 2, RespPayload{}, testDH(22))
		if err != nil {
			t.Fatal(err)
		}
		_, ka, _, err := i.Complete(resp)
		if err != nil {
			t.Fatal(err)
		}
		if ka.Send != kb.Recv || ka.Recv != kb.Send || ka.Export != kb.Export {
			t.Fatal("the keys of both ends differ")
		}
		return i.Message(), resp, ka
	}
	init, resp, keys := run(a, b)
	if a.ss.Load() == nil || b.ss.Load() == nil || *a.ss.Load() != *b.ss.Load() {
		t.Fatal("nothing is kept")
	}
	for name, pairs := range map[string][2]*Pair{
		"kept": {a, b}, "initiator anew": {mustPair(t, config), b}, "responder anew": {a, mustPair(t, other)},
	} {
		i, r, k := run(pairs[0], pairs[1])
		if !bytes.Equal(i, init) || !bytes.Equal(r, resp) || k != keys {
			t.Errorf("%s: another handshake", name)
		}
	}
	a.ss.Load()[0] ^= 1 // it is this that is used
	i, err := a.initiate(testNow, 1, InitPayload{Millis: 1}, testDH(21))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := b.respond(i.Message(), 2, RespPayload{}, testDH(22)); err == nil {
		t.Error("another secret of the static keys was accepted")
	}
}
