package trust

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// schema is the number of the record layout. A store with a higher one was
// written by a newer program and is refused.
const schema = 1

// The buckets. Buckets that this program does not know are left alone.
var (
	bucketState     = []byte("state")     // "state" -> stateRecord
	bucketRelations = []byte("relations") // public key -> relation
	bucketMail      = []byte("mail")      // id u64 -> mailRecord
	bucketAnswers   = []byte("answers")   // public key -> the signed grant of pair.Answer
	bucketInvites   = []byte("invites")   // SHA-256 of the secret -> inviteRecord
	bucketMeta      = []byte("meta")      // small state of the caller
	buckets         = [][]byte{bucketState, bucketRelations, bucketMail, bucketAnswers, bucketInvites, bucketMeta}
	stateKey        = []byte("state")
)

func boltOptions(noSync bool) *bbolt.Options {
	return &bbolt.Options{
		Timeout:      time.Second,
		PageSize:     boltPage, // the same file on every machine
		FreelistType: bbolt.FreelistMapType,
		NoSync:       noSync,
		NoGrowSync:   noSync,
	}
}

// createDB makes a complete, empty database under a temporary name and moves it
// to its place: a database that exists is complete.
func createDB(path string, state stateRecord, noSync bool) error {
	tmp := path + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("trust: create store: %w", err)
	}
	db, err := bbolt.Open(tmp, 0o600, boltOptions(true)) // the copy below is synced
	if err != nil {
		return fmt.Errorf("trust: create store: %w", err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		for _, name := range buckets {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		return (&batch{tx: tx}).putJSON(bucketState, stateKey, state)
	})
	if err = errors.Join(err, db.Close()); err != nil {
		return fmt.Errorf("trust: create store: %w", err)
	}
	b, err := os.ReadFile(tmp)
	if err != nil {
		return fmt.Errorf("trust: create store: %w", err)
	}
	return writeWhole(path, b, !noSync)
}

// openDB inspects the file, opens it, and returns the tally of what it saw.
func openDB(path string, noSync bool) (*bbolt.DB, tally, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, tally{}, fmt.Errorf("trust: open store: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, tally{}, fmt.Errorf("trust: open store: %w", err)
	}
	var seen tally
	err = inspectBolt(f, info.Size(), func(bucket, key, value []byte) error {
		seen.count(bucket, value, 1)
		_, err := openValue(bucket, key, value)
		return err
	})
	if err != nil {
		return nil, tally{}, damagedStore(path, err)
	}
	var db *bbolt.DB
	err = guard(func() (err error) {
		db, err = bbolt.Open(path, 0o600, boltOptions(noSync))
		return err
	})
	switch {
	case errors.Is(err, berrors.ErrTimeout):
		return nil, tally{}, fmt.Errorf("trust: %s: %w", path, ErrLocked)
	case err != nil:
		return nil, tally{}, fmt.Errorf("trust: open store: %w", err)
	}
	return db, seen, nil
}

// settleDB makes durable what openDB read, and the names of the store's files. The end of the last transaction may not be:
// when its sync failed, the kernel shows it and does not write it again. A transaction
// on top of it would reuse pages that the disk still needs.
func settleDB(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	ends := make([]byte, 2*boltPage) // every transaction ends in one of the first two pages
	if _, err = f.ReadAt(ends, 0); err == nil {
		_, err = f.WriteAt(ends, 0)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path)) // whoever made the files may have been stopped before that
}

func damagedStore(path string, why error) error {
	return fmt.Errorf("trust: %s: %w: %w; restore the file from a backup, or move it away and start again: "+
		"the address stays, revocations stay, peers have to be asked once more", path, ErrDamaged, why)
}

// errFault marks an error of guard. The database has not let go of its locks
// then and must not be touched again.
var errFault = errors.New("fault in the database")

// guard turns a panic or a memory fault inside the database (a file cut off
// under the mapping, a failing disk) into an error.
func guard(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %w: %v", ErrDamaged, errFault, r)
		}
	}()
	return f()
}

// Values carry a CRC-32C over bucket, key and content, for bbolt's pages have none.
func valueSum(bucket, key, content []byte) uint32 {
	sum := crc32.Checksum(bucket, crcTable)
	sum = crc32.Update(sum, crcTable, binary.BigEndian.AppendUint32(nil, uint32(len(key))))
	sum = crc32.Update(sum, crcTable, key)
	return crc32.Update(sum, crcTable, content)
}

func openValue(bucket, key, value []byte) ([]byte, error) {
	n := len(value) - 4
	if n < 0 || binary.BigEndian.Uint32(value[n:]) != valueSum(bucket, key, value[:n]) {
		return nil, fmt.Errorf("checksum of a record in %q is wrong", bucket)
	}
	return value[:n], nil
}

// A tally counts the records of all buckets but state and adds up their
// checksums. It is kept in the state record: a record that vanished is noticed,
// which no checksum of its own can tell.
type tally struct {
	Records int    `json:"records"`
	Sum     uint64 `json:"sum"`
}

func (t *tally) count(bucket, value []byte, n int) {
	if len(value) < 4 || string(bucket) == string(bucketState) {
		return
	}
	t.Records += n
	t.Sum += uint64(n) * uint64(binary.BigEndian.Uint32(value[len(value)-4:]))
}

// A batch is a transaction that keeps the tally.
type batch struct {
	tx *bbolt.Tx
	tally
}

func (b *batch) put(bucket, key, content []byte) error {
	value := append(make([]byte, 0, len(content)+4), content...)
	value = binary.BigEndian.AppendUint32(value, valueSum(bucket, key, content))
	in := b.tx.Bucket(bucket)
	b.count(bucket, in.Get(key), -1)
	b.count(bucket, value, 1)
	return in.Put(key, value)
}

func (b *batch) delete(bucket, key []byte) error {
	in := b.tx.Bucket(bucket)
	b.count(bucket, in.Get(key), -1)
	return in.Delete(key)
}

func (b *batch) putJSON(bucket, key []byte, v any) error {
	content, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return b.put(bucket, key, content)
}

// each calls f with every record of a bucket. Content is borrowed.
func each(tx *bbolt.Tx, bucket []byte, f func(key, content []byte) error) error {
	b := tx.Bucket(bucket)
	if b == nil {
		return fmt.Errorf("bucket %q is missing", bucket)
	}
	return b.ForEach(func(key, value []byte) error {
		content, err := openValue(bucket, key, value)
		if err != nil {
			return err
		}
		return f(key, content)
	})
}

// load decodes every record of a bucket into a fresh T.
func load[T any](tx *bbolt.Tx, bucket []byte, f func(key []byte, v *T) error) error {
	return each(tx, bucket, func(key, content []byte) error {
		v := new(T)
		if err := json.Unmarshal(content, v); err != nil {
			return fmt.Errorf("record in %q: %w", bucket, err)
		}
		return f(key, v)
	})
}
