package e2e_test

import (
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A meter counts what a program prints.
type meter struct{ n atomic.Int64 }

func (m *meter) Write(b []byte) (int, error) {
	m.n.Add(int64(len(b)))
	return len(b), nil
}

// testRevoke: when "trust revoke" has returned nothing passes any more, what was
// under way included, and the other side hears of it once.
func testRevoke(t *testing.T, l *lab, alice, bob *agent) {
	l.output(t, "a1", "sh", "-c", smallBuffers)
	var got meter
	curl := alice.command(t.Context(), "curl", "-sS", "-N", "--limit-rate", "4M", "--speed-time", "3", "--speed-limit", "1", bobURL+"1000")
	curl.Stdout = &got
	if err := curl.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- curl.Wait() }()
	within(t, 10*time.Second, "a download is under way", func() bool { return got.n.Load() > mebibyte })

	alicePublic := netip.MustParseAddr("203.0.113.18")
	bobPort := bob.status(t).Socket.Port
	ofBob := func(d datagram) bool { return d.protocol == unix.IPPROTO_UDP && d.src.Port() == bobPort }
	// Relay frames begin with a 7; what else goes to the server is bob's own
	// business there.
	toAlice := func(d datagram) bool {
		return ofBob(d) && (d.dst.Addr() == alicePublic || len(d.payload) > 0 && d.payload[0] == 7)
	}
	earlier := l.capture(t, "b1")
	within(t, 10*time.Second, "her frames are captured", func() bool { return len(earlier.matching(ofBob)) > 100 })
	bob.pilot(t, "trust", "revoke", "alice")
	c := l.capture(t, "b1") // from the moment that revoke has returned
	before := got.n.Load()
	select {
	case err := <-ended:
		if err == nil {
			t.Error("the download came to its end")
		}
		t.Logf("the download under way ended with %v", err)
	case <-time.After(15 * time.Second):
		t.Error("the download under way still hangs")
		curl.Process.Kill()
		<-ended
	}
	t.Logf("after revoke had returned curl wrote %d bytes more, out of alice's own socket buffer", got.n.Load()-before)

	if o := alice.run(t, "curl", "-sS", "-m", "3", bobURL); o.status == 0 {
		t.Error("curl still works")
	} else {
		t.Log(o)
	}
	// Nor by the number, past the names.
	if o := alice.run(t, "curl", "-sS", "-m", "3", "http://"+bob.reach(t, "8080")+"/"); o.status == 0 {
		t.Error("curl still works")
	}
	alice.refused(t, 4, []string{`no peer "bob"`, "hint: "}, "ping", "bob", "-c", "1")

	// The notice was sent before; at most it is still on its way through the card.
	if n := c.matching(toAlice); len(n) > 1 {
		t.Errorf("bob sent %d frames to alice after revoke had returned", len(n))
	}
	// What she sent then, sent now, is met with silence.
	quiet := len(c.matching(toAlice))
	refused := refusedFrames(t, bob)
	knocking := l.dial(t, "b2", "udp", l.address(t, "b1")+":"+itoa(int(bobPort)))
	var knocks uint64
	for _, d := range earlier.matching(func(d datagram) bool { return d.src.Addr() == alicePublic && d.dst.Port() == bobPort }) {
		if len(d.payload) > 1500 || knocks == 100 {
			continue // a run, or enough
		}
		if _, err := knocking.Write(d.payload); err != nil {
			t.Fatal(err)
		}
		knocks++
	}
	within(t, 5*time.Second, "bob refused her "+itoa(int(knocks))+" frames", func() bool { return knocks > 0 && refusedFrames(t, bob) >= refused+knocks })
	if n := c.matching(toAlice); len(n) != quiet {
		t.Errorf("bob sent %d frames to alice after the notice", len(n)-quiet)
	}
	prober := netip.MustParseAddrPort(knocking.LocalAddr().String())
	if n := c.matching(func(d datagram) bool { return d.dst == prober }); len(n) > 0 {
		t.Errorf("bob answered %d frames of a revoked peer", len(n))
	}
	for _, a := range []*agent{alice, bob} {
		if s := a.pilot(t, "peers"); strings.Contains(s, "0:0000") {
			t.Errorf("%s still lists a peer: %s", a.name, s)
		}
	}
}
