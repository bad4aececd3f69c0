package crypto

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden is an ordered list of named byte strings, stored one "name hex" a
// line. The files pin the wire: a change of any byte is a change of protocol.
type golden struct {
	names  []string
	values map[string][]byte
}

func (g *golden) add(name string, b []byte) {
	if g.values == nil {
		g.values = make(map[string][]byte)
	}
	g.names = append(g.names, name)
	g.values[name] = bytes.Clone(b)
}

// check compares g with the file, or writes it with -update.
func (g *golden) check(t *testing.T, file string) {
	t.Helper()
	path := filepath.Join("testdata", file)
	var text strings.Builder
	for _, name := range g.names {
		fmt.Fprintf(&text, "%s %s\n", name, hex.EncodeToString(g.values[name]))
	}
	if *update {
		if err := os.WriteFile(path, []byte(text.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if text.String() == string(want) {
		return
	}
	old := strings.Split(string(want), "\n")
	for i, line := range strings.Split(text.String(), "\n") {
		if i >= len(old) || line != old[i] {
			t.Errorf("%s differs at line %d: got %.120s", path, i+1, line)
			return
		}
	}
	t.Errorf("%s is longer than what was made", path)
}

// goldenTunnel makes one whole handshake and a frame each way with fixed keys.
func goldenTunnel(t testing.TB) *golden {
	ca, cb := testPairConfig()
	a, b := mustPair(t, ca), mustPair(t, cb)
	init, err := a.initiate(testNow, 0x01020304, InitPayload{Millis: 0x0192a3b4c5d6, Features: 0x0102,
		Instance: 0x1112131415161718, Head: 0x2122232425262728}, testDH(21))
	if err != nil {
		t.Fatal(err)
	}
	resp, _, kb, err := b.respond(init.Message(), 0x0a0b0c0d, RespPayload{Features: 0x3132, Start: 0x3334,
		Observed: netip.MustParseAddrPort("192.0.2.7:4242")}, testDH(22))
	if err != nil {
		t.Fatal(err)
	}
	hash := init.handshake.Clone()
	if _, err := hash.Read(nil, resp[respHeader:respMAC]); err != nil {
		t.Fatal(err)
	}
	handshakeHash := hash.Hash()
	_, ka, _, err := init.Complete(resp)
	if err != nil {
		t.Fatal(err)
	}
	var g golden
	g.add("secret", ca.Secret[:])
	g.add("psk", a.outbound.psk[:])
	g.add("tagkey", a.outbound.tag[:])
	g.add("mackey", a.outbound.mac[:])
	g.add("prologue", append(bytes.Clone(a.outbound.prologue[:]), init.Message()[:16]...))
	g.add("init", init.Message())
	g.add("resp", resp)
	g.add("hash", handshakeHash[:])
	g.add("initiator-send", ka.Send[:])
	g.add("initiator-recv", ka.Recv[:])
	g.add("export", ka.Export[:])
	sa, sb := NewSession(ka, 0x01020304, 0x0a0b0c0d), NewSession(kb, 0x0a0b0c0d, 0x01020304)
	for i, plaintext := range []string{"", "data one", "data two"} {
		frame, err := sa.Seal(nil, []byte(plaintext), i == 2)
		if err != nil {
			t.Fatal(err)
		}
		g.add(fmt.Sprintf("data-%d", i), frame)
	}
	frame, err := sb.Seal(nil, []byte("answer"), false)
	if err != nil {
		t.Fatal(err)
	}
	g.add("data-back", frame)
	return &g
}

func TestGoldenTunnel(t *testing.T) {
	t.Parallel()
	goldenTunnel(t).check(t, "tunnel.golden")
}

// TestGoldenTunnelByOtherHands makes the same messages from the text of the
// specification: headers written out byte by byte, keys by HMAC alone, Noise
// by flynn/noise.
func TestGoldenTunnelByOtherHands(t *testing.T) {
	t.Parallel()
	want := goldenTunnel(t)
	equal := func(name string, got []byte) {
		t.Helper()
		if !bytes.Equal(got, want.values[name]) {
			t.Errorf("%s: got %x, want %x", name, got, want.values[name])
		}
	}
	mac := func(key []byte, parts ...[]byte) []byte {
		m := hmac.New(sha256.New, key)
		for _, p := range parts {
			m.Write(p)
		}
		return m.Sum(nil)
	}
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	ca, _ := testPairConfig()

	pad := func(b byte) []byte { return append([]byte{b}, make([]byte, 31)...) }
	salt := sha256.Sum256(join(pad(1), pad(2)))
	secret := mac(salt[:], pad(3), pad(4))
	equal("secret", secret)
	expand := func(label string) []byte { // the first block of HKDF-Expand
		return mac(secret, []byte(label), []byte{0}, ca.Local[:], ca.Remote[:], []byte{1})
	}
	psk, tagKey, macKey := expand("pilot psk v1"), expand("pilot tag v1"), expand("pilot mac v1")
	equal("psk", psk)
	equal("tagkey", tagKey)
	equal("mackey", macKey)

	tag := mac(tagKey, []byte{0, 0, 0, 0, 0, 3, 0xd0, 0x90})[:8] // epoch 250000
	initHead := join([]byte{4, 1, 0, 0, 1, 2, 3, 4}, tag)
	prologue := join([]byte("pilot tunnel v1\x00"), ca.Local[:], ca.Remote[:], ca.LocalAddr[:], ca.RemoteAddr[:], initHead)
	equal("prologue", prologue)

	v := vector{pattern: KKpsk0, prologue: prologue, initS: testDH(11), respS: testDH(12),
		initE: testDH(21), respE: testDH(22), psk: (*[32]byte)(psk)}
	hi, hr := flynnSide(t, v, true), flynnSide(t, v, false)
	m1, _, _, err := hi.WriteMessage(nil, []byte{0x01, 0x92, 0xa3, 0xb4, 0xc5, 0xd6, 0x01, 0x02,
		0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, 0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x27, 0x28})
	if err != nil {
		t.Fatal(err)
	}
	init := join(initHead, m1)
	equal("init", join(init, mac(macKey, init)[:16]))
	if _, _, _, err := hr.ReadMessage(nil, m1); err != nil {
		t.Fatal(err)
	}
	m2, toResponder, toInitiator, err := hr.WriteMessage(nil, []byte{0x31, 0x32, 0x33, 0x34,
		0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 7, 0x10, 0x92, 0, 0})
	if err != nil {
		t.Fatal(err)
	}
	resp := join([]byte{5, 1, 0, 0, 0x0a, 0x0b, 0x0c, 0x0d, 1, 2, 3, 4}, m2)
	equal("resp", join(resp, mac(macKey, resp)[:16]))
	equal("hash", hr.ChannelBinding())
	k1, k2 := toResponder.UnsafeKey(), toInitiator.UnsafeKey()
	equal("initiator-send", k1[:])
	equal("initiator-recv", k2[:])

	for i, plaintext := range []string{"", "data one", "data two"} {
		head := []byte{6, byte(i / 2), 0, 0, 0x0a, 0x0b, 0x0c, 0x0d, 0, 0, 0, 0, 0, 0, 0, byte(i)}
		ct, err := toResponder.Encrypt(nil, head, []byte(plaintext))
		if err != nil {
			t.Fatal(err)
		}
		equal(fmt.Sprintf("data-%d", i), join(head, ct))
	}
	head := []byte{6, 0, 0, 0, 1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0, 0}
	ct, err := toInitiator.Encrypt(nil, head, []byte("answer"))
	if err != nil {
		t.Fatal(err)
	}
	equal("data-back", join(head, ct))
}

// TestGoldenKeys pins what is derived from an identity, and a signed card.
func TestGoldenKeys(t *testing.T) {
	t.Parallel()
	k := testKey(1)
	seal, err := NewSealPrivate([32]byte{1})
	if err != nil {
		t.Fatal(err)
	}
	public, sealPublic, registration := k.Public(), seal.Public(), testDH(1).Public()
	fingerprint := public.Fingerprint()
	card, err := testCard(t).Sign(k)
	if err != nil {
		t.Fatal(err)
	}
	var g golden
	g.add("ed25519", public[:])
	g.add("fingerprint", fingerprint[:])
	g.add("fingerprint-text", []byte(fingerprint.String()))
	g.add("signature", k.Sign("context", []byte("body")))
	g.add("x25519", registration[:])
	g.add("x25519-text", []byte(registration.String()))
	g.add("seal", sealPublic[:])
	g.add("card", card)
	g.check(t, "keys.golden")
}

// TestGoldenSealed opens a message that was sealed once and for all: sealing
// is randomised, so only opening can be pinned.
func TestGoldenSealed(t *testing.T) {
	t.Parallel()
	k, err := NewSealPrivate([32]byte{1})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join("testdata", "sealed.golden")
	if *update {
		sealed, err := k.Public().Seal("pilot mail v1", []byte("a letter"))
		if err == nil {
			err = os.WriteFile(path, []byte(hex.EncodeToString(sealed)+"\n"), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	got, err := k.Open("pilot mail v1", unhex(t, strings.TrimSpace(string(text))))
	if err != nil || string(got) != "a letter" {
		t.Errorf("%q, %v", got, err)
	}
}
