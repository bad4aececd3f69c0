package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"
)

// echoOn makes pilotctl's connections end at an echo server, and notes where
// they were meant to go.
func echoOn(t *testing.T, d *desk) (asked *[]string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); io.Copy(c, c) }()
		}
	}()
	asked = new([]string)
	d.dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		*asked = append(*asked, network+" "+address)
		return new(net.Dialer).DialContext(ctx, network, l.Addr().String())
	}
	return asked
}

func (d *desk) letEcho() { d.agent.Me.Peers[0].Out = "7,80,8080/tcp" }

func TestBench(t *testing.T) {
	d := newDesk(t)
	d.letEcho()
	d.agent.DirectAt = 1
	asked := echoOn(t, d)
	stdout, stderr, status := d.call(t.Context(), "", "bench", "bob", "--time", "300ms", "--streams", "2", "--json")
	if status != 0 || stderr != "" {
		t.Fatalf("exit %d: %s", status, stderr)
	}
	var got struct{ Data benchResult }
	if err := json.Unmarshal([]byte(stdout), &got); err != nil {
		t.Fatal(err)
	}
	r := got.Data
	if r.Peer != "bob" || r.Path != "direct" || r.Streams != 2 || r.Seconds < 0.3 || r.Up < r.Down || r.Down < 1 || r.Down > 1e6 ||
		r.Idle.Sent != benchPings || r.Idle.Received != benchPings || r.Loaded.Received < 2 || r.Idle.Median <= 0 || r.Idle.Worst < r.Idle.Median {
		t.Errorf("%+v", r)
	}
	if want := "tcp [fd50:494c:4f54::200]:7"; len(*asked) != 2 || (*asked)[0] != want {
		t.Errorf("connected to %q, want %s", *asked, want)
	}
	stdout, _, status = d.call(t.Context(), "", "bench", "bob", "--time", "100ms")
	for _, want := range []string{"bob, direct path by ", "  to it ", "  from it ", "  at rest ", "  under load ", "bit/s\n"} {
		if !strings.Contains(stdout, want) {
			t.Errorf("exit %d: no %q in\n%s", status, want, stdout)
		}
	}
}

func TestBenchEchoOff(t *testing.T) {
	d := newDesk(t)
	d.letEcho()
	for _, c := range []struct {
		err  error
		hint string
	}{
		{fmt.Errorf("dial: %w", syscall.ECONNREFUSED), "switched the service off"},
		{errors.New("no way"), "pilotctl status --drops"},
	} {
		d.dial = func(context.Context, string, string) (net.Conn, error) { return nil, c.err }
		_, stderr, status := d.call(t.Context(), "", "bench", "bob")
		if status != 6 || !strings.Contains(stderr, "not its echo service") || !strings.Contains(stderr, c.hint) {
			t.Errorf("exit %d: %s", status, stderr)
		}
	}
}

// A peer that vanishes has no throughput.
func TestBenchSilent(t *testing.T) {
	d := newDesk(t)
	d.letEcho()
	d.agent.SilentAt = benchPings + 1
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	gone := make(chan struct{})
	defer close(gone)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		io.CopyN(c, c, 1<<20)
		<-gone
	}()
	d.dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, l.Addr().String())
	}
	stdout, stderr, status := d.call(t.Context(), "", "bench", "bob", "--time", "1500ms")
	if status != 6 || stdout != "" || !strings.Contains(stderr, "bob stopped answering after ") || !strings.Contains(stderr, "hint: pilotctl ping bob") {
		t.Errorf("exit %d: %q %q", status, stdout, stderr)
	}
}

// iperf3 takes a number of seconds; we say what to write.
func TestBenchTime(t *testing.T) {
	d := newDesk(t)
	for _, bad := range []string{"1", "0s", "x", "-5s", ""} {
		_, stderr, status := d.call(t.Context(), "", "bench", "bob", "-t", bad)
		if status != 2 || !strings.Contains(stderr, "hint: write it as ") {
			t.Errorf("-t %q: exit %d: %s", bad, status, stderr)
		}
	}
	if _, stderr, status := d.call(t.Context(), "", "bench", "bob", "--time", "2h"); status != 2 || !strings.Contains(stderr, "100ms to 1m") {
		t.Errorf("exit %d: %s", status, stderr)
	}
}

func TestBenchInterrupted(t *testing.T) {
	d := newDesk(t)
	d.letEcho()
	echoOn(t, d)
	ctx, cancel := context.WithTimeout(t.Context(), 700*time.Millisecond)
	defer cancel()
	_, stderr, status := d.call(ctx, "", "bench", "bob", "--time", "1m")
	if status != exitInterrupted || !strings.Contains(stderr, "interrupted") {
		t.Errorf("exit %d: %s", status, stderr)
	}
}

func TestBenchTexts(t *testing.T) {
	r := benchResult{Peer: "bob", Path: "relay", Endpoint: "203.0.113.9:3478", Up: 93.25, Down: 1234,
		Idle: benchLatency{20, 20, 12.3, 15}, Loaded: benchLatency{10, 8, 80, 300}}
	var b bytes.Buffer
	r.text(&b)
	want := "bob, relay path by 203.0.113.9:3478\n  to it        93.2 Mbit/s\n  from it      1.23 Gbit/s\n" +
		"  at rest      12.3 ms median, 15.0 ms worst\n  under load   80.0 ms median, 300.0 ms worst, 2 of 10 lost\n"
	if b.String() != want {
		t.Errorf("got\n%s want\n%s", &b, want)
	}
	if got := (benchLatency{Sent: 3}).text(); got != "no answer to 3 pings" {
		t.Error(got)
	}
}
