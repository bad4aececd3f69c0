package rendezvous

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/overlay/services/disk"
)

// The buckets of the file. Each value starts with the CRC-32C of
// the key and the rest.
//
//	agent    fingerprint 16          -> agentRecord
//	address  address 6               -> key 32, for ever
//	head     fingerprint 16          -> count 8, signed head
//	mail     fingerprint 16 || ID 8  -> received unix ms 8, bucket 4, body
//	withdrawn fingerprint 16         -> serial 8, up to which nothing is accepted any more
//	schema   "schema"                -> number of this layout 4; a file without one has layout 1
var (
	bucketAgent   = []byte("agent")
	bucketAddress = []byte("address")
	bucketMail    = []byte("mail")
	bucketHead    = []byte("head")
	bucketGone    = []byte("withdrawn")
	bucketSchema  = []byte("schema")
	castagnoli    = crc32.MakeTable(crc32.Castagnoli)
)

// schema grows when a program that knows only the layout before would lose something.
const schema = 1

// BoltStore is a Store in one file.
type BoltStore struct{ db *disk.DB }

// OpenBolt opens or makes the store at path. ErrLocked says that another process
// has it open, ErrDamaged that it is not what was written, ErrNewer that a newer
// version wrote it; nothing is changed then.
func OpenBolt(path string) (*BoltStore, error) {
	db, err := disk.Keep(func() (*bbolt.DB, error) { return openBolt(path) }, makeBuckets)
	if err != nil {
		return nil, fmt.Errorf("rendezvous: open store %s: %w", path, err)
	}
	return &BoltStore{db: db}, nil
}

func openBolt(path string) (db *bbolt.DB, err error) {
	if _, err := os.Lstat(path); errors.Is(err, os.ErrNotExist) {
		if err := createBolt(path); err != nil {
			return nil, err
		}
	}
	if err := checkBoltSize(path); err != nil {
		return nil, err
	}
	// A page that is not there faults in the memory map, a wrong one may panic.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %v", ErrDamaged, p)
		}
		if err != nil && db != nil {
			db.Close()
			db = nil
		}
	}()
	db, err = bbolt.Open(path, 0o600, &bbolt.Options{Timeout: time.Second, FreelistType: bbolt.FreelistMapType})
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return nil, ErrLocked
	case errors.Is(err, bolterrors.ErrInvalid), errors.Is(err, bolterrors.ErrChecksum), errors.Is(err, bolterrors.ErrVersionMismatch):
		return nil, fmt.Errorf("%w: %v", ErrDamaged, err)
	case err != nil:
		return nil, err
	}
	if err := db.View(checkSchema); err != nil {
		return db, err
	}
	if err := db.View(checkPages); err != nil {
		return db, fmt.Errorf("%w: %v", ErrDamaged, err)
	}
	return db, nil
}

// createBolt makes an empty store, complete and durable, name included. bbolt
// itself would leave a file that is too short when it is stopped in its beginnings.
func createBolt(path string) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if err := f.Close(); err != nil {
		return err
	}
	db, err := bbolt.Open(f.Name(), 0o600, &bbolt.Options{NoSync: true, NoGrowSync: true, FreelistType: bbolt.FreelistMapType})
	if err != nil {
		return err
	}
	if err := errors.Join(db.Update(makeBuckets), db.Close()); err != nil {
		return err
	}
	b, err := os.ReadFile(f.Name())
	if err != nil {
		return err
	}
	if err := writeNew(path, b); !errors.Is(err, os.ErrExist) {
		return err
	}
	return nil // another process was faster
}

func makeBuckets(tx *bbolt.Tx) error {
	for _, name := range [][]byte{bucketAgent, bucketAddress, bucketMail, bucketHead, bucketGone} {
		if _, err := tx.CreateBucketIfNotExists(name); err != nil {
			return err
		}
	}
	if tx.Bucket(bucketSchema) != nil {
		return nil
	}
	b, err := tx.CreateBucket(bucketSchema)
	if err != nil {
		return err
	}
	return b.Put(bucketSchema, withSum(bucketSchema, binary.BigEndian.AppendUint32(make([]byte, 4), schema)))
}

