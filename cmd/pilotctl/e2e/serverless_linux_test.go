package e2e_test

import (
	"encoding/binary"
	"net"
	"strings"
	"testing"
	"time"
)

// registered reports whether the agent's only server knows it, and since when it
// is the server that runs now.
func registered(t *testing.T, a *agent) bool {
	t.Helper()
	s := a.status(t).Servers
	return len(s) == 1 && s[0].State == "registered"
}

// sessions is the number of agents that the server knows.
func (s *server) sessions(t *testing.T) string {
	t.Helper()
	out, err := s.lab.on(t.Context(), "rdv", "curl", "-sS", "-m", "2", "http://"+serverMetrics+"/metrics").Output()
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(out)) {
		if n, ok := strings.CutPrefix(line, "pilot_server_sessions "); ok {
			return strings.TrimSpace(n)
		}
	}
	return ""
}

// TestServerLoss: agents work on while their server is away, start without it,
// and are back by themselves when it is.
func TestServerLoss(t *testing.T) {
	t.Parallel()
	l := newLab(t, "full", "full")
	s := l.server(t)
	alice, bob := l.agent(t, "a1", "alice"), l.agent(t, "b1", "bob")
	alice.up(t, s)
	bob.up(t, s)
	trust(t, alice, bob, "5000/udp,8080")
	direct(t, alice, bob)
	l.website(t, "b1", "[::]:8080")

	t.Run("restart", func(t *testing.T) {
		lost := numbered(t, l, bob)
		s.kill(t)
		s.start(t)
		within(t, 5*time.Second, "both agents are back", func() bool { return s.sessions(t) == "2" })
		// In virtual time none is (overlay, TestServerRestart). Here sockets may
		// overflow while other tests have the processors.
		if n := lost(); n > packets/20 {
			t.Errorf("%d of %d packets were lost", n, packets)
		} else {
			t.Logf("%d of %d packets were lost", n, packets)
		}
	})
	t.Run("start without server", func(t *testing.T) {
		s.kill(t)
		port := alice.status(t).Socket.Port
		alice.pilot(t, "down")
		o := alice.run(t, "pilotctl", "up", "--wait", "3s")
		wantRefusal(t, o, 6, "alice is up", "192.0.2.10 connecting: ", "no answer", alice.state+"/daemon.log")
		if got := alice.status(t).Socket.Port; got != port {
			t.Errorf("port %d, was %d", got, port)
		}
		if o := alice.run(t, "curl", "-sS", "-m", "10", bobURL); o.stdout != page {
			t.Errorf("bob cannot be reached by his last endpoint: %s", o)
		}
		if p := alice.peer(t, "bob"); p.Path != "direct" {
			t.Errorf("path %s", p.Path)
		}
		s.start(t)
		within(t, 10*time.Second, "alice has registered", func() bool { return registered(t, alice) && s.sessions(t) == "2" })
	})
}

const packets = 10_000

// numbered sends numbered packets from alice to bob; what it returns waits for the
// last and tells how many did not arrive.
func numbered(t *testing.T, l *lab, bob *agent) func() int {
	t.Helper()
	sink := l.listenUDP(t, "b1", "[::]:5000")
	if err := sink.SetReadBuffer(4 << 20); err != nil {
		t.Fatal(err)
	}
	source := l.dial(t, "a1", "udp", bob.reach(t, "5000"))
	sent := make(chan error, 1)
	go func() { sent <- sendNumbered(source) }()
	missing := make(chan int, 1)
	go func() {
		seen := make([]bool, packets)
		count := 0
		for buf := make([]byte, 2048); count < packets; {
			n, _, err := sink.ReadFrom(buf)
			if err != nil {
				break
			}
			if i := int(binary.BigEndian.Uint32(buf)); n == 200 && i < packets && !seen[i] {
				seen[i] = true
				count++
			}
		}
		missing <- packets - count
	}()
	return func() int {
		t.Helper()
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
		sink.SetReadDeadline(time.Now().Add(3 * time.Second))
		return <-missing
	}
}

// sendNumbered takes five seconds.
func sendNumbered(c net.Conn) error {
	pace := time.NewTicker(5 * time.Millisecond)
	defer pace.Stop()
	b := make([]byte, 200)
	for i := range packets {
		binary.BigEndian.PutUint32(b, uint32(i))
		if _, err := c.Write(b); err != nil {
			return err
		}
		if i%10 == 9 {
			<-pace.C
		}
	}
	return nil
}
