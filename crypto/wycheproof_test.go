package crypto

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// wycheproof reads a file of C2SP/wycheproof, testvectors_v1. The files are not
// part of this repository; without them the test is skipped.
func wycheproof(t *testing.T, file string, doc any) {
	t.Helper()
	path := filepath.Join("..", "..", "shared", "vectors", "wycheproof", file)
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		t.Skipf("%s is not here", path)
	}
	if err == nil {
		err = json.Unmarshal(text, doc)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestWycheproofX25519: our agreement gives the published secrets, and refuses
// exactly those that are zero.
func TestWycheproofX25519(t *testing.T) {
	t.Parallel()
	var doc struct {
		TestGroups []struct {
			Tests []struct {
				ID                      int `json:"tcId"`
				Public, Private, Shared string
			}
		}
	}
	wycheproof(t, "x25519_test.json", &doc)
	n, zero := 0, 0
	for _, g := range doc.TestGroups {
		for _, c := range g.Tests {
			n++
			public := DHPublic(unhex(t, c.Public))
			shared, err := newKeyPair(*unhexKey(t, c.Private)).dh(public)
			if want := unhex(t, c.Shared); !bytes.Equal(shared[:], want) {
				t.Errorf("%d: %x, want %s", c.ID, shared, c.Shared)
			}
			if shared == [32]byte{} {
				zero++
				if err == nil || public.check() == nil {
					t.Errorf("%d: a shared secret of zero is accepted", c.ID)
				}
			} else if err != nil {
				t.Errorf("%d: %v", c.ID, err)
			}
		}
	}
	if n != 518 || zero != 31 {
		t.Errorf("%d cases, %d of them zero, want 518, 31", n, zero)
	}
}

// TestWycheproofGCM runs the cases of our parameters: 256-bit key, 96-bit
// nonce, 128-bit tag.
func TestWycheproofGCM(t *testing.T) {
	t.Parallel()
	var doc struct {
		TestGroups []struct {
			IVSize, KeySize, TagSize int
			Tests                    []struct {
				ID                                 int `json:"tcId"`
				Key, IV, AAD, Msg, CT, Tag, Result string
			}
		}
	}
	wycheproof(t, "aes_gcm_test.json", &doc)
	n := 0
	for _, g := range doc.TestGroups {
		if g.IVSize != 96 || g.KeySize != 256 || g.TagSize != 128 {
			continue
		}
		for _, c := range g.Tests {
			n++
			aead := newGCM([32]byte(unhex(t, c.Key)))
			sealed := append(unhex(t, c.CT), unhex(t, c.Tag)...)
			got, err := aead.Open(nil, unhex(t, c.IV), sealed, unhex(t, c.AAD))
			if valid := c.Result == "valid"; valid != (err == nil) || valid && !bytes.Equal(got, unhex(t, c.Msg)) {
				t.Errorf("%d: %x, %v, want %s", c.ID, got, err, c.Result)
			}
		}
	}
	if n != 66 {
		t.Errorf("%d cases, want 66", n)
	}
}
