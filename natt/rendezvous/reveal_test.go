package rendezvous

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/pilotnet/pilot/natt/relay"
)

// ask sends an asking VISIT and returns what its answer tells.
func ask(t *testing.T, a *agent, v *relay.Visitor) netip.AddrPort {
	t.Helper()
	b := v.Ask(time.Now())
	if b == nil {
		t.Fatal("no channel to ask about")
	}
	a.send(b)
	before := v.Heard()
	for v.Heard() == before {
		var b [2048]byte
		a.conn.SetReadDeadline(time.Now().Add(patience))
		n, _, err := a.conn.ReadFromUDPAddrPort(b[:])
		if err != nil {
			t.Fatal(err)
		}
		if n != relay.OpenedSize {
			continue
		}
		if err := v.Receive(time.Now(), b[:n]); err != nil {
			t.Fatal(err)
		}
	}
	return v.Located()
}

// reveal has the home session ask about a channel, and returns what it is told within a while.
func (a *agent) reveal(channel uint64, wait time.Duration) (where netip.AddrPort) {
	a.t.Helper()
	a.send(a.home.Reveal(channel))
	for deadline := time.Now().Add(wait); time.Now().Before(deadline); {
		a.step(time.Until(deadline))
		for _, e := range a.events {
			if e.Kind == relay.Located && e.Channel == channel {
				where = e.Addr
			}
		}
		a.events = nil
		if where.IsValid() {
			break
		}
	}
	return where
}

// What a while is where nothing is to be told.
const nothing = 300 * time.Millisecond

// Two ends of a channel learn where the other is when both ask, and not before.
func TestReveal(t *testing.T) {
	t.Parallel()
	r := start(t, Config{StateDir: t.TempDir()})
	bob := newAgent(t, "bob", r.addr).claimed()
	bob.until(relay.Registered)
	guest, stranger := newAgent(t, "alice", r.addr), newAgent(t, "alice", r.addr)
	v := relay.NewVisitor(relay.VisitorConfig{Server: r.addr.Key, Target: bob.fingerprint()})
	open(t, guest, v, "\x04init")
	channel := bob.receive().channel
	bob.frame(channel, "\x05resp")
	read1(t, guest)
	guest.frame(v.Channel(), "\x06data")
	bob.receive()

	if got := ask(t, guest, v); got.IsValid() {
		t.Errorf("the visitor alone is told %v", got)
	}
	if got := bob.reveal(channel, patience); got != guest.udpAddr() {
		t.Errorf("the target is told %v, the visitor is at %v", got, guest.udpAddr())
	}
	if got := ask(t, guest, v); got != bob.udpAddr() {
		t.Errorf("the visitor is told %v, the target is at %v", got, bob.udpAddr())
	}
	if v.Observed() != guest.udpAddr() {
		t.Errorf("the question changed our own address to %v", v.Observed())
	}

	// Another visitor of the same agent learns nothing by it, and nor does one that only guesses.
	w := relay.NewVisitor(relay.VisitorConfig{Server: r.addr.Key, Target: bob.fingerprint()})
	open(t, stranger, w, "")
	if got := ask(t, stranger, w); got.IsValid() {
		t.Errorf("a stranger is told %v", got)
	}
	for _, n := range []uint64{v.Channel(), w.Channel(), 77} { // numbers that are not the target's
		if got := bob.reveal(n, nothing); got.IsValid() {
			t.Errorf("channel %x: the target is told %v", n, got)
		}
	}
}

// A target that asks first is told nothing of a visitor that does not.
func TestRevealNeedsVisitor(t *testing.T) {
	t.Parallel()
	r := start(t, Config{StateDir: t.TempDir()})
	bob := newAgent(t, "bob", r.addr).claimed()
	bob.until(relay.Registered)
	guest := newAgent(t, "alice", r.addr)
	v := relay.NewVisitor(relay.VisitorConfig{Server: r.addr.Key, Target: bob.fingerprint()})
	open(t, guest, v, "\x04init")
	channel := bob.receive().channel
	guest.frame(v.Channel(), "\x04more")
	bob.receive()
	if got := bob.reveal(channel, nothing); got.IsValid() {
		t.Errorf("told %v", got)
	}
	if got := ask(t, guest, v); got != bob.udpAddr() {
		t.Errorf("the visitor is told %v", got)
	}
}

// One who moves its session by a record from somewhere else is not said to be there: it has not shown that it reads
// there. Whoever wants probes sent to a third party cannot get a server to name it.
func TestRevealForgedSource(t *testing.T) {
	t.Parallel()
	r := start(t, Config{StateDir: t.TempDir()})
	bob := newAgent(t, "bob", r.addr).claimed()
	bob.until(relay.Registered)
	guest := newAgent(t, "alice", r.addr)
	v := relay.NewVisitor(relay.VisitorConfig{Server: r.addr.Key, Target: bob.fingerprint()})
	open(t, guest, v, "\x04init")
	channel := bob.receive().channel
	guest.frame(v.Channel(), "\x04more")
	bob.receive()
	ask(t, guest, v)
	if got := bob.reveal(channel, patience); !got.IsValid() {
		t.Fatal("told nothing")
	}
	victim := dialUDP(t)
	forge := func(b []byte) {
		if _, err := victim.WriteToUDPAddrPort(b, serverAddr(r.addr)); err != nil {
			t.Fatal(err)
		}
	}
	forge(bob.home.Reveal(channel)) // with the proof of another address
	var b [2048]byte
	victim.SetReadDeadline(time.Now().Add(patience))
	n, _, err := victim.ReadFromUDPAddrPort(b[:])
	if err != nil || n > relay.RecordSize {
		t.Fatalf("the victim gets %d bytes, %v", n, err)
	}
	if got := ask(t, guest, v); got.IsValid() {
		t.Errorf("the visitor is told %v, the victim is at %v", got, victim.LocalAddr())
	}
	// The one that can read there is believed.
	conn := bob.conn
	bob.conn = victim
	if _, err := bob.home.Receive(time.Now(), b[:n]); err != nil {
		t.Fatal(err)
	}
	bob.step(nothing)
	if got, want := ask(t, guest, v), victim.LocalAddr().(*net.UDPAddr).AddrPort(); got != want {
		t.Errorf("after a true move the visitor is told %v, want %v", got, want)
	}
	bob.conn = conn
}
