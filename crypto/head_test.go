package crypto

import (
	"bytes"
	"crypto/sha256"
	"testing"
)

func headKey(name string) PrivateKey { return NewPrivateKey(sha256.Sum256([]byte(name))) }

// A head is accepted only as it was signed, and only under its own key.
func TestHead(t *testing.T) {
	key := headKey("alice")
	h := Head{Key: key.Public(), Count: 41, Mark: 0xfeedface, Millis: 1772366400123}
	b, err := h.Sign(key)
	if err != nil || len(b) != HeadSize {
		t.Fatal(len(b), err)
	}
	if got, err := ParseHead(b); err != nil || got != h || got.Time().UnixMilli() != 1772366400123 {
		t.Fatalf("%+v, %v", got, err)
	}
	for bit := range len(b) * 8 {
		c := bytes.Clone(b)
		c[bit/8] ^= 1 << (bit % 8)
		if _, err := ParseHead(c); err == nil {
			t.Fatalf("bit %d flipped is taken", bit)
		}
	}
	for _, c := range [][]byte{nil, b[:len(b)-1], append(bytes.Clone(b), 0)} {
		if _, err := ParseHead(c); err == nil {
			t.Errorf("%d bytes are taken", len(c))
		}
	}
	if _, err := h.Sign(headKey("mallory")); err == nil {
		t.Error("signed with another's key")
	}
	// A good signature over a body that is no head: the reserved bytes count.
	body := h.body()
	body[3] = 1
	if _, err := ParseHead(append(body, key.Sign(headContext, body)...)); err == nil {
		t.Error("reserved bytes are taken")
	}
}

func FuzzHead(f *testing.F) {
	for i, name := range []string{"alice", "bob"} {
		key := headKey(name)
		b, err := Head{Key: key.Public(), Count: uint64(i), Mark: 7, Millis: 1}.Sign(key)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := ParseHead(b)
		if err != nil {
			return
		}
		if !bytes.Equal(h.body(), b[:headBody]) {
			t.Fatalf("accepted %x, encodes as %x", b[:headBody], h.body())
		}
	})
}
