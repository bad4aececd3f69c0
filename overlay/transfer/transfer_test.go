package transfer

import (
	"bytes"
	"errors"
	"maps"
	"testing"
)

// cheap is a derivation that costs nothing.
var cheap = header{passes: 1, memory: 8, lanes: 1}

var some = map[string][]byte{"identity": []byte("who"), "store.db": bytes.Repeat([]byte{7}, 5000), "seal.key": {}}

func same(a, b []byte) bool { return bytes.Equal(a, b) }

func TestSealAndOpen(t *testing.T) {
	b, err := seal(cheap, some, []byte("correct horse"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := Open(b, []byte("correct horse"))
	if err != nil || !maps.EqualFunc(got, some, same) {
		t.Fatalf("%d files, %v", len(got), err)
	}
	again, err := seal(cheap, some, []byte("correct horse"))
	if err != nil || bytes.Contains(again, b[headerSize:headerSize+16]) || bytes.Contains(b, []byte("identity")) {
		t.Error("the same key twice, or no seal at all")
	}
	for _, c := range []struct {
		name   string
		change func([]byte) []byte
		pass   string
		want   error
	}{
		{"wrong passphrase", func(b []byte) []byte { return b }, "battery staple", ErrPassphrase},
		{"no passphrase", func(b []byte) []byte { return b }, "", ErrPassphrase},
		{"cut off", func(b []byte) []byte { return b[:len(b)-1] }, "correct horse", ErrCut},
		{"cut off in its header", func(b []byte) []byte { return b[:20] }, "correct horse", ErrCut},
		{"longer", func(b []byte) []byte { return append(b, 0) }, "correct horse", ErrCut},
		{"empty", func([]byte) []byte { return nil }, "correct horse", ErrForeign},
		{"foreign", func([]byte) []byte { return make([]byte, 100) }, "correct horse", ErrForeign},
		{"damaged", func(b []byte) []byte { b[len(b)-30] ^= 1; return b }, "correct horse", ErrDamaged},
		{"newer", func(b []byte) []byte { b[8]++; return b }, "correct horse", ErrNewer},
		{"costly", func(b []byte) []byte { b[16] = 0xff; return b }, "correct horse", ErrDamaged},
		{"other salt", func(b []byte) []byte { b[24] ^= 1; return b }, "correct horse", ErrPassphrase},
	} {
		if files, err := Open(c.change(bytes.Clone(b)), []byte(c.pass)); !errors.Is(err, c.want) || files != nil {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	for _, name := range []string{"", "../x", "a/b", ".hidden", "a b"} {
		if _, err := seal(cheap, map[string][]byte{name: nil}, []byte("p")); err == nil {
			t.Errorf("%q is exported", name)
		}
	}
}

func FuzzHeader(f *testing.F) {
	f.Add(cost.append(nil))
	f.Add([]byte(magic))
	f.Fuzz(func(t *testing.T, b []byte) {
		if h, err := parseHeader(b); err == nil && !bytes.Equal(h.append(nil), b[:headerSize]) {
			t.Errorf("%x is written back as %x", b[:headerSize], h.append(nil))
		}
	})
}

func FuzzFiles(f *testing.F) {
	b, err := appendFiles(nil, some)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		files, err := parseFiles(b)
		if err != nil {
			return
		}
		if again, err := appendFiles(nil, files); err != nil || !bytes.Equal(again, b) {
			t.Errorf("%x is written back as %x, %v", b, again, err)
		}
	})
}
