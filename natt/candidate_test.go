package natt

import (
	"bytes"
	"net/netip"
	"slices"
	"testing"
)

func candidate(kind CandidateKind, addr string) Candidate {
	return Candidate{kind, netip.MustParseAddrPort(addr)}
}

func prefixes(s ...string) []netip.Prefix {
	var list []netip.Prefix
	for _, p := range s {
		list = append(list, netip.MustParsePrefix(p))
	}
	return list
}

var ownPrefix = netip.MustParsePrefix("fd50:494c:4f54::/48")

func TestCandidateList(t *testing.T) {
	t.Parallel()
	list := []Candidate{candidate(Host, "192.168.1.7:4242"), candidate(Observed, "203.0.113.5:1"), candidate(Mapped, "[2001:db8::1]:65535")}
	b := AppendCandidates([]byte("x"), list)
	want := "x\x03" + "\x01\x04\xc0\xa8\x01\x07\x10\x92" + "\x02\x04\xcb\x00\x71\x05\x00\x01" +
		"\x03\x06\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\xff\xff"
	if string(b) != want {
		t.Fatalf("encoded % x", b)
	}
	got, err := ParseCandidates(b[1:])
	if err != nil || !slices.Equal(got, list) {
		t.Fatalf("parsed %v, %v", got, err)
	}
	if got, err := ParseCandidates([]byte{0}); err != nil || len(got) != 0 {
		t.Errorf("empty list: %v, %v", got, err)
	}
}

// TestCandidateEncoder gives AppendCandidates what the form has no place for.
func TestCandidateEncoder(t *testing.T) {
	t.Parallel()
	list := []Candidate{
		{Host, netip.AddrPort{}},
		candidate(Host, "192.0.2.1:0"),
		candidate(0, "192.0.2.1:1"),
		candidate(Host, "[::ffff:192.0.2.1]:1"),
		candidate(Host, "[fe80::1%eth0]:1"),
		candidate(Host, "192.0.2.1:1"),
		candidate(Observed, "192.0.2.1:1"),
	}
	for port := range uint16(40) {
		list = append(list, Candidate{Host, netip.AddrPortFrom(netip.MustParseAddr("192.0.2.2"), port+1)})
	}
	got, err := ParseCandidates(AppendCandidates(nil, list))
	if err != nil || len(got) != MaxCandidates || got[0] != list[5] || got[1] != list[7] {
		t.Fatalf("%v, %v", got, err)
	}
}

func TestCandidateParserRefuses(t *testing.T) {
	t.Parallel()
	ok := string(AppendCandidates(nil, []Candidate{candidate(Host, "192.0.2.1:1")}))
	for name, b := range map[string]string{
		"nothing":       "",
		"short":         ok[:len(ok)-1],
		"long":          ok + "\x00",
		"missing entry": "\x02" + ok[1:],
		"too many":      "\x11" + string(bytes.Repeat([]byte(ok[1:]), 17)),
		"duplicate":     "\x02" + ok[1:] + ok[1:],
		"kind 0":        "\x01\x00" + ok[2:],
		"family":        "\x01\x01\x05" + ok[3:],
		"port 0":        ok[:len(ok)-2] + "\x00\x00",
		"mapped IPv4":   "\x01\x01\x06\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\xc0\x00\x02\x01\x00\x01",
	} {
		if list, err := ParseCandidates([]byte(b)); err == nil {
			t.Errorf("%s: accepted as %v", name, list)
		}
	}
}

func FuzzParseCandidates(f *testing.F) {
	f.Add(AppendCandidates(nil, nil))
	f.Add(AppendCandidates(nil, []Candidate{candidate(Host, "192.0.2.1:1"), candidate(9, "[2001:db8::1]:2")}))
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := ParseCandidates(b)
		if err != nil {
			return
		}
		if again := AppendCandidates(nil, list); !bytes.Equal(again, b) {
			t.Errorf("% x is encoded as % x", b, again)
		}
	})
}

func TestHostCandidates(t *testing.T) {
	t.Parallel()
	got := HostCandidates(prefixes("127.0.0.1/8", "192.168.1.7/24", "169.254.3.4/16", "fe80::1/64", "::1/128", "172.17.0.1/16",
		"fd50:494c:4f54::5/128", "fd00:1::1/64", "2001:db8::1/64", "2001:db8::2/64", "2001:db8::3/64", "2001:db8::4/64", "2001:db8::5/64",
		"192.0.2.1/24", "192.0.2.1/32", "224.0.0.1/4", "0.0.0.0/0"), 7, ownPrefix)
	want := []Candidate{
		candidate(Host, "[2001:db8::1]:7"), candidate(Host, "[2001:db8::2]:7"), candidate(Host, "[2001:db8::3]:7"), candidate(Host, "[2001:db8::4]:7"),
		candidate(Host, "192.0.2.1:7"), candidate(Host, "192.168.1.7:7"), candidate(Host, "172.17.0.1:7"), candidate(Host, "[fd00:1::1]:7"),
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	var many []netip.Prefix
	for i := range 100 {
		many = append(many, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i), 0, 1}), 24))
	}
	if got := HostCandidates(many, 7, ownPrefix); len(got) >= MaxCandidates {
		t.Errorf("%d candidates leave no room for others", len(got))
	}
	if got := HostCandidates(nil, 7, netip.Prefix{}); len(got) != 0 {
		t.Errorf("candidates from nothing: %v", got)
	}
}

func TestUsableCandidates(t *testing.T) {
	t.Parallel()
	ours := prefixes("192.168.1.7/24", "2001:db8::1/64", "fd00:1::1/64")
	for addr, want := range map[string]bool{
		"203.0.113.5:1": true, "[2001:db8::2]:1": true, "[2001:db8:5::2]:1": true,
		"192.168.1.8:1": true, "192.168.2.8:1": false, "10.0.0.1:1": false, "[fd00:1::2]:1": true, "[fd00:2::2]:1": false,
		"192.168.1.7:1": false, "[2001:db8::1]:1": false, // our own
		"127.0.0.1:1": false, "0.0.0.0:1": false, "255.255.255.255:1": false, "224.0.0.1:1": false, "169.254.1.1:1": false,
		"[::1]:1": false, "[::]:1": false, "[ff02::1]:1": false, "[fe80::1]:1": false, "[fd50:494c:4f54::9]:1": false,
		"[::ffff:10.0.0.1]:1": false, "203.0.113.5:0": false,
	} {
		got := UsableCandidates([]Candidate{candidate(Observed, addr)}, ours, ownPrefix)
		if (len(got) == 1) != want {
			t.Errorf("%s: usable %v, want %v", addr, len(got) == 1, want)
		}
	}
	if got := UsableCandidates([]Candidate{candidate(4, "203.0.113.5:1")}, ours, ownPrefix); len(got) != 0 {
		t.Errorf("a kind that is not known: %v", got)
	}
}

func TestInterfaces(t *testing.T) {
	t.Parallel()
	list, err := Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range list {
		if !p.IsValid() || p.Addr().Is4In6() || p.Addr().IsLoopback() {
			t.Errorf("%v", p)
		}
	}
}
