package crypto

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

func testKey(b byte) PrivateKey {
	return NewPrivateKey([32]byte(bytes.Repeat([]byte{b}, 32)))
}

// smallOrder lists every encoding of the eight points of small order that a
// lenient decoder accepts: eight canonical ones, then six that are not.
var smallOrder = []string{
	"0100000000000000000000000000000000000000000000000000000000000000",
	"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
	"0000000000000000000000000000000000000000000000000000000000000000",
	"0000000000000000000000000000000000000000000000000000000000000080",
	"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
	"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
	"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
	"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
	"0100000000000000000000000000000000000000000000000000000000000080",
	"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
	"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
	"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
	"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
	"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
}

func TestPublicKeyRefusesSmallOrder(t *testing.T) {
	t.Parallel()
	// Under the identity element this signature (R = A = identity, s = 0)
	// verifies every message; the standard library accepts it.
	identity := unhex(t, smallOrder[0])
	forged := append(bytes.Clone(identity), make([]byte, 32)...)
	if !ed25519.Verify(identity, []byte("any message"), forged) {
		t.Log("crypto/ed25519 refuses the forgery by itself now")
	}
	if PublicKey(identity).Verify("context", []byte("any message"), forged) {
		t.Error("a signature under the identity element verifies")
	}
	for i, s := range smallOrder {
		b := unhex(t, s)
		if _, err := ParsePublicKey(b); err == nil {
			t.Errorf("%d: %s: accepted", i, s)
		}
		var k PublicKey
		if err := k.UnmarshalText([]byte(encodeText(b))); err == nil || !k.IsZero() {
			t.Errorf("%d: %s: accepted as text", i, s)
		}
	}
}

func TestPublicKeyRefusesNonCanonical(t *testing.T) {
	t.Parallel()
	for low := 0xed; low <= 0xff; low++ { // y = p ... 2^255-1
		for _, top := range []byte{0x7f, 0xff} {
			b := bytes.Repeat([]byte{0xff}, 32)
			b[0], b[31] = byte(low), top
			if _, err := ParsePublicKey(b); err == nil {
				t.Errorf("%x: accepted", b)
			}
		}
	}
	for _, n := range []int{0, 31, 33} {
		if _, err := ParsePublicKey(make([]byte, n)); err == nil {
			t.Errorf("%d bytes: accepted", n)
		}
	}
}

func TestSignAndVerify(t *testing.T) {
	t.Parallel()
	k := testKey(1)
	body := []byte("body")
	sig := k.Sign("one", body)
	if len(sig) != SignatureSize || !k.Public().Verify("one", body, sig) {
		t.Fatal("own signature refused")
	}
	if !ed25519.Verify(k.public[:], []byte("one\x00body"), sig) {
		t.Error("not Ed25519 over context, zero, body")
	}
	for name, ok := range map[string]bool{
		"other context": k.Public().Verify("two", body, sig),
		"other body":    k.Public().Verify("one", []byte("bodx"), sig),
		"other key":     testKey(2).Public().Verify("one", body, sig),
		"zero key":      PublicKey{}.Verify("one", body, sig),
		"short":         k.Public().Verify("one", body, sig[:63]),
		"none":          k.Public().Verify("one", body, nil),
		"shifted":       k.Public().Verify("on", []byte("e\x00body"), sig),
	} {
		if ok {
			t.Errorf("%s: verifies", name)
		}
	}
	for bit := range len(sig) * 8 {
		bad := bytes.Clone(sig)
		bad[bit/8] ^= 1 << (bit % 8)
		if k.Public().Verify("one", body, bad) {
			t.Fatalf("signature with bit %d flipped verifies", bit)
		}
	}
}

func TestTextForms(t *testing.T) {
	t.Parallel()
	k := testKey(3).Public()
	text, err := json.Marshal(struct {
		K, Zero PublicKey
		F       Fingerprint
	}{K: k, F: k.Fingerprint()})
	if err != nil {
		t.Fatal(err)
	}
	var back struct {
		K, Zero PublicKey
		F       Fingerprint
	}
	if err := json.Unmarshal(text, &back); err != nil || back.K != k || back.F != k.Fingerprint() || !back.Zero.IsZero() {
		t.Errorf("%s: %+v, %v", text, back, err)
	}
	f := k.Fingerprint().String()
	if len(f) != 26 || f != strings.ToLower(f) || k.String() != f {
		t.Errorf("fingerprint text %q", f)
	}
	if got, err := ParseFingerprint(strings.ToUpper(f)); err != nil || got != k.Fingerprint() {
		t.Errorf("upper case: %v", err)
	}
	// 26 characters carry 130 bits: the two that are left over must be zero.
	for _, bad := range []string{"", f[:25], f + "a", f[:25] + "b", f[:25] + "=", f[:24] + "\n" + f[24:25], "1" + f[1:], f[:25] + "ſ"} {
		if _, err := ParseFingerprint(bad); err == nil {
			t.Errorf("%q: accepted", bad)
		}
	}
}

