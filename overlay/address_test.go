package overlay

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/natt/natlab"
)

// All addresses of a server's name are tried: the second one a moment after the first,
// without leaving UDP, and another one when that in use dies.
func TestServerAddresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorldWith(t, true)
		defer w.close()
		alice, bob := w.agent("alice", natlab.Sym), w.agent("bob", natlab.Sym)
		w.befriend(alice, bob, "7", "7")
		alice.stop()
		dead := netip.MustParseAddr("2001:db8::dead")
		alice.cfg.Underlay = namingUnderlay{labUnderlay{alice.host}, map[string][]netip.Addr{
			"server": {dead, netip.MustParseAddr("192.0.2.99"), w.second.Addr(), w.server.Addr()},
		}}
		named := w.serverRef()
		named.Host = "server"
		alice.cfg.Servers = []crypto.Server{named}
		start := time.Now()
		alice.start()
		alice.via("udp")
		t.Logf("registered at the third address after %v", time.Since(start))
		if took := time.Since(start); took > 600*time.Millisecond {
			t.Errorf("registered after %v", took)
		}
		if r := stream(bob, alice, 200, 5*time.Millisecond); r.lost != 0 || r.twice != 0 {
			t.Errorf("%+v", r)
		}
		used := func() (at netip.Addr) {
			alice.call(func(instant) {
				p, _ := alice.loop.servers[0].host.at()
				at = p.Remote.Addr()
			})
			return at
		}
		first := used()
		other := w.server
		if first == w.server.Addr() {
			other = w.second
		} else if first != w.second.Addr() {
			t.Fatalf("uses %v", first)
		}
		for _, pair := range [][2]*agent{{alice, bob}, {bob, alice}} {
			done := make(chan result)
			go func() { done <- stream(pair[0], pair[1], 1000, 5*time.Millisecond) }()
			pass(time.Second)
			w.net.Filter(func(from, to netip.AddrPort, _ []byte) bool { return to.Addr() != first && from.Addr() != first })
			r := <-done
			t.Logf("%s to %s: %v dies: %+v, now at %v", pair[0].cfg.Name, pair[1].cfg.Name, first, r, used())
			if r.gap > 3*time.Second || r.twice != 0 {
				t.Errorf("%+v", r)
			}
			if used() != other.Addr() || alice.Status().Servers[0].Via != "udp" {
				t.Errorf("uses %v by %s", used(), alice.Status().Servers[0].Via)
			}
			first, other = other.Addr(), map[bool]*natlab.Host{true: w.server, false: w.second}[other == w.second]
			w.net.Filter(nil)
			pass(10 * time.Second)
		}
	})
}
