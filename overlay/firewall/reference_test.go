package firewall_test

import (
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/pilotnet/pilot/overlay/firewall"
	"github.com/pilotnet/pilot/overlay/firewall/firewalltest"
	"github.com/pilotnet/pilot/trust"
)

// The firewall and the slow classifier agree on every generated packet, in both
// directions, while time passes, grants change and the tables overflow. 10^7
// packets with PILOT_HOSTILE=1.
func TestHostileFirewallReference(t *testing.T) {
	packets := 100_000
	if os.Getenv("PILOT_HOSTILE") != "" {
		packets = 10_000_000
	}
	own, peer := ends()
	f := firewall.New(own)
	gen := firewalltest.Generator{Rand: rand.New(rand.NewPCG(7, 7))}
	c := firewalltest.NewReference(f, own, peer)
	pol := &firewall.Policy{}
	now := time.Hour
	var h firewall.Header
	seen := map[firewall.Verdict]int{}
	for i := range packets {
		switch gen.IntN(200) {
		case 0:
			now += time.Duration(gen.IntN(int(40 * time.Second)))
			if gen.IntN(200) == 0 {
				now += time.Duration(gen.IntN(int(3 * time.Hour)))
			}
		case 1:
			scopes := []string{"none", "7", "7,80/tcp", "53/udp,5000", "all", "80,5000-5001"}
			c.Version++
			c.In, c.Out = firewalltest.Scope(t, scopes[gen.IntN(6)]), firewalltest.Scope(t, scopes[gen.IntN(6)])
			pol = &firewall.Policy{Version: uint64(c.Version), In: c.In, Out: c.Out}
		case 2:
			f.Sweep(now)
			c.Sweep(int64(now / tick))
		}
		if gen.IntN(3) == 0 {
			p := gen.Packet(us, them)
			got, want := f.Sent(p, peer, pol, &h, now), c.Sent(p, int64(now/tick))
			if got != want {
				t.Fatalf("packet %d out: %v, reference says %v\n%x", i, got, want, p)
			}
			continue
		}
		p := gen.Packet(them, us)
		got, want := f.Admit(p, peer, pol, &h, now), c.Admit(p, int64(now/tick))
		if got != want {
			t.Fatalf("packet %d in: %v, reference says %v\n%x", i, got, want, p)
		}
		seen[got]++
	}
	for _, r := range []firewall.Verdict{firewall.Pass, firewall.BadSource, firewall.BadDestination, firewall.BadHeader, firewall.StrayFragment, firewall.BadICMP, firewall.OutOfScope} {
		if seen[r] < packets/200 {
			t.Errorf("only %d packets came to %s", seen[r], r)
		}
	}
}

// Whatever a peer puts into a packet, the classifier and the firewall agree and
// nothing is read beyond its end.
func FuzzFirewall(f *testing.F) {
	gen := firewalltest.Generator{Rand: rand.New(rand.NewPCG(8, 8))}
	for range 50 {
		f.Add(gen.Packet(them, us)[40:], uint8(gen.Pick(0, 6, 17, 44, 58)))
	}
	own, peer := ends()
	fw, now := firewall.New(own), time.Duration(0)
	f.Fuzz(func(t *testing.T, body []byte, proto uint8) {
		if len(body) > 1400 {
			return
		}
		now += 48 * time.Hour
		fw.Sweep(now) // after so long nothing is left
		c := firewalltest.NewReference(fw, own, peer)
		c.In, c.Out = firewalltest.Scope(t, "7,80/tcp"), trust.AllPorts
		pol := &firewall.Policy{In: c.In, Out: c.Out}
		p := firewalltest.Raw(them, us, proto, body)
		var h firewall.Header
		if got, want := fw.Admit(p, peer, pol, &h, now), c.Admit(p, int64(now/tick)); got != want {
			t.Errorf("%v, reference says %v", got, want)
		}
	})
}
