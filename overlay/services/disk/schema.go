package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"go.etcd.io/bbolt"
)

// A store has the number of its layout with it: a database in the bucket "schema", a
// directory in the file "schema", both as a decimal number. A store without one has
// the first. The number grows when a program that knows only the one before would lose
// something, or take it for something else.
const firstSchema = 1

// SchemaFile is where a directory has its number.
const SchemaFile = "schema"

var (
	bucketSchema = []byte("schema")
	keySchema    = []byte("schema")
)

// ErrNewer is the cause of a NewerError.
var ErrNewer = errors.New("a newer version has written it")

// A NewerError says that a store has a layout that this program does not know.
// Nothing was changed in it.
type NewerError struct{ Have, Known int }

func (e *NewerError) Error() string {
	return fmt.Sprintf("it has schema %d, this program knows %d: install the version of pilotctl that wrote it, or restore a backup of before", e.Have, e.Known)
}

// Is makes it an ErrNewer.
func (e *NewerError) Is(target error) bool { return target == ErrNewer }

// CheckSchema refuses a directory whose number is higher than known, and gives one
// without a number that of the first layout.
func CheckSchema(dir string, known int) error {
	path := filepath.Join(dir, SchemaFile)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := Create(path, schemaText(firstSchema)); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		return nil
	}
	if err != nil {
		return err
	}
	if err := checkSchema(text, known); err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	return nil
}

// checkSchema judges the number that a store has.
func checkSchema(text []byte, known int) error {
	have, err := strconv.Atoi(strings.TrimSpace(string(text)))
	switch {
	case err != nil || have < firstSchema:
		return fmt.Errorf("%w: its schema is %.20q", ErrDamaged, text)
	case have > known:
		return &NewerError{Have: have, Known: known}
	}
	return nil
}

func schemaText(n int) []byte { return []byte(strconv.Itoa(n) + "\n") }

// checkDatabase is checkSchema for a database.
func checkDatabase(tx *bbolt.Tx, known int) error {
	b := tx.Bucket(bucketSchema)
	if b == nil {
		return nil
	}
	return checkSchema(b.Get(keySchema), known)
}

// numberDatabase gives a database without a number that of its layout.
func numberDatabase(tx *bbolt.Tx, schema int) error {
	if tx.Bucket(bucketSchema) != nil {
		return nil
	}
	b, err := tx.CreateBucket(bucketSchema)
	if err != nil {
		return err
	}
	return b.Put(keySchema, schemaText(schema))
}
