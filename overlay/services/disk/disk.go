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

// MakeDir makes a directory, and those above it that are missing, with mode 0700. One
// that is there may have a name that is not durable: whoever made it was stopped, or
// the disk failed.
func MakeDir(dir string) error {
	above := filepath.Dir(dir)
	if _, err := os.Stat(dir); err != nil {
		if above != dir {
			if err := MakeDir(above); err != nil {
				return err
			}
		}
		if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	if err := SyncDir(above); !errors.Is(err, fs.ErrPermission) { // it may be one that we cannot read
		return err
	}
	return nil
}

// Named makes the name of a file that is there durable, and that of its directory:
// whoever made them was stopped, or the disk failed. What cannot be written, or not
// read by us, is taken as it is.
func Named(path string) error {
	for _, dir := range []string{filepath.Dir(path), filepath.Dir(filepath.Dir(path))} {
		if err := SyncDir(dir); err != nil && !errors.Is(err, fs.ErrPermission) && !errors.Is(err, syscall.EROFS) {
			return err
		}
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
// is one already it stays, and the error is fs.ErrExist; its name is durable then, too.
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
	err = os.Link(f.Name(), path) // unlike a rename, this replaces nothing
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if failed := SyncDir(dir); failed != nil {
		return failed
	}
	return err
}
