package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/pilotnet/pilot/overlay"
)

// Enter runs a program, or a shell if argv is empty, on a host of the latest lab of
// this user, and returns its exit status. If the input is a terminal, so is the
// program's.
func Enter(ctx context.Context, host string, argv []string, user Streams) (int, error) {
	labs, err := labs(true)
	if err != nil {
		return 0, err
	}
	if len(labs) == 0 {
		return 0, overlay.Errorf(overlay.CodeNotFound, "no demo is up").WithHint("pilotctl demo --keep leaves one up")
	}
	conn := labs[0].conn
	for _, l := range labs {
		defer l.conn.Close()
	}
	r := request{Host: host, Argv: argv}
	give := []*os.File{user.In, user.Out, user.Err}
	if term.IsTerminal(int(user.In.Fd())) && term.IsTerminal(int(user.Out.Fd())) {
		t, err := openTerminal(user)
		if err != nil {
			return 0, fmt.Errorf("demo: terminal: %w", err)
		}
		defer t.close()
		r.Term = os.Getenv("TERM")
		if r.Term == "" {
			r.Term = "dumb"
		}
		give = []*os.File{t.theirs, t.theirs, t.theirs}
		defer t.relay(user)()
	}
	if err := send(conn, r, give); err != nil {
		return 0, fmt.Errorf("demo: ask the lab: %w", err)
	}
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	var a answer
	if err := json.NewDecoder(conn).Decode(&a); err != nil {
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		return 0, overlay.Errorf(overlay.CodeNotFound, "the demo is down")
	}
	if a.Error != "" {
		return 0, overlay.Errorf(overlay.CodeNotFound, "%s", a.Error)
	}
	return a.Status, nil
}

// Down removes all labs of this user, and what killed ones left, and says how many
// were up.
func Down(ctx context.Context) (int, error) {
	labs, err := labs(true)
	if err != nil {
		return 0, err
	}
	for _, l := range labs {
		defer l.conn.Close()
		defer context.AfterFunc(ctx, func() { l.conn.Close() })()
		if err := send(l.conn, request{Down: true}, nil); err != nil {
			return 0, fmt.Errorf("demo: take %s down: %w", l.dir, err)
		}
		io.Copy(io.Discard, l.conn)
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		if err := os.RemoveAll(l.dir); err != nil {
			return 0, fmt.Errorf("demo: take %s down: %w", l.dir, err)
		}
	}
	return len(labs), nil
}

// beginTime is more than passes between the making of a directory and of its socket.
const beginTime = 2 * time.Second

// A running lab, as others see it.
type running struct {
	dir  string
	conn *net.UnixConn
}

// labs finds the labs of this user, the latest first, and removes the directories
// of those that were killed. If stay is not set it lets go of what it finds.
func labs(stay bool) ([]running, error) {
	dirs, err := filepath.Glob(filepath.Join(os.TempDir(), dirPattern))
	if err != nil {
		return nil, err
	}
	var up []running
	var latest time.Time
	for _, dir := range dirs {
		info, err := os.Lstat(dir)
		if err != nil || !info.IsDir() {
			continue
		}
		// Others could put directories there, too.
		if owner, ok := info.Sys().(*syscall.Stat_t); !ok || int(owner.Uid) != os.Geteuid() {
			continue
		}
		conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: filepath.Join(dir, controlName), Net: "unix"})
		switch {
		case errors.Is(err, unix.ECONNREFUSED) && time.Since(info.ModTime()) > beginTime:
			os.RemoveAll(dir)
		case err != nil:
		case !stay:
			conn.Close()
		case info.ModTime().After(latest):
			latest = info.ModTime()
			up = append([]running{{dir, conn}}, up...)
		default:
			up = append(up, running{dir, conn})
		}
	}
	return up, nil
}

func send(conn *net.UnixConn, r request, files []*os.File) error {
	body, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if len(body) > maxRequest {
		return errors.New("the command is too long")
	}
	var fds []int
	for _, f := range files {
		fds = append(fds, int(f.Fd()))
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	_, _, err = conn.WriteMsgUnix(body, oob, nil)
	return err
}

const drainTime = 200 * time.Millisecond

// A terminal is a new one for a program, shown on the user's.
type terminal struct {
	ours, theirs *os.File
	user         int
	before       *term.State
}

func openTerminal(user Streams) (*terminal, error) {
	ours, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	t := &terminal{ours: ours, user: int(user.In.Fd())}
	if err := unix.IoctlSetPointerInt(int(ours.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		ours.Close()
		return nil, err
	}
	peer, _, errno := unix.Syscall(unix.SYS_IOCTL, ours.Fd(), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		ours.Close()
		return nil, errno
	}
	t.theirs = os.NewFile(peer, "terminal")
	t.resize()
	if t.before, err = term.MakeRaw(t.user); err != nil {
		t.close()
		return nil, err
	}
	return t, nil
}

func (t *terminal) resize() {
	if size, err := unix.IoctlGetWinsize(t.user, unix.TIOCGWINSZ); err == nil {
		unix.IoctlSetWinsize(int(t.ours.Fd()), unix.TIOCSWINSZ, size)
	}
}

// relay carries bytes and changes of size both ways. What it returns waits for the
// last output.
func (t *terminal) relay(user Streams) (drain func()) {
	resized := make(chan os.Signal, 1)
	signal.Notify(resized, unix.SIGWINCH)
	go func() {
		for range resized {
			t.resize()
		}
	}()
	go io.Copy(t.ours, user.In)
	done := make(chan struct{})
	go func() {
		defer close(done)
		io.Copy(user.Out, t.ours) // ends with EIO when no program has it open
	}()
	return func() {
		t.theirs.Close()
		select {
		case <-done:
		case <-time.After(drainTime): // something in the background has it open
		}
	}
}

func (t *terminal) close() {
	if t.before != nil {
		term.Restore(t.user, t.before)
	}
	t.theirs.Close()
	t.ours.Close()
}
