package exchange

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pilotnet/pilot/overlay/services"
)

// conform checks what every queue promises. again ends the process that has the
// queue, without a goodbye, and gives what the next one finds.
func conform(t *testing.T, q *Queue, again func() *Queue) {
	t.Helper()
	put := func(to byte, name, text string) Item {
		t.Helper()
		it, err := q.Put(testPeer("", to).Fingerprint, name, strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		return it
	}
	text := func(id string) string {
		t.Helper()
		f, err := q.Open(id)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		b, _ := io.ReadAll(f)
		return string(b)
	}
	names := func() string {
		var list []string
		for _, it := range q.List() {
			list = append(list, it.Name)
		}
		return strings.Join(list, " ")
	}
	a, b, c := put(2, "a", "first"), put(3, "b", ""), put(2, "a", "third")
	if a.SHA256 != sumOf([]byte("first")) || a.Size != 5 || names() != "a b a" || text(c.ID) != "third" {
		t.Errorf("%+v: %s", a, names())
	}
	q = again()
	if names() != "a b a" || text(a.ID) != "first" || text(b.ID) != "" || q.List()[0] != a {
		t.Errorf("after a crash: %s", names())
	}
	if err := q.Fail(b.ID, "not wanted"); err != nil {
		t.Error(err)
	}
	if err := q.Drop(a.ID); err != nil {
		t.Error(err)
	}
	q = again()
	if list := q.List(); len(list) != 2 || list[0].Failed != "not wanted" || list[1] != c {
		t.Errorf("after a crash: %+v", list)
	}
	for _, err := range []error{q.Drop(a.ID), q.Fail(a.ID, ""), q.Drop("../x")} {
		if !errors.Is(err, ErrNoItem) {
			t.Errorf("%v", err)
		}
	}
	if _, err := q.Open(a.ID); !errors.Is(err, ErrNoItem) {
		t.Error(err)
	}
	broken := io.MultiReader(strings.NewReader("half"), readerFunc(func([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }))
	if _, err := q.Put(bob.Fingerprint, "d", broken); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error(err)
	}
	if _, err := q.Put(bob.Fingerprint, "../d", strings.NewReader("x")); err == nil {
		t.Error("a hostile name is taken")
	}
	e := new(services.Error)
	if _, err := q.Put(bob.Fingerprint, "d", bytes.NewReader(make([]byte, 1000))); !errors.As(err, &e) || e.Code != services.CodeQuota {
		t.Errorf("over the limit: %v", err)
	}
	put(2, "d", strings.Repeat("x", 995)) // 5 are used
	q = again()
	if names() != "b a d" {
		t.Errorf("%s", names())
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestQueueConforms(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	open := func() *Queue {
		q, err := OpenQueue(dir, 1000)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { q.Close() })
		return q
	}
	conform(t, open(), open)
}

func TestQueueDropsWhatIsDamaged(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	q, err := OpenQueue(dir, 1000)
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for range 4 {
		it, err := q.Put(bob.Fingerprint, "a", strings.NewReader("hello"))
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, it.ID)
	}
	q.Close()
	os.Truncate(filepath.Join(dir, ids[0]), 3)
	os.Truncate(filepath.Join(dir, ids[1]+".json"), 10)
	os.Remove(filepath.Join(dir, ids[2]+".json"))
	os.WriteFile(filepath.Join(dir, "x.new"), nil, 0o600)
	if q, err = OpenQueue(dir, 1000); err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	left, _ := os.ReadDir(dir)
	if list := q.List(); len(list) != 1 || list[0].ID != ids[3] || len(left) != 2 {
		t.Errorf("%+v %v", list, left)
	}
}
