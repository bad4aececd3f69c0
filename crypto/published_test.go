package crypto

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/hpke"
	"crypto/mlkem"
	"crypto/mlkem/mlkemtest"
	"crypto/sha256"
	"crypto/sha3"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestWycheproofEd25519: signatures are accepted and refused as published, and the
// keys are ones that we take.
func TestWycheproofEd25519(t *testing.T) {
	t.Parallel()
	var doc struct {
		TestGroups []struct {
			PublicKey struct{ PK string }
			Tests     []struct {
				ID               int `json:"tcId"`
				Msg, Sig, Result string
			}
		}
	}
	wycheproof(t, "ed25519_test.json", &doc)
	n := 0
	for _, g := range doc.TestGroups {
		key, err := ParsePublicKey(unhex(t, g.PublicKey.PK))
		if err != nil {
			t.Errorf("key %s: %v", g.PublicKey.PK, err)
		}
		for _, c := range g.Tests {
			n++
			if ok := ed25519.Verify(key[:], unhex(t, c.Msg), unhex(t, c.Sig)); ok != (c.Result == "valid") {
				t.Errorf("%d: %v, want %s", c.ID, ok, c.Result)
			}
		}
	}
	if n != 151 {
		t.Errorf("%d cases, want 151", n)
	}
}

// TestWycheproofHKDF runs HKDF with SHA-256, of which all keys here are made.
func TestWycheproofHKDF(t *testing.T) {
	t.Parallel()
	var doc struct {
		TestGroups []struct {
			Tests []struct {
				ID                           int `json:"tcId"`
				IKM, Salt, Info, OKM, Result string
				Size                         int
			}
		}
	}
	wycheproof(t, "hkdf_sha256_test.json", &doc)
	n := 0
	for _, g := range doc.TestGroups {
		for _, c := range g.Tests {
			n++
			got, err := hkdf.Key(sha256.New, unhex(t, c.IKM), unhex(t, c.Salt), string(unhex(t, c.Info)), c.Size)
			if valid := c.Result == "valid"; valid != (err == nil) || valid && !bytes.Equal(got, unhex(t, c.OKM)) {
				t.Errorf("%d: %x, %v, want %s", c.ID, got, err, c.Result)
			}
		}
	}
	if n != 86 {
		t.Errorf("%d cases, want 86", n)
	}
}

// TestWycheproofMLKEM runs ML-KEM-768, half of what seals requests and grants: keys
// from seeds, encapsulation, decapsulation, and what has to be refused.
func TestWycheproofMLKEM(t *testing.T) {
	t.Parallel()
	type file struct {
		TestGroups []struct {
			Tests []struct {
				ID                     int `json:"tcId"`
				Seed, EK, C, K, M, Res string
				Result                 string
			}
		}
	}
	n := 0
	for _, name := range []string{"mlkem_768_test.json", "mlkem_768_encaps_test.json", "mlkem_768_keygen_seed_test.json"} {
		var doc file
		wycheproof(t, name, &doc)
		for _, g := range doc.TestGroups {
			for _, c := range g.Tests {
				n++
				var ek, secret, cipher []byte
				var err error
				if strings.Contains(name, "encaps") {
					var key *mlkem.EncapsulationKey768
					if key, err = mlkem.NewEncapsulationKey768(unhex(t, c.EK)); err == nil {
						secret, cipher, err = mlkemtest.Encapsulate768(key, unhex(t, c.M))
					}
					ek = unhex(t, c.EK)
				} else {
					var key *mlkem.DecapsulationKey768
					if key, err = mlkem.NewDecapsulationKey768(unhex(t, c.Seed)); err == nil {
						ek, cipher = key.EncapsulationKey().Bytes(), unhex(t, c.C)
						if len(cipher) > 0 || c.Result == "invalid" {
							secret, err = key.Decapsulate(cipher)
						}
					}
				}
				valid := c.Result == "valid"
				if valid != (err == nil) || valid && (!bytes.Equal(ek, unhex(t, c.EK)) || !bytes.Equal(secret, unhex(t, c.K)) || !bytes.Equal(cipher, unhex(t, c.C))) {
					t.Errorf("%s %d: %v, want %s", name, c.ID, err, c.Result)
				}
			}
		}
	}
	if n != 558 {
		t.Errorf("%d cases, want 558", n)
	}
}

