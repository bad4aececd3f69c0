package e2e_test

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"
)

// smallBuffers keeps a kernel from reading ahead of curl by tens of megabytes.
const smallBuffers = "echo 4096 131072 1048576 >/proc/sys/net/ipv4/tcp_rmem"

// TestNetworkChanges: a download and a connection without traffic survive that
// alice's public address changes and that bob's router forgets everything.
func TestNetworkChanges(t *testing.T) {
	t.Parallel()
	length := 15
	if os.Getenv("PILOT_LONG") == "1" {
		length = 30
	}
	l := newLab(t, "port", "linux")
	s := l.server(t)
	alice, bob := l.agent(t, "a1", "alice"), l.agent(t, "b1", "bob")
	alice.up(t, s)
	bob.up(t, s)
	trust(t, alice, bob, "7000-7001,8080")
	direct(t, alice, bob)
	l.output(t, "a1", "sh", "-c", smallBuffers)
	size := length * 4
	site := l.website(t, "b1", "[::]:8080", size)
	idle := idleConnection(t, l, bob)
	clock := beats(t, l, bob)

	curl := alice.command(t.Context(), "curl", "-sS", "-N", "--limit-rate", "4M", "-m", "90", fmt.Sprintf("%s%d", bobURL, size))
	h := sha256.New()
	var errs strings.Builder
	curl.Stdout, curl.Stderr = h, &errs
	begin := time.Now()
	if err := curl.Start(); err != nil {
		t.Fatal(err)
	}
	third := time.NewTicker(time.Duration(length) * time.Second / 3)
	defer third.Stop()
	for _, event := range [][]string{{"change-ip", "a"}, {"flush", "b"}} {
		<-third.C
		l.do(t, event...)
		p := alice.peer(t, "bob")
		t.Logf("%s after %v; path %s, %d bytes received", event, time.Since(begin).Round(time.Millisecond), p.Path, p.RxBytes)
	}
	during := alice.peer(t, "bob").RxBytes
	if err := curl.Wait(); err != nil {
		t.Fatalf("curl: %v: %s", err, &errs)
	}
	t.Logf("%d MiB in %v", size, time.Since(begin).Round(time.Millisecond))
	if got := hex.EncodeToString(h.Sum(nil)); got != site.sums[size] {
		t.Errorf("SHA-256 is %s, sent was %s", got, site.sums[size])
	}
	if rest := alice.peer(t, "bob").RxBytes - during; rest < mebibyte {
		t.Errorf("only %d bytes came after the last event: the download did not need to survive it", rest)
	}
	longest := clock()
	t.Logf("longest stall of the path: %v", longest.Round(time.Millisecond))
	// Usually it is a fraction of a second; but TCP doubles its pauses, and other
	// tests take the processors away.
	if longest > 20*time.Second {
		t.Error("too long")
	}
	idle()
	direct(t, alice, bob)
}

// beats lets bob send alice a byte every 20 ms over a connection of its own. The
// returned function ends it and tells the longest time without one, which curl,
// that reads in large bites, does not show.
func beats(t *testing.T, l *lab, bob *agent) func() time.Duration {
	t.Helper()
	n := l.listen(t, "b1", "[::]:7001")
	go func() {
		c, err := n.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for range tick.C {
			if _, err := c.Write([]byte{0}); err != nil {
				return
			}
		}
	}()
	c := l.dial(t, "a1", "tcp", bob.reach(t, "7001"))
	longest := make(chan time.Duration, 1)
	go func() {
		var most time.Duration
		last := time.Now()
		for buf := make([]byte, 4096); ; {
			_, err := c.Read(buf)
			now := time.Now()
			most, last = max(most, now.Sub(last)), now
			if err != nil {
				longest <- most
				return
			}
		}
	}()
	return func() time.Duration {
		c.Close()
		return <-longest
	}
}

// idleConnection opens a connection from alice to bob, and returns a check that
// it still carries a line each way.
func idleConnection(t *testing.T, l *lab, bob *agent) func() {
	t.Helper()
	n := l.listen(t, "b1", "[::]:7000")
	go func() {
		c, err := n.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		io.Copy(c, c)
	}()
	c := l.dial(t, "a1", "tcp", bob.reach(t, "7000"))
	r := bufio.NewReader(c)
	line := func(text string) {
		t.Helper()
		c.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := io.WriteString(c, text); err != nil {
			t.Fatal(err)
		}
		if got, err := r.ReadString('\n'); err != nil || got != text {
			t.Fatalf("got %q, %v", got, err)
		}
	}
	line("before\n")
	return func() {
		t.Helper()
		line("after\n")
	}
}
