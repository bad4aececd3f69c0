package e2e_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestEvents: the event service as pilotctl, mosquitto and curl see it, by name.
func TestEvents(t *testing.T) {
	t.Parallel()
	l := newLab(t, "port", "linux")
	s := l.server(t)
	alice, bob, carol := l.agent(t, "a1", "alice"), l.agent(t, "b1", "bob"), l.agent(t, "a2", "carol")
	for _, a := range []*agent{alice, bob, carol} {
		a.up(t, s)
	}
	trust(t, alice, bob, "7,1002")
	trust(t, carol, bob, "7")

	t.Run("pilotctl", func(t *testing.T) {
		bob.pilot(t, "pub", "public/state", "on", "--retain")
		bob.pilot(t, "pub", "secret/state", "on", "--retain")
		if out := alice.pilot(t, "sub", "bob:public/#", "-n", "1", "--wait", "20s"); out != "public/state  on\n" {
			t.Errorf("%q", out)
		}
		if out := alice.pilot(t, "sub", "bob:public/+", "-n", "1", "--json"); !strings.Contains(out, `"data":{"topic":"public/state","payload":"on","retained":true}`) {
			t.Errorf("%q", out)
		}
		alice.refused(t, 5, []string{"refuses the filter", "--allow"}, "sub", "bob:#")
		alice.refused(t, 5, []string{"below peer/alice/"}, "pub", "bob:public/x", "hello")
		alice.refused(t, 6, []string{"no event came within"}, "sub", "bob:public/none", "--wait", "200ms")
		bob.pilot(t, "events", "--allow", "alice=secret/#")
		if out := alice.pilot(t, "sub", "bob:secret/state", "-n", "1"); out != "secret/state  on\n" {
			t.Errorf("%q", out)
		}
		bob.pilot(t, "events", "--forbid", "alice=secret/#")
		alice.refused(t, 5, []string{"refuses the filter"}, "sub", "bob:secret/state")
		if out := bob.pilot(t, "events"); !strings.Contains(out, "public/#") || strings.Contains(out, "secret") {
			t.Errorf("%s", out)
		}
	})
	t.Run("outside the scope", func(t *testing.T) {
		carol.refused(t, 5, []string{"does not let this agent reach its events"}, "sub", "bob:public/#")
		if o := carol.run(t, "curl", "-sS", "-m", "3", "http://bob.pilot.internal:1002/"); o.status == 0 {
			t.Errorf("%s", o)
		}
	})
	t.Run("mosquitto", func(t *testing.T) {
		needTool(t, "mosquitto_sub", "mosquitto-clients")
		for _, version := range []string{"5", "mqttv311"} {
			if o := alice.run(t, "mosquitto_sub", "-h", "bob.pilot.internal", "-p", "1002", "-V", version, "-q", "1", "-t", "public/#", "-C", "1", "-W", "20", "-v"); o.stdout != "public/state on\n" {
				t.Errorf("%s: %s", version, o)
			}
			in := bob.follow(t, "pilotctl", "sub", "peer/alice/#", "--json")
			if o := alice.run(t, "mosquitto_pub", "-h", "bob.pilot.internal", "-p", "1002", "-V", version, "-q", "1", "-t", "peer/alice/log", "-m", "from mosquitto"); o.status != 0 {
				t.Errorf("%s: %s", version, o)
			}
			if line := in.line(t); !strings.Contains(line, `"payload":"from mosquitto"`) {
				t.Errorf("%s: %s", version, line)
			}
			in.stop()
		}
		if o := alice.run(t, "mosquitto_pub", "-h", "bob.pilot.internal", "-p", "1002", "-V", "5", "-q", "1", "-t", "public/log", "-m", "x"); !strings.Contains(o.String(), "uthorized") {
			t.Errorf("published outside its place: %d %s", o.status, o)
		}
		if o := alice.run(t, "mosquitto_sub", "-h", "bob.pilot.internal", "-p", "1002", "-V", "5", "-t", "#", "-W", "5"); !strings.Contains(o.String(), "denied") {
			t.Errorf("subscribed to all: %d %s", o.status, o)
		}
	})
	t.Run("curl", func(t *testing.T) {
		base := "http://bob.pilot.internal:1002/topics/"
		in := alice.follow(t, "curl", "-sSN", "-H", "Accept: text/event-stream", base+"public/%23")
		for !strings.Contains(in.line(t), `"payload":"on"`) {
		}
		bob.pilot(t, "pub", "public/news", "fresh")
		for !strings.Contains(in.line(t), `"payload":"fresh"`) {
		}
		in.stop()
		for want, args := range map[string][]string{
			"200": {"-d", "hello", base + "peer/alice/log"},
			"403": {"-d", "hello", base + "public/log"},
			"413": {"-T", l.noise(t, "huge.bin", 2<<20), base + "peer/alice/log"},
		} {
			if o := alice.run(t, append([]string{"curl", "-sS", "-m", "20", "-o", "/dev/null", "-w", "%{http_code}"}, args...)...); o.stdout != want {
				t.Errorf("curl %v: %s, want %s", args, o, want)
			}
		}
	})
	t.Run("hostile", func(t *testing.T) {
		before := bob.anonymous(t)
		at := bob.reach(t, "1002")
		connect := "\x10\x10\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x03bad"
		for _, more := range []string{"\x82\x06\x00\x01\x00\x00\x01a", "\x30\xff\xff\xff\x7f", "\xf0\x00", connect} {
			c := l.dial(t, "a1", "tcp", at)
			c.SetDeadline(time.Now().Add(20 * time.Second))
			io.WriteString(c, connect+more)
			if b, err := io.ReadAll(c); os.IsTimeout(err) {
				t.Errorf("%q: %q %v", more, b, err)
			}
		}
		held := l.knock(t, "a1", at, 1000, "", "\x10\x10\x00\x04MQ", "\x00\xff garbage", "GET / HT")
		t.Logf("%d of 1000 connections were taken at first", held)
		alice.pilot(t, "ping", "bob", "-c", "1")
		if out := bob.pilot(t, "sub", "public/state", "-n", "1"); out != "public/state  on\n" {
			t.Errorf("%q", out)
		}
		after := bob.anonymous(t)
		t.Logf("anonymous memory of the daemon: %d KiB, then %d KiB", before, after)
		if after > before+64<<10 {
			t.Errorf("the daemon's memory grew from %d to %d KiB", before, after)
		}
	})
	t.Run("switched off", func(t *testing.T) {
		bob.pilot(t, "down")
		bob.pilot(t, "up", "--name", "bob", "--server", s.name, "--services", "echo")
		alice.pilot(t, "ping", "bob", "-c", "1")
		alice.refused(t, 6, []string{"no answer from the events of bob"}, "sub", "bob:public/#")
		bob.refused(t, 4, []string{"switched off"}, "events")
	})
}

