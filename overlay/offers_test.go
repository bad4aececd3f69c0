package overlay

import (
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pilotnet/pilot/natt"
	"github.com/pilotnet/pilot/natt/natlab"
)

// A trusted peer that names other people's addresses as its own, again and again, and asks for searches there: few and
// small packets, and none to where nothing may ever go.
func TestHostileOffers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorldWith(t, true)
		defer w.close()
		alice, bob := w.agent("alice", natlab.Port), w.agent("bob", natlab.Sym)
		w.befriend(alice, bob, "7", "7")
		known(t, alice, bob)
		pass(3 * time.Second)
		w.net.CutUDP(alice.router, bob.router) // so that nothing is found before the lies are told
		var victims []netip.AddrPort
		for i := range 40 {
			victims = append(victims, netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(100 + i)}), 53))
		}
		forbidden := []netip.AddrPort{}
		for _, s := range []string{"127.0.0.1:80", "224.0.0.1:5353", "255.255.255.255:67", "169.254.169.254:80", "10.200.0.1:22", "[fe80::1]:80", "[fd50:494c:4f54::7]:80"} {
			forbidden = append(forbidden, netip.MustParseAddrPort(s))
		}
		servers := []netip.Addr{w.server.Addr(), w.second.Addr()}
		sent := map[netip.Addr][]time.Time{}
		w.net.Observe(func(e natlab.Event) {
			if e.Kind != natlab.Sent || e.Sender != alice.host {
				return
			}
			sent[e.To.Addr()] = append(sent[e.To.Addr()], time.Now())
			if size := len(e.Data) + 28; size > 150 && !slices.Contains(servers, e.To.Addr()) {
				t.Errorf("%d bytes to %v", size, e.To)
			}
		})
		done := make(chan struct{})
		const length = 3 * time.Minute
		go func() {
			defer close(done)
			stream(alice, bob, int(length/(100*time.Millisecond)), 100*time.Millisecond)
		}()
		for i := 0; i < int(length/(200*time.Millisecond)); i++ {
			pass(200 * time.Millisecond)
			bob.loop.calls <- func(instant) {
				k := bob.loop.links[alice.cfg.Identity.Key.Public()]
				if k == nil || k.active == nil {
					return
				}
				var list []natt.Candidate
				for j := range natt.MaxCandidates {
					c := natt.Candidate{Kind: natt.Observed, Addr: victims[(i/10+j)%len(victims)]}
					if i%3 == 0 && j < len(forbidden) {
						c.Addr = forbidden[j]
					}
					list = append(list, c)
				}
				k.item(itemCandidates, natt.AppendOffer(nil, natt.Offer{
					Candidates: list, Pool: natt.Pool{Sockets: 256, Base: 4000},
					Traits: natt.Traits{Mapping: natt.AddressAndPortDependent, Filtering: natt.AddressAndPortDependent, Step: 1},
				}))
			}
		}
		<-done
		w.net.Observe(nil)
		reached := 0
		for _, v := range victims {
			times := sent[v.Addr()]
			if len(times) > 0 {
				reached++
			}
			for i := range times {
				if i >= 20 && times[i].Sub(times[i-20]) < time.Minute {
					t.Errorf("more than 20 packets to %v in a minute", v)
					break
				}
			}
			if len(times) > 50 {
				t.Errorf("%d packets to %v in %v", len(times), v, length)
			}
		}
		t.Logf("packets to %d of %d victims", reached, len(victims))
		if reached == 0 || reached > 16 {
			t.Errorf("packets to %d addresses", reached)
		}
		for _, f := range forbidden {
			if n := len(sent[f.Addr()]); n > 0 {
				t.Errorf("%d packets to %v", n, f)
			}
		}
	})
}