// golang reads a file of the Go installation's own tests; where that has none the
// test is skipped.
func golang(t *testing.T, path string) []byte {
	t.Helper()
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(root)), "src", filepath.FromSlash(path)))
	if errors.Is(err, os.ErrNotExist) {
		t.Skipf("this Go has no %s", path)
	}
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestRFC8032 signs and verifies the messages of ed25519.cr.yp.to's sign.input, of
// which RFC 8032 7.1 has four: our key of the seed is the published one.
func TestRFC8032(t *testing.T) {
	t.Parallel()
	z, err := gzip.NewReader(bytes.NewReader(golang(t, "crypto/ed25519/testdata/sign.input.gz")))
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for s := bufio.NewScanner(z); s.Scan(); n++ {
		f := strings.Split(s.Text(), ":")
		if len(f) != 5 {
			t.Fatalf("line %d: %d fields", n, len(f))
		}
		seed, public, msg, sig := [32]byte(unhex(t, f[0][:64])), unhex(t, f[1]), unhex(t, f[2]), unhex(t, f[3])[:SignatureSize]
		key := NewPrivateKey(seed).Public()
		if !bytes.Equal(key[:], public) || key.check() != nil {
			t.Errorf("line %d: key %x, want %x", n, key[:], public)
		}
		if got := ed25519.Sign(ed25519.NewKeyFromSeed(seed[:]), msg); !bytes.Equal(got, sig) || !ed25519.Verify(key[:], msg, sig) {
			t.Errorf("line %d: signature %x, want %x", n, got, sig)
		}
		sig[n%64] ^= 1
		if ed25519.Verify(key[:], msg, sig) {
			t.Errorf("line %d: a flipped bit is accepted", n)
		}
	}
	if n != 128 {
		t.Errorf("%d cases, want 128", n)
	}
}

// TestRFC9180: sealing keys of published seeds are the published ones, and the HPKE
// under Seal opens and exports what RFC 9180 and its post-quantum companion
// (draft-ietf-hpke-pq) publish for our key agreement and for X25519.
func TestRFC9180(t *testing.T) {
	t.Parallel()
	type vector struct {
		KEM         uint16 `json:"kem_id"`
		KDF         uint16 `json:"kdf_id"`
		AEAD        uint16 `json:"aead_id"`
		Info        string
		Private     string `json:"skRm"`
		Public      string `json:"pkRm"`
		Enc         string
		Encryptions []struct{ AAD, PT, CT string }
		Exports     string `json:"exports_accumulated"`
	}
	const xwing, x25519 = 0x647a, 0x20
	opened, exported := 0, 0
	for _, file := range []string{"rfc9180.json", "hpke-pq.json"} {
		var list []struct {
			vector
			Listed json.RawMessage `json:"exports"`
		}
		if err := json.Unmarshal(golang(t, "crypto/hpke/testdata/"+file), &list); err != nil {
			t.Fatal(err)
		}
		for i, v := range list {
			if v.KEM != xwing && v.KEM != x25519 {
				continue
			}
			kem, err := hpke.NewKEM(v.KEM)
			if err != nil {
				t.Fatal(err)
			}
			kdf, err := hpke.NewKDF(v.KDF)
			if err != nil {
				continue // one that Go does not have
			}
			aead, err := hpke.NewAEAD(v.AEAD)
			if err != nil {
				t.Fatal(err)
			}
			key, err := kem.NewPrivateKey(unhex(t, v.Private))
			if err != nil {
				t.Fatal(err)
			}
			if v.KEM == xwing {
				ours, err := NewSealPrivate([32]byte(unhex(t, v.Private)))
				if public := ours.Public(); err != nil || !bytes.Equal(public[:], unhex(t, v.Public)) {
					t.Errorf("%s %d: our key is not the published one: %v", file, i, err)
				}
				key = ours.key
			}
			r, err := hpke.NewRecipient(unhex(t, v.Enc), key, kdf, aead, unhex(t, v.Info))
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range v.Encryptions {
				if got, err := r.Open(unhex(t, e.AAD), unhex(t, e.CT)); err != nil || !bytes.Equal(got, unhex(t, e.PT)) {
					t.Errorf("%s %d: %x, %v, want %s", file, i, got, err, e.PT)
				}
				opened++
			}
			if v.Exports != "" {
				if got := accumulate(t, r); !bytes.Equal(got, unhex(t, v.Exports)) {
					t.Errorf("%s %d: exports %x, want %s", file, i, got, v.Exports)
				}
				exported++
			}
		}
	}
	if opened != 20 || exported != 8 {
		t.Errorf("%d messages opened, %d suites exported, want 20, 8", opened, exported)
	}
}

// accumulate exports a thousand secrets as Go's tests do and hashes them: those of
// the RFC are too many to list.
func accumulate(t *testing.T, r *hpke.Recipient) []byte {
	source, sink := sha3.NewSHAKE128(), sha3.NewSHAKE128()
	for l := range 1000 {
		n := make([]byte, 1)
		source.Read(n)
		context := make([]byte, n[0])
		source.Read(context)
		secret, err := r.Export(string(context), l)
		if err != nil {
			t.Fatal(err)
		}
		sink.Write(secret)
	}
	sum := make([]byte, 16)
	sink.Read(sum)
	return sum
}
