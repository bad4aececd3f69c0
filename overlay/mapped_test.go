package overlay

import (
	"context"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pilotnet/pilot/natt/natlab"
)

// A mappingUnderlay has a gateway that says where it mapped our port.
type mappingUnderlay struct {
	labUnderlay
	at []netip.AddrPort
}

func (u mappingUnderlay) MapPort(ctx context.Context, _ uint16, changed func([]netip.AddrPort)) error {
	changed(u.at)
	<-ctx.Done()
	return nil
}

// A mapping carries data only after a packet came in through it: one that leads to
// somebody else, or nowhere, draws a few small packets and delays nothing.
func TestPortMapping(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorldWith(t, true)
		defer w.close()
		stranger := w.net.Host("stranger")
		conn := stranger.Listen(7777)
		defer conn.Close()
		alice, bob := w.agent("alice", natlab.Sym), w.agent("bob", natlab.Sym)
		alice.stop()
		alice.cfg.Underlay = mappingUnderlay{labUnderlay{alice.host}, []netip.AddrPort{
			netip.AddrPortFrom(stranger.Addr(), 7777), netip.MustParseAddrPort("203.0.113.200:9"),
		}}
		alice.start()
		largest := 0
		w.net.Observe(func(e natlab.Event) {
			if e.Kind == natlab.Received && e.Receiver == stranger {
				largest = max(largest, len(e.Data))
			}
		})
		w.befriend(bob, alice, "7", "7")
		known(t, alice, bob)
		n, err := alice.Netcheck(w.ctx(time.Minute))
		if err != nil || len(n.PortMappings) != 2 {
			t.Errorf("%+v, %v", n, err)
		}
		if r := stream(bob, alice, 1000, 10*time.Millisecond); r.lost != 0 || r.twice != 0 || r.gap > 200*time.Millisecond {
			t.Errorf("%+v", r)
		}
		if p := bob.peer("alice"); p.Path != "relay" {
			t.Errorf("by %s, %s", p.Path, p.Endpoint)
		}
		got := stranger.Counts().Received
		t.Logf("the stranger got %d packets of at most %d bytes", got, largest)
		if got == 0 || got > 20 || largest > 150 {
			t.Errorf("%d packets of at most %d bytes", got, largest)
		}
	})
}
