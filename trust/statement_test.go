package trust

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pilotnet/pilot/crypto"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// samples are statements whose bytes are fixed in testdata.
func samples(t testing.TB) map[string]Statement {
	alice, bob := crypto.NewPrivateKey(sha256.Sum256([]byte("alice"))), crypto.NewPrivateKey(sha256.Sum256([]byte("bob")))
	seal, err := crypto.NewSealPrivate(sha256.Sum256([]byte("seal alice")))
	if err != nil {
		t.Fatal(err)
	}
	card := signCard(t, alice, crypto.Card{Key: alice.Public(), Counter: 7, Seal: seal.Public(), Registration: testDH("reg").Public(), Serial: 3,
		Servers: []crypto.Server{{Host: "rdv.example", Port: 3478, Key: testDH("rdv").Public()}}})
	request := Statement{
		Kind: KindRequest, Serial: 1772366400000, Issuer: alice.Public(), Subject: bob.Public(), Expires: epoch.Add(720 * time.Hour), Head: 12,
		Random: sha256.Sum256([]byte("random a")), Tunnel: testDH("tunnel a").Public(), Ask: DefaultAsk, Offer: DefaultOffer,
		Invite: bytes.Repeat([]byte{0xab}, 16), Name: "alice", Reason: "to fetch the weekly report", Card: card,
	}
	grant := Statement{
		Kind: KindGrant, Serial: 1772366400001, Issuer: bob.Public(), Subject: alice.Public(), Parent: request.ID(),
		Random: sha256.Sum256([]byte("random b")), Tunnel: testDH("tunnel b").Public(), Ask: DefaultOffer, Offer: scope(t, "80,53/udp"), Name: "bob",
	}
	return map[string]Statement{
		"request": request,
		"grant":   grant,
		"terms":   {Kind: KindGrant, Serial: 1772366400002, Issuer: bob.Public(), Subject: alice.Public(), Offer: scope(t, "80"), Expires: epoch},
		"revoke":  {Kind: KindRevoke, Serial: 1772366400003, Issuer: alice.Public(), Subject: bob.Public(), Head: 13},
	}
}

