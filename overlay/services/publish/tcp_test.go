package publish

import (
	"io"
	"net"
	"strings"
	"testing"
)

// listen is a program's socket on an address of the loopback.
func listen(t testing.TB, address string, handle func(*net.TCPConn)) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				handle(c.(*net.TCPConn))
			}()
		}
	}()
	return uint16(l.Addr().(*net.TCPAddr).Port)
}

// closedPort is one on which nobody listens.
func closedPort(t testing.TB) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return uint16(l.Addr().(*net.TCPAddr).Port)
}

// Each side ends its direction and still hears the other.
func TestHalfClose(t *testing.T) {
	d := newDesk(t)
	port := listen(t, "127.0.0.1:0", func(c *net.TCPConn) {
		io.WriteString(c, "banner\n")
		b, _ := io.ReadAll(c) // until the peer ends
		io.WriteString(c, strings.ToUpper(string(b)))
	})
	d.publish(Rule{Kind: TCP, Port: 5432, Target: itoa(port)})
	c := d.MustDial("alice", "tcp", 5432).(*net.TCPConn)
	sent := strings.Repeat("query ", 100000)
	go func() {
		io.WriteString(c, sent)
		c.CloseWrite()
	}()
	if b, err := io.ReadAll(c); err != nil || string(b) != "banner\n"+strings.ToUpper(sent) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}

func TestProgramEndsFirst(t *testing.T) {
	d := newDesk(t)
	got := make(chan string, 1)
	port := listen(t, "127.0.0.1:0", func(c *net.TCPConn) {
		c.CloseWrite()
		b, _ := io.ReadAll(c)
		got <- string(b)
	})
	d.publish(Rule{Kind: TCP, Port: 5432, Target: itoa(port)})
	c := d.MustDial("alice", "tcp", 5432).(*net.TCPConn)
	if b, err := io.ReadAll(c); err != nil || len(b) > 0 {
		t.Fatalf("%q, %v", b, err)
	}
	io.WriteString(c, "still heard")
	c.CloseWrite()
	if s := <-got; s != "still heard" {
		t.Errorf("%q", s)
	}
}

// An error is an error at the other end too, not an end of data.
func TestResetIsPassedOn(t *testing.T) {
	d := newDesk(t)
	port := listen(t, "127.0.0.1:0", func(c *net.TCPConn) {
		c.Read(make([]byte, 1))
		c.SetLinger(0)
	})
	d.publish(Rule{Kind: TCP, Port: 5432, Target: itoa(port)})
	d.publish(Rule{Kind: TCP, Port: 5433, Target: itoa(closedPort(t))})
	c := d.MustDial("alice", "tcp", 5432)
	c.Write([]byte("x"))
	if b, err := io.ReadAll(c); err == nil {
		t.Errorf("an end after %d bytes", len(b))
	}
	if _, err := d.Answer("alice", 5433, 1); err == nil {
		t.Error("the closed port gave an end")
	}
}

// A program may listen on either loopback address; a bare port finds it.
func TestEitherLoopback(t *testing.T) {
	d := newDesk(t)
	hello := func(c *net.TCPConn) { io.WriteString(c, "hello") }
	l, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Skip("no IPv6 loopback: ", err)
	}
	l.Close()
	d.publish(Rule{Kind: TCP, Port: 1, Target: itoa(listen(t, "[::1]:0", hello))})
	d.publish(Rule{Kind: TCP, Port: 2, Target: itoa(listen(t, "127.0.0.1:0", hello))})
	for _, port := range []uint16{1, 2} {
		if s, err := d.Answer("alice", port, 10); s != "hello" {
			t.Errorf("%q, %v", s, err)
		}
	}
}