// knock opens connections, says one of those things on each and nothing more, until
// the test ends. It returns how many were not refused at once.
func (l *lab) knock(t *testing.T, host, address string, n int, say ...string) (held int) {
	t.Helper()
	l.inside(t, host, func() error {
		for i := range n {
			c, err := net.DialTimeout("tcp", address, 10*time.Second)
			if err != nil {
				continue
			}
			held++
			t.Cleanup(func() { c.Close() })
			io.WriteString(c, say[i%len(say)])
		}
		return nil
	})
	return held
}

// needTool skips a test without a program of others; where CI requires all, that
// is a failure.
func needTool(t *testing.T, tool, pkg string) {
	t.Helper()
	if lookup(tool) != "" {
		return
	}
	if os.Getenv("PILOT_REQUIRE_ROOT") == "1" {
		t.Fatalf("needs %s (package %s), and PILOT_REQUIRE_ROOT=1 forbids to skip", tool, pkg)
	}
	t.Skipf("needs %s (package %s)", tool, pkg)
}

// A follower is a program whose output is read line by line.
type follower struct {
	cmd   *exec.Cmd
	lines chan string
	stop  func()
}

func (a *agent) follow(t *testing.T, args ...string) *follower {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	f := &follower{cmd: a.command(ctx, args...), lines: make(chan string, 1)}
	out, err := f.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	began := make(chan struct{})
	f.cmd.Stderr = &firstWrite{began: began}
	if err := f.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for s := bufio.NewScanner(out); s.Scan(); {
			select {
			case f.lines <- s.Text():
			case <-ctx.Done():
				return
			}
		}
	}()
	f.stop = sync.OnceFunc(func() {
		cancel()
		<-ended
		f.cmd.Wait()
	})
	t.Cleanup(f.stop)
	if args[0] == "pilotctl" { // says when it has subscribed
		select {
		case <-began:
		case <-time.After(20 * time.Second):
			t.Fatalf("%v does not begin", args)
		}
	}
	return f
}

func (f *follower) line(t *testing.T) string {
	t.Helper()
	select {
	case s := <-f.lines:
		return s
	case <-time.After(20 * time.Second):
		t.Fatalf("%v prints nothing", f.cmd.Args)
		return ""
	}
}

// firstWrite closes began with the first thing that is said.
type firstWrite struct {
	once  sync.Once
	began chan struct{}
}

func (w *firstWrite) Write(p []byte) (int, error) {
	w.once.Do(func() { close(w.began) })
	return len(p), nil
}

// anonymous is RssAnon of the daemon, in KiB.
func (a *agent) anonymous(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", a.daemon()))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			n, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(rest), " kB"))
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatal("no RssAnon")
	return 0
}

