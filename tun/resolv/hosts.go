package resolv

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ErrBusy means that another process has kept the hosts file locked.
var ErrBusy = errors.New("resolv: hosts file is locked by another process")

const (
	lockWait = 5 * time.Second
	lockPoll = 10 * time.Millisecond
)

// Entry gives an address its names.
type Entry struct {
	Addr  netip.Addr
	Names []string
}

// Hosts is the block of one agent in one hosts file. Its methods may be called
// concurrently.
type Hosts struct {
	path   string
	tag    string
	wait   time.Duration
	rename func(from, to string) error
}

// NewHosts returns the block that tag names in the file at path. It opens
// nothing. The tag must differ between agents that share the file and be the
// same at every start of one agent: 1 to 64 letters, digits and "._-".
func NewHosts(path, tag string) *Hosts {
	return &Hosts{path: path, tag: tag, wait: lockWait, rename: os.Rename}
}

// Set makes entries the content of the block, replacing what an earlier start
// may have left there. No entries means no block.
func (h *Hosts) Set(entries []Entry) error {
	if err := h.check(entries); err != nil {
		return fmt.Errorf("resolv: set names in %s: %w", h.path, err)
	}
	if len(entries) == 0 {
		return h.Remove()
	}
	b := newBlock(h.tag)
	err := h.edit(true, func(file []byte) []byte { return b.set(file, entries) })
	if err != nil {
		return fmt.Errorf("resolv: set names in %s: %w", h.path, err)
	}
	return nil
}

// Remove takes the block out of the file. It is no error if there is none.
func (h *Hosts) Remove() error {
	b := newBlock(h.tag)
	err := h.check(nil)
	if err == nil {
		err = h.edit(false, b.remove)
	}
	if err != nil {
		return fmt.Errorf("resolv: remove names from %s: %w", h.path, err)
	}
	return nil
}

// check refuses what could break out of its line or field.
func (h *Hosts) check(entries []Entry) error {
	if len(h.tag) > 64 || !plain(h.tag, "._-") {
		return fmt.Errorf("tag %q: want 1 to 64 letters, digits and ._-", h.tag)
	}
	for _, e := range entries {
		if !e.Addr.IsValid() || e.Addr.Zone() != "" || len(e.Names) == 0 {
			return fmt.Errorf("entry %v %q: want an address and names", e.Addr, e.Names)
		}
		for _, name := range e.Names {
			if len(name) > 253 || !plain(name, ".-") {
				return fmt.Errorf("name %q: want letters, digits, hyphens and dots", name)
			}
		}
	}
	return nil
}

// plain reports whether s has letters, digits and characters of also only.
func plain(s, also string) bool {
	for _, c := range []byte(s) {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !letter && strings.IndexByte(also, c) < 0 {
			return false
		}
	}
	return s != ""
}

// edit replaces the content of the file by what change makes of it, under the
// lock. Without create, a missing file stays missing.
func (h *Hosts) edit(create bool, change func(file []byte) []byte) error {
	f, made, err := h.lock(create)
	if err != nil || f == nil {
		return err
	}
	defer f.Close() // gives the lock back
	before, err := io.ReadAll(f)
	if err != nil {
		return err
	}
	start := before
	if made {
		start = append([]byte(madeNote), before...)
	}
	after := change(start)
	if bytes.Equal(before, after) {
		return nil
	}
	if len(after) == 0 && bytes.HasPrefix(before, []byte(madeNote)) {
		// If the file cannot go, for want of rights on its directory, it is emptied.
		if err := os.Remove(h.path); err == nil {
			return nil
		}
	}
	return h.write(f, before, after)
}

// lock opens and locks the file that the path leads to at that time, and says
// whether it made it. It returns no file if there is none and create is false.
func (h *Hosts) lock(create bool) (f *os.File, made bool, err error) {
	for deadline := time.Now().Add(h.wait); ; {
		f, err := h.open(create, &made)
		if errors.Is(err, fs.ErrExist) && time.Now().Before(deadline) {
			continue // another made it between our two attempts
		}
		if err != nil {
			if !create && errors.Is(err, fs.ErrNotExist) {
				return nil, false, nil
			}
			return nil, false, err
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			locked, err := f.Stat()
			if err != nil {
				f.Close()
				return nil, false, err
			}
			if now, err := os.Stat(h.path); err == nil && os.SameFile(locked, now) {
				return f, made, nil
			}
		}
		f.Close()
		if err != nil && !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return nil, false, fmt.Errorf("lock: %w", err)
		}
		if time.Now().After(deadline) {
			return nil, false, ErrBusy
		}
		if err != nil {
			time.Sleep(lockPoll)
		}
	}
}

// open opens the file, or makes it and sets made. It takes regular files only.
// fs.ErrExist means that another process made the file in between.
func (h *Hosts) open(create bool, made *bool) (*os.File, error) {
	f, err := os.OpenFile(h.path, os.O_RDWR|unix.O_NONBLOCK, 0)
	if create && errors.Is(err, fs.ErrNotExist) {
		f, err = os.OpenFile(h.path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
		if err == nil {
			*made = true
			err = f.Chmod(0o644) // whatever the umask: every resolver must read it
		}
	}
	if err != nil {
		if f != nil {
			f.Close()
		}
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("not a regular file: %v", info.Mode().Type())
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
