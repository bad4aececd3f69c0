package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/pilotnet/pilot/ipam"
	"github.com/pilotnet/pilot/overlay"
	"github.com/pilotnet/pilot/trust"
)

// adoptedSuffix marks the identity that was left behind, so that it cannot be
// started a second time by accident.
const adoptedSuffix = ".adopted"

// adopt moves an agent from another state directory to at: all its files are
// copied, the identity last, then the old identity is renamed.
func (p *program) adopt(from string, at places) (ipam.Identity, error) {
	from, err := adoptedDir(from)
	if err != nil {
		return ipam.Identity{}, err
	}
	old := places{state: from}
	id, err := readIdentity(old)
	if errors.Is(err, errNoIdentity) {
		return id, overlay.Errorf(overlay.CodeNotFound, "there is no identity in %s", from)
	}
	if err != nil {
		return id, err
	}
	unlock, err := lockStore(from)
	if err != nil {
		return id, err
	}
	defer unlock()
	if err := os.MkdirAll(at.state, 0o700); err != nil {
		return id, systemError("make the state directory", err)
	}
	if err := copyState(from, at.state); err != nil {
		return id, err
	}
	text, err := id.MarshalText()
	if err != nil {
		return id, err
	}
	if err := replaceFile(filepath.Join(at.state, identityFile), text, 0o600); err != nil {
		return id, err
	}
	if err := syncDir(at.state); err != nil {
		return id, err
	}
	was := filepath.Join(from, identityFile)
	if err := os.Rename(was, was+adoptedSuffix); err != nil {
		return id, systemError("set the old identity aside", err)
	}
	p.tell("moved from %s; the old identity there is now called %s", from, identityFile+adoptedSuffix)
	return id, nil
}

// lockStore makes sure that no daemon uses the store in dir, by the lock that it
// takes.
func lockStore(dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, trust.LockFile), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return func() {}, nil
	}
	if err != nil {
		return nil, systemError("open the store", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, overlay.Errorf(overlay.CodeConflict, "a daemon is running with the state in %s", dir).
			WithHint("stop it first, as its user: pilotctl down")
	}
	return func() { f.Close() }, nil
}

// copyState copies every plain file but the identity and the log.
func copyState(from, to string) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return systemError("read the old state", err)
	}
	for _, e := range entries {
		name := e.Name()
		if !e.Type().IsRegular() || name == identityFile || strings.HasPrefix(name, logFile) || name == "config.toml" || name == trust.LockFile {
			continue
		}
		data, err := os.ReadFile(filepath.Join(from, name))
		if err != nil {
			return systemError("read the old state", err)
		}
		if err := replaceFile(filepath.Join(to, name), data, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// adoptedDir accepts the identity file for its directory.
func adoptedDir(from string) (string, error) {
	if filepath.Base(from) == identityFile {
		from = filepath.Dir(from)
	}
	return filepath.Abs(from)
}

// adoptedConfig reads the configuration that belongs to a state directory: the
// one in it, or a user's own.
func adoptedConfig(from string) (rawSettings, error) {
	dir, err := adoptedDir(from)
	if err != nil {
		return rawSettings{}, err
	}
	path := filepath.Join(dir, "config.toml")
	home, own := strings.CutSuffix(dir, filepath.Join("/.local", "state", "pilot"))
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) && own {
		path = filepath.Join(home, ".config", "pilot", "config.toml")
	}
	return readConfig(path)
}
