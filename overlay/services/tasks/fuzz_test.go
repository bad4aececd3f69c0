package tasks

import (
	"encoding/json"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/a2aproject/a2a-go/v2/a2a"
	"github.com/google/go-cmp/cmp"

	"github.com/pilotnet/pilot/crypto"
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

// FuzzRecord: a task of the book is the same after it was kept again.
func FuzzRecord(f *testing.F) {
	at := time.Unix(1_800_000_000, 0).UTC()
	text, err := json.Marshal(Record{
		Peer: crypto.Fingerprint{1}, Name: "alice", Created: at, Updated: at, Log: "x",
		Task: &a2a.Task{
			ID: "t", ContextID: "c", Status: a2a.TaskStatus{State: a2a.TaskStateWorking, Timestamp: &at},
			History:   []*a2a.Message{{ID: "m", Role: a2a.MessageRoleUser, Parts: a2a.ContentParts{a2a.NewTextPart("hello")}}},
			Artifacts: []*a2a.Artifact{{ID: "a", Parts: a2a.ContentParts{a2a.NewDataPart(map[string]any{"k": 1.5}), a2a.NewRawPart([]byte{1, 2})}}},
		},
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte(`{"task":{"id":"t"}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var r, again Record
		if json.Unmarshal(b, &r) != nil {
			return
		}
		first, err := json.Marshal(r)
		if err != nil {
			return // such as a year beyond 9999, which no caller can set
		}
		if err := json.Unmarshal(first, &again); err != nil {
			t.Fatalf("%s: %v", first, err)
		}
		if second, err := json.Marshal(again); err != nil || string(second) != string(first) {
			t.Errorf("%s\nbecame\n%s, %v", first, second, err)
		}
	})
}
