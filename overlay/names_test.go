package overlay

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/pilotnet/pilot/ipam/dns"
	"github.com/pilotnet/pilot/natt/natlab"
	"github.com/pilotnet/pilot/trust"
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
	if len(packets) != 1 || packets[0][6] != trust.ProtoUDP {
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
			return m.RCode == dnsmessage.RCodeSuccess, strings.Contains(string(text), b.ID().ULA+" bob.pilot.internal # ")
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

// servicePorts are those that an SRV question is answered with.
func servicePorts(t *testing.T, z *dns.Zone, name string) (ports []uint16) {
	t.Helper()
	m := dnsmessage.Message{Questions: []dnsmessage.Question{{
		Name: dnsmessage.MustNewName(name), Type: dnsmessage.TypeSRV, Class: dnsmessage.ClassINET,
	}}}
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	var reply dnsmessage.Message
	if err := reply.Unpack(z.Answer(nil, b)); err != nil {
		t.Fatal(err)
	}
	for _, a := range reply.Answers {
		ports = append(ports, a.Body.(*dnsmessage.SRVResource).Port)
	}
	return ports
}

// TestServicesAreFound: what an agent publishes, and what a peer lets it reach,
// is found by SRV; bare names are in the hosts file where that is wanted, but not
// the agent's own.
func TestServicesAreFound(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		hosts := filepath.Join(t.TempDir(), "hosts")
		if err := os.WriteFile(hosts, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		w := newWorld(t)
		defer w.close()
		a, b := w.agent("alice", natlab.Linux), w.agent("bob", natlab.Linux)
		a.stop()
		a.cfg.DNS, a.cfg.HostsFile, a.cfg.DNSSearch = resolv.HostFile, hosts, true
		a.cfg.Network = &quietNetwork{taken: map[uint16]bool{}}
		a.start()
		w.befriend(a, b, "7,1003", "7")
		eventually(t, "what bob lets alice reach is found", func() bool {
			return slices.Equal(servicePorts(t, a.naming.zone, "_a2a._tcp.bob.pilot.internal."), []uint16{1003}) &&
				slices.Equal(servicePorts(t, a.naming.zone, "_echo._tcp.bob.pilot.internal."), []uint16{7}) &&
				servicePorts(t, a.naming.zone, "_mqtt._tcp.bob.pilot.internal.") == nil
		})
		eventually(t, "the bare name is in the hosts file", func() bool {
			text, err := os.ReadFile(hosts)
			return err == nil && strings.Contains(string(text), b.ID().ULA+" bob.pilot.internal bob # ") &&
				strings.Contains(string(text), a.ID().ULA+" alice.pilot.internal # ")
		})
		if _, err := a.Serve(w.ctx(5*time.Second), ServeOptions{Kind: "mcp", Target: "9999", Port: 9000}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "what alice publishes is found", func() bool {
			return slices.Equal(servicePorts(t, a.naming.zone, "_mcp._tcp.alice.pilot.internal."), []uint16{9000})
		})
		if err := a.Unserve(w.ctx(5*time.Second), 9000); err != nil {
			t.Fatal(err)
		}
		eventually(t, "it is forgotten", func() bool {
			return servicePorts(t, a.naming.zone, "_mcp._tcp.alice.pilot.internal.") == nil
		})
	})
}