func signSample(t testing.TB, s Statement) []byte {
	for _, name := range []string{"alice", "bob"} {
		if k := crypto.NewPrivateKey(sha256.Sum256([]byte(name))); k.Public() == s.Issuer {
			b, err := s.Sign(k)
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
	}
	t.Fatal("unknown issuer")
	return nil
}

func TestGoldenStatements(t *testing.T) {
	for name, s := range samples(t) {
		signed := signSample(t, s)
		text := hex.EncodeToString(signed) + "\n"
		path := filepath.Join("testdata", name+".hex")
		if *update {
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if string(want) != text {
			t.Errorf("%s: the wire form changed", name)
		}
		back, err := ParseStatement(signed)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if back.ID() != s.ID() || [32]byte(statementID(signed)) != s.ID() || !bytes.Equal(signSample(t, back), signed) {
			t.Errorf("%s does not come back the same", name)
		}
	}
}

// No byte of a statement can change, and none can be added or taken.
func TestStatementTampered(t *testing.T) {
	for name, s := range samples(t) {
		signed := signSample(t, s)
		for i := range signed {
			if i > statementFixed && i%29 != 0 {
				continue
			}
			bad := bytes.Clone(signed)
			bad[i] ^= 1 << (i % 8)
			if _, err := ParseStatement(bad); err == nil {
				t.Errorf("%s: byte %d can be changed", name, i)
			}
		}
		for _, bad := range [][]byte{nil, signed[:100], signed[1:], signed[:len(signed)-1], append(bytes.Clone(signed), 0)} {
			if _, err := ParseStatement(bad); err == nil {
				t.Errorf("%s: %d bytes are accepted", name, len(bad))
			}
		}
	}
}

// A well-signed statement must still obey the rules of its kind.
func TestStatementRules(t *testing.T) {
	key := func(s Statement) crypto.PrivateKey {
		for _, name := range []string{"alice", "bob"} {
			if k := crypto.NewPrivateKey(sha256.Sum256([]byte(name))); k.Public() == s.Issuer {
				return k
			}
		}
		panic("no key")
	}
	for _, c := range []struct {
		name, base string
		change     func(*Statement)
	}{
		{"serial zero", "request", func(s *Statement) { s.Serial = 0 }},
		{"serial too high", "request", func(s *Statement) { s.Serial = maxSerial }},
		{"to itself", "request", func(s *Statement) { s.Subject = s.Issuer }},
		{"half second", "request", func(s *Statement) { s.Expires = epoch.Add(time.Second / 2) }},
		{"before 1970", "request", func(s *Statement) { s.Expires = time.Unix(-5, 0) }},
		{"year 10000", "request", func(s *Statement) { s.Expires = time.Unix(maxExpires+1, 0) }},
		{"no random", "request", func(s *Statement) { s.Random = [32]byte{} }},
		{"no tunnel key", "request", func(s *Statement) { s.Tunnel = crypto.DHPublic{} }},
		{"low-order tunnel key", "request", func(s *Statement) { s.Tunnel = crypto.DHPublic{1} }},
		{"no card", "request", func(s *Statement) { s.Card = nil }},
		{"short invite", "request", func(s *Statement) { s.Invite = s.Invite[:8] }},
		{"long name", "request", func(s *Statement) { s.Name = strings.Repeat("x", 65) }},
		{"long reason", "request", func(s *Statement) { s.Reason = strings.Repeat("x", 513) }},
		{"unsorted scope", "request", func(s *Statement) { s.Ask = Scope{{0, 80, 80}, {0, 7, 7}} }},
		{"unmerged scope", "request", func(s *Statement) { s.Ask = Scope{{0, 7, 7}, {0, 8, 8}} }},
		{"wrong protocol", "request", func(s *Statement) { s.Ask = Scope{{1, 7, 7}} }},
		{"grant without parent", "grant", func(s *Statement) { s.Parent = [32]byte{} }},
		{"grant with reason", "grant", func(s *Statement) { s.Reason = "x" }},
		{"grant with invite", "grant", func(s *Statement) { s.Invite = make([]byte, 16) }},
		{"terms with a key", "terms", func(s *Statement) { s.Tunnel = testDH("x").Public() }},
		{"terms with a parent", "terms", func(s *Statement) { s.Parent[0] = 1 }},
		{"terms with a name", "terms", func(s *Statement) { s.Name = "x" }},
		{"revoke with expiry", "revoke", func(s *Statement) { s.Expires = epoch }},
		{"revoke with ports", "revoke", func(s *Statement) { s.Offer = DefaultOffer }},
		{"unknown kind", "revoke", func(s *Statement) { s.Kind = 9 }},
	} {
		s := samples(t)[c.base]
		c.change(&s)
		if _, err := s.Sign(key(s)); err == nil {
			t.Errorf("%s: can be signed", c.name)
		}
		body := s.body()
		if c.name == "half second" {
			continue // cannot be written down
		}
		if _, err := ParseStatement(append(body, key(s).Sign(statementContext, body)...)); err == nil {
			t.Errorf("%s: is accepted", c.name)
		}
	}
}

func FuzzStatement(f *testing.F) {
	for _, s := range samples(f) {
		f.Add(s.body())
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		if len(body) >= statementFixed && len(body) <= MaxStatement { // without the signature, which a fuzzer cannot make
			if s, err := parseBody(body); err == nil && !bytes.Equal(s.body(), body) {
				t.Fatal("accepted, but encodes differently")
			}
		}
		if s, err := ParseStatement(body); err == nil && !bytes.Equal(s.body(), body[:len(body)-crypto.SignatureSize]) {
			t.Fatal("accepted, but encodes differently")
		}
	})
}
