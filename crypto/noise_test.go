package crypto

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// vector is one published handshake: the two messages of the handshake, then
// transport messages that alternate between the sides.
type vector struct {
	pattern         Pattern
	prologue        []byte
	initS, respS    *DHPrivate
	initE, respE    *DHPrivate
	psk             *[32]byte
	hash            []byte // empty if not given
	payload, cipher [][]byte
	initiatorRemote []byte // as published, to compare with respS; may be empty
}

func patternOf(protocol string) (Pattern, bool) {
	for p := range patternSpecs {
		if protocol == "Noise_"+p.String()+"_25519_AESGCM_SHA256" {
			return p, true
		}
	}
	return 0, false
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func unhexKey(t testing.TB, s string) *DHPrivate {
	if s == "" {
		return nil
	}
	k := DHPrivate(unhex(t, s))
	return &k
}

// moduleDir finds a module of go.mod in the module cache.
func moduleDir(t testing.TB, module string) string {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", module).Output()
	if err != nil {
		t.Fatalf("go list -m %s: %v", module, err)
	}
	return strings.TrimSpace(string(out))
}

// flynnVectors reads vectors.txt of github.com/flynn/noise: lines of
// name=value, one group for each handshake.
func flynnVectors(t testing.TB) []vector {
	text, err := os.ReadFile(filepath.Join(moduleDir(t, "github.com/flynn/noise"), "vectors.txt"))
	if err != nil {
		t.Fatal(err)
	}
	var all []vector
	var v *vector
	for line := range strings.Lines(string(text)) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if !ok {
			continue
		}
		if name == "handshake" {
			v = nil
			if p, ok := patternOf(value); ok {
				all = append(all, vector{pattern: p})
				v = &all[len(all)-1]
			}
			continue
		}
		switch {
		case v == nil:
		case name == "init_static":
			v.initS = unhexKey(t, value)
		case name == "resp_static":
			v.respS = unhexKey(t, value)
		case name == "gen_init_ephemeral":
			v.initE = unhexKey(t, value)
		case name == "gen_resp_ephemeral":
			v.respE = unhexKey(t, value)
		case name == "prologue":
			v.prologue = unhex(t, value)
		case name == "preshared_key":
			v.psk = (*[32]byte)(unhex(t, value))
		case strings.HasSuffix(name, "_payload"):
			v.payload = append(v.payload, unhex(t, value))
		case strings.HasSuffix(name, "_ciphertext"):
			v.cipher = append(v.cipher, unhex(t, value))
		default:
			t.Fatalf("vectors.txt: unknown field %q", name)
		}
	}
	return all
}

// jsonVectors reads the format of cacophony and snow. The files are not part
// of this repository; without them the test is skipped.
func jsonVectors(t testing.TB, file string) []vector {
	path := filepath.Join("..", "..", "shared", "vectors", "noise", file)
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		t.Skipf("%s is not here", path)
	}
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Vectors []struct {
			Protocol     string   `json:"protocol_name"`
			InitPrologue string   `json:"init_prologue"`
			InitStatic   string   `json:"init_static"`
			InitRemote   string   `json:"init_remote_static"`
			InitE        string   `json:"init_ephemeral"`
			RespStatic   string   `json:"resp_static"`
			RespE        string   `json:"resp_ephemeral"`
			PSKs         []string `json:"init_psks"`
			Hash         string   `json:"handshake_hash"`
			Messages     []struct{ Payload, Ciphertext string }
		}
	}
	if err := json.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	var all []vector
	for _, d := range doc.Vectors {
		p, ok := patternOf(d.Protocol)
		if !ok {
			continue
		}
		v := vector{
			pattern: p, prologue: unhex(t, d.InitPrologue), hash: unhex(t, d.Hash),
			initS: unhexKey(t, d.InitStatic), respS: unhexKey(t, d.RespStatic),
			initE: unhexKey(t, d.InitE), respE: unhexKey(t, d.RespE),
			initiatorRemote: unhex(t, d.InitRemote),
		}
		if len(d.PSKs) > 0 {
			v.psk = (*[32]byte)(unhex(t, d.PSKs[0]))
		}
		for _, m := range d.Messages {
			v.payload = append(v.payload, unhex(t, m.Payload))
			v.cipher = append(v.cipher, unhex(t, m.Ciphertext))
		}
		all = append(all, v)
	}
	return all
}

func TestPublishedVectors(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		read func(testing.TB) []vector
		want map[Pattern]int
	}{
		{"flynn", flynnVectors, map[Pattern]int{KK: 4, KKpsk0: 4, IK: 4, NK: 4}},
		{"cacophony", func(t testing.TB) []vector { return jsonVectors(t, "cacophony.txt") },
			map[Pattern]int{KK: 1, KKpsk0: 1, IK: 1, NK: 1}},
		{"snow", func(t testing.TB) []vector { return jsonVectors(t, "snow.txt") },
			map[Pattern]int{KK: 1, IK: 1, NK: 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			got := make(map[Pattern]int)
			for _, v := range c.read(t) {
				runVector(t, v)
				got[v.pattern]++
			}
			for p := range patternSpecs {
				if got[p] != c.want[p] {
					t.Errorf("%s: %d vectors, want %d", p, got[p], c.want[p])
				}
			}
		})
	}
}