// checkSchema refuses a layout that this program does not know.
func checkSchema(tx *bbolt.Tx) error {
	b := tx.Bucket(bucketSchema)
	if b == nil {
		return nil
	}
	number, err := unsum(bucketSchema, b.Get(bucketSchema))
	switch {
	case err != nil:
		return err
	case len(number) != 4:
		return fmt.Errorf("%w: its schema has %d bytes", ErrDamaged, len(number))
	}
	if have := binary.BigEndian.Uint32(number); have > schema {
		return fmt.Errorf("%w: its schema is %d, this program knows %d", ErrNewer, have, schema)
	}
	return nil
}

// checkPages walks all records once, in this goroutine, where a fault can be
// caught (bbolt's own Check runs in another).
func checkPages(tx *bbolt.Tx) error {
	return tx.ForEach(func(name []byte, b *bbolt.Bucket) error {
		var last []byte
		return b.ForEach(func(k, v []byte) error {
			if last != nil && bytes.Compare(k, last) <= 0 {
				return fmt.Errorf("%w: keys out of order", ErrDamaged)
			}
			last = k
			_, err := unsum(k, v)
			return err
		})
	})
}

// checkBoltSize refuses a file that is shorter than its own header says, because
// reading beyond its end faults. An absent or empty file is a new store.
func checkBoltSize(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || info.Size() == 0 {
		return err
	}
	// Two meta pages, one page apart; little-endian on every machine of ours. Page header 16, then magic 4,
	// version 4, page size 4, flags 4, root 16, freelist 8, first unused page 8, transaction 8, sum 8.
	const metaSize = 16 + 64
	var header [metaSize]byte
	if _, err := f.ReadAt(header[:], 0); err != nil {
		return fmt.Errorf("%w: shorter than its header", ErrDamaged)
	}
	pageSize := int64(binary.NativeEndian.Uint32(header[16+8:]))
	if pageSize < 1024 || pageSize > 1<<20 {
		pageSize = int64(os.Getpagesize()) // the first page is torn; the second decides
	}
	need := 4 * pageSize
	for i := range int64(2) {
		if _, err := f.ReadAt(header[:], i*pageSize); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if binary.NativeEndian.Uint32(header[16:]) == 0xED0CDAED {
			need = max(need, int64(binary.NativeEndian.Uint64(header[16+40:]))*pageSize)
		}
	}
	if info.Size() < need {
		return fmt.Errorf("%w: %d bytes long, %d expected", ErrDamaged, info.Size(), need)
	}
	return nil
}

func checksum(k, v []byte) uint32 {
	return crc32.Update(crc32.Checksum(k, castagnoli), castagnoli, v)
}

// withSum fills the first four bytes of the value b of key k.
func withSum(k, b []byte) []byte {
	binary.BigEndian.PutUint32(b, checksum(k, b[4:]))
	return b
}

func unsum(k, v []byte) ([]byte, error) {
	if len(v) < 4 || binary.BigEndian.Uint32(v) != checksum(k, v[4:]) {
		return nil, fmt.Errorf("%w: a record does not have its checksum", ErrDamaged)
	}
	return v[4:], nil
}

const agentFixed = 32 + 6 + 8 + 32 + 8 + 8 + 2

func (a Agent) encode(fp crypto.Fingerprint) []byte {
	b := make([]byte, 4, 4+agentFixed+len(a.Claim)+len(a.Card))
	b = append(b, a.Key[:]...)
	b = append(b, a.Addr[:]...)
	b = binary.BigEndian.AppendUint64(b, a.Counter)
	b = append(b, a.Registration[:]...)
	b = binary.BigEndian.AppendUint64(b, a.ClaimSerial)
	b = binary.BigEndian.AppendUint64(b, a.CardSerial)
	b = binary.BigEndian.AppendUint16(b, uint16(len(a.Claim)))
	b = append(b, a.Claim...)
	return withSum(fp[:], append(b, a.Card...))
}

