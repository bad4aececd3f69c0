package trust

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

func TestParseScope(t *testing.T) {
	for _, c := range []struct{ in, out string }{
		{"", ""},
		{"none", ""},
		{"80", "80"},
		{"all", "all"},
		{" ALL ", "all"},
		{"1-65535", "all"},
		{"1-65535/tcp,1-65535/udp", "all"},
		{"1-65535/tcp", "1-65535/tcp"},
		{"80,8080/tcp,53/udp,1000-1003", "53/udp,80,1000-1003,8080/tcp"},
		{"80,80,80/tcp", "80"},
		{"80/tcp,80/udp", "80"},
		{"1-10,11-20", "1-20"},
		{"1-10/tcp,5-20/udp", "1-4/tcp,5-10,11-20/udp"},
		{"443, 80", "80,443"},
		{"65535", "65535"},
	} {
		s, err := ParseScope(c.in)
		if err != nil || s.String() != c.out {
			t.Errorf("%q: %q, %v, want %q", c.in, s, err, c.out)
		}
		if err := s.check(); err != nil {
			t.Errorf("%q: %v", c.in, err)
		}
	}
	for _, in := range []string{"0", "65536", "80-", "-80", "90-80", "80/sctp", "80,,81", "http", "+80", "080", "80 81", "1/tcp/udp", strings.Repeat("1,", 2000),
		"1,3,5,7,9,11,13,15,17,19,21,23,25,27,29,31,33,35,37,39,41,43,45,47,49,51,53,55,57,59,61,63,65,67,69,71,73,75,77,79,81,83,85,87,89,91,93,95,97,99,101,103,105,107,109,111,113,115,117,119,121,123,125,127,129"} {
		if s, err := ParseScope(in); err == nil {
			t.Errorf("%q is accepted as %q", in, s)
		}
	}
	for _, s := range []Scope{DefaultAsk, DefaultOffer, AllPorts} {
		if err := s.check(); err != nil {
			t.Error(err)
		}
	}
}

func TestScopeSets(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	random := func() Scope {
		var ports []Port
		for range rng.IntN(6) {
			lo := uint16(1 + rng.IntN(40))
			ports = append(ports, Port{[]uint8{0, 6, 17}[rng.IntN(3)], lo, lo + uint16(rng.IntN(10))})
		}
		s, err := NewScope(ports...)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	for range 2000 {
		a, b := random(), random()
		both, within := a.Intersect(b), true
		for port := uint16(0); port < 60; port++ {
			for _, proto := range []uint8{ProtoTCP, ProtoUDP} {
				if both.Allows(proto, port) != (a.Allows(proto, port) && b.Allows(proto, port)) {
					t.Fatalf("%q and %q give %q: wrong at %d/%d", a, b, both, port, proto)
				}
				within = within && (!a.Allows(proto, port) || b.Allows(proto, port))
			}
			if a.Allows(1, port) || a.Allows(0, port) {
				t.Fatal("other protocols are allowed")
			}
		}
		if a.Within(b) != within {
			t.Fatalf("%q within %q: %v", a, b, !within)
		}
		back, err := ParseScope(a.String())
		if err != nil || !slices.Equal(a, back) {
			t.Fatalf("%q comes back as %q, %v", a, back, err)
		}
	}
	if n := testing.AllocsPerRun(100, func() { DefaultAsk.Allows(ProtoTCP, 1002) }); n != 0 {
		t.Errorf("Allows allocates %v times", n)
	}
}

func FuzzScope(f *testing.F) {
	f.Add("80,8080/tcp,53/udp,1000-1003", []byte{})
	f.Add("all", AllPorts.append(nil))
	f.Add("1-3/udp", DefaultAsk.append(nil))
	f.Fuzz(func(t *testing.T, text string, wire []byte) {
		if s, err := ParseScope(text); err == nil {
			back, err := ParseScope(s.String())
			if err != nil || !slices.Equal(s, back) || s.check() != nil {
				t.Fatalf("%q: %q comes back as %q, %v", text, s, back, err)
			}
		}
		if s, err := readScope(wire); err == nil && !bytes.Equal(s.append(nil), wire) {
			t.Fatalf("%x is accepted but is not canonical", wire)
		}
	})
}
