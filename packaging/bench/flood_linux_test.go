package main

import (
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

// TestBurst: what one sendmmsg sends, one recvmmsg counts.
func TestBurst(t *testing.T) {
	in, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(in)
	if err := unix.Bind(in, &unix.SockaddrInet4{Addr: [4]byte(net.IPv4(127, 0, 0, 1).To4())}); err != nil {
		t.Fatal(err)
	}
	at, err := unix.Getsockname(in)
	if err != nil {
		t.Fatal(err)
	}
	out, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(out)
	if err := unix.Connect(out, at); err != nil {
		t.Fatal(err)
	}
	if n, err := newBurst(64).call(unix.SYS_SENDMMSG, out, 0); n != floodBatch || err != nil {
		t.Fatalf("sent %d, %v", n, err)
	}
	b := newBurst(floodRoom)
	for got := 0; got < floodBatch; {
		n, err := b.call(unix.SYS_RECVMMSG, in, unix.MSG_WAITFORONE)
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range b.heads[:n] {
			if h.len != 64 {
				t.Fatalf("a datagram of %d bytes, want 64", h.len)
			}
		}
		got += n
	}
}