func decodeAgent(k, v []byte) (Agent, error) {
	b, err := unsum(k, v)
	if err != nil {
		return Agent{}, err
	}
	if len(b) < agentFixed {
		return Agent{}, ErrDamaged
	}
	a := Agent{
		Key: crypto.PublicKey(b[:32]), Addr: [6]byte(b[32:38]), Counter: binary.BigEndian.Uint64(b[38:]),
		Registration: crypto.DHPublic(b[46:78]),
		ClaimSerial:  binary.BigEndian.Uint64(b[78:]), CardSerial: binary.BigEndian.Uint64(b[86:]),
	}
	n := int(binary.BigEndian.Uint16(b[94:]))
	if b = b[agentFixed:]; n > len(b) {
		return Agent{}, ErrDamaged
	}
	a.Claim, a.Card = bytes.Clone(b[:n]), bytes.Clone(b[n:])
	return a, nil
}

// Register implements Store.
func (s *BoltStore) Register(a Agent) error {
	return wrap("register", s.db.Update(func(tx *bbolt.Tx) error {
		addrs, agents := tx.Bucket(bucketAddress), tx.Bucket(bucketAgent)
		if v := addrs.Get(a.Addr[:]); v != nil {
			holder, err := unsum(a.Addr[:], v)
			if err != nil {
				return err
			}
			if !bytes.Equal(holder, a.Key[:]) {
				return ErrAddressTaken
			}
		}
		fp := a.Key.Fingerprint()
		if gone, err := goneSerial(tx, fp); err != nil {
			return err
		} else if a.withdrawn(gone) {
			return ErrStale
		}
		if v := agents.Get(fp[:]); v != nil {
			prev, err := decodeAgent(fp[:], v)
			if err != nil {
				return err
			}
			if err := checkSuccessor(prev, a); err != nil {
				return err
			}
		}
		if err := addrs.Put(a.Addr[:], withSum(a.Addr[:], append(make([]byte, 4), a.Key[:]...))); err != nil {
			return err
		}
		return agents.Put(fp[:], a.encode(fp))
	}))
}

func wrap(what string, err error) error {
	if err != nil {
		return fmt.Errorf("rendezvous: %s: %w", what, err)
	}
	return nil
}

// Agent implements Store.
func (s *BoltStore) Agent(fp crypto.Fingerprint) (a Agent, err error) {
	err = s.db.View(func(tx *bbolt.Tx) error {
		v := tx.Bucket(bucketAgent).Get(fp[:])
		if v == nil {
			return ErrNotFound
		}
		a, err = decodeAgent(fp[:], v)
		return err
	})
	return a, wrap("read agent", err)
}

func mailKey(fp crypto.Fingerprint, id uint64) []byte {
	return binary.BigEndian.AppendUint64(append(make([]byte, 0, 24), fp[:]...), id)
}

func encodeMail(k []byte, m Mail) []byte {
	b := binary.BigEndian.AppendUint64(make([]byte, 4, 16+len(m.Body)), uint64(m.Received.UnixMilli()))
	b = binary.BigEndian.AppendUint32(b, m.Bucket)
	return withSum(k, append(b, m.Body...))
}

// decodeMail returns an item whose body is the transaction's memory.
func decodeMail(k, v []byte) (Mail, error) {
	b, err := unsum(k, v)
	if err != nil {
		return Mail{}, err
	}
	if len(k) != 24 || len(b) < 12 {
		return Mail{}, ErrDamaged
	}
	return Mail{
		ID: binary.BigEndian.Uint64(k[16:]), Received: time.UnixMilli(int64(binary.BigEndian.Uint64(b))),
		Bucket: binary.BigEndian.Uint32(b[8:]), Body: b[12:],
	}, nil
}

