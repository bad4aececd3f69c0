package demo

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/pilotnet/pilot/overlay"
)

// A Knocking is what came of knocking.
type Knocking struct {
	Sent     int `json:"sent"`
	Received int `json:"received_bytes"`
}

const (
	knockBurst = 10                     // datagrams, then
	knockPause = time.Millisecond       // so that the receiver's buffer holds them
	knockWait  = 500 * time.Millisecond // for late answers
)

// Knock sends count datagrams to a UDP socket, each of the shapes that an agent
// knows in turn, and counts the bytes that come back.
func Knock(ctx context.Context, addr string, count int) (Knocking, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "udp", addr)
	if err != nil {
		return Knocking{}, overlay.Errorf(overlay.CodeInvalidArgument, "knock at %s: %v", addr, err).WithHint("want IP:PORT")
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Now()) })()
	type outcome struct {
		bytes int
		err   error
	}
	answers := make(chan outcome, 1)
	go func() {
		var o outcome
		buf := make([]byte, 2048)
		for o.err == nil {
			var n int
			n, o.err = conn.Read(buf)
			o.bytes += n
		}
		answers <- o
	}()
	var k Knocking
	pace := time.NewTicker(knockPause)
	defer pace.Stop()
	for k.Sent < count && ctx.Err() == nil {
		if _, err := conn.Write(shape(k.Sent)); err != nil {
			return k, fmt.Errorf("demo: knock at %s: %w", addr, err)
		}
		if k.Sent++; k.Sent%knockBurst == 0 {
			<-pace.C
		}
	}
	conn.SetReadDeadline(time.Now().Add(knockWait))
	o := <-answers
	k.Received = o.bytes
	if err := ctx.Err(); err != nil {
		return k, err
	}
	if !errors.Is(o.err, os.ErrDeadlineExceeded) {
		return k, fmt.Errorf("demo: knock at %s: %w", addr, o.err) // refused: the port is closed
	}
	return k, nil
}

// shape is the i-th datagram: random bytes behind the first bytes of something.
func shape(i int) []byte {
	shapes := []struct {
		size int
		head []byte
	}{
		{104, []byte{4, 1, 0, 0}},                        // INIT
		{100, []byte{5, 1, 0, 0}},                        // RESP
		{1312, []byte{6, 0, 0, 0}},                       // DATA
		{116, []byte{7, 0, 0, 0}},                        // a relay's frame
		{148, []byte{9, 0, 0, 0}},                        // a server's WELCOME
		{16, []byte{14, 0, 0, 0}},                        // a server's HINT
		{20, []byte{0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42}}, // STUN
		{64, []byte("GET / HTTP/1.1\r\n\r\n")},
	}
	s := shapes[i%len(shapes)]
	b := make([]byte, s.size)
	rand.Read(b)
	copy(b, s.head)
	return b
}
