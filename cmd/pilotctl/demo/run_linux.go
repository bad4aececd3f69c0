package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/pilotnet/pilot/cmd/pilotctl/demo/lab"
	"github.com/pilotnet/pilot/overlay"
)

const dirPattern = "pilot-demo-*" // in os.TempDir

// What the stage and the story find open, besides the standard three.
const (
	lifelineFD = 3 + iota
	controlFD
	reportFD
	nextFD
)

const controlName = "control"

// A report is what the story tells the process that started it, at its end.
type report struct {
	Result *Result        `json:"result,omitempty"`
	Error  *overlay.Error `json:"error,omitempty"`
}

// Run tells the story. When it returns nothing is left of it, except a lab that was
// to be kept. When ctx ends it returns the error of ctx.
func Run(ctx context.Context, o Options) (Result, error) {
	if err := checkTUN(); err != nil {
		return Result{}, err
	}
	// What killed demos left is in the way of nobody, but is ours.
	if _, err := labs(false); err != nil {
		return Result{}, err
	}
	dir, err := os.MkdirTemp("", dirPattern)
	if err != nil {
		return Result{}, fmt.Errorf("demo: make a directory: %w", err)
	}
	r, err := perform(ctx, dir, o)
	if !r.Kept {
		err = errors.Join(err, os.RemoveAll(dir))
	}
	if ctx.Err() != nil {
		return Result{}, ctx.Err()
	}
	return r, err
}

// checkTUN tells early what every agent would tell later.
func checkTUN() error {
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return overlay.Errorf(overlay.CodeDenied, "the demo needs /dev/net/tun, which this user may not open").
			WithHint("run it as root: sudo make demo")
	case err != nil:
		return overlay.Errorf(overlay.CodeNoTUN, "the demo needs a TUN device: %v", err).
			WithHint("load it with: modprobe tun; a container needs --device /dev/net/tun and --cap-add SYS_ADMIN,NET_ADMIN")
	}
	return f.Close()
}

func perform(ctx context.Context, dir string, o Options) (Result, error) {
	if err := ctx.Err(); err != nil {
		return Result{}, err
	}
	pipes, err := openPipes(dir)
	if err != nil {
		return Result{}, err
	}
	defer pipes.close()
	exe, err := os.Executable()
	if err != nil {
		return Result{}, fmt.Errorf("demo: find this program: %w", err)
	}
	cmd, err := lab.Contain(func() *exec.Cmd {
		cmd := exec.Command(exe, arguments("stage", dir, o)...)
		cmd.Stdout, cmd.Stderr = pipes.transcript.theirs, pipes.transcript.theirs
		cmd.ExtraFiles = []*os.File{pipes.lifeline.theirs, pipes.control, pipes.report.theirs}
		return cmd
	})
	if err != nil {
		return Result{}, notAllowed(err)
	}
	pipes.handOver()
	stop := context.AfterFunc(ctx, func() { pipes.lifeline.ours.Close() })
	defer stop()
	// Both ends come when the story and the stage have closed theirs.
	io.Copy(o.Out, pipes.transcript.ours)
	said, _ := io.ReadAll(pipes.report.ours)
	var r report
	if err := json.Unmarshal(said, &r); err != nil {
		r.Error = overlay.Errorf(overlay.CodeInternal, "the demo ended without a word")
	}
	if r.Error == nil && r.Result.Kept && stop() {
		if _, err := pipes.lifeline.ours.Write([]byte{1}); err == nil {
			return *r.Result, cmd.Process.Release()
		}
	}
	pipes.lifeline.ours.Close()
	cmd.Wait() // when the first process is gone, all of them are
	if r.Error != nil {
		return Result{}, r.Error
	}
	return *r.Result, nil
}

// notAllowed says what to do where namespaces are not to be had.
func notAllowed(err error) error {
	if !errors.Is(err, lab.ErrNotAllowed) {
		return fmt.Errorf("demo: %w", err)
	}
	e := overlay.Errorf(overlay.CodeDenied, "the demo is made of namespaces: %v", err)
	if os.Geteuid() != 0 {
		return e.WithHint("run it as root (sudo make demo), or let users make namespaces: " +
			"sysctl kernel.unprivileged_userns_clone=1 kernel.apparmor_restrict_unprivileged_userns=0, as far as they exist")
	}
	return e.WithHint("in a container it needs --privileged, or --cap-add SYS_ADMIN,NET_ADMIN --security-opt seccomp=unconfined --device /dev/net/tun")
}

// A pipe has an end for each side.
type pipe struct{ ours, theirs *os.File }

type pipes struct {
	lifeline, transcript, report pipe
	control                      *os.File // listening
}

func openPipes(dir string) (p pipes, err error) {
	defer func() {
		if err != nil {
			p.close()
			err = fmt.Errorf("demo: %w", err)
		}
	}()
	if p.lifeline.theirs, p.lifeline.ours, err = os.Pipe(); err != nil {
		return p, err
	}
	if p.transcript.ours, p.transcript.theirs, err = os.Pipe(); err != nil {
		return p, err
	}
	if p.report.ours, p.report.theirs, err = os.Pipe(); err != nil {
		return p, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, controlName), Net: "unix"})
	if err != nil {
		return p, err
	}
	defer l.Close()
	l.SetUnlinkOnClose(false)
	p.control, err = l.File()
	return p, err
}

// handOver closes what the other side has now.
func (p *pipes) handOver() {
	for _, f := range []*os.File{p.lifeline.theirs, p.transcript.theirs, p.report.theirs, p.control} {
		f.Close()
	}
}

func (p *pipes) close() {
	p.handOver()
	for _, f := range []*os.File{p.lifeline.ours, p.transcript.ours, p.report.ours} {
		f.Close()
	}
}
