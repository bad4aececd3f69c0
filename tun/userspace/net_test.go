package userspace

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/pilotnet/pilot/tun"
)

var other = netip.MustParseAddr("fd50:494c:4f54::dddd:1")

// pair is two stacks whose devices are joined as by a tunnel: superpackets are cut
// and merged again.
func pair(t testing.TB) (a, b *Stack) {
	t.Helper()
	a = newStack(t)
	b, err := New(other, prefix, 1408)
	if err != nil {
		t.Fatal(err)
	}
	var pumps sync.WaitGroup
	pumps.Go(func() { pump(t, a, b) })
	pumps.Go(func() { pump(t, b, a) })
	t.Cleanup(func() {
		a.Close()
		b.Close()
		pumps.Wait()
	})
	return a, b
}

func pump(t testing.TB, from, to *Stack) {
	batch := make([]tun.Packet, from.BatchSize())
	merger := tun.NewMerger(to.Offload())
	var c tun.Cutter
	for {
		n, err := from.Read(batch)
		if errors.Is(err, os.ErrClosed) {
			return
		}
		if err != nil {
			t.Error(err)
			return
		}
		for _, p := range batch[:n] {
			if err := c.Reset(p, 1408); err != nil {
				t.Error(err)
				return
			}
			for seg := c.Next(); seg != nil; seg = c.Next() {
				if err := merger.Add(bytes.Clone(seg), c.Partial()); err != nil {
					t.Error(err)
				}
			}
		}
		if err := to.Write(merger.Flush()); err != nil && !errors.Is(err, os.ErrClosed) {
			t.Error(err)
		}
	}
}

// Bytes go both ways at once over one connection, and both sides end it by closing
// their half.
func TestTCP(t *testing.T) {
	a, b := pair(t)
	l, err := b.Listen(t.Context(), 80)
	if err != nil {
		t.Fatal(err)
	}
	type end struct {
		sent, got [32]byte
		err       error
	}
	const size = 5 << 20
	talk := func(c net.Conn, seed byte) (e end) {
		defer c.Close()
		var both sync.WaitGroup
		both.Go(func() {
			h := sha256.New()
			random := io.LimitReader(rand.NewChaCha8([32]byte{seed}), size)
			_, err := io.Copy(io.MultiWriter(c, h), random)
			if err == nil {
				err = c.(*Conn).CloseWrite()
			}
			e.sent, e.err = [32]byte(h.Sum(nil)), err
		})
		h := sha256.New()
		n, err := io.Copy(h, c)
		both.Wait()
		if n != size {
			err = errors.Join(err, io.ErrUnexpectedEOF)
		}
		e.got, e.err = [32]byte(h.Sum(nil)), errors.Join(err, e.err)
		return e
	}
	served := make(chan end, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			served <- end{err: err}
			return
		}
		if from := c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr(); from != own {
			t.Errorf("the caller is %v", from)
		}
		served <- talk(c, 1)
	}()
	c, err := a.DialContext(t.Context(), "tcp", netip.AddrPortFrom(other, 80))
	if err != nil {
		t.Fatal(err)
	}
	if to := c.RemoteAddr().(*net.TCPAddr).AddrPort(); to != netip.AddrPortFrom(other, 80) {
		t.Errorf("connected to %v", to)
	}
	near := talk(c, 2)
	far := <-served
	if near.err != nil || far.err != nil || near.sent != far.got || far.sent != near.got {
		t.Errorf("%v, %v; equal: %v, %v", near.err, far.err, near.sent == far.got, far.sent == near.got)
	}
}

func TestUDP(t *testing.T) {
	a, b := pair(t)
	l, err := b.ListenPacket(t.Context(), 7)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		buf := make([]byte, 1<<16)
		for {
			n, from, err := l.ReadFrom(buf)
			if err != nil {
				return
			}
			l.WriteTo(buf[:n], from)
		}
	}()
	c, err := a.DialContext(t.Context(), "udp", netip.AddrPortFrom(other, 7))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	for _, size := range []int{1, 1300, 5000} { // the last in fragments
		want := bytes.Repeat([]byte{byte(size)}, size)
		if _, err := c.Write(want); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 1<<16)
		n, err := c.Read(got)
		if err != nil || !bytes.Equal(got[:n], want) {
			t.Fatalf("%d of %d bytes, %v", n, size, err)
		}
	}
	l.Close()
	if _, _, err := l.ReadFrom(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after close: %v", err)
	}
}