func TestGenerate(t *testing.T) {
	t.Parallel()
	a, err := GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	b, err := GenerateKey()
	if err != nil || a.Public() == b.Public() {
		t.Fatal("two new identities are equal")
	}
	if NewPrivateKey(a.Seed()) != a {
		t.Error("seed does not give the key back")
	}
	if c := a.Public().Compare(b.Public()); c == 0 || c != -b.Public().Compare(a.Public()) || a.Public().Compare(a.Public()) != 0 {
		t.Error("Compare is not an order")
	}
	d, err := GenerateDH()
	if err != nil || d.IsZero() || d.Public().check() != nil {
		t.Errorf("new X25519 key: %v", err)
	}
}

func TestSecretsDoNotPrint(t *testing.T) {
	t.Parallel()
	key := bytes.Repeat([]byte{0xab}, 32)
	seal, err := NewSealPrivate([32]byte(key))
	if err != nil {
		t.Fatal(err)
	}
	secrets := []any{NewPrivateKey([32]byte(key)), DHPrivate(key), PairSecret(key), seal,
		Keys{Send: [32]byte(key)}, PairConfig{Static: DHPrivate(key), Secret: PairSecret(key)}}
	for _, s := range secrets {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%X", "%d", "%q"} {
			text := strings.ToLower(fmt.Sprintf(verb, s))
			for _, leak := range []string{hex.EncodeToString(key[:4]), "171 171", "0xab", "171, 171"} {
				if strings.Contains(text, leak) {
					t.Errorf("%T prints its key with %s: %.80s", s, verb, text)
				}
			}
		}
	}
}

func TestDHPublicRefuses(t *testing.T) {
	t.Parallel()
	for _, k := range lowOrder {
		if _, err := newKeyPair(*testDH(9)).dh(k); err == nil {
			t.Errorf("%x: crypto/ecdh does not take it for low order", k)
		}
		if _, err := ParseDHPublic(k[:]); err == nil {
			t.Errorf("%x: low order accepted", k)
		}
		k[31] |= 0x80
		if _, err := ParseDHPublic(k[:]); err == nil {
			t.Errorf("%x: accepted with the top bit", k)
		}
	}
	for low := 0; low <= 0xff; low++ {
		b := bytes.Repeat([]byte{0xff}, 32)
		b[0], b[31] = byte(low), 0x7f
		_, err := ParseDHPublic(b)
		if want := low < 0xec; (err == nil) != want { // 0xec is p-1, of order 2
			t.Errorf("%x: accepted %t, want %t", b, err == nil, want)
		}
	}
	k := testDH(1).Public()
	if got, err := ParseDHPublicText(strings.ToUpper(k.String())); err != nil || got != k {
		t.Errorf("text: %v", err)
	}
	var z DHPublic
	if err := z.UnmarshalText([]byte(encodeText(make([]byte, 32)))); err == nil {
		t.Error("zero key accepted as text")
	}
}

func TestSeal(t *testing.T) {
	t.Parallel()
	k, err := NewSealPrivate([32]byte{1})
	if err != nil {
		t.Fatal(err)
	}
	if again, _ := NewSealPrivate([32]byte{1}); again.Public() != k.Public() {
		t.Error("the same seed gives another key")
	}
	sealed, err := k.Public().Seal("info", []byte("plaintext"))
	if err != nil || len(sealed) != len("plaintext")+SealOverhead {
		t.Fatalf("%d bytes, %v", len(sealed), err)
	}
	if got, err := k.Open("info", sealed); err != nil || string(got) != "plaintext" {
		t.Fatalf("%q, %v", got, err)
	}
	other, _ := NewSealPrivate([32]byte{2})
	if _, err := other.Open("info", sealed); err == nil {
		t.Error("another key opens it")
	}
	if _, err := k.Open("other", sealed); err == nil {
		t.Error("another info opens it")
	}
	for _, i := range []int{0, 500, 1087, 1088, 1119, 1120, len(sealed) - 1} {
		bad := bytes.Clone(sealed)
		bad[i] ^= 1
		if _, err := k.Open("info", bad); err == nil {
			t.Errorf("opens with byte %d changed", i)
		}
	}
	for _, n := range []int{0, 1, SealOverhead - 1, len(sealed) - 1} {
		if _, err := k.Open("info", sealed[:n]); err == nil {
			t.Errorf("opens when cut to %d bytes", n)
		}
	}
	if _, err := (SealPrivate{}).Open("info", sealed); err == nil {
		t.Error("the zero key opens it")
	}
	if _, err := (SealPublic{}).Seal("info", nil); err == nil {
		t.Error("sealed to the zero key")
	}
	bad := k.Public()
	bad[0], bad[1] = 0xff, 0xff // a coefficient above 3328
	if _, err := ParseSealPublic(bad[:]); err == nil {
		t.Error("an ML-KEM key that is not reduced is accepted")
	}
	if _, err := ParseSealPublic(bad[:1215]); err == nil {
		t.Error("short key accepted")
	}
}
