package echo

import (
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/pilotnet/pilot/overlay/services/servicetest"
)

func TestStream(t *testing.T) {
	l := servicetest.New(t, "alice")
	l.Start(New())
	for _, who := range []string{"alice", "self"} {
		c := l.MustDial(who, "tcp", Port)
		sent := strings.Repeat("there and back ", 20000)
		go func() {
			io.WriteString(c, sent)
			c.(*net.TCPConn).CloseWrite()
		}()
		got, err := io.ReadAll(c)
		if err != nil || string(got) != sent {
			t.Errorf("%s: %d bytes of %d, %v", who, len(got), len(sent), err)
		}
	}
}

func TestDatagrams(t *testing.T) {
	l := servicetest.New(t, "alice")
	l.Start(New())
	c := l.MustDial("alice", "udp", Port)
	buf := make([]byte, 1<<16)
	for _, size := range []int{0, 1, 1400, 9000} {
		if _, err := c.Write(make([]byte, size)); err != nil {
			t.Fatal(err)
		}
		c.SetReadDeadline(time.Now().Add(5 * time.Second))
		if n, err := c.Read(buf); err != nil || n != size {
			t.Errorf("%d bytes: got %d, %v", size, n, err)
		}
	}
}

// Who is no peer hears nothing. A peer's answer shows that the service has looked
// at what came before.
func TestStrangers(t *testing.T) {
	l := servicetest.New(t, "alice")
	l.Start(New())
	if got, err := l.Answer("mallory", Port, 1); err == nil || got != "" {
		t.Errorf("TCP: %q, %v", got, err)
	}
	stranger, alice := l.MustDial("mallory", "udp", Port), l.MustDial("alice", "udp", Port)
	stranger.Write([]byte("hello"))
	alice.Write([]byte("hello"))
	alice.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := alice.Read(make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	stranger.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, err := stranger.Read(make([]byte, 10)); err == nil {
		t.Errorf("UDP: %d bytes", n)
	}
}
