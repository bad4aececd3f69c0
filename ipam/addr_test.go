package ipam

import (
	"encoding/json"
	"math"
	"net/netip"
	"strings"
	"testing"
)

func TestAddrText(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]Addr{
		"0:0000.0000.0000": {},
		"0:0000.0000.0001": {Node: 1},
		"0:0000.a91c.33f0": {Node: 0xa91c33f0},
		"0:0000.ffff.ffff": {Node: math.MaxUint32},
	} {
		got, err := ParseAddr(text)
		if err != nil || got != want {
			t.Errorf("ParseAddr(%q) = %v, %v", text, got, err)
		}
		if got.String() != text {
			t.Errorf("String = %q, want %q", got, text)
		}
		if upper, err := ParseAddr(strings.ToUpper(text)); err != nil || upper != want {
			t.Errorf("ParseAddr(%q) = %v, %v", strings.ToUpper(text), upper, err)
		}
		if AddrFromBytes(want.Bytes()) != want {
			t.Errorf("bytes of %v do not come back", want)
		}
	}
	if got := (Addr{Network: 300, Node: 1}).String(); got != "300:012c.0000.0001" {
		t.Errorf("network 300 is written %q", got)
	}
}

func TestParseAddrRefuses(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"", "0", "0:", "alice", "0:0000.0000", "0:0000.0000.0001.0001", "0:0000.0000.00001", "0:0000:0000.0001",
		"00:0000.0000.0001", "+0:0000.0000.0001", "-0:0000.0000.0001", " 0:0000.0000.0001", "0:0000.0000.0001 ",
		"0:0000.0000.000g", "0:0000.+000.0001", "0:0000.0x00.0001", "0:0000.0_00.0001", "0:0000.0000.0001\n",
		"0:0001.0000.0001", "1:0000.0000.0001", // mismatch
		"1:0001.0000.0001", "65535:ffff.0000.0001", // no such network
		"65536:0000.0000.0001", "0:0000.0000.0001:80",
	} {
		if a, err := ParseAddr(text); err == nil {
			t.Errorf("ParseAddr(%q) = %v, want an error", text, a)
		}
	}
}

func TestULA(t *testing.T) {
	t.Parallel()
	if got := Prefix().String(); got != "fd50:494c:4f54::/48" {
		t.Fatalf("Prefix = %s", got)
	}
	for node, want := range map[uint32]string{
		1:              "fd50:494c:4f54::1",
		0xa91c33f0:     "fd50:494c:4f54::a91c:33f0",
		math.MaxUint32: "fd50:494c:4f54::ffff:ffff",
	} {
		a := Addr{Node: node}
		if got := a.ULA(); got != netip.MustParseAddr(want) || !Prefix().Contains(got) {
			t.Errorf("ULA of %v = %v, want %s", a, got, want)
		}
		if back, ok := FromULA(a.ULA()); !ok || back != a {
			t.Errorf("FromULA(%v) = %v, %v", a.ULA(), back, ok)
		}
	}
	if got := (Addr{Network: 0x12, Node: 1}).ULA().String(); got != "fd50:494c:4f54:12::1" {
		t.Errorf("network is not the subnet ID: %s", got)
	}
	for _, text := range []string{
		"fd50:494c:4f54:1::1", "fd50:494c:4f54:0:1::1", "fd50:494c:4f54:0:0:1:0:1", "fd50:494c:4f55::1",
		"fd50:494c:4f54::1%eth0", "::", "::ffff:10.0.0.1", "10.0.0.1", "2001:db8::1",
	} {
		if a, ok := FromULA(netip.MustParseAddr(text)); ok {
			t.Errorf("FromULA(%s) = %v, want false", text, a)
		}
	}
	if _, ok := FromULA(netip.Addr{}); ok {
		t.Error("FromULA took the zero address")
	}
}

func TestAddrPort(t *testing.T) {
	t.Parallel()
	const text = "0:0000.0000.0001:1000"
	p, err := ParseAddrPort(text)
	if err != nil || p != (AddrPort{Addr{Node: 1}, 1000}) || p.String() != text {
		t.Fatalf("ParseAddrPort = %v, %v", p, err)
	}
	for _, text := range []string{"", ":", "0:0000.0000.0001", "0:0000.0000.0001:", "0:0000.0000.0001:080", "0:0000.0000.0001:65536", "0:0000.0000.0001:+1", "1000"} {
		if p, err := ParseAddrPort(text); err == nil {
			t.Errorf("ParseAddrPort(%q) = %v, want an error", text, p)
		}
	}
}

func TestAddrJSON(t *testing.T) {
	t.Parallel()
	type both struct {
		A Addr
		P AddrPort
	}
	in := both{Addr{Node: 7}, AddrPort{Addr{Node: 7}, 80}}
	b, err := json.Marshal(in)
	if err != nil || string(b) != `{"A":"0:0000.0000.0007","P":"0:0000.0000.0007:80"}` {
		t.Fatalf("json = %s, %v", b, err)
	}
	var out both
	if err := json.Unmarshal(b, &out); err != nil || out != in {
		t.Fatalf("back from json: %v, %v", out, err)
	}
}

func TestAllocFromULA(t *testing.T) {
	ip := Addr{Node: 0xa91c33f0}.ULA()
	if n := testing.AllocsPerRun(100, func() {
		if a, ok := FromULA(ip); !ok || a.ULA() != ip {
			t.Error("wrong address")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzParseAddr: what is accepted is written back the same, but for case.
func FuzzParseAddr(f *testing.F) {
	for _, s := range []string{goldenAddr, "0:0000.A91C.33F0", "1:0001.0000.0001", "0:0000.0000.0001:80", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if a, err := ParseAddr(s); err == nil {
			if a.String() != strings.ToLower(s) {
				t.Errorf("%q is written back as %q", s, a)
			}
			if back, ok := FromULA(a.ULA()); !ok || back != a {
				t.Errorf("%v does not come back from its ULA", a)
			}
		}
		if p, err := ParseAddrPort(s); err == nil && p.String() != strings.ToLower(s) {
			t.Errorf("%q is written back as %q", s, p)
		}
	})
}
