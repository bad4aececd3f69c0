package tasks

import (
	"encoding/json"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

// FuzzHandler: a handler that is accepted is the same after it was kept.
func FuzzHandler(f *testing.F) {
	f.Add([]byte(`{"exec":["/bin/cat","-u"]}`))
	f.Add([]byte(`{"url":"http://127.0.0.1:9000/","format":"json","time_limit":1000000000}`))
	f.Add([]byte(`{"exec":["/bin/\u0000"]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		h := new(Handler)
		if json.Unmarshal(b, h) != nil || h.check() != nil {
			return
		}
		text, err := json.Marshal(h)
		if err != nil {
			return // such as a year beyond 9999, which no caller can set
		}
		again := new(Handler)
		if err := json.Unmarshal(text, again); err != nil || again.check() != nil {
			t.Fatalf("%s: %v", text, err)
		}
		if diff := cmp.Diff(h, again); diff != "" {
			t.Error(diff)
		}
	})
}

// FuzzWhole: what is held back is the beginning of a character, and never a whole one.
func FuzzWhole(f *testing.F) {
	f.Add([]byte("a\xe2\x82"))
	f.Add([]byte("\xf0\x9f\x98\x80"))
	f.Fuzz(func(t *testing.T, b []byte) {
		n := whole(b)
		if n < 0 || n > len(b) || len(b)-n >= utf8.UTFMax {
			t.Fatalf("%d of %d", n, len(b))
		}
		if n < len(b) && utf8.FullRune(b[n:]) {
			t.Errorf("%q holds back a whole character", b)
		}
	})
}
