package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// Causes that a caller of Open can tell apart.
var (
	ErrDamaged = errors.New("the file is damaged")
	ErrLocked  = errors.New("another process uses the file")
)

// A Database says how a bbolt file is used.
type Database struct {
	Schema         int                   // of its layout; 0: the first
	Buckets        [][]byte              // made when they are missing
	Check          func(*bbolt.Tx) error // reads all of it once; nil: nothing is read
	NoFreelistSync bool                  // fewer bytes a transaction, a longer start
}

// Open opens or makes a database. bbolt trusts its pages: one that is not there
// faults in the memory map, and a wrong one may panic. Both are ErrDamaged here. A
// higher schema is a *NewerError.
func (d Database) Open(path string) (*DB, error) {
	return Keep(func() (*bbolt.DB, error) { return d.open(path) }, func(tx *bbolt.Tx) error {
		return errors.Join(d.makeBuckets(tx), numberDatabase(tx, firstSchema)) // it was made before stores had one
	})
}

func (d Database) open(path string) (db *bbolt.DB, err error) {
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		if err := d.create(path); err != nil {
			return nil, err
		}
	}
	if err := checkSize(path); err != nil {
		return nil, err
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		p := recover()
		if p == nil {
			return
		}
		err = fmt.Errorf("%w: %v", ErrDamaged, p)
		if db != nil { // it was opened, and a transaction that panics gives back its locks
			err = errors.Join(err, db.Close())
		}
		db = nil
	}()
	db, err = bbolt.Open(path, 0o600, &bbolt.Options{Timeout: time.Second, FreelistType: bbolt.FreelistMapType, NoFreelistSync: d.NoFreelistSync})
	switch {
	case errors.Is(err, berrors.ErrInvalid), errors.Is(err, berrors.ErrChecksum), errors.Is(err, berrors.ErrVersionMismatch):
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	case errors.Is(err, berrors.ErrTimeout):
		return nil, ErrLocked
	case err != nil:
		return nil, err
	}
	if err := db.View(func(tx *bbolt.Tx) error { return checkDatabase(tx, d.schema()) }); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	if d.Check != nil {
		if err := db.View(d.Check); err != nil {
			return nil, errors.Join(fmt.Errorf("%w: %w", ErrDamaged, err), db.Close())
		}
	}
	return db, nil
}

func (d Database) schema() int { return max(d.Schema, firstSchema) }

// create makes an empty database, complete and durable: bbolt itself would leave
// a file that is too short when it is stopped in its beginnings.
func (d Database) create(path string) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if err := f.Close(); err != nil {
		return err
	}
	db, err := bbolt.Open(f.Name(), 0o600, &bbolt.Options{NoSync: true, NoGrowSync: true, FreelistType: bbolt.FreelistMapType, NoFreelistSync: d.NoFreelistSync})
	if err != nil {
		return err
	}
	err = db.Update(func(tx *bbolt.Tx) error { return errors.Join(d.makeBuckets(tx), numberDatabase(tx, d.schema())) })
	if err := errors.Join(err, db.Close()); err != nil {
		return err
	}
	content, err := os.ReadFile(f.Name())
	if err != nil {
		return err
	}
	if err := Create(path, content); !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil // another process was faster
}

func (d Database) makeBuckets(tx *bbolt.Tx) error {
	for _, name := range d.Buckets {
		if _, err := tx.CreateBucketIfNotExists(name); err != nil {
			return err
		}
	}
	return nil
}

// checkSize refuses a file that is shorter than its own header says, because
// reading beyond its end faults. An empty file is a new database.
func checkSize(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || info.Size() == 0 {
		return err
	}
	// Two meta pages, one page apart: page header 16, then magic 4, version 4, page
	// size 4, flags 4, root 16, free list 8, pages in use 8, transaction 8, sum 8.
	const pageSize, highest, metaSize = 24, 56, 80
	var meta [metaSize]byte
	if _, err := f.ReadAt(meta[:], 0); err != nil {
		return fmt.Errorf("%w: shorter than its header", ErrDamaged)
	}
	page := int64(binary.NativeEndian.Uint32(meta[pageSize:]))
	if page < 1024 || page > 1<<20 {
		page = int64(os.Getpagesize()) // the first page is damaged; the second decides
	}
	need := 4 * page
	for i := range int64(2) {
		if _, err := f.ReadAt(meta[:], i*page); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if n := binary.NativeEndian.Uint64(meta[highest:]); n < 1<<40 {
			need = max(need, int64(n)*page)
		}
	}
	if info.Size() < need {
		return fmt.Errorf("%w: %d bytes of at least %d", ErrDamaged, info.Size(), need)
	}
	return nil
}
