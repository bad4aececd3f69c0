package run

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pilotnet/pilot/tun"
)

func pair(t *testing.T) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	open := func(fd int) *net.UnixConn {
		f := os.NewFile(uintptr(fd), "pair")
		defer f.Close()
		c, err := net.FileConn(f)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c.(*net.UnixConn)
	}
	return open(fds[0]), open(fds[1])
}

// Errors keep their causes and their help on the way out, and descriptors work
// where they arrive.
func TestMessages(t *testing.T) {
	inside, outside := pair(t)
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	tooFar := &tun.HelpError{Err: fmt.Errorf("tun: %w (%w)", tun.ErrPermission, unix.EACCES), Help: "be root"}
	if err := send(inside, response{ID: 3, Error: fail(tooFar)}, write); err != nil {
		t.Fatal(err)
	}
	write.Close()
	var r response
	f, err := receive(outside, &r)
	if err != nil || r.ID != 3 || f == nil {
		t.Fatalf("%+v, %v, %v", r, f, err)
	}
	got := r.Error.err()
	if help := new(tun.HelpError); !errors.As(got, &help) || help.Help != "be root" || got.Error() != tooFar.Error() {
		t.Errorf("%v", got)
	}
	for _, cause := range []error{tun.ErrPermission, unix.EACCES, os.ErrPermission} {
		if !errors.Is(got, cause) {
			t.Errorf("%v is not %v", got, cause)
		}
	}
	if errors.Is(got, tun.ErrNoDevice) {
		t.Errorf("%v has a cause too many", got)
	}
	io.WriteString(f, "through")
	f.Close()
	if b, err := io.ReadAll(read); err != nil || string(b) != "through" {
		t.Errorf("%q, %v", b, err)
	}
	if err := send(inside, request{Path: string(make([]byte, maxMessage))}, nil); err == nil {
		t.Error("a message without end is sent")
	}
	inside.Close()
	if _, err := receive(outside, &r); !errors.Is(err, io.EOF) {
		t.Errorf("after the end: %v", err)
	}
}