// vectorSides makes the two sides of a vector.
func vectorSides(t testing.TB, v vector) (init, resp *Handshake) {
	t.Helper()
	respPublic := v.respS.Public()
	if len(v.initiatorRemote) > 0 && !bytes.Equal(v.initiatorRemote, respPublic[:]) {
		t.Fatalf("%s: vector names another responder", v.pattern)
	}
	ci := HandshakeConfig{Pattern: v.pattern, Initiator: true, Prologue: v.prologue,
		RemoteStatic: &respPublic, PSK: v.psk, Ephemeral: v.initE}
	cr := HandshakeConfig{Pattern: v.pattern, Prologue: v.prologue, Static: v.respS, PSK: v.psk, Ephemeral: v.respE}
	if spec := patternSpecs[v.pattern]; spec.sendsStatic() {
		ci.Static = v.initS
		if spec.knownInit {
			initPublic := v.initS.Public()
			cr.RemoteStatic = &initPublic
		}
	}
	init, err := NewHandshake(ci)
	if err != nil {
		t.Fatal(err)
	}
	if resp, err = NewHandshake(cr); err != nil {
		t.Fatal(err)
	}
	return init, resp
}

func runVector(t *testing.T, v vector) {
	t.Helper()
	init, resp := vectorSides(t, v)
	for i, from := range []*Handshake{init, resp} {
		to := []*Handshake{resp, init}[i]
		msg, err := from.Write(nil, v.payload[i])
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(msg, v.cipher[i]) {
			t.Fatalf("%s: message %d: got %x, want %x", v.pattern, i, msg, v.cipher[i])
		}
		payload, err := to.Read(nil, msg)
		if err != nil || !bytes.Equal(payload, v.payload[i]) {
			t.Fatalf("%s: message %d: got %x, %v, want %x", v.pattern, i, payload, err, v.payload[i])
		}
	}
	if init.Hash() != resp.Hash() {
		t.Fatalf("%s: hashes differ", v.pattern)
	}
	if h := init.Hash(); len(v.hash) > 0 && !bytes.Equal(h[:], v.hash) {
		t.Fatalf("%s: hash %x, want %x", v.pattern, h, v.hash)
	}
	if v.pattern == IK && resp.RemoteStatic() != v.initS.Public() {
		t.Fatal("IK: responder learned another static key")
	}
	ki, err := init.Split()
	if err != nil {
		t.Fatal(err)
	}
	kr, err := resp.Split()
	if err != nil {
		t.Fatal(err)
	}
	if ki.Send != kr.Recv || ki.Recv != kr.Send || ki.Export != kr.Export {
		t.Fatalf("%s: keys differ", v.pattern)
	}
	for i := 2; i < len(v.payload); i++ {
		key := ki.Send
		if i%2 == 1 {
			key = kr.Send
		}
		nonce := noiseNonce(uint64(i/2 - 1))
		if got := newGCM(key).Seal(nil, nonce[:], v.payload[i], nil); !bytes.Equal(got, v.cipher[i]) {
			t.Fatalf("%s: transport message %d: got %x, want %x", v.pattern, i, got, v.cipher[i])
		}
	}
}

func testDH(b byte) *DHPrivate {
	k := DHPrivate(bytes.Repeat([]byte{b}, 32))
	return &k
}

