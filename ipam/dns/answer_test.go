package dns_test

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/ipam"
	"github.com/pilotnet/pilot/ipam/dns"
)

var bob = dns.Entry{
	Name: "bob", Addr: ipam.Addr{Node: 0xa91c33f0}, Fingerprint: crypto.Fingerprint{1, 2, 3},
	Services: []dns.Service{{Name: "a2a", Port: 8080}, {Name: "a2a", Port: 8081}, {Name: "mcp", Port: 9000}},
}

const bobReverse = "0.f.3.3.c.1.9.a.0.0.0.0.0.0.0.0.0.0.0.0." + dns.ReverseDomain + "."

func newZone(entries ...dns.Entry) *dns.Zone {
	z := dns.NewZone()
	z.Set(entries)
	return z
}

// question makes a query as dig does.
func question(t testing.TB, name string, kind dnsmessage.Type, change ...func(*dnsmessage.Message)) []byte {
	t.Helper()
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 0x1234, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: kind, Class: dnsmessage.ClassINET}},
	}
	for _, f := range change {
		f(&m)
	}
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func withEDNS(size int, version uint8) func(*dnsmessage.Message) {
	return func(m *dnsmessage.Message) {
		var h dnsmessage.ResourceHeader
		if err := h.SetEDNS0(size, 0, true); err != nil {
			panic(err)
		}
		h.TTL |= uint32(version) << 16
		m.Additionals = append(m.Additionals, dnsmessage.Resource{Header: h, Body: new(dnsmessage.OPTResource)})
	}
}

func parse(t testing.TB, b []byte) dnsmessage.Message {
	t.Helper()
	var m dnsmessage.Message
	if err := m.Unpack(b); err != nil {
		t.Fatalf("reply %x: %v", b, err)
	}
	return m
}

// text shows a reply in one line: the code, the answers, and the SOA as "soa".
func text(m dnsmessage.Message) string {
	s := []string{strings.TrimPrefix(m.RCode.String(), "RCode")}
	for _, a := range m.Answers {
		switch b := a.Body.(type) {
		case *dnsmessage.AAAAResource:
			s = append(s, netip.AddrFrom16(b.AAAA).String())
		case *dnsmessage.PTRResource:
			s = append(s, b.PTR.String())
		case *dnsmessage.NSResource:
			s = append(s, b.NS.String())
		case *dnsmessage.SRVResource:
			s = append(s, fmt.Sprintf("%d:%s", b.Port, b.Target))
		case *dnsmessage.TXTResource:
			s = append(s, b.TXT...)
		default:
			s = append(s, strings.TrimPrefix(a.Header.Type.String(), "Type"))
		}
	}
	for _, a := range m.Authorities {
		s = append(s, "soa "+a.Header.Name.String())
	}
	return strings.Join(s, " ")
}

