package dns_test

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/pilotnet/pilot/ipam/dns"
)

// packet makes an IPv6 packet with a UDP datagram and no checksum, as the kernel
// leaves it to the device.
func packet(src, dst netip.AddrPort, payload []byte) []byte {
	p := make([]byte, 48, 48+len(payload))
	n := uint16(8 + len(payload))
	p[0], p[6], p[7] = 0x60, 17, 64
	binary.BigEndian.PutUint16(p[4:], n)
	s, d := src.Addr().As16(), dst.Addr().As16()
	copy(p[8:], s[:])
	copy(p[24:], d[:])
	binary.BigEndian.PutUint16(p[40:], src.Port())
	binary.BigEndian.PutUint16(p[42:], dst.Port())
	binary.BigEndian.PutUint16(p[44:], n)
	return append(p, payload...)
}

// sum adds up a packet's datagram with its pseudo-header: all ones if the
// checksum is right.
func sum(p []byte) uint16 {
	b := append(append([]byte(nil), p[8:]...), 0, 0, p[4], p[5], 0, 0, 0, 17)
	if len(p)%2 == 1 {
		b = append(append([]byte(nil), p[8:]...), 0, 0, 0, p[4], p[5], 0, 0, 0, 17)
	}
	var acc uint32
	for ; len(b) >= 2; b = b[2:] {
		acc += uint32(binary.BigEndian.Uint16(b))
	}
	for acc>>16 != 0 {
		acc = acc&0xffff + acc>>16
	}
	return uint16(acc)
}

var (
	asker = netip.MustParseAddrPort("[fd50:494c:4f54::1:2]:40000")
	here  = netip.AddrPortFrom(dns.Address(), 53)
)

func TestResponder(t *testing.T) {
	t.Parallel()
	z := newZone(bob)
	r := dns.NewResponder(z)
	for _, name := range []string{"bob.pilot.internal.", "a.pilot.internal.", "ab.pilot.internal.", "example.com."} {
		query := question(t, name, dnsmessage.TypeAAAA, withEDNS(1232, 0))
		got := r.Reply(nil, packet(asker, here, query))
		want := packet(here, asker, z.Answer(nil, query))
		if len(got) < 48 || sum(got) != 0xffff {
			t.Fatalf("%s: checksum of %x is wrong: %x", name, got, sum(got))
		}
		got[46], got[47] = 0, 0
		if !bytes.Equal(got, want) {
			t.Errorf("%s: got %x, want %x", name, got, want)
		}
	}
}

func TestResponderSilence(t *testing.T) {
	t.Parallel()
	r := dns.NewResponder(newZone(bob))
	query := question(t, "bob.pilot.internal.", dnsmessage.TypeAAAA)
	good := packet(asker, here, query)
	change := func(at int, b byte) []byte {
		p := bytes.Clone(good)
		p[at] = b
		return p
	}
	for what, p := range map[string][]byte{
		"nothing":        nil,
		"cut":            good[:47],
		"IPv4":           change(0, 0x45),
		"TCP":            change(6, 6),
		"other address":  change(39, 0x36),
		"other port":     change(43, 54),
		"too long":       change(44, 9),
		"too short":      change(45, 7),
		"source port 0":  packet(netip.AddrPortFrom(asker.Addr(), 0), here, query),
		"no DNS message": packet(asker, here, []byte("hello")),
		"a reply":        packet(asker, here, dns.NewZone().Answer(nil, query)),
	} {
		if got := r.Reply([]byte("x"), p); string(got) != "x" {
			t.Errorf("%s: reply %x", what, got)
		}
	}
}

func FuzzResponder(f *testing.F) {
	f.Add(packet(asker, here, question(f, "bob.pilot.internal.", dnsmessage.TypeAAAA)))
	r := dns.NewResponder(newZone(bob))
	f.Fuzz(func(t *testing.T, p []byte) {
		got := r.Reply(nil, p)
		if len(got) > 0 && (sum(got) != 0xffff || len(got) > 1280 || !bytes.Equal(got[24:40], p[8:24])) {
			t.Fatalf("%x gets %x", p, got)
		}
		if again := r.Reply(nil, got); len(again) != 0 {
			t.Fatalf("reply gets the reply %x", again)
		}
	})
}

func BenchmarkResponder(b *testing.B) {
	r := dns.NewResponder(newZone(bob))
	for what, name := range map[string]string{"known": "bob.pilot.internal.", "unknown": "none.pilot.internal."} {
		b.Run(what, func(b *testing.B) {
			p, out := packet(asker, here, question(b, name, dnsmessage.TypeAAAA, withEDNS(1232, 0))), make([]byte, 0, 1500)
			b.ReportAllocs()
			for b.Loop() {
				r.Reply(out, p)
			}
		})
	}
}
