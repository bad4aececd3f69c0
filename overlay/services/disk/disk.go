// Package disk makes what a service was told to keep outlive a power failure:
// directories, files and databases that are there as a whole or not at all, name
// included, when the call that made them has returned.
//
// Making a file durable does not make its name durable; that is a property of the
// directory that the name is in (fsync(2)). So everything here ends with a sync of
// a directory. File systems that cannot do that (EINVAL, ENOTSUP) are taken to keep
// names by themselves; any other error is the caller's.
package disk

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// MakeDir makes a directory, and those above it that are missing, with mode 0700.
func MakeDir(dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	above := filepath.Dir(dir)
	if above != dir {
		if err := MakeDir(above); err != nil {
			return err
		}
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := SyncDir(above); !errors.Is(err, fs.ErrPermission) { // it may be one that we cannot read
		return err
	}
	return nil
}

// SyncDir makes the names in a directory durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return SyncOpen(d)
}

// SyncOpen is SyncDir for a directory that is open. It closes it.
func SyncOpen(d *os.File) error {
	err := d.Sync()
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, errors.ErrUnsupported) {
		err = nil
	}
	return errors.Join(err, d.Close())
}

// Create makes a file with this content that only its owner may read. If there
// is one already it stays, and the error is fs.ErrExist.
func Create(path string, content []byte) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".new-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); err != nil { // unlike a rename, this replaces nothing
		return err
	}
	return SyncDir(dir)
}