func TestAnswers(t *testing.T) {
	t.Parallel()
	z := newZone(bob, dns.Entry{Name: "carol", Addr: ipam.Addr{Node: 0x10000}, Services: []dns.Service{{Name: "a2a", Port: 1}}})
	const (
		a, aaaa, ptr, txt, srv = dnsmessage.TypeA, dnsmessage.TypeAAAA, dnsmessage.TypePTR, dnsmessage.TypeTXT, dnsmessage.TypeSRV
		nodata, unknown        = "Success soa pilot.internal.", "NameError soa pilot.internal."
	)
	for _, c := range []struct {
		name string
		kind dnsmessage.Type
		want string
	}{
		{"bob.pilot.internal.", aaaa, "Success fd50:494c:4f54::a91c:33f0"},
		{"bob.pilot.internal.", a, nodata},
		{"bob.pilot.internal.", 65, nodata}, // HTTPS
		{"bob.pilot.internal.", txt, "Success address=0:0000.a91c.33f0 fingerprint=" + bob.Fingerprint.String()},
		{"bob.pilot.internal.", dnsmessage.TypeALL, "Success fd50:494c:4f54::a91c:33f0"},
		{"BoB.pIlOt.InTernal.", aaaa, "Success fd50:494c:4f54::a91c:33f0"},
		{bobReverse, ptr, "Success bob.pilot.internal."},
		{strings.ToUpper(bobReverse), ptr, "Success bob.pilot.internal."},
		{bobReverse, a, "Success soa " + dns.ReverseDomain + "."},
		{bobReverse[2:], ptr, "Success soa " + dns.ReverseDomain + "."}, // it exists, above bob
		{"1." + bobReverse[2:], ptr, "NameError soa " + dns.ReverseDomain + "."},
		{"_a2a._tcp.bob.pilot.internal.", srv, "Success 8080:bob.pilot.internal. 8081:bob.pilot.internal."},
		{"_mcp._tcp.bob.pilot.internal.", srv, "Success 9000:bob.pilot.internal."},
		{"_mcp._tcp.carol.pilot.internal.", srv, unknown},
		{"_tcp.bob.pilot.internal.", srv, nodata},
		{"_a2a._tcp.pilot.internal.", ptr, "Success _a2a._tcp.bob.pilot.internal. _a2a._tcp.carol.pilot.internal."},
		{"dns.pilot.internal.", aaaa, "Success fd50:494c:4f54::35"},
		{"pilot.internal.", dnsmessage.TypeSOA, "Success SOA"},
		{"pilot.internal.", dnsmessage.TypeNS, "Success dns.pilot.internal."},
		{"pilot.internal.", aaaa, nodata},
		{dns.ReverseDomain + ".", dnsmessage.TypeSOA, "Success SOA"},
		{"mallory.pilot.internal.", aaaa, unknown},
		{"mallory.pilot.internal.", a, unknown},
		{"x.bob.pilot.internal.", aaaa, unknown},
		{"bobpilot.internal.", aaaa, "Refused"},
		{"internal.", aaaa, "Refused"},
		{"example.com.", aaaa, "Refused"},
		{".", aaaa, "Refused"},
		{"pilot.internal.", dnsmessage.TypeAXFR, "Refused"},
		{"bob.pilot.internal.", 251, "Refused"},
	} {
		query := question(t, c.name, c.kind)
		reply := z.Answer(nil, query)
		m := parse(t, reply)
		if got := text(m); got != c.want {
			t.Errorf("%s %v: %q, want %q", c.name, c.kind, got, c.want)
		}
		if !bytes.Equal(reply[12:12+len(query)-12], query[12:]) {
			t.Errorf("%s: the question comes back as %x, was %x", c.name, reply[12:], query[12:])
		}
		if m.ID != 0x1234 || !m.Response || !m.RecursionDesired || m.Truncated || m.Authoritative == (m.RCode == dnsmessage.RCodeRefused) {
			t.Errorf("%s: header is %+v", c.name, m.Header)
		}
		for _, r := range append(m.Answers, m.Authorities...) {
			if r.Header.TTL > 30 {
				t.Errorf("%s: lives %d s", c.name, r.Header.TTL)
			}
		}
		if got := z.Answer([]byte("before"), query); !bytes.Equal(got, append([]byte("before"), reply...)) {
			t.Errorf("%s: appended %x", c.name, got)
		}
	}
}

// TestUntrusted: whether an agent is untrusted or none at all does not show.
func TestUntrusted(t *testing.T) {
	t.Parallel()
	z := newZone(bob)
	for _, kind := range []dnsmessage.Type{dnsmessage.TypeAAAA, dnsmessage.TypeA, dnsmessage.TypeTXT, dnsmessage.TypeSRV} {
		before := z.Answer(nil, question(t, "dave.pilot.internal.", kind))
		z.Set([]dns.Entry{bob, {Name: "dave", Addr: ipam.Addr{Node: 0x20000}}})
		if kind == dnsmessage.TypeAAAA && bytes.Equal(before, z.Answer(nil, question(t, "dave.pilot.internal.", kind))) {
			t.Error("a trusted name does not resolve")
		}
		z.Set([]dns.Entry{bob})
		never := z.Answer(nil, question(t, "none.pilot.internal.", kind))
		if after := z.Answer(nil, question(t, "dave.pilot.internal.", kind)); !bytes.Equal(before, after) {
			t.Errorf("%v: %x before trust, %x after it", kind, before, after)
		}
		if got := bytes.Replace(before, []byte("dave"), []byte("none"), 1); !bytes.Equal(got, never) {
			t.Errorf("%v: %x for one who was a peer, %x for nobody", kind, got, never)
		}
	}
}

