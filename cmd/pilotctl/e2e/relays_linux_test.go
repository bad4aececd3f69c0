package e2e_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pilotnet/pilot/overlay"
)

// secondServer starts one on rdv2, which knows nothing of the one on rdv.
func (l *lab) secondServer(t *testing.T) *server {
	t.Helper()
	s := &server{lab: l, state: filepath.Join(l.dir, "server2")}
	key := strings.TrimSpace(l.output(t, "rdv2", "pilotctl", "server", "key", "--state-dir", s.state))
	s.name = "192.0.2.138#" + key
	s.cmd = l.on(t.Context(), "rdv2", "pilotctl", "server", "run", "--listen", "192.0.2.138:3478", "--state-dir", s.state)
	l.ready(t, s.cmd)
	return s
}

// upAt brings an agent up with several servers, and waits until all know it.
func (a *agent) upAt(t *testing.T, servers ...*server) {
	t.Helper()
	args := []string{"up", "--name", a.name}
	for _, s := range servers {
		args = append(args, "--server", s.name)
	}
	a.pilot(t, args...)
	within(t, 10*time.Second, a.name+" is known to all its servers", func() bool {
		list := a.status(t).Servers
		return len(list) == len(servers) && !slices.ContainsFunc(list, func(s overlay.ServerStatus) bool {
			return s.State != "registered" || !s.Claimed
		})
	})
}

// TestRelayDies: the server that relays between two agents behind symmetric NATs is
// killed under traffic; the other server carries on within a second. A pair that is
// direct does not notice.
func TestRelayDies(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"sym", "port"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, kind, kind)
			first, second := l.server(t), l.secondServer(t)
			alice, bob := l.agent(t, "a1", "alice"), l.agent(t, "b1", "bob")
			alice.upAt(t, first, second)
			bob.upAt(t, first, second)
			trust(t, alice, bob, "7000", "--offer", "7000")
			if kind != "sym" {
				direct(t, alice, bob)
			}
			hosts := map[string]*server{"192.0.2.10": first, "192.0.2.138": second}
			f := flow(t, alice, bob, 2*time.Millisecond, 6*time.Second, func() {
				p := alice.peer(t, "bob")
				host, _, _ := strings.Cut(p.Endpoint, ":")
				t.Logf("path %s, %s", p.Path, p.Endpoint)
				died := hosts[host]
				if died == nil {
					died = first
				}
				if (p.Path == "relay") != (kind == "sym") {
					t.Errorf("path %s: %s", p.Path, p.WhyNot)
				}
				died.kill(t)
			})
			t.Logf("a server is killed: %v", f)
			switch {
			case kind == "sym" && f.gap > time.Second:
				t.Error("too long")
			case kind != "sym" && f.lost*1000 > f.sent:
				t.Error("too many lost, though the path is direct")
			}
			within(t, 30*time.Second, "status says which server is away", func() bool {
				return slices.ContainsFunc(alice.status(t).Servers, func(s overlay.ServerStatus) bool { return s.State != "registered" && s.Error != "" })
			})
			t.Log(alice.pilot(t, "status"))
		})
	}
}

// TestIdleCost: an idle agent with two servers sends few packets, counted on its
// network card by nftables, and a call that comes in after a while is answered at once
// although its NAT forgets in 30 s.
func TestIdleCost(t *testing.T) {
	t.Parallel()
	l := newLab(t, "port+t30", "linux")
	first, second := l.server(t), l.secondServer(t)
	alice, bob := l.agent(t, "a1", "alice"), l.agent(t, "b1", "bob")
	alice.upAt(t, first, second)
	bob.upAt(t, first, second)
	trust(t, bob, alice, "7")
	wait := time.NewTimer(20 * time.Second) // until what trust made is over
	defer wait.Stop()
	<-wait.C
	l.output(t, "a1", "nft", "add table inet idle; add chain inet idle out { type filter hook output priority 0; }; "+
		"add rule inet idle out meta l4proto udp ip daddr 192.0.2.0/24 counter")
	minutes := 1 // virtual time has hours of it: TestIdle in overlay
	if os.Getenv("PILOT_LONG") == "1" {
		minutes = 10
	}
	wait.Reset(time.Duration(minutes) * time.Minute)
	<-wait.C
	out := l.output(t, "a1", "nft", "list table inet idle")
	packets := counted(t, out, "packets ")
	t.Logf("%d packets in %d minutes; %s", packets, minutes, alice.pilot(t, "netcheck"))
	if packets == 0 || packets > 15*minutes {
		t.Errorf("%d packets in %d minutes", packets, minutes)
	}
	c := bob.command(t.Context(), "pilotctl", "ping", "alice", "-c", "1", "--json")
	o := finish(t, c)
	t.Logf("first ping: %s", o)
	if o.status != 0 || o.took > 2*time.Second {
		t.Errorf("%v: %s", o.took, o)
	}
}

// counted finds the one that follows a word.
func counted(t *testing.T, text, word string) (n int) {
	t.Helper()
	_, rest, ok := strings.Cut(text, word)
	if !ok {
		t.Fatalf("no %q in %q", word, text)
	}
	for _, c := range []byte(rest) {
		if c < '0' || c > '9' {
			break
		}
		n = 10*n + int(c-'0')
	}
	return n
}
