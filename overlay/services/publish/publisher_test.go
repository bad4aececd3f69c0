package publish

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/overlay/services/servicetest"
)

func TestTargets(t *testing.T) {
	for _, c := range []struct {
		kind     Kind
		in, want string
	}{
		{TCP, "8080", "localhost:8080"}, {TCP, "localhost:8080", "localhost:8080"}, {TCP, "127.0.0.1:80", "127.0.0.1:80"},
		{TCP, "[::1]:80", "[::1]:80"}, {TCP, ":80", "localhost:80"}, {TCP, "127.0.0.2:80", "127.0.0.2:80"}, {TCP, "[::ffff:127.0.0.1]:80", "127.0.0.1:80"},
		{HTTP, "http://localhost:3000", "localhost:3000"}, {HTTP, "http://127.0.0.1:3000/", "127.0.0.1:3000"},
		{TCP, "http://localhost:3000", ""}, {HTTP, "https://localhost:3000", ""}, {HTTP, "http://localhost:3000/mcp", ""}, {HTTP, "http://localhost", ""},
		{HTTP, "192.168.1.1:80", ""}, {HTTP, "0.0.0.0:80", ""}, {HTTP, "[::]:80", ""}, {HTTP, "example.org:80", ""}, {HTTP, "0", ""}, {HTTP, "65536", ""},
		{HTTP, "", ""}, {HTTP, "80x", ""}, {HTTP, "a@localhost:80", ""}, {"ftp", "80", ""},
	} {
		r, err := Rule{Kind: c.kind, Target: c.in}.Check()
		if (err != nil) != (c.want == "") || err == nil && r.Target != c.want {
			t.Errorf("%s %q: %q, %v", c.kind, c.in, r.Target, err)
		}
		if err == nil {
			if again, err := r.Check(); err != nil || !again.equal(r) {
				t.Errorf("%s %q: not canonical: %v, %v", c.kind, c.in, again, err)
			}
		}
	}
}

func TestAllow(t *testing.T) {
	d := newDesk(t)
	port := listen(t, "127.0.0.1:0", func(c *net.TCPConn) { io.WriteString(c, "hello"); io.Copy(io.Discard, c) })
	rule := Rule{Kind: TCP, Port: 5000, Target: itoa(port)}
	d.publish(rule)
	for _, who := range []string{"alice", "bob", "self"} {
		if s, err := d.Answer(who, 5000, 5); s != "hello" {
			t.Errorf("%s: %q, %v", who, s, err)
		}
	}
	if s, _ := d.Answer("mallory", 5000, 5); s != "" {
		t.Errorf("mallory: %q", s)
	}
	bob := d.MustDial("bob", "tcp", 5000)
	if _, err := io.ReadFull(bob, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	rule.Allow = []crypto.Fingerprint{servicetest.Agent("alice").Fingerprint}
	d.publish(rule)
	if _, err := bob.Read(make([]byte, 1)); err == nil {
		t.Error("bob's connection is still served")
	}
	for who, want := range map[string]string{"alice": "hello", "bob": "", "self": "hello"} {
		if s, err := d.Answer(who, 5000, 5); s != want {
			t.Errorf("%s: %q, %v", who, s, err)
		}
	}
	if len(d.saved) != 1 || !slices.Equal(d.saved[0].Allow, rule.Allow) {
		t.Errorf("saved: %v", d.saved)
	}
}

func TestAddAndRemove(t *testing.T) {
	d := newDesk(t)
	d.publish(Rule{Kind: TCP, Target: "9000"})
	d.publish(Rule{Kind: HTTP, Target: "9000", Port: 80})
	if _, err := d.Add(t.Context(), Rule{Kind: TCP, Target: "9001", Port: 9000}); !errors.Is(err, ErrConflict) {
		t.Errorf("another target: %v", err)
	}
	d.publish(Rule{Kind: TCP, Target: "localhost:9000"}) // the same again
	var ports []uint16
	for _, s := range d.List() {
		ports = append(ports, s.Port)
		if s.Err != nil {
			t.Errorf("port %d: %v", s.Port, s.Err)
		}
	}
	if !slices.Equal(ports, []uint16{80, 9000}) || len(d.saved) != 2 {
		t.Errorf("%v, saved %v", ports, d.saved)
	}
	if _, err := d.Remove(t.Context(), 81); !errors.Is(err, ErrNotFound) {
		t.Errorf("remove: %v", err)
	}
	if r, err := d.Remove(t.Context(), 80); err != nil || r.Kind != HTTP {
		t.Errorf("remove: %v, %v", r, err)
	}
	if len(d.saved) != 1 || len(d.List()) != 1 {
		t.Errorf("saved %v, list %v", d.saved, d.List())
	}
}

// What cannot be made durable is not done.
func TestSavingFails(t *testing.T) {
	d := newDesk(t)
	d.publish(Rule{Kind: TCP, Target: "9000"})
	d.fail = errors.New("disk full")
	if _, err := d.Add(t.Context(), Rule{Kind: TCP, Target: "9001"}); err == nil || len(d.List()) != 1 {
		t.Errorf("%v, %v", err, d.List())
	}
	if _, err := d.Remove(t.Context(), 9000); err == nil || len(d.List()) != 1 {
		t.Errorf("%v, %v", err, d.List())
	}
	if _, err := d.Add(t.Context(), Rule{Kind: TCP, Target: "9000", Allow: []crypto.Fingerprint{{1}}}); err == nil || len(d.List()[0].Allow) != 0 {
		t.Errorf("%v, %v", err, d.List())
	}
}

func TestTakenPort(t *testing.T) {
	d := newDesk(t)
	l, err := d.Lab.Listen(t.Context(), 8080)
	if err != nil {
		t.Fatal(err)
	}
	_, err = d.Add(t.Context(), Rule{Kind: HTTP, Target: "8080"})
	taken := new(TakenError)
	if !errors.As(err, &taken) || taken.Free != 8081 || len(d.List()) != 0 {
		t.Fatalf("%v", err)
	}
	l.Close()
	d.publish(Rule{Kind: HTTP, Target: "8080"})
}

// A stored rule whose port is taken waits for it.
func TestWaitsForPort(t *testing.T) {
	d := newDesk(t)
	l, err := d.Lab.Listen(t.Context(), 8080)
	if err != nil {
		t.Fatal(err)
	}
	p := New(Config{Own: own, Rules: []Rule{{Kind: HTTP, Target: "8080"}, {Kind: "old", Target: "x"}}})
	d.Start(p)
	<-p.ready
	if s := p.List(); len(s) != 1 || s[0].Err == nil {
		t.Fatalf("%v", s)
	}
	l.Close()
	p.mu.Lock()
	p.openWaiting() // as its ticker does
	p.mu.Unlock()
	if s := p.List(); s[0].Err != nil {
		t.Errorf("%v", s)
	}
}

func TestOwner(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("needs /proc")
	}
	port := listen(t, "127.0.0.1:0", func(*net.TCPConn) {})
	if s := owner(port); !strings.HasPrefix(s, fmt.Sprintf("pilotctl itself (process %d) listens on port", os.Getpid())) {
		t.Errorf("%q", s)
	}
	if s := owner(closedPort(t)); s != "" {
		t.Errorf("%q", s)
	}
}
