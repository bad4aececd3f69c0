package resolv

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// write makes after the content of f, the locked file, which holds before.
func (h *Hosts) write(f *os.File, before, after []byte) error {
	err := h.replace(f, after)
	if err == nil {
		return nil
	}
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return err // the old file is whole; in place it might not stay so
	}
	if placeErr := overwrite(f, before, after); placeErr != nil {
		return fmt.Errorf("%w (after: %v)", placeErr, err)
	}
	return nil
}

var errKeep = errors.New("a new file would lose links or attributes of the old one")

// replace puts a new file in the place of f, with the same mode and owner.
func (h *Hosts) replace(f *os.File, content []byte) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok || stat.Nlink > 1 || hasAttributes(f) {
		return errKeep
	}
	// The path may be a symbolic link, which must stay one.
	target, err := filepath.EvalSymlinks(h.path)
	if err != nil {
		return err
	}
	// The name is fixed: the lock makes us its only user, and what a crash
	// leaves is found by the next.
	dir, base := filepath.Split(target)
	name := filepath.Join(dir, "."+base+".pilot")
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := writeFile(name, content, info.Mode(), int(stat.Uid), int(stat.Gid)); err != nil {
		os.Remove(name)
		return err
	}
	if err := h.rename(name, target); err != nil {
		os.Remove(name)
		return err
	}
	return nil
}

// writeFile makes a new file and has it on the disk when it returns.
func writeFile(name string, content []byte, mode fs.FileMode, uid, gid int) (err error) {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.Write(content); err != nil {
		return err
	}
	// The owner before the mode: chown clears the set-ID bits.
	if err := f.Chown(uid, gid); err != nil {
		return err
	}
	if err := f.Chmod(mode); err != nil {
		return err
	}
	return f.Sync()
}

// hasAttributes reports whether f has extended attributes. Where they cannot
// be listed there are none to lose.
func hasAttributes(f *os.File) bool {
	n, err := unix.Flistxattr(int(f.Fd()), nil)
	return err == nil && n > 0
}

// overwrite changes f from before to after. What can fail for want of space
// comes first and is undone, so that before stays whole.
func overwrite(f *os.File, before, after []byte) error {
	if extra := len(after) - len(before); extra > 0 {
		_, err := f.WriteAt(after[len(before):], int64(len(before)))
		if err == nil {
			err = f.Sync()
		}
		if err != nil {
			return errors.Join(err, f.Truncate(int64(len(before))))
		}
	}
	same := 0
	for same < len(before) && same < len(after) && before[same] == after[same] {
		same++
	}
	if _, err := f.WriteAt(after[same:], int64(same)); err != nil {
		return err
	}
	if len(after) < len(before) {
		if err := f.Truncate(int64(len(after))); err != nil {
			return err
		}
	}
	return f.Sync()
}
