package trust

import (
	"bytes"
	"math/big"
	"os"
	"slices"
	"testing"
)

// A revoked statement in every other form that says the same: sealed anew, with the
// other signature that the curve allows, longer, shorter, or with any bit turned.
// None brings trust back, on either side.
func TestHostileReencoded(t *testing.T) {
	t.Parallel()
	for _, side := range []string{"granter", "requester"} {
		alice, bob := newParty(t, "alice"), newParty(t, "bob")
		alice.ask(bob, "80", "7")
		request := alice.mail(bob)
		bob.take(request)
		bob.approve(alice)
		grant := bob.mail(alice)
		alice.take(grant)
		confirm(alice, bob)
		x, y, said := bob, alice, request[0].Sealed
		if side == "requester" {
			x, y, said = alice, bob, grant[0].Sealed
		}
		signed, err := x.seal.Open(mailInfo, said)
		if err != nil {
			t.Fatal(err)
		}
		if err := x.Revoke(y.pub()); err != nil {
			t.Fatal(err)
		}
		cut := x.book[y.pub()].Cut
		forms := [][]byte{signed, malleable(t, signed), append(slices.Clone(signed), 0), signed[:len(signed)-1], append([]byte{0}, signed...)}
		step := 23
		if os.Getenv("PILOT_HOSTILE") == "1" {
			step = 1
		}
		for bit := 0; bit < len(signed)*8; bit += step {
			form := bytes.Clone(signed)
			form[bit/8] ^= 1 << (bit % 8)
			forms = append(forms, form)
		}
		for i, form := range forms {
			sealed, err := x.seal.Public().Seal(mailInfo, form)
			if err != nil {
				t.Fatal(err)
			}
			e, err := x.Receive(sealed)
			if err != nil {
				t.Fatal(err)
			}
			if e.Kind != Refused && e.Kind != Duplicate || len(x.Peers())+len(x.Incoming()) != 0 || x.book[y.pub()].Cut != cut {
				t.Fatalf("%s: form %d is %v, %v; %d peers", side, i, e.Kind, e.Err, len(x.Peers()))
			}
		}
		t.Logf("%s: %d forms", side, len(forms))
	}
}

// malleable gives a signed statement the signature S+L, which a verifier takes that
// does not compare with the order of the group (RFC 8032, 5.1.7).
func malleable(t *testing.T, signed []byte) []byte {
	t.Helper()
	order, ok := new(big.Int).SetString("7237005577332262213973186563042994240857116359379907606001950938285454250989", 10)
	if !ok {
		t.Fatal("no number")
	}
	b := bytes.Clone(signed)
	s := b[len(b)-32:]
	slices.Reverse(s)
	sum := new(big.Int).Add(new(big.Int).SetBytes(s), order)
	sum.FillBytes(s)
	slices.Reverse(s)
	return b
}
