package exchange

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/pilotnet/pilot/crypto"
)

// FuzzKeptMessage: a message's file that is read gives a head that means the same when
// it is written again, and the message begins behind the head's line.
func FuzzKeptMessage(f *testing.F) {
	text, err := json.Marshal(messageHead{Type: "text/plain", Size: 5, SHA256: "00ff", Received: time.Unix(1_800_000_000, 0).UTC()})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(append(append(text, '\n'), "hello"...))
	f.Add([]byte("{}\n"))
	f.Add([]byte("{}"))
	f.Add([]byte(`{"received":"0000-01-01T00:00:00+24:00"}` + "\n"))
	x, err := New(Config{Dir: f.TempDir()})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { x.Close() })
	b, err := x.box(crypto.Fingerprint{1})
	if err != nil {
		f.Fatal(err)
	}
	id := "0123456789ab0123456789abcdef0123"
	f.Fuzz(func(t *testing.T, text []byte) {
		if !validID(id) {
			t.Fatal("the name is none of a message")
		}
		read := func(text []byte) (Entry, int64, error) {
			if err := os.WriteFile(filepath.Join(x.Dir, b.path("messages/"+id)), text, 0o600); err != nil {
				t.Fatal(err)
			}
			file, e, at, err := b.openMessage(id)
			if err == nil {
				file.Close()
			}
			return e, at, err
		}
		e, at, err := read(text)
		if err != nil {
			return
		}
		if at < 1 || at > maxHead || text[at-1] != '\n' || bytes.IndexByte(text, '\n') != int(at)-1 {
			t.Fatalf("the message in %q begins at %d", text, at)
		}
		head, err := json.Marshal(messageHead{Type: e.Type, Size: e.Size, SHA256: e.SHA256, Received: e.Time})
		if err != nil {
			return // a year that has no form in JSON
		}
		again, _, err := read(append(append(head, '\n'), text[at:]...))
		if len(head) < maxHead && (err != nil || again.Type != e.Type || again.Size != e.Size || again.SHA256 != e.SHA256 || !again.Time.Equal(e.Time)) {
			t.Errorf("%q is %+v, written again %+v, %v", text, e, again, err)
		}
	})
}

// FuzzQueued: a queue that is opened holds what is whole and nothing else, and holds
// the same when it is opened again.
func FuzzQueued(f *testing.F) {
	id := "0123456789abcdef0123456789abcdef"
	item := Item{ID: id, To: crypto.Fingerprint{1}, Name: "a.txt", Size: 5, SHA256: "00ff", Queued: time.Unix(1_800_000_000, 0).UTC()}
	text, err := json.Marshal(item)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text, []byte("hello"))
	f.Add(text, []byte("hell"))
	f.Add([]byte("{}"), []byte{})
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, text, body []byte) {
		if !validID(id) {
			t.Fatal("the name is none of an item")
		}
		for name, b := range map[string][]byte{id + ".json": text, id: body} {
			if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		open := func() []Item {
			q, err := OpenQueue(dir, 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			defer q.Close()
			return q.List()
		}
		list := open()
		left, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case len(list) == 0 && len(left) == 0:
		case len(list) == 1 && len(left) == 2 && list[0].ID == id && list[0].Size == int64(len(body)):
			again, err := json.Marshal(list[0])
			if err != nil {
				return
			}
			if err := os.WriteFile(filepath.Join(dir, id+".json"), again, 0o600); err != nil {
				t.Fatal(err)
			}
			if two := open(); len(two) != 1 || two[0] != list[0] && !two[0].Queued.Equal(list[0].Queued) {
				t.Errorf("%+v, written again %+v", list[0], two)
			}
		default:
			t.Errorf("%q with %d bytes: %+v, and the directory holds %v", text, len(body), list, left)
		}
	})
}
