package ipam

import (
	"bytes"
	"errors"
	"testing"

	"github.com/pilotnet/pilot/crypto"
)

func testWithdrawal(t testing.TB) (Withdrawal, crypto.PrivateKey) {
	t.Helper()
	c, k := testClaim(t)
	return Withdrawal{Key: k.Public(), Server: c.Registration, Serial: 7}, k
}

func TestWithdrawal(t *testing.T) {
	w, k := testWithdrawal(t)
	signed := w.Sign(k)
	if got, err := ParseWithdrawal(signed); err != nil || got != w {
		t.Fatalf("%+v, %v; want %+v", got, err, w)
	}
	for i := range signed {
		b := bytes.Clone(signed)
		b[i] ^= 1
		if _, err := ParseWithdrawal(b); err == nil {
			t.Errorf("accepted with byte %d changed", i)
		}
	}
	for _, n := range []int{0, WithdrawalSize - 1} {
		if _, err := ParseWithdrawal(signed[:n]); err == nil {
			t.Errorf("accepted %d bytes", n)
		}
	}
	// What was signed as something else does not withdraw.
	body := w.appendBody(nil)
	if _, err := ParseWithdrawal(append(body, k.Sign(claimContext, body)...)); !errors.Is(err, crypto.ErrAuth) {
		t.Errorf("signature of another context: %v", err)
	}
}

func FuzzParseWithdrawal(f *testing.F) {
	w, k := testWithdrawal(f)
	f.Add(w.Sign(k))
	f.Add(make([]byte, WithdrawalSize))
	f.Fuzz(func(t *testing.T, b []byte) {
		if w, err := ParseWithdrawal(b); err == nil && w.Key == k.Public() && !bytes.Equal(w.Sign(k), b) {
			t.Errorf("%x is signed back as %x", b, w.Sign(k))
		}
		if len(b) < withdrawalBody {
			return
		}
		body := b[:withdrawalBody]
		if w, err := parseWithdrawalBody(body); err == nil && !bytes.Equal(w.appendBody(nil), body) {
			t.Errorf("%x is written back as %x", body, w.appendBody(nil))
		}
	})
}