// TestEventsSurvive: alice publishes numbers at bob's broker, carol reads them in
// a persistent session and is away half of the time, and bob's daemon is killed
// five times. Every number whose acknowledgement alice saw arrives.
func TestEventsSurvive(t *testing.T) {
	t.Parallel()
	const count = 20_000
	l := newLab(t, "port", "linux")
	s := l.server(t)
	alice, bob, carol := l.agent(t, "a1", "alice"), l.agent(t, "b1", "bob"), l.agent(t, "a2", "carol")
	for _, a := range []*agent{alice, bob, carol} {
		a.up(t, s)
	}
	trust(t, alice, bob, "1002")
	trust(t, carol, bob, "1002")
	bob.pilot(t, "events", "--allow", "carol=peer/alice/#")

	reader := &sometimes{agent: carol, seen: map[int]int{}}
	reader.begin(t)
	within(t, 20*time.Second, "carol subscribes", func() bool { return strings.Contains(bob.run(t, "pilotctl", "events").stdout, "peer/alice/n") })

	pub := alice.command(t.Context(), "pilotctl", "pub", "bob:peer/alice/n", "-", "--lines", "--json", "--patience", "3m")
	in, err := pub.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	acks := &ackCounter{}
	var said bytes.Buffer
	pub.Stdout, pub.Stderr = acks, &said
	if err := pub.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer in.Close()
		for i := range count {
			if _, err := fmt.Fprintln(in, i+1); err != nil {
				return
			}
		}
	}()
	begin := time.Now()
	for i := range 5 { // within the fifths of the whole
		at := (i*count + rand.IntN(count)) / 5
		if !poll(t.Context(), 3*time.Minute, func() bool { return acks.count() >= at }) {
			t.Fatalf("%d of %d are acknowledged: %s", acks.count(), at, said.String())
		}
		t.Logf("after %v: %d acknowledged, %d read, bob's daemon is killed", time.Since(begin).Round(time.Millisecond), acks.count(), reader.count())
		bob.kill(t)
		bob.up(t, s)
	}
	if err := pub.Wait(); err != nil {
		t.Fatalf("%v: %s%s", err, acks.rest(), said.String())
	}
	t.Logf("after %v: all %d are acknowledged, %d read", time.Since(begin).Round(time.Millisecond), acks.count(), reader.count())
	if acks.count() != count {
		t.Errorf("%d are acknowledged", acks.count())
	}
	within(t, 2*time.Minute, "all arrive", func() bool { return reader.count() == count })
	reader.end()
	again := 0
	for i := 1; i <= count; i++ {
		n := reader.seen[i]
		if n == 0 {
			t.Errorf("%d was acknowledged and did not arrive", i)
		}
		again += max(n-1, 0)
	}
	t.Logf("carol was there %d times; %d events came more than once", reader.times, again)
}

// An ackCounter counts the answers of pub --lines --json.
type ackCounter struct {
	mu   sync.Mutex
	n    int
	part []byte
}

func (a *ackCounter) Write(p []byte) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.part = append(a.part, p...)
	for {
		line, rest, ok := bytes.Cut(a.part, []byte("\n"))
		if !ok {
			return len(p), nil
		}
		if bytes.Contains(line, []byte(`"ok":true`)) {
			a.n++
		}
		a.part = rest
		if len(rest) == 0 {
			a.part = nil
		}
	}
}

func (a *ackCounter) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.n
}

func (a *ackCounter) rest() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return string(a.part)
}

// Sometimes is a subscriber that is killed and comes back.
type sometimes struct {
	*agent
	stop  context.CancelFunc
	ended chan struct{}
	times int

	mu   sync.Mutex
	seen map[int]int
}

const turn = 700 * time.Millisecond // there, and then away

func (s *sometimes) begin(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	s.stop, s.ended = cancel, make(chan struct{})
	t.Cleanup(s.end)
	first := make(chan struct{})
	go func() {
		defer close(s.ended)
		for ; ctx.Err() == nil; s.times++ {
			s.listen(ctx, s.times == 0, first)
			pause(ctx, turn)
		}
	}()
	<-first
}

func (s *sometimes) end() {
	s.stop()
	<-s.ended
}

// pause waits, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

func (s *sometimes) listen(ctx context.Context, once bool, first chan struct{}) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c := s.command(ctx, "pilotctl", "sub", "bob:peer/alice/n", "--session", "numbers", "--json")
	began := make(chan struct{})
	c.Stderr = &firstWrite{began: began}
	out, err := c.StdoutPipe()
	if err != nil || c.Start() != nil {
		return
	}
	if once {
		close(first)
	}
	go func() { // its time begins when it has subscribed, or failed to
		select {
		case <-began:
			pause(ctx, turn)
		case <-ctx.Done():
		}
		c.Process.Signal(syscall.SIGKILL)
		cancel()
	}()
	s.read(out)
	cancel()
	c.Wait()
}

func (s *sometimes) read(out io.Reader) {
	for lines := bufio.NewScanner(out); lines.Scan(); {
		var e struct {
			OK   bool
			Data struct{ Payload string }
		}
		if json.Unmarshal(lines.Bytes(), &e) != nil || !e.OK {
			continue
		}
		n, err := strconv.Atoi(e.Data.Payload)
		if err != nil {
			continue
		}
		s.mu.Lock()
		s.seen[n]++
		s.mu.Unlock()
	}
}

func (s *sometimes) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.seen)
}
