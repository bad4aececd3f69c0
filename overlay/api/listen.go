package api

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/pilotnet/pilot/overlay"
)

// maxPath is what fits the sun_path of a unix socket address on Linux (108 with
// the closing zero) and on the BSDs (104).
const maxPath = len(syscall.RawSockaddrUnix{}.Path) - 1

const dialTimeout = 2 * time.Second

// GovernPath tells where the govern socket lies: govern.sock beside pilot.sock,
// and NAME.govern.sock beside any other NAME.sock, so that the sockets of several
// agents can share a directory.
func GovernPath(socket string) string {
	dir, base := filepath.Split(socket)
	if base == "pilot.sock" {
		return dir + "govern.sock"
	}
	return dir + strings.TrimSuffix(base, ".sock") + ".govern.sock"
}

// CheckPath refuses a socket path that the kernel would refuse, with better words.
func CheckPath(socket string) error {
	if longer := max(len(socket), len(GovernPath(socket))); longer > maxPath {
		return overlay.Errorf(overlay.CodeInvalidArgument,
			"the path of the local socket is too long: %d bytes, the system allows %d: %s", longer, maxPath, socket).
			WithHint("give a shorter one with --socket, such as --socket /tmp/NAME/pilot.sock")
	}
	return nil
}

// Sockets are the two listeners of a server.
type Sockets struct {
	use, govern *socketFile
}

// Listen makes both sockets. An *overlay.Error with CodeConflict says that
// another daemon answers there, or that something lies there which is not ours to
// remove.
func Listen(socket string) (*Sockets, error) {
	if err := CheckPath(socket); err != nil {
		return nil, err
	}
	dir := filepath.Dir(socket)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fileError("make the directory of the local socket", err)
	}
	unlock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	govern := GovernPath(socket)
	for _, path := range []string{socket, govern} {
		if err := removeStale(path); err != nil {
			return nil, err
		}
	}
	g, err := listenFile(govern, 0o600)
	if err != nil {
		return nil, err
	}
	u, err := listenFile(socket, 0o660)
	if err != nil {
		g.Close()
		return nil, err
	}
	return &Sockets{use: u, govern: g}, nil
}

// Close closes both sockets and removes their files.
func (s *Sockets) Close() error { return errors.Join(s.use.Close(), s.govern.Close()) }

// RemoveStale removes socket files that a killed daemon left. It is an error
// with CodeConflict if somebody still answers there.
func RemoveStale(socket string) error {
	unlock, err := lockDir(filepath.Dir(socket))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unlock()
	return errors.Join(removeStale(socket), removeStale(GovernPath(socket)))
}

// lockDir keeps two daemons from replacing each other's sockets, and refuses a
// directory in which anybody could replace them.
func lockDir(dir string) (unlock func(), err error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, fileError("open the directory of the local socket", err)
	}
	info, err := d.Stat()
	if err == nil && info.Mode()&fs.ModeSticky == 0 && info.Mode().Perm()&0o002 != 0 {
		err = overlay.Errorf(overlay.CodeDenied, "everybody may replace files in %s: no place for a control socket", dir).
			WithHint("chmod o-w %s, or choose another place with --socket", dir)
	}
	if err == nil {
		err = syscall.Flock(int(d.Fd()), syscall.LOCK_EX)
	}
	if err != nil {
		d.Close()
		return nil, err
	}
	return func() { d.Close() }, nil
}

// removeStale removes our own dead socket at path, and nothing else.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fileError("look at the local socket", err)
	}
	if info.Mode().Type() != fs.ModeSocket {
		return overlay.Errorf(overlay.CodeConflict, "%s is not a socket: it was not made by pilot", path).
			WithHint("remove it, or choose another place with --socket")
	}
	if owner := info.Sys().(*syscall.Stat_t).Uid; int(owner) != os.Geteuid() {
		return overlay.Errorf(overlay.CodeConflict, "%s belongs to user %d: it is not ours to replace", path, owner).
			WithHint("remove it, or choose another place with --socket")
	}
	c, err := net.DialTimeout("unix", path, dialTimeout)
	if err == nil {
		c.Close()
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return overlay.Errorf(overlay.CodeConflict, "another daemon answers on %s", path).
			WithHint("stop it with: pilotctl down; or choose another place with --socket")
	}
	if err := os.Remove(path); err != nil {
		return fileError("remove the stale socket", err)
	}
	return nil
}

// A socketFile is a listener that removes its file, if that is still its own, when
// it is closed.
type socketFile struct {
	*net.UnixListener
	path string
	info fs.FileInfo
}

func listenFile(path string, mode fs.FileMode) (*socketFile, error) {
	// The umask belongs to the process: for this moment files made elsewhere
	// in it get fewer rights, never more.
	old := syscall.Umask(0o177)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	syscall.Umask(old)
	if err != nil {
		return nil, fileError("listen on the local socket", err)
	}
	l.SetUnlinkOnClose(false)
	s := &socketFile{UnixListener: l, path: path}
	if s.info, err = os.Lstat(path); err == nil && mode&0o060 != 0 {
		if gid, ok := pilotGroup(); ok {
			// Refused to a user outside the group: the socket then stays with
			// the user's own group.
			os.Lchown(path, -1, gid)
		}
		err = os.Chmod(path, mode)
	}
	if err != nil {
		s.Close()
		return nil, fileError("set the rights of the local socket", err)
	}
	return s, nil
}

func pilotGroup() (gid int, ok bool) {
	g, err := user.LookupGroup("pilot")
	if err != nil {
		return 0, false
	}
	gid, err = strconv.Atoi(g.Gid)
	return gid, err == nil
}

// Close is safe to call again.
func (s *socketFile) Close() error {
	if now, err := os.Lstat(s.path); err == nil && s.info != nil && os.SameFile(now, s.info) {
		os.Remove(s.path)
	}
	if err := s.UnixListener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// fileError turns a failed system call into an error with the fitting code. It
// keeps the cause for errors.Is.
func fileError(what string, err error) error {
	code, hint := overlay.CodeInternal, ""
	switch {
	case errors.Is(err, fs.ErrPermission):
		code, hint = overlay.CodeDenied, "run it as root, or choose another place with --socket"
	case errors.Is(err, syscall.EADDRINUSE):
		code, hint = overlay.CodeConflict, "stop the other daemon with: pilotctl down"
	}
	e := overlay.Errorf(code, "%s: %v", what, err)
	e.Hint = hint
	return &causedError{shown: e, cause: err}
}

// A causedError is shown as its first half and still matches the system's error.
type causedError struct {
	shown *overlay.Error
	cause error
}

func (e *causedError) Error() string   { return e.shown.Message }
func (e *causedError) Unwrap() []error { return []error{e.shown, e.cause} }
