package disk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"sync/atomic"

	"go.etcd.io/bbolt"
)

// ErrFailed is the cause when the disk failed in a moment after which nobody knows
// whether a change is durable.
var ErrFailed = errors.New("the disk failed, and whether the last change was kept is not known")

// A DB is an open database that builds nothing on what may be lost.
//
// A transaction of bbolt ends with one page and a sync of it. If that sync fails, whoever
// reads the file sees the transaction, but the kernel does not write the page again, and
// a later sync that succeeds says nothing about it. The next transaction would overwrite
// pages that the disk still needs. So after such a failure nothing is written before
// that page is on the disk for certain and the file was opened anew and checked. Each
// write tries that first, and is refused with ErrFailed as long as the disk does not
// take it. Reads go on.
//
// Methods are safe for concurrent use. A function that Update or View calls must not
// call either.
type DB struct {
	open    func() (*bbolt.DB, error)
	trouble atomic.Pointer[error]

	writer sync.Mutex // held for a whole change
	doubt  bool       // nobody knows whether what is read is durable
	dead   bool       // bbolt broke off within a change, and may hold its locks

	mu sync.RWMutex // held by readers as long as they read
	db *bbolt.DB    // nil: it could not be opened anew
}

// Keep opens a database by open, which changes nothing in it and is called again after
// the disk failed, and makes by begin what is missing in it.
func Keep(open func() (*bbolt.DB, error), begin func(*bbolt.Tx) error) (*DB, error) {
	db, err := open()
	if err != nil {
		return nil, err
	}
	if err = settle(db); err == nil {
		err = guard(func() error { return db.Update(begin) })
	}
	switch {
	case errors.Is(err, errBroken): // it may hold its locks
		return nil, err
	case err != nil:
		return nil, errors.Join(err, db.Close())
	}
	return &DB{open: open, db: db}, nil
}

// settle makes durable what is read of a database and the name of its file: an earlier
// process may have ended between a change and a sync, or after one that failed. No
// other process has the file open.
func settle(db *bbolt.DB) error {
	f, err := os.OpenFile(db.Path(), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	ends := make([]byte, 2*db.Info().PageSize) // every transaction ends in one of the first two pages
	if _, err = f.ReadAt(ends, 0); err == nil {
		_, err = f.WriteAt(ends, 0)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(db.Path()))
}

// Update changes the database, durably when it returns nil. Of a change that ends with
// ErrFailed all may be there later, or nothing; of one with another error nothing is.
func (d *DB) Update(change func(*bbolt.Tx) error) error {
	d.writer.Lock()
	defer d.writer.Unlock()
	if err := d.mend(); err != nil {
		return d.fails(err)
	}
	var id int
	made := false
	err := guard(func() error {
		return d.db.Update(func(tx *bbolt.Tx) error {
			id = tx.ID()
			err := change(tx)
			made = err == nil
			return err
		})
	})
	switch {
	case err == nil:
		d.trouble.Store(nil)
		return nil
	case errors.Is(err, errBroken):
		d.dead = true
	case !made:
		return err
	case d.shows(id):
		d.doubt = true
		err = fmt.Errorf("%w: %w", ErrFailed, err)
	}
	return d.fails(err)
}

// shows reports whether readers see the transaction with that number.
func (d *DB) shows(id int) (seen bool) {
	err := guard(func() error {
		return d.db.View(func(tx *bbolt.Tx) error {
			seen = tx.ID() >= id
			return nil
		})
	})
	return seen || err != nil
}

// mend opens the database anew after a failure, once the disk takes writes again.
func (d *DB) mend() error {
	if d.dead {
		return fmt.Errorf("%w: it broke off within a change; start the program again", ErrDamaged)
	}
	if !d.doubt {
		return nil
	}
	if d.db != nil {
		if err := settle(d.db); err != nil {
			return fmt.Errorf("%w: %w", ErrFailed, err)
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.db != nil {
		err := d.db.Close()
		d.db = nil
		if err != nil {
			return fmt.Errorf("%w: %w", ErrFailed, err)
		}
	}
	db, err := d.open()
	if err != nil {
		return fmt.Errorf("%w: open it anew: %w", ErrFailed, err)
	}
	d.db, d.doubt = db, false
	return nil
}

func (d *DB) fails(err error) error {
	d.trouble.Store(&err)
	return err
}

// Trouble is why the last change could not be written; nil if it was.
func (d *DB) Trouble() error {
	if err := d.trouble.Load(); err != nil {
		return *err
	}
	return nil
}

// View reads the database.
func (d *DB) View(read func(*bbolt.Tx) error) error {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.db == nil {
		return d.Trouble()
	}
	return guard(func() error { return d.db.View(read) })
}

// Close closes the database.
func (d *DB) Close() error {
	d.writer.Lock()
	defer d.writer.Unlock()
	if d.db == nil || d.dead {
		return nil
	}
	return d.db.Close()
}

// errBroken marks an error of guard.
var errBroken = errors.New("fault")

// guard makes an error of a panic, or of a fault in the memory map: a page that the
// disk cannot read, or that is wrong.
func guard(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %w: %v", ErrDamaged, errBroken, p)
		}
	}()
	return f()
}
