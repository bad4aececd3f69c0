package exchange

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/overlay/services"
	"github.com/pilotnet/pilot/overlay/services/disk"
)

// A Queue keeps files for peers in a directory until they are delivered. What Put
// has returned survives a crash; what it has not is gone. One process uses a
// directory at a time.
type Queue struct {
	root  *os.Root
	limit int64
	added signal

	mu     sync.Mutex
	items  map[string]Item
	coming int64 // bytes that are being put
}

// An Item is a file on its way.
type Item struct {
	ID     string             `json:"id"`
	To     crypto.Fingerprint `json:"to"`
	Name   string             `json:"name"`
	Size   int64              `json:"size"`
	SHA256 string             `json:"sha256"`
	Queued time.Time          `json:"queued"`
	// Failed says why the peer does not take it. It stays until it is dropped.
	Failed string `json:"failed,omitempty"`
}

// ErrNoItem says that an item is not, or no longer, in the queue.
var ErrNoItem = errors.New("exchange: queue: no such item")

// OpenQueue opens a directory that may hold up to limit bytes.
func OpenQueue(dir string, limit int64) (*Queue, error) {
	if err := disk.MakeDir(dir); err != nil {
		return nil, fmt.Errorf("exchange: queue: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("exchange: queue: %w", err)
	}
	q := &Queue{root: root, limit: limit, items: map[string]Item{}}
	q.added.init()
	found, err := fs.ReadDir(root.FS(), ".")
	if err != nil {
		root.Close()
		return nil, fmt.Errorf("exchange: queue: %w", err)
	}
	// An item is its description; a body without one was being put, or was
	// being dropped.
	for _, d := range found {
		if id, ok := strings.CutSuffix(d.Name(), ".json"); ok && validID(id) {
			if it, err := q.read(id); err == nil {
				q.items[id] = it
			}
		}
	}
	for _, d := range found {
		if _, ok := q.items[strings.TrimSuffix(d.Name(), ".json")]; !ok {
			root.RemoveAll(d.Name())
		}
	}
	return q, nil
}

// read checks that an item is whole.
func (q *Queue) read(id string) (it Item, err error) {
	text, err := q.root.ReadFile(id + ".json")
	if err != nil {
		return it, err
	}
	if err := json.Unmarshal(text, &it); err != nil {
		return it, err
	}
	body, err := q.root.Lstat(id)
	if err == nil && (it.ID != id || body.Size() != it.Size) {
		err = ErrNoItem
	}
	return it, err
}

// Close closes the directory.
func (q *Queue) Close() error { return q.root.Close() }

// Put keeps what body holds for a peer. It is durable when Put returns.
func (q *Queue) Put(to crypto.Fingerprint, name string, body io.Reader) (Item, error) {
	name, err := CleanName(name)
	if err != nil {
		return Item{}, badName(err)
	}
	it := Item{ID: randomID(), To: to, Name: name, Queued: time.Now().UTC()}
	f, err := q.root.OpenFile(it.ID, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return Item{}, fmt.Errorf("exchange: queue: %w", err)
	}
	h, m := sha256.New(), &meter{q: q}
	it.Size, err = io.CopyBuffer(io.MultiWriter(m, f, h), onlyReader{body}, make([]byte, copyBuffer))
	it.SHA256 = hex.EncodeToString(h.Sum(nil))
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	q.mu.Lock()
	defer q.mu.Unlock()
	q.coming -= m.n
	if err == nil {
		err = q.write(it)
	}
	if err != nil {
		q.root.Remove(it.ID + ".json")
		q.root.Remove(it.ID)
		return Item{}, err
	}
	q.items[it.ID] = it
	q.added.raise()
	return it, nil
}

// A meter refuses bytes beyond the limit.
type meter struct {
	q *Queue
	n int64 // of coming
}

func (m *meter) Write(p []byte) (int, error) {
	q := m.q
	q.mu.Lock()
	defer q.mu.Unlock()
	used := q.coming
	for _, it := range q.items {
		used += it.Size
	}
	if used+int64(len(p)) > q.limit {
		e := services.Refuse(http.StatusInsufficientStorage, services.CodeQuota, "the queue holds at most %d bytes", q.limit).WithHint("pilotctl file ls queue shows what waits")
		e.Quota, e.Used = q.limit, used
		return 0, e
	}
	q.coming += int64(len(p))
	m.n += int64(len(p))
	return len(p), nil
}

// write makes the description of an item durable. q.mu is held.
func (q *Queue) write(it Item) error {
	text, err := json.Marshal(it)
	if err != nil {
		return err
	}
	temp := it.ID + ".new"
	f, err := q.root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = q.root.Rename(temp, it.ID+".json")
	}
	if err != nil {
		return err
	}
	d, err := q.root.Open(".")
	if err != nil {
		return err
	}
	return disk.SyncOpen(d)
}

// List gives all items, oldest first.
func (q *Queue) List() []Item {
	q.mu.Lock()
	defer q.mu.Unlock()
	list := make([]Item, 0, len(q.items))
	for _, it := range q.items {
		list = append(list, it)
	}
	slices.SortFunc(list, func(a, b Item) int {
		return cmp.Or(a.Queued.Compare(b.Queued), cmp.Compare(a.ID, b.ID))
	})
	return list
}

// Open gives the file of an item.
func (q *Queue) Open(id string) (*os.File, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if _, ok := q.items[id]; !ok {
		return nil, ErrNoItem
	}
	return q.root.Open(id)
}

// Fail keeps an item from being tried again.
func (q *Queue) Fail(id, why string) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	it, ok := q.items[id]
	if !ok {
		return ErrNoItem
	}
	it.Failed = why
	q.items[id] = it
	return q.write(it)
}

// Drop removes an item, because it was delivered or is not wanted any more.
func (q *Queue) Drop(id string) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if _, ok := q.items[id]; !ok {
		return ErrNoItem
	}
	if err := q.root.Remove(id + ".json"); err != nil {
		return err
	}
	delete(q.items, id)
	return q.root.Remove(id)
}
