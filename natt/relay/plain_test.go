package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strings"
	"syscall"
	"testing"
)

// What a user reads of a failed dial is one sentence, without the layers that it came
// through, and programs still find what it was.
func TestPlain(t *testing.T) {
	op := func(err error) error {
		return &net.OpError{Op: "dial", Net: "tcp", Addr: &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 443}, Err: err}
	}
	for _, c := range []struct {
		err  error
		want string
	}{
		{op(os.NewSyscallError("connect", syscall.ECONNREFUSED)), "connection refused"},
		{op(os.NewSyscallError("connect", syscall.ENETUNREACH)), "no route"},
		{op(context.DeadlineExceeded), "no answer"},
		{op(os.ErrDeadlineExceeded), "no answer"},
		{&url.Error{Op: "Get", URL: "https://x/", Err: io.EOF}, "the connection was cut"},
		{op(&net.DNSError{Err: "no such host", Name: "rdv.example", IsNotFound: true}), "the name rdv.example is not known"},
		{errors.New("403 it says"), "403 it says"},
	} {
		got := plain(fmt.Errorf("layer: %w", c.err))
		if !strings.HasSuffix(got.Error(), c.want) || c.want != "403 it says" && got.Error() != c.want || !errors.Is(got, c.err) {
			t.Errorf("%v: got %q, want %q", c.err, got, c.want)
		}
	}
	if err := plain(fmt.Errorf("proxy p: %w", plain(op(syscall.ECONNREFUSED)))); err.Error() != "proxy p: connection refused" {
		t.Error(err)
	}
	proxied := Route{Port: 443, Proxy: &url.URL{Scheme: "http", Host: "p:3128"}}
	if err := proxied.over(errors.New("proxy p:3128: 407")); err.Error() != "port 443 by proxy p:3128: 407" {
		t.Error(err)
	}
}
