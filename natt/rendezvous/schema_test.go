package rendezvous

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/bbolt"
)

// A layout of a newer version is refused and stays as it is; a file without a number
// has the first, and gets it.
func TestBoltStoreSchema(t *testing.T) {
	path := filepath.Join(t.TempDir(), "server.db")
	change := func(f func(*bbolt.Tx) error) {
		t.Helper()
		db, err := bbolt.Open(path, 0o600, nil)
		if err == nil {
			err = errors.Join(db.Update(f), db.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	number := func(n uint32) func(*bbolt.Tx) error {
		return func(tx *bbolt.Tx) error {
			b, err := tx.CreateBucketIfNotExists(bucketSchema)
			if err != nil {
				return err
			}
			return b.Put(bucketSchema, withSum(bucketSchema, binary.BigEndian.AppendUint32(make([]byte, 4), n)))
		}
	}
	open := func() error {
		s, err := OpenBolt(path)
		if err == nil {
			err = s.Close()
		}
		return err
	}
	if err := open(); err != nil {
		t.Fatal(err)
	}
	change(func(tx *bbolt.Tx) error { return tx.DeleteBucket(bucketSchema) })
	if err := open(); err != nil {
		t.Errorf("without a number: %v", err)
	}
	change(func(tx *bbolt.Tx) error {
		if tx.Bucket(bucketSchema) == nil {
			t.Error("it got no number")
		}
		return nil
	})
	change(number(schema + 1))
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := open(); !errors.Is(err, ErrNewer) || !strings.Contains(err.Error(), path) {
		t.Errorf("a newer one: %v", err)
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
		t.Errorf("it was changed, %v", err)
	}
	change(func(tx *bbolt.Tx) error { return tx.Bucket(bucketSchema).Put(bucketSchema, []byte("none")) })
	if err := open(); !errors.Is(err, ErrDamaged) {
		t.Errorf("a damaged number: %v", err)
	}
}
