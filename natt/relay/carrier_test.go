package relay

import (
	"bytes"
	"context"
	"encoding/binary"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"

	"github.com/coder/websocket"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/natt"
	"github.com/pilotnet/pilot/natt/nattest"
)

// carrierServer takes carriers on loopback.
func carrierServer(t *testing.T, limit int) (crypto.Server, <-chan *Carrier) {
	t.Helper()
	accepted := make(chan *Carrier, 4)
	mux := http.NewServeMux()
	mux.HandleFunc(DatagramsPath, func(w http.ResponseWriter, r *http.Request) {
		ws, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		c := newCarrier(ws, netip.MustParseAddrPort(r.RemoteAddr), limit)
		c.local = r.Context().Value(http.LocalAddrContextKey).(net.Addr).(*net.TCPAddr).AddrPort()
		accepted <- c
		<-c.Done()
	})
	s := httptest.NewTLSServer(mux)
	t.Cleanup(s.Close)
	at := netip.MustParseAddrPort(s.Listener.Addr().String())
	return crypto.Server{Host: at.Addr().String(), Port: at.Port()}, accepted
}

// carriers returns both ends of one.
func carriers(t *testing.T, limit int) (a, b *Carrier) {
	t.Helper()
	server, accepted := carrierServer(t, limit)
	remote := netip.MustParseAddrPort(server.HostPort())
	a, err := DialCarrier(context.Background(), DialConfig{Server: server}, Route{Port: server.Port}, remote)
	if err != nil {
		t.Fatal(err)
	}
	a.mu.Lock()
	a.limit = limit
	a.mu.Unlock()
	b = <-accepted
	t.Cleanup(func() {
		a.Close()
		b.Close()
	})
	return a, b
}

func TestCarrierConforms(t *testing.T) {
	nattest.Conformance(t, func(t *testing.T) nattest.Pair {
		a, b := carriers(t, 1<<30)
		return nattest.Pair{A: a, B: b, AddrA: b.remote, AddrB: a.remote}
	})
}

// What a stuck stream cannot take is dropped, the oldest first, and bounded.
func TestCarrierDropsOldest(t *testing.T) {
	a, b := carriers(t, carrierQueue)
	const size, count = 1000, 20000 // far beyond what the sockets hold
	d := make([]byte, size)
	for i := range count {
		binary.BigEndian.PutUint32(d, uint32(i))
		if _, err := a.WriteBatch([]natt.Message{{Buf: d, Addr: a.remote}}); err != nil {
			t.Fatal(err)
		}
		a.mu.Lock()
		if waiting := len(a.queue) - a.head; waiting > stallRoom*carrierQueue || cap(a.queue) > 4*stallRoom*carrierQueue {
			t.Fatalf("%d bytes wait in a queue of %d", waiting, cap(a.queue))
		}
		a.mu.Unlock()
	}
	m := []natt.Message{{Buf: make([]byte, natt.MaxRun)}}
	got, last := 0, -1
	for last != count-1 {
		if _, err := b.ReadBatch(m); err != nil {
			t.Fatal(err)
		}
		for d := range nattest.Datagrams(&m[0]) {
			n := int(binary.BigEndian.Uint32(d))
			if n <= last {
				t.Fatalf("%d after %d", n, last)
			}
			got, last = got+1, n
		}
	}
	if uint64(got)+a.Dropped() != count || a.Dropped() == 0 {
		t.Errorf("%d came, %d were dropped, of %d", got, a.Dropped(), count)
	}
}

// A message that does not hold whole datagrams ends the carrier, which then
// behaves as if closed.
func TestCarrierRefuses(t *testing.T) {
	for name, msg := range map[string][]byte{
		"zero size":   {0, 0},
		"half a size": {0},
		"cut":         {0, 5, 1, 2},
		"trailing":    {0, 1, 9, 7},
	} {
		a, b := carriers(t, carrierQueue)
		if err := a.ws.Write(context.Background(), websocket.MessageBinary, msg); err != nil {
			t.Fatal(err)
		}
		m := []natt.Message{{Buf: make([]byte, 100)}, {Buf: make([]byte, 100)}}
		if n, err := b.ReadBatch(m); err != net.ErrClosed {
			t.Errorf("%s: %d, %v", name, n, err)
		}
		if b.Err() == nil || b.Err() == net.ErrClosed {
			t.Errorf("%s: ended by %v", name, b.Err())
		}
	}
	a, b := carriers(t, carrierQueue)
	if _, err := a.WriteBatch([]natt.Message{{Buf: []byte("x"), Addr: netip.MustParseAddrPort("192.0.2.9:9")}}); err == nil {
		t.Error("a carrier took a datagram for somebody else")
	}
	a.ws.Write(context.Background(), websocket.MessageText, []byte{0, 1, 9})
	if _, err := b.ReadBatch([]natt.Message{{Buf: make([]byte, 100)}}); err != net.ErrClosed {
		t.Errorf("text: %v", err)
	}
	if _, err := a.ReadBatch([]natt.Message{{Buf: make([]byte, 100)}}); err != net.ErrClosed {
		t.Errorf("the other end: %v", err)
	}
}

// Many datagrams that wait travel in one message.
func TestCarrierBatches(t *testing.T) {
	a, b := carriers(t, 1<<30)
	big := bytes.Repeat([]byte("abcd"), 2500)
	var m []natt.Message
	for i := range 200 {
		m = append(m, natt.Message{Buf: big[:1+i%7], Addr: a.remote}, natt.Message{Buf: big, Segment: 1000, Addr: a.remote})
	}
	if _, err := a.WriteBatch(m); err != nil {
		t.Fatal(err)
	}
	got := nattest.Collect(t, b, 200*11)
	for i, d := range got {
		want := 1000
		if i%11 == 0 {
			want = 1 + i/11%7
		}
		if len(d.Data) != want {
			t.Fatalf("datagram %d has %d bytes, want %d", i, len(d.Data), want)
		}
	}
}
