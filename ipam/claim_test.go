package ipam

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"math"
	"testing"

	"github.com/pilotnet/pilot/crypto"
)

func testClaim(tb testing.TB) (Claim, crypto.PrivateKey) {
	id := testIdentity(tb, "alice")
	return Claim{
		Addr:         id.Addr(),
		Key:          id.Key.Public(),
		Counter:      id.Counter,
		Registration: crypto.DHPrivate{1}.Public(),
		Serial:       0x0102030405060708,
	}, id.Key
}

func TestClaim(t *testing.T) {
	t.Parallel()
	c, k := testClaim(t)
	b := c.Sign(k)
	if len(b) != ClaimSize {
		t.Fatalf("%d bytes, want %d", len(b), ClaimSize)
	}
	// The layout of doc.go, byte by byte up to the keys.
	const head = "50434c31" + "0000d8b2dbd0" + "0000" + "000000000000002c" + "0102030405060708"
	if got := hex.EncodeToString(b[:28]); got != head {
		t.Errorf("begins %s, want %s", got, head)
	}
	if !bytes.Equal(b[28:60], c.Key[:]) || !bytes.Equal(b[60:92], c.Registration[:]) {
		t.Error("keys are not where doc.go says")
	}
	got, err := ParseClaim(b)
	if err != nil || got != c {
		t.Fatalf("ParseClaim = %+v, %v", got, err)
	}
	if err := got.Verify(); err != nil {
		t.Errorf("Verify: %v", err)
	}
}

func TestClaimEveryByteIsSigned(t *testing.T) {
	t.Parallel()
	c, k := testClaim(t)
	good := c.Sign(k)
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 1
		if _, err := ParseClaim(bad); err == nil {
			t.Errorf("byte %d can be changed", i)
		}
	}
	for _, n := range []int{0, 1, claimBody, ClaimSize - 1} {
		if _, err := ParseClaim(good[:n]); err == nil {
			t.Errorf("accepted the first %d bytes", n)
		}
	}
	if _, err := ParseClaim(append(bytes.Clone(good), 0)); err == nil {
		t.Error("accepted a trailing byte")
	}
	other := testKey("bob")
	forged := append(bytes.Clone(good[:claimBody]), other.Sign(claimContext, good[:claimBody])...)
	if _, err := ParseClaim(forged); !errors.Is(err, crypto.ErrAuth) {
		t.Errorf("foreign signature: %v, want ErrAuth", err)
	}
	wrong := append(bytes.Clone(good[:claimBody]), k.Sign("pilot card v1", good[:claimBody])...)
	if _, err := ParseClaim(wrong); !errors.Is(err, crypto.ErrAuth) {
		t.Errorf("foreign context: %v, want ErrAuth", err)
	}
}

func TestParseClaimRefusesForm(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(b []byte){
		"network 1":             func(b []byte) { b[5] = 1 },
		"node 255":              func(b []byte) { binary.BigEndian.PutUint32(b[6:], 255) },
		"node all ones":         func(b []byte) { binary.BigEndian.PutUint32(b[6:], math.MaxUint32) },
		"padding":               func(b []byte) { b[11] = 1 },
		"version":               func(b []byte) { b[3] = '2' },
		"zero registration key": func(b []byte) { clear(b[60:92]) },
	} {
		c, k := testClaim(t)
		b := c.Sign(k)[:claimBody]
		change(b)
		if _, err := ParseClaim(append(b, k.Sign(claimContext, b)...)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestClaimVerifyRefusesForeignAddress(t *testing.T) {
	t.Parallel()
	c, k := testClaim(t)
	c.Addr = testIdentity(t, "bob").Addr()
	got, err := ParseClaim(c.Sign(k))
	if err != nil {
		t.Fatal(err)
	}
	if err := got.Verify(); !errors.Is(err, ErrNotDerived) {
		t.Errorf("Verify = %v, want ErrNotDerived", err)
	}
}

// FuzzParseClaim: what is accepted is written back the same, and re-signed by
// its key (signatures are deterministic) is the same as well. The body is
// parsed without the signature too, which random input never has.
func FuzzParseClaim(f *testing.F) {
	c, k := testClaim(f)
	f.Add(c.Sign(k))
	f.Add(make([]byte, ClaimSize))
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := ParseClaim(b); err == nil && c.Key == k.Public() && !bytes.Equal(c.Sign(k), b) {
			t.Errorf("%x is signed back as %x", b, c.Sign(k))
		}
		if len(b) < claimBody {
			return
		}
		body := b[:claimBody]
		if c, err := parseClaimBody(body); err == nil && !bytes.Equal(c.appendBody(nil), body) {
			t.Errorf("%x is written back as %x", body, c.appendBody(nil))
		}
	})
}