func TestSetLeavesOut(t *testing.T) {
	t.Parallel()
	services := []dns.Service{{Name: "", Port: 1}, {Name: "UP", Port: 2}, {Name: "ok", Port: 3}, {Name: "ok", Port: 4}, {Name: "ok", Port: 5}}
	z := newZone(bob, dns.Entry{Name: "bob", Addr: ipam.Addr{Node: 7777}}, dns.Entry{Name: "dns", Addr: ipam.Addr{Node: 7778}},
		dns.Entry{Name: "a.b", Addr: ipam.Addr{Node: 7779}}, dns.Entry{Addr: ipam.Addr{Node: 7780}},
		dns.Entry{Name: "dave", Addr: ipam.Addr{Node: 7781}, Services: services})
	for name, want := range map[string]string{
		"bob.pilot.internal.":            "Success fd50:494c:4f54::a91c:33f0",
		"dns.pilot.internal.":            "Success fd50:494c:4f54::35",
		"a.b.pilot.internal.":            "NameError soa pilot.internal.",
		"_ok._tcp.dave.pilot.internal.":  "Success 3:dave.pilot.internal. 4:dave.pilot.internal.",
		"_up._tcp.dave.pilot.internal.":  "NameError soa pilot.internal.",
		"_ok._tcp.carol.pilot.internal.": "NameError soa pilot.internal.",
	} {
		kind := dnsmessage.TypeAAAA
		if strings.HasPrefix(name, "_") {
			kind = dnsmessage.TypeSRV
		}
		if got := text(parse(t, z.Answer(nil, question(t, name, kind)))); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

func TestForm(t *testing.T) {
	t.Parallel()
	z := newZone(bob)
	const name = "bob.pilot.internal."
	plain := question(t, name, dnsmessage.TypeAAAA)
	for what, c := range map[string]struct {
		query []byte
		want  string // "" for no reply
	}{
		"nothing":        {nil, ""},
		"less than that": {plain[:11], ""},
		"a reply":        {question(t, name, dnsmessage.TypeAAAA, func(m *dnsmessage.Message) { m.Response = true }), ""},
		"header alone":   {plain[:12], "FormatError"},
		"cut":            {plain[:len(plain)-1], "FormatError"},
		"no question":    {question(t, name, dnsmessage.TypeAAAA, func(m *dnsmessage.Message) { m.Questions = nil }), "FormatError"},
		"two questions": {question(t, name, dnsmessage.TypeAAAA, func(m *dnsmessage.Message) {
			m.Questions = append(m.Questions, m.Questions[0])
		}), "FormatError"},
		"update":      {question(t, name, dnsmessage.TypeAAAA, func(m *dnsmessage.Message) { m.OpCode = 5 }), "NotImplemented"},
		"chaos":       {question(t, name, dnsmessage.TypeTXT, func(m *dnsmessage.Message) { m.Questions[0].Class = dnsmessage.ClassCHAOS }), "Refused"},
		"any class":   {question(t, name, dnsmessage.TypeAAAA, func(m *dnsmessage.Message) { m.Questions[0].Class = 255 }), "Success fd50:494c:4f54::a91c:33f0"},
		"two options": {question(t, name, dnsmessage.TypeAAAA, withEDNS(1232, 0), withEDNS(1232, 0)), "FormatError"},
		"EDNS":        {question(t, name, dnsmessage.TypeAAAA, withEDNS(100, 0)), "Success fd50:494c:4f54::a91c:33f0"},
		"EDNS 1":      {question(t, name, dnsmessage.TypeAAAA, withEDNS(1232, 1)), "Success"},
	} {
		reply := z.Answer(nil, c.query)
		if len(reply) == 0 || c.want == "" {
			if len(reply) != 0 || c.want != "" {
				t.Errorf("%s: reply %x, want %q", what, reply, c.want)
			}
			continue
		}
		m := parse(t, reply)
		if got := text(m); got != c.want {
			t.Errorf("%s: %q, want %q", what, got, c.want)
		}
		if !strings.HasPrefix(what, "EDNS") {
			continue
		}
		if len(m.Additionals) != 1 {
			t.Fatalf("%s: no option in %+v", what, m)
		}
		h := m.Additionals[0].Header
		if h.DNSSECAllowed() != (what == "EDNS") || h.Class != 1232 || (h.ExtendedRCode(m.RCode) == 16) != (what == "EDNS 1") {
			t.Errorf("%s: option is %+v", what, h)
		}
	}
}

// TestTruncation asks for a list that does not fit.
func TestTruncation(t *testing.T) {
	t.Parallel()
	var entries []dns.Entry
	for i := range 30 {
		entries = append(entries, dns.Entry{
			Name: fmt.Sprintf("agent-%02d-%s", i, strings.Repeat("x", 20)), Addr: ipam.Addr{Node: uint32(1000 + i)},
			Services: []dns.Service{{Name: "a2a", Port: 1}},
		})
	}
	z := newZone(entries...)
	for _, c := range []struct {
		edns, answers int
	}{{0, 0}, {512, 0}, {1232, 0}, {65535, 0}} {
		var change []func(*dnsmessage.Message)
		limit := 512
		if c.edns > 0 {
			change, limit = append(change, withEDNS(c.edns, 0)), min(c.edns, 1232)
		}
		reply := z.Answer(nil, question(t, "_a2a._tcp.pilot.internal.", dnsmessage.TypePTR, change...))
		m := parse(t, reply)
		if len(reply) > limit || !m.Truncated || len(m.Answers) != c.answers || len(m.Additionals) != len(change) {
			t.Errorf("EDNS %d: %d octets, %+v", c.edns, len(reply), m.Header)
		}
	}
	z.Set(entries[:10])
	if m := parse(t, z.Answer(nil, question(t, "_a2a._tcp.pilot.internal.", dnsmessage.TypePTR, withEDNS(1232, 0)))); m.Truncated || len(m.Answers) != 10 {
		t.Errorf("ten of them: %s", text(m))
	}
}

// TestFitsPlain: what one agent can have fits a reply without EDNS.
func TestFitsPlain(t *testing.T) {
	t.Parallel()
	name := strings.Repeat("x", ipam.MaxName)
	service := dns.Service{Name: strings.Repeat("s", 15), Port: 65535}
	z := newZone(dns.Entry{Name: name, Addr: ipam.Addr{Node: 256}, Services: []dns.Service{service, service, service, service, service}})
	for _, q := range []string{"", "_" + service.Name + "._tcp."} {
		for _, kind := range []dnsmessage.Type{dnsmessage.TypeAAAA, dnsmessage.TypeTXT, dnsmessage.TypeSRV} {
			reply := z.Answer(nil, question(t, q+name+".pilot.internal.", kind))
			if m := parse(t, reply); m.Truncated || len(reply) > 512 {
				t.Errorf("%s %v: %d octets", q, kind, len(reply))
			}
		}
	}
}

// FuzzAnswer: whatever comes, the reply can be read, is no longer than allowed,
// repeats ID and question, and is never given to a reply.
func FuzzAnswer(f *testing.F) {
	for _, name := range []string{"bob.pilot.internal.", "x.pilot.internal.", "_a2a._tcp.bob.pilot.internal.", "example.com.", bobReverse} {
		for _, kind := range []dnsmessage.Type{dnsmessage.TypeAAAA, dnsmessage.TypeA, dnsmessage.TypeSRV, dnsmessage.TypePTR, dnsmessage.TypeALL} {
			f.Add(question(f, name, kind))
			f.Add(question(f, name, kind, withEDNS(4096, 0)))
		}
	}
	f.Add([]byte("\x00\x01\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\xc0\x0c\x00\x1c\x00\x01"))
	z := newZone(bob)
	f.Fuzz(func(t *testing.T, query []byte) {
		reply := z.Answer(nil, query)
		if len(reply) == 0 {
			if len(query) >= 12 && query[2]&0x80 == 0 && new(dnsmessage.Message).Unpack(query) == nil {
				t.Fatalf("no reply to %x", query)
			}
			return
		}
		if len(reply) > 1232 || query[2]&0x80 != 0 || !bytes.Equal(reply[:2], query[:2]) {
			t.Fatalf("%x gets %x", query, reply)
		}
		m := parse(t, reply)
		var p dnsmessage.Parser
		if _, err := p.Start(query); err != nil {
			t.Fatal(err)
		}
		if q, err := p.Question(); err == nil && len(m.Questions) == 1 && m.Questions[0] != q {
			t.Fatalf("question %v comes back as %v", q, m.Questions[0])
		}
		if again := z.Answer(nil, reply); len(again) != 0 {
			t.Fatalf("reply gets the reply %x", again)
		}
	})
}
