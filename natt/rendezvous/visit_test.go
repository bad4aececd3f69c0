package rendezvous

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/natt/relay"
)

func open(t *testing.T, a *agent, v *relay.Visitor, inner string) {
	t.Helper()
	b, err := v.Open(time.Now(), []byte(inner))
	if err != nil {
		t.Fatal(err)
	}
	a.send(b)
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		var b [2048]byte
		a.conn.SetReadDeadline(deadline)
		n, _, err := a.conn.ReadFromUDPAddrPort(b[:])
		if err != nil {
			t.Fatal(err)
		}
		before := v.Heard()
		if v.Receive(time.Now(), b[:n]) == nil && v.Heard() != before {
			return
		}
		for _, b := range v.Advance(time.Now()) {
			a.send(b)
		}
	}
	t.Fatal("no answer to VISIT")
}

func TestVisit(t *testing.T) {
	t.Parallel()
	for name, cookie := range map[string]bool{"idle": false, "loaded": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := start(t, Config{StateDir: t.TempDir()})
			r.alwaysCookie.Store(cookie)
			bob := newAgent(t, "bob", r.addr).claimed()
			bob.until(relay.Registered)
			guest := newAgent(t, "alice", r.addr) // never registers
			v := relay.NewVisitor(relay.VisitorConfig{Server: r.addr.Key, Target: bob.fingerprint()})
			open(t, guest, v, "\x04init")
			if v.Observed() != guest.udpAddr() || v.Stale() {
				t.Errorf("observed %v, stale %v", v.Observed(), v.Stale())
			}
			f := bob.receive()
			if f.inner != "\x04init" || f.channel == v.Channel() || f.channel == 0 {
				t.Fatalf("target got %q on %x", f.inner, f.channel)
			}
			bob.frame(f.channel, "\x05resp")
			if got := read1(t, guest); got.inner != "\x05resp" || got.channel != v.Channel() {
				t.Fatalf("visitor got %q on %x", got.inner, got.channel)
			}
			long := "\x06" + strings.Repeat("d", 1300)
			guest.frame(v.Channel(), long) // answered, so no longer held to handshakes
			if got := bob.receive(); got.inner != long || got.channel != f.channel {
				t.Fatalf("target got %d bytes on %x", len(got.inner), got.channel)
			}
			bob.frame(f.channel, long)
			if got := read1(t, guest); got.inner != long {
				t.Fatalf("visitor got %d bytes", len(got.inner))
			}
			guest.send(v.Keepalive(time.Now()))
			if got := read1(t, guest); !v.Echo(keepalive(got)) {
				t.Errorf("keepalive came back as %q", got.inner)
			}
			first := v.Channel()
			open(t, guest, v, "\x04init")
			if v.Channel() != first {
				t.Error("a second VISIT opened another channel")
			}
			if got := bob.receive(); got.channel != f.channel {
				t.Errorf("target got channel %x, was %x", got.channel, f.channel)
			}
		})
	}
}

func keepalive(f frame) []byte {
	b := make([]byte, relay.FrameOverhead)
	relay.PutFrameHeader(b, f.channel)
	return append(b, f.inner...)
}

func read1(t *testing.T, a *agent) frame {
	t.Helper()
	var b [2048]byte
	a.conn.SetReadDeadline(time.Now().Add(patience))
	n, _, err := a.conn.ReadFromUDPAddrPort(b[:])
	if err != nil {
		t.Fatal(err)
	}
	channel, inner, ok := relay.ParseFrame(b[:n])
	if !ok {
		t.Fatalf("not a frame: % x", b[:n])
	}
	return frame{channel, string(inner)}
}

// A visitor cannot tell an absent target from one that says nothing, and a young
// channel passes only a few small frames.
func TestVisitAbsent(t *testing.T) {
	t.Parallel()
	r := start(t, Config{StateDir: t.TempDir()})
	guest := newAgent(t, "alice", r.addr)
	v := relay.NewVisitor(relay.VisitorConfig{Server: r.addr.Key, Target: crypto.Fingerprint{1, 2, 3}})
	open(t, guest, v, "\x04init")
	guest.frame(v.Channel(), "\x04init")
	guest.send(v.Keepalive(time.Now()))
	if got := read1(t, guest); !v.Echo(keepalive(got)) {
		t.Errorf("got %q", got.inner)
	}
}

func TestProbation(t *testing.T) {
	t.Parallel()
	r := start(t, Config{StateDir: t.TempDir()})
	bob := newAgent(t, "bob", r.addr).claimed()
	bob.until(relay.Registered)
	guest := newAgent(t, "alice", r.addr)
	v := relay.NewVisitor(relay.VisitorConfig{Server: r.addr.Key, Target: bob.fingerprint()})
	open(t, guest, v, "")
	for i := range 20 {
		guest.frame(v.Channel(), fmt.Sprint("\x04", i))
		guest.frame(v.Channel(), "\x06"+strings.Repeat("x", 300))
	}
	for i := range 4 {
		if f := bob.receive(); f.inner != fmt.Sprint("\x04", i) {
			t.Fatalf("frame %d: %q", i, f.inner)
		}
	}
	bob.silent(150 * time.Millisecond)

	// Towards a visitor that has not used its number the same holds.
	mute := relay.NewVisitor(relay.VisitorConfig{Server: r.addr.Key, Target: bob.fingerprint()})
	other := newAgent(t, "carol", r.addr)
	open(t, other, mute, "\x04hello")
	f := bob.receive()
	for i := range 20 {
		bob.frame(f.channel, fmt.Sprint("\x05", i))
		bob.frame(f.channel, "\x06"+strings.Repeat("x", 300))
	}
	for i := range 4 {
		if got := read1(t, other); got.inner != fmt.Sprint("\x05", i) {
			t.Fatalf("frame %d: %q", i, got.inner)
		}
	}
	other.conn.SetReadDeadline(time.Now().Add(150 * time.Millisecond))
	var b [2048]byte
	if n, _, err := other.conn.ReadFromUDPAddrPort(b[:]); err == nil {
		t.Errorf("%d bytes more", n)
	}
}
