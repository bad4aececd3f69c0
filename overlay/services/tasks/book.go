package tasks

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/a2aproject/a2a-go/v2/a2a"
	"go.etcd.io/bbolt"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/overlay/services/disk"
)

// A Record is a task as it is kept.
type Record struct {
	Peer    crypto.Fingerprint `json:"peer"`
	Name    string             `json:"name"` // petname of the peer at that time
	Created time.Time          `json:"created"`
	Updated time.Time          `json:"updated"`
	Task    *a2a.Task          `json:"task"`
	Log     string             `json:"log,omitempty"` // for the owner: the end of what the command wrote on stderr
}

// What is kept of a peer.
const (
	maxKept      = 1000
	maxKeptBytes = 64 << 20
)

// schema is the number of the layout (package disk).
const schema = 1

var (
	bucketTasks   = []byte("tasks")
	bucketHandler = []byte("handler")
	handlerKey    = []byte("handler")

	errNoTask = errors.New("tasks: no such task")
)

// A book keeps tasks and the handler in one file. Each change is on disk when
// its method returns.
type book struct {
	db        *disk.DB
	keepBytes int // of a peer
}

func openBook(path string) (*book, error) {
	file := disk.Database{Schema: schema, Buckets: [][]byte{bucketTasks, bucketHandler}, Check: checkRecords}
	db, err := file.Open(path)
	switch {
	case errors.Is(err, disk.ErrDamaged):
		return nil, fmt.Errorf("tasks: open %s: %w; move it away to start with no tasks and no handler", path, err)
	case err != nil:
		return nil, fmt.Errorf("tasks: open %s: %w", path, err)
	}
	return &book{db: db, keepBytes: maxKeptBytes}, nil
}

// checkRecords reads everything once, where a fault can be caught.
func checkRecords(tx *bbolt.Tx) error {
	var walk func(name []byte, b *bbolt.Bucket) error
	walk = func(name []byte, b *bbolt.Bucket) error {
		return b.ForEach(func(k, v []byte) error {
			if v == nil {
				return walk(k, b.Bucket(k))
			}
			if !json.Valid(v) {
				return fmt.Errorf("record %.40q of %.40q is not JSON", k, name)
			}
			return nil
		})
	}
	return tx.ForEach(walk)
}

func (b *book) close() error { return b.db.Close() }

// put keeps a record, new or changed, and forgets the oldest that ended where
// there are too many.
func (b *book) put(r Record) error {
	value, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("tasks: keep %s: %w", r.Task.ID, err)
	}
	err = b.db.Update(func(tx *bbolt.Tx) error {
		box, err := tx.Bucket(bucketTasks).CreateBucketIfNotExists([]byte(r.Peer.String()))
		if err != nil {
			return err
		}
		if err := box.Put([]byte(r.Task.ID), value); err != nil {
			return err
		}
		return b.trim(box)
	})
	if err != nil {
		return fmt.Errorf("tasks: keep %s: %w", r.Task.ID, err)
	}
	return nil
}

func (b *book) trim(box *bbolt.Bucket) error {
	var kept, size int
	var old [][]byte
	c := box.Cursor()
	for k, v := c.Last(); k != nil; k, v = c.Prev() {
		kept, size = kept+1, size+len(v)
		if kept == 1 || kept <= maxKept && size <= b.keepBytes {
			continue
		}
		var r Record
		if json.Unmarshal(v, &r) != nil || r.Task == nil || r.Task.Status.State.Terminal() {
			old = append(old, append([]byte(nil), k...))
		}
	}
	for _, k := range old {
		if err := box.Delete(k); err != nil {
			return err
		}
	}
	return nil
}

// get finds a task of a peer.
func (b *book) get(peer crypto.Fingerprint, id a2a.TaskID) (r Record, err error) {
	return r, b.db.View(func(tx *bbolt.Tx) error {
		box := tx.Bucket(bucketTasks).Bucket([]byte(peer.String()))
		if box == nil {
			return errNoTask
		}
		v := box.Get([]byte(id))
		if v == nil {
			return errNoTask
		}
		return json.Unmarshal(v, &r)
	})
}

// find finds a task of any peer.
func (b *book) find(id a2a.TaskID) (r Record, err error) {
	return r, b.db.View(func(tx *bbolt.Tx) error {
		tasks := tx.Bucket(bucketTasks)
		found := errNoTask
		err := tasks.ForEachBucket(func(k []byte) error {
			if v := tasks.Bucket(k).Get([]byte(id)); v != nil {
				found = json.Unmarshal(v, &r)
			}
			return nil
		})
		return errors.Join(err, found)
	})
}

// latest calls f with the tasks of a peer, the latest first, beginning after the
// one with the ID before, until f returns false.
func (b *book) latest(peer crypto.Fingerprint, before a2a.TaskID, f func(Record) bool) error {
	return b.db.View(func(tx *bbolt.Tx) error {
		box := tx.Bucket(bucketTasks).Bucket([]byte(peer.String()))
		if box == nil {
			return nil
		}
		c := box.Cursor()
		k, v := c.Last()
		if before != "" {
			if at, _ := c.Seek([]byte(before)); at != nil {
				k, v = c.Prev()
			}
		}
		for ; k != nil; k, v = c.Prev() {
			var r Record
			if err := json.Unmarshal(v, &r); err != nil {
				return err
			}
			if !f(r) {
				return nil
			}
		}
		return nil
	})
}

// peers are those of whom tasks are kept.
func (b *book) peers() (list []crypto.Fingerprint, err error) {
	return list, b.db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket(bucketTasks).ForEachBucket(func(k []byte) error {
			fp, err := crypto.ParseFingerprint(string(k))
			if err == nil {
				list = append(list, fp)
			}
			return err
		})
	})
}

// interrupt marks the tasks that were at work as failed, and returns how many
// there were.
func (b *book) interrupt(now time.Time) (n int, err error) {
	peers, err := b.peers()
	if err != nil {
		return 0, err
	}
	for _, fp := range peers {
		var cut []Record
		err := b.latest(fp, "", func(r Record) bool {
			if r.Task != nil && !r.Task.Status.State.Terminal() {
				cut = append(cut, r)
			}
			return true
		})
		if err != nil {
			return n, err
		}
		for _, r := range cut {
			r.Task.Status = status(r.Task, a2a.TaskStateFailed, now, textInterrupted)
			r.Updated = now
			if err := b.put(r); err != nil {
				return n, err
			}
			n++
		}
	}
	return n, nil
}

// handler reads the handler; nil: there is none.
func (b *book) handler() (h *Handler, err error) {
	return h, b.db.View(func(tx *bbolt.Tx) error {
		v := tx.Bucket(bucketHandler).Get(handlerKey)
		if v == nil {
			return nil
		}
		h = new(Handler)
		return json.Unmarshal(v, h)
	})
}

func (b *book) setHandler(h *Handler) error {
	return b.db.Update(func(tx *bbolt.Tx) error {
		if h == nil {
			return tx.Bucket(bucketHandler).Delete(handlerKey)
		}
		value, err := json.Marshal(h)
		if err != nil {
			return err
		}
		return tx.Bucket(bucketHandler).Put(handlerKey, value)
	})
}
