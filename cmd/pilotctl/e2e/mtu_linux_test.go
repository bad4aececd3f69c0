package e2e_test

import (
	"bytes"
	"net"
	"os"
	"testing"
	"time"
)

// TestHostilePathMTU: links that carry less than an Ethernet's 1,500 bytes, whose
// routers do not say so, do not keep anything from arriving: 10 MiB by curl, and a
// UDP datagram of 2,000 bytes there and back, directly and by relay. PILOT_HOSTILE=1
// adds the larger of the two sizes.
func TestHostilePathMTU(t *testing.T) {
	t.Parallel()
	sizes := []string{"1280"}
	if os.Getenv("PILOT_HOSTILE") != "" {
		sizes = append(sizes, "1400")
	}
	for _, mtu := range sizes {
		narrow := "+mtu" + mtu + "+noicmp"
		t.Run(mtu, func(t *testing.T) {
			t.Parallel()
			testNarrow(t, narrow)
		})
	}
}

func testNarrow(t *testing.T, narrow string) {
	l := newLab(t, "port"+narrow, "linux"+narrow)
	s := l.server(t)
	alice, bob := l.agent(t, "a1", "alice"), l.agent(t, "b1", "bob")
	alice.up(t, s)
	bob.up(t, s)
	trust(t, alice, bob, "7,8080")
	site := l.website(t, "b1", "[::]:8080", 10)
	direct(t, alice, bob)
	for _, path := range []string{"direct", "relay"} {
		if path == "relay" {
			l.do(t, "cut", "a-b:udp")
			within(t, 20*time.Second, "they talk by relay", func() bool {
				return alice.run(t, "pilotctl", "ping", "bob", "-c", "1").status == 0 && alice.peer(t, "bob").Path == "relay"
			})
		}
		site.download(t, alice, bobURL, 10)
		echoLarge(t, alice, bob)
		if p := alice.peer(t, "bob"); p.Path != path || p.Budget == 0 {
			t.Errorf("the path is %+v, want %s", p, path)
		} else {
			t.Logf("%s: frames of at most %d bytes", path, p.Budget)
		}
	}
}

// echoLarge sends bob's echo service datagrams that no link carries whole.
func echoLarge(t *testing.T, alice, bob *agent) {
	t.Helper()
	c := alice.lab.dial(t, alice.host, "udp", bob.reach(t, "7"))
	sent := bytes.Repeat([]byte("Pilot carries this. "), 100)
	got := make([]byte, 4000)
	for try := range 5 { // UDP may be lost
		if _, err := c.Write(sent); err != nil {
			t.Fatal(err)
		}
		if err := c.SetReadDeadline(time.Now().Add(2 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, err := c.Read(got)
		if e, ok := err.(net.Error); ok && e.Timeout() {
			t.Logf("try %d: no answer", try+1)
			continue
		}
		if err != nil || !bytes.Equal(got[:n], sent) {
			t.Fatalf("%d bytes, %v; sent %d", n, err, len(sent))
		}
		return
	}
	t.Errorf("a datagram of %d bytes does not arrive", len(sent))
}