func TestHandshakeConfigIsExact(t *testing.T) {
	t.Parallel()
	static, psk := testDH(1), &[32]byte{1}
	remote := testDH(2).Public()
	zero := DHPublic{}
	for name, c := range map[string]HandshakeConfig{
		"no pattern":           {Static: static, RemoteStatic: &remote},
		"KKpsk0 without PSK":   {Pattern: KKpsk0, Initiator: true, Static: static, RemoteStatic: &remote},
		"KKpsk0 zero PSK":      {Pattern: KKpsk0, Initiator: true, Static: static, RemoteStatic: &remote, PSK: new([32]byte)},
		"KK with PSK":          {Pattern: KK, Initiator: true, Static: static, RemoteStatic: &remote, PSK: psk},
		"KK without static":    {Pattern: KK, Initiator: true, RemoteStatic: &remote},
		"KK zero static":       {Pattern: KK, Initiator: true, Static: new(DHPrivate), RemoteStatic: &remote},
		"KK without remote":    {Pattern: KK, Static: static},
		"KK low-order remote":  {Pattern: KK, Static: static, RemoteStatic: &zero},
		"IK without static":    {Pattern: IK, Initiator: true, RemoteStatic: &remote},
		"IK responder remote":  {Pattern: IK, Static: static, RemoteStatic: &remote},
		"NK initiator static":  {Pattern: NK, Initiator: true, Static: static, RemoteStatic: &remote},
		"NK responder without": {Pattern: NK},
	} {
		if _, err := NewHandshake(c); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func fixedVector(p Pattern) vector {
	v := vector{pattern: p, prologue: []byte("p"), initS: testDH(1), respS: testDH(2), initE: testDH(3), respE: testDH(4)}
	if patternSpecs[p].psk {
		v.psk = &[32]byte{5}
	}
	return v
}

// TestReadErrorChangesNothing flips every bit of both messages: each time the
// real message is still accepted afterwards, and gives the same keys.
func TestReadErrorChangesNothing(t *testing.T) {
	t.Parallel()
	for p := range patternSpecs {
		t.Run(p.String(), func(t *testing.T) {
			t.Parallel()
			init, resp := vectorSides(t, fixedVector(p))
			for i, from := range []*Handshake{init, resp} {
				to := []*Handshake{resp, init}[i]
				msg, err := from.Write(nil, []byte("hello"))
				if err != nil {
					t.Fatal(err)
				}
				before := *to
				for bit := range len(msg) * 8 {
					bad := bytes.Clone(msg)
					bad[bit/8] ^= 1 << (bit % 8)
					if _, err := to.Read(nil, bad); err == nil {
						t.Fatalf("message %d with bit %d flipped was accepted", i, bit)
					}
				}
				for n := range msg {
					if _, err := to.Read(nil, msg[:n]); err == nil {
						t.Fatalf("message %d cut to %d bytes was accepted", i, n)
					}
				}
				if to.sym != before.sym || to.next != before.next || to.remote != before.remote || to.remoteE != before.remoteE {
					t.Fatal("a refused message changed the state")
				}
				if got, err := to.Read(nil, msg); err != nil || string(got) != "hello" {
					t.Fatalf("message %d: %q, %v", i, got, err)
				}
			}
			ki, _ := init.Split()
			kr, _ := resp.Split()
			if ki.Send != kr.Recv || ki.Send == ki.Recv {
				t.Fatal("keys differ")
			}
		})
	}
}

func TestHandshakeRefusesLowOrderEphemeral(t *testing.T) {
	t.Parallel()
	for p := range patternSpecs {
		_, resp := vectorSides(t, fixedVector(p))
		for _, e := range lowOrder {
			if _, err := resp.Read(nil, append(e[:], make([]byte, 80)...)); !errors.Is(err, errLowOrder) {
				t.Errorf("%s: e = %x: %v", p, e, err)
			}
		}
	}
}

func TestHandshakeTurnsAndSplit(t *testing.T) {
	t.Parallel()
	init, resp := vectorSides(t, fixedVector(KKpsk0))
	if _, err := init.Read(nil, nil); !errors.Is(err, errTurn) {
		t.Errorf("initiator reads first: %v", err)
	}
	if _, err := resp.Write(nil, nil); !errors.Is(err, errTurn) {
		t.Errorf("responder writes first: %v", err)
	}
	if _, err := init.Split(); !errors.Is(err, errNotDone) {
		t.Errorf("split before the end: %v", err)
	}
	m1, _ := init.Write(nil, nil)
	if _, err := init.Write(nil, nil); !errors.Is(err, errTurn) {
		t.Errorf("initiator writes twice: %v", err)
	}
	if _, err := resp.Read(nil, m1); err != nil {
		t.Fatal(err)
	}
	clone := resp.Clone()
	m2, _ := resp.Write(nil, nil)
	if _, err := init.Read(nil, m2); err != nil {
		t.Fatal(err)
	}
	if clone.Done() || !resp.Done() || !init.Done() {
		t.Error("Done: a clone moved with its original, or a side did not finish")
	}
	if _, err := resp.Write(nil, nil); !errors.Is(err, errTurn) {
		t.Errorf("third message: %v", err)
	}
	if _, err := init.Write(nil, make([]byte, maxNoiseMessage)); err == nil {
		t.Error("long message accepted")
	}
	hash := init.Hash()
	if _, err := init.Split(); err != nil {
		t.Fatal(err)
	}
	if _, err := init.Split(); !errors.Is(err, ErrClosed) {
		t.Errorf("second split: %v", err)
	}
	if init.psk != [32]byte{} || init.sym.ck != [32]byte{} || init.sym.key != [32]byte{} ||
		init.ephemeral.private != nil || init.static.private != nil {
		t.Error("secrets are left after Split")
	}
	if init.Hash() != hash {
		t.Error("hash changed")
	}
}

func TestFreshEphemerals(t *testing.T) {
	t.Parallel()
	v := fixedVector(NK)
	v.initE, v.respE = nil, nil
	init, _ := vectorSides(t, v)
	a, err := init.Clone().Write(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := init.Write(nil, nil)
	if err != nil || bytes.Equal(a, b) {
		t.Errorf("two copies wrote the same message (%v)", err)
	}
}
