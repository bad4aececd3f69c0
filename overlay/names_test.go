package overlay

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/pilotnet/pilot/ipam/dns"
	"github.com/pilotnet/pilot/natt/natlab"
	"github.com/pilotnet/pilot/tun"
	"github.com/pilotnet/pilot/tun/resolv"
	"github.com/pilotnet/pilot/tun/tuntest"
)

// dnsPacket is a question from node 1 to the resolver.
func dnsPacket(t testing.TB, name string) []byte {
	t.Helper()
	m := dnsmessage.Message{Questions: []dnsmessage.Question{{
		Name: dnsmessage.MustNewName(name), Type: dnsmessage.TypeAAAA, Class: dnsmessage.ClassINET,
	}}}
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	p := datagram(1, 999, 53, 53, len(b)).Complete()
	copy(p[48:], b)
	return p
}

// answered is what comes back: the code and the addresses.
func answered(t testing.TB, packets [][]byte) string {
	t.Helper()
	if len(packets) != 1 || packets[0][6] != protoUDP {
		return "no answer"
	}
	var m dnsmessage.Message
	if err := m.Unpack(packets[0][48:]); err != nil {
		t.Fatal(err)
	}
	text := m.RCode.String()
	for _, a := range m.Answers {
		if v, ok := a.Body.(*dnsmessage.AAAAResource); ok {
			text += " " + netip.AddrFrom16(v.AAAA).String()
		}
	}
	return text
}

// TestResolverInPacketPath: questions to the resolver's address are answered on
// the device; what else goes there is refused like a packet to nobody.
func TestResolverInPacketPath(t *testing.T) {
	t.Parallel()
	r := newRig(1, tuntest.New(tuntest.Options{}))
	zone := dns.NewZone()
	r.resolver = dns.NewResponder(zone)
	r.send(tun.Packet{Data: dnsPacket(t, "dns.pilot.internal.")})
	if got := answered(t, r.drained(t)); got != "RCodeSuccess fd50:494c:4f54::35" {
		t.Errorf("the resolver is at %s", got)
	}
	if r.allDropped() != 0 || len(r.socket.take()) != 0 {
		t.Errorf("drops %v", r.drops.counts())
	}
	for what, p := range map[string]tun.Packet{
		"TCP":         {Data: segment(1, 999, 53, 53, tuntest.SYN, 0).Complete()},
		"other port":  {Data: datagram(1, 999, 53, 54, 30).Complete()},
		"superpacket": datagram(1, 999, 53, 53, 300).Partial(100),
	} {
		before := r.dropped(dropOutNoPeer)
		r.send(p)
		got := r.drained(t)
		if len(got) != 1 || got[0][6] != protoICMPv6 || r.dropped(dropOutNoPeer) != before+1 {
			t.Errorf("%s: %x, drops %v", what, got, r.drops.counts())
		}
	}
}

// TestNamesFollowTrust: a name is known while its agent is trusted, to who asks
// and in the hosts file.
func TestNamesFollowTrust(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		hosts := filepath.Join(t.TempDir(), "hosts")
		if err := os.WriteFile(hosts, []byte("127.0.0.1 localhost\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		w := newWorld(t)
		defer w.close()
		a, b := w.agent("alice", natlab.Linux), w.agent("bob", natlab.Linux)
		a.stop()
		a.cfg.DNS, a.cfg.HostsFile = resolv.HostFile, hosts
		a.start()
		w.befriend(a, b, "7", "7")
		known := func() (inZone, inFile bool) {
			var m dnsmessage.Message
			if err := m.Unpack(a.naming.zone.Answer(nil, dnsPacket(t, "bob.pilot.internal.")[48:])); err != nil {
				t.Fatal(err)
			}
			text, err := os.ReadFile(hosts)
			if err != nil {
				t.Fatal(err)
			}
			return m.RCode == dnsmessage.RCodeSuccess, strings.Contains(string(text), b.ID().ULA+" bob.pilot.internal")
		}
		eventually(t, "bob is known", func() bool {
			inZone, inFile := known()
			return inZone && inFile
		})
		if got := a.Status().Device.DNS; got != "hosts" {
			t.Errorf("names are known by %q", got)
		}
		if err := a.Revoke(w.ctx(5*time.Second), "bob"); err != nil {
			t.Fatal(err)
		}
		eventually(t, "bob is forgotten", func() bool {
			inZone, inFile := known()
			return !inZone && !inFile
		})
		a.stop()
		if text, err := os.ReadFile(hosts); err != nil || string(text) != "127.0.0.1 localhost\n" {
			t.Errorf("the hosts file is %q, %v", text, err)
		}
		a.start()
	})
}