// readBox calls f for the items of one box with IDs above after, until f returns false.
func readBox(tx *bbolt.Tx, fp crypto.Fingerprint, after uint64, f func(Mail) bool) error {
	if after == ^uint64(0) {
		return nil
	}
	c := tx.Bucket(bucketMail).Cursor()
	for k, v := c.Seek(mailKey(fp, after+1)); k != nil && bytes.HasPrefix(k, fp[:]); k, v = c.Next() {
		m, err := decodeMail(k, v)
		if err != nil {
			return err
		}
		if !f(m) {
			return nil
		}
	}
	return nil
}

// Put implements Store.
func (s *BoltStore) Put(to crypto.Fingerprint, m Mail, limit int) (id uint64, err error) {
	err = s.db.View(func(tx *bbolt.Tx) error { // a repeated item costs no write
		return readBox(tx, to, 0, func(old Mail) bool {
			if bytes.Equal(old.Body, m.Body) {
				id = old.ID
			}
			return id == 0
		})
	})
	if err != nil || id != 0 {
		return id, wrap("put mail", err)
	}
	err = s.db.Update(func(tx *bbolt.Tx) error {
		id = 0
		var box []Mail
		err := readBox(tx, to, 0, func(old Mail) bool {
			if bytes.Equal(old.Body, m.Body) {
				id = old.ID
			}
			box = append(box, Mail{ID: old.ID, Bucket: old.Bucket})
			return true
		})
		if err != nil || id != 0 {
			return err
		}
		b := tx.Bucket(bucketMail)
		for len(box) >= max(limit, 1) {
			i := victim(box, m.Bucket)
			if err := b.Delete(mailKey(to, box[i].ID)); err != nil {
				return err
			}
			box = append(box[:i], box[i+1:]...)
		}
		if id, err = b.NextSequence(); err != nil {
			return err
		}
		k := mailKey(to, id)
		return b.Put(k, encodeMail(k, m))
	})
	return id, wrap("put mail", err)
}

// Mail implements Store.
func (s *BoltStore) Mail(of crypto.Fingerprint, after uint64, n int) (out []Mail, err error) {
	err = s.db.View(func(tx *bbolt.Tx) error {
		return readBox(tx, of, after, func(m Mail) bool {
			if len(out) < n {
				m.Body = bytes.Clone(m.Body)
				out = append(out, m)
			}
			return len(out) < n
		})
	})
	return out, wrap("read mail", err)
}

// Ack implements Store.
func (s *BoltStore) Ack(of crypto.Fingerprint, ids ...uint64) error {
	if len(ids) == 0 {
		return nil
	}
	return wrap("delete mail", s.db.Update(func(tx *bbolt.Tx) error {
		for _, id := range ids {
			if err := tx.Bucket(bucketMail).Delete(mailKey(of, id)); err != nil {
				return err
			}
		}
		return nil
	}))
}

// Expire implements Store.
func (s *BoltStore) Expire(t time.Time) (int, error) {
	var old [][]byte
	err := s.db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket(bucketMail).ForEach(func(k, v []byte) error {
			m, err := decodeMail(k, v)
			if err == nil && m.Received.Before(t) {
				old = append(old, bytes.Clone(k))
			}
			return err
		})
	})
	if err != nil || len(old) == 0 {
		return 0, wrap("expire mail", err)
	}
	err = s.db.Update(func(tx *bbolt.Tx) error {
		for _, k := range old {
			if err := tx.Bucket(bucketMail).Delete(k); err != nil {
				return err
			}
		}
		return nil
	})
	return len(old), wrap("expire mail", err)
}

// Count implements Store.
func (s *BoltStore) Count() (agents, mail int, err error) {
	err = s.db.View(func(tx *bbolt.Tx) error {
		agents, mail = tx.Bucket(bucketAgent).Stats().KeyN, tx.Bucket(bucketMail).Stats().KeyN
		return nil
	})
	return agents, mail, wrap("count", err)
}

// Close implements Store.
func (s *BoltStore) Close() error { return wrap("close store", s.db.Close()) }