// The stack talks to itself under its own address, without the device.
func TestOwnAddress(t *testing.T) {
	s := newStack(t)
	l, err := s.Listen(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			io.Copy(c, c)
			c.Close()
		}
	}()
	c, err := s.DialContext(t.Context(), "tcp", l.Addr().(*net.TCPAddr).AddrPort())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	want := bytes.Repeat([]byte("itself"), 20000)
	go func() {
		c.Write(want)
		c.(*Conn).CloseWrite()
	}()
	if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d of %d bytes, %v", len(got), len(want), err)
	}
	if waits := s.link.take(maxPacket); waits != nil {
		t.Error("a packet to the own address went into the device")
	}
}

// Errors are those of the kernel's sockets, which callers look for.
func TestErrors(t *testing.T) {
	a, b := pair(t)
	ctx := t.Context()
	l, err := b.Listen(ctx, 80)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Listen(ctx, 80); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("a port twice: %v", err)
	}
	if _, err := a.DialContext(ctx, "tcp", netip.AddrPortFrom(other, 81)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("nobody listens: %v", err)
	}
	if _, err := a.DialContext(ctx, "tcp", netip.MustParseAddrPort("[2001:db8::1]:80")); !errors.Is(err, syscall.EHOSTUNREACH) && !errors.Is(err, syscall.ENETUNREACH) {
		t.Errorf("outside the prefix: %v", err)
	}
	if _, err := a.DialContext(ctx, "tcp", netip.MustParseAddrPort("192.0.2.1:80")); !errors.Is(err, syscall.EAFNOSUPPORT) {
		t.Errorf("IPv4: %v", err)
	}
	hurry, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := a.DialContext(hurry, "tcp", netip.MustParseAddrPort("[fd50:494c:4f54::1]:80")); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	accepted := make(chan net.Conn, 1)
	go func() {
		c, _ := l.Accept()
		accepted <- c
		_, err := l.Accept()
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("accept of a closed listener: %v", err)
		}
		close(accepted)
	}()
	c, err := a.DialContext(ctx, "tcp", netip.AddrPortFrom(other, 80))
	if err != nil {
		t.Fatal(err)
	}
	far := (<-accepted).(*Conn)
	c.SetReadDeadline(time.Now().Add(time.Millisecond))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("deadline: %v", err)
	}
	c.SetReadDeadline(time.Time{})
	far.SetLinger(0)
	far.Close()
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("reset: %v", err)
	}
	if _, err := far.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("read after close: %v", err)
	}
	l.Close()
	<-accepted
}

// What claims to come from the agent itself, and what was damaged on its way, does
// not reach a socket.
func TestRefuses(t *testing.T) {
	s := newStack(t)
	l, err := s.ListenPacket(t.Context(), 7)
	if err != nil {
		t.Fatal(err)
	}
	var heard atomic.Int64
	ended := make(chan struct{})
	got := make(chan string, 8)
	go func() {
		defer close(ended)
		buf := make([]byte, 100)
		for {
			n, _, err := l.ReadFrom(buf)
			if err != nil {
				return
			}
			heard.Add(1)
			got <- string(buf[:n])
		}
	}()
	send := func(from netip.Addr, text string, damage bool) error {
		p := datagram(from, own, text)
		if damage {
			p[len(p)-1] ^= 1
		}
		return s.Write([]tun.Packet{{Data: p}})
	}
	if err := send(own, "forged", false); err != nil {
		t.Error(err)
	}
	if err := send(other, "damaged", true); err == nil {
		t.Error("a wrong checksum is no error")
	}
	if err := send(other, "good", false); err != nil {
		t.Error(err)
	}
	if text := <-got; text != "good" {
		t.Errorf("heard %q", text)
	}
	l.Close()
	<-ended
	if n := heard.Load(); n != 1 {
		t.Errorf("heard %d datagrams", n)
	}
}

// Closing ends what waits.
func TestClose(t *testing.T) {
	s := newStack(t)
	dialed := make(chan error, 1)
	go func() {
		_, err := s.DialContext(context.Background(), "tcp", netip.AddrPortFrom(other, 80))
		dialed <- err
	}()
	batch := make([]tun.Packet, 1)
	if _, err := s.Read(batch); err != nil { // the SYN
		t.Fatal(err)
	}
	s.Close()
	if err := <-dialed; err == nil {
		t.Error("connected over a closed device")
	}
}
