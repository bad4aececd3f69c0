package events

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
	"go.etcd.io/bbolt"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/overlay/services"
	"github.com/pilotnet/pilot/overlay/services/disk"
)

// schema is the number of the layout (package disk).
const schema = 1

// The buckets of the database.
var (
	bucketMessages = []byte("messages") // sequence number -> event
	bucketQueues   = []byte("queues")   // session and sequence number -> how it is delivered
	bucketSessions = []byte("sessions") // session number -> sessionRecord
	bucketRetained = []byte("retained") // topic -> event
	bucketAccess   = []byte("access")   // "access" -> Access
)

// A sessionRecord is what is kept of a session besides its queue.
type sessionRecord struct {
	ID      string                 `json:"id"` // FINGERPRINT/CLIENT
	Peer    string                 `json:"peer"`
	Self    bool                   `json:"self,omitempty"` // it is the owner's
	Version byte                   `json:"version"`        // of MQTT
	Expiry  uint32                 `json:"expiry"`         // seconds after the connection ended
	Since   int64                  `json:"since"`          // when that was; 0: it is connected
	Subs    []packets.Subscription `json:"subs"`
}

func openStore(path string) (*disk.DB, error) {
	file := disk.Database{Schema: schema, Buckets: [][]byte{bucketMessages, bucketQueues, bucketSessions, bucketRetained, bucketAccess}, NoFreelistSync: true}
	db, err := file.Open(path)
	switch {
	case errors.Is(err, disk.ErrDamaged):
		return nil, fmt.Errorf("events: open %s: %w: restore it from a backup, or move it away and start without the stored events", path, err)
	case err != nil:
		return nil, fmt.Errorf("events: open %s: %w", path, err)
	}
	return db, nil
}

func number(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

func queueKey(session, seq uint64) []byte {
	return binary.BigEndian.AppendUint64(number(session), seq)
}

// A stored is an event that queues refer to.
type stored struct {
	seq   uint64
	size  int64
	refs  int // queues that it is in
	disk  bool
	owner crypto.Fingerprint
	msg   *Message // nil: only in the database
}

// An entry is an event in the queue of a session, at QoS 1.
type entry struct {
	*stored
	retain bool // the flag that goes with it
	subs   []int
	id     uint16 // packet identifier, once it was sent
	sent   bool   // on some connection
	done   bool   // the subscriber has it
}

// appendHow is the stored form of how an entry is delivered.
func (e *entry) appendHow() []byte {
	b := []byte{0}
	if e.retain {
		b[0] = 1
	}
	for _, id := range e.subs {
		b = binary.AppendUvarint(b, uint64(id))
	}
	return b
}

func (e *entry) readHow(b []byte) {
	if len(b) == 0 {
		return
	}
	e.retain = b[0] == 1
	for b = b[1:]; len(b) > 0; {
		v, n := binary.Uvarint(b)
		if n <= 0 {
			return
		}
		e.subs, b = append(e.subs, int(v)), b[n:]
	}
}

// load fills a new broker from its database.
func (b *Broker) load() (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("events: the store is damaged (%v): restore %s from a backup, or move it away and start without the stored events", v, b.path())
		}
	}()
	return b.db.Update(func(tx *bbolt.Tx) error {
		if text := tx.Bucket(bucketAccess).Get(bucketAccess); text != nil {
			if err := json.Unmarshal(text, &b.access); err != nil {
				return fmt.Errorf("events: read access: %w", err)
			}
		}
		byNumber, err := b.loadSessions(tx)
		if err != nil {
			return err
		}
		return errors.Join(b.loadRetained(tx), b.loadQueues(tx, byNumber))
	})
}

func (b *Broker) loadSessions(tx *bbolt.Tx) (map[uint64]*session, error) {
	byNumber := map[uint64]*session{}
	err := tx.Bucket(bucketSessions).ForEach(func(k, v []byte) error {
		var r sessionRecord
		if err := json.Unmarshal(v, &r); err != nil || len(k) != 8 {
			return fmt.Errorf("events: read session: %w", errRecord)
		}
		fp, err := crypto.ParseFingerprint(r.Peer)
		if err != nil {
			return fmt.Errorf("events: read session: %w", err)
		}
		s := newSession(r.ID, services.Peer{Fingerprint: fp, Self: r.Self})
		s.number, s.version, s.expiry, s.keep, s.recorded = binary.BigEndian.Uint64(k), r.Version, r.Expiry, true, true
		if r.Since > 0 {
			s.since = time.Unix(r.Since, 0)
		}
		for _, sub := range r.Subs {
			s.subs[sub.Filter] = sub
		}
		b.lastSession = max(b.lastSession, s.number)
		if old := b.sessions[s.id]; old != nil { // the process ended before it was removed
			delete(byNumber, old.number)
			b.removeSession(old)
		}
		byNumber[s.number] = s
		b.addSession(s)
		b.restore(s)
		return nil
	})
	return byNumber, err
}

func (b *Broker) loadRetained(tx *bbolt.Tx) error {
	return tx.Bucket(bucketRetained).ForEach(func(_, v []byte) error {
		m, err := decodeMessage(v)
		if err == nil {
			b.keepRetained(m)
		}
		return err
	})
}

// loadQueues drops what nobody waits for: queues of sessions that are gone, and
// events in no queue.
func (b *Broker) loadQueues(tx *bbolt.Tx, byNumber map[uint64]*session) error {
	messages := tx.Bucket(bucketMessages)
	var lost [][]byte
	err := tx.Bucket(bucketQueues).ForEach(func(k, v []byte) error {
		if len(k) != 16 {
			return errRecord
		}
		s, seq := byNumber[binary.BigEndian.Uint64(k)], binary.BigEndian.Uint64(k[8:])
		text := messages.Get(k[8:])
		if s == nil || text == nil {
			lost = append(lost, append([]byte{}, k...))
			return nil
		}
		st := b.stored[seq]
		if st == nil {
			m, err := decodeMessage(text)
			if err != nil {
				return err
			}
			st = &stored{seq: seq, size: m.size(), owner: m.From, disk: true}
			b.track(st)
		}
		e := &entry{stored: st}
		e.readHow(v)
		b.free(s, -st.size)
		b.enqueue(s, e)
		return nil
	})
	if err != nil {
		return err
	}
	for _, k := range lost {
		if err := tx.Bucket(bucketQueues).Delete(k); err != nil {
			return err
		}
	}
	lost = nil
	err = messages.ForEach(func(k, _ []byte) error {
		seq := binary.BigEndian.Uint64(k)
		b.seq = max(b.seq, seq)
		if b.stored[seq] == nil {
			lost = append(lost, append([]byte{}, k...))
		}
		return nil
	})
	for _, k := range lost {
		err = errors.Join(err, messages.Delete(k))
	}
	return err
}

// fetch reads an event that is not in memory.
func (b *Broker) fetch(seq uint64) (m *Message, err error) {
	err = b.db.View(func(tx *bbolt.Tx) error {
		m, err = decodeMessage(tx.Bucket(bucketMessages).Get(number(seq)))
		return err
	})
	return m, err
}

func makeDir(dir string) error {
	if err := disk.MakeDir(dir); err != nil {
		return fmt.Errorf("events: open: %w", err)
	}
	return nil
}

func putAccess(a Access) func(*bbolt.Tx) error {
	return func(tx *bbolt.Tx) error {
		text, err := json.Marshal(a)
		if err != nil {
			return err
		}
		return tx.Bucket(bucketAccess).Put(bucketAccess, text)
	}
}
