package stun

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"testing"

	"github.com/pion/stun/v3"
)

var id = TransactionID{0xb7, 0xe7, 0xa7, 0x01, 0xbc, 0x34, 0xd6, 0x86, 0xfa, 0x87, 0xdf, 0xae}

func TestRequest(t *testing.T) {
	b := Request(id)
	if len(b) != RequestSize || !Is(b) {
		t.Fatalf("request of %d bytes: %x", len(b), b)
	}
	m := &stun.Message{Raw: b}
	if err := m.Decode(); err != nil || m.Type != stun.BindingRequest || m.TransactionID != id {
		t.Fatalf("%v: %v", m, err)
	}
}

func TestAnswer(t *testing.T) {
	for _, from := range []string{"192.0.2.1:32853", "[2001:db8:1234:5678:11:2233:4455:6677]:32853", "[::ffff:192.0.2.1]:1", "255.255.255.255:65535"} {
		want := netip.MustParseAddrPort(from)
		bare := stun.MustBuild(stun.NewTransactionIDSetter(id), stun.BindingRequest).Raw
		for _, req := range [][]byte{Request(id), bare} {
			b, ok := Answer([]byte("x"), req, want)
			if !ok || b[0] != 'x' {
				t.Fatalf("%s: no answer", from)
			}
			b = b[1:]
			if len(b) > max(len(req), MaxAnswer) || len(req) == RequestSize && len(b) > len(req) {
				t.Errorf("%s: %d bytes answer %d", from, len(b), len(req))
			}
			gotID, got, err := ParseResponse(b)
			if unmapped := netip.AddrPortFrom(want.Addr().Unmap(), want.Port()); err != nil || gotID != id || got != unmapped {
				t.Errorf("%s: got %x %v, %v", from, gotID, got, err)
			}
			m := &stun.Message{Raw: b}
			var x stun.XORMappedAddress
			if err := m.Decode(); err != nil || len(m.Attributes) != 1 {
				t.Fatalf("%v: %v", m, err)
			}
			if err := x.GetFrom(m); err != nil || x.Port != int(want.Port()) || !x.IP.Equal(want.Addr().AsSlice()) {
				t.Errorf("pion reads %v, %v", x, err)
			}
		}
	}
}

// The sample answers of RFC 5769, sections 2.2 and 2.3, which carry more than the address.
func TestVectors(t *testing.T) {
	for _, v := range []struct{ name, hex, want string }{
		{"IPv4", "0101003c2112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220002000080001a147e112a643" +
			"000800142b91f599fd9e90c38c7489f92af9ba53f06be7d780280004c07d4c96", "192.0.2.1:32853"},
		{"IPv6", "010100482112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220002000140002a1470113a9faa5d3f179" +
			"bc25f4b5bed2b9d900080014a382954e4be67bf11784c97c8292c275bfe3ed4180280004c8fb0b4c", "[2001:db8:1234:5678:11:2233:4455:6677]:32853"},
	} {
		b, err := hex.DecodeString(v.hex)
		if err != nil {
			t.Fatal(err)
		}
		gotID, got, err := ParseResponse(b)
		if err != nil || gotID != id || got.String() != v.want {
			t.Errorf("%s: %v, %v", v.name, got, err)
		}
	}
}

func TestNoAnswer(t *testing.T) {
	from := netip.MustParseAddrPort("192.0.2.1:1")
	good := Request(id)
	for name, b := range map[string][]byte{
		"empty":         nil,
		"short":         good[:19],
		"cut":           good[:40],
		"trailing byte": append(bytes.Clone(good), 0),
		"no cookie":     append(append(bytes.Clone(good[:4]), 0, 0, 0, 0), good[8:]...),
		"indication":    stun.MustBuild(stun.NewTransactionIDSetter(id), stun.NewType(stun.MethodBinding, stun.ClassIndication)).Raw,
		"allocate":      stun.MustBuild(stun.NewTransactionIDSetter(id), stun.NewType(stun.MethodAllocate, stun.ClassRequest)).Raw,
		"answer":        stun.MustBuild(stun.NewTransactionIDSetter(id), stun.BindingSuccess).Raw,
	} {
		if out, ok := Answer(nil, b, from); ok || out != nil {
			t.Errorf("%s: answered with %x", name, out)
		}
		if _, _, err := ParseResponse(b); err == nil {
			t.Errorf("%s: taken for an answer", name)
		}
	}
}

func TestChangeRequestRefused(t *testing.T) {
	req := stun.MustBuild(stun.NewTransactionIDSetter(id), stun.BindingRequest,
		stun.RawAttribute{Type: 0x0003, Value: []byte{0, 0, 0, 6}}).Raw
	b, ok := Answer(nil, req, netip.MustParseAddrPort("192.0.2.1:1"))
	if !ok || len(b) > MaxAnswer {
		t.Fatalf("%v, %d bytes", ok, len(b))
	}
	m := &stun.Message{Raw: b}
	var code stun.ErrorCodeAttribute
	var unknown stun.UnknownAttributes
	if err := m.Decode(); err != nil {
		t.Fatal(err)
	}
	if err := m.Parse(&code, &unknown); err != nil || code.Code != 420 || len(unknown) != 1 || unknown[0] != 3 {
		t.Errorf("%v %v: %v", code, unknown, err)
	}
	if _, _, err := ParseResponse(b); err == nil {
		t.Error("an error was taken for an answer")
	}
}

func TestAllocations(t *testing.T) {
	dst := make([]byte, 0, 64)
	req, from := Request(id), netip.MustParseAddrPort("192.0.2.1:1")
	if n := testing.AllocsPerRun(100, func() { Answer(dst, req, from) }); n > 2 {
		t.Errorf("an answer costs %v allocations", n)
	}
	junk := make([]byte, 1200)
	if n := testing.AllocsPerRun(100, func() { Answer(dst, junk, from) }); n > 0 {
		t.Errorf("nonsense costs %v allocations", n)
	}
}

// FuzzAnswer: an answer is bounded and its address comes back; what is not a request gets nothing.
func FuzzAnswer(f *testing.F) {
	f.Add(Request(id), true)
	f.Add(stun.MustBuild(stun.NewTransactionIDSetter(id), stun.BindingRequest, stun.Fingerprint).Raw, false)
	f.Add(stun.MustBuild(stun.NewTransactionIDSetter(id), stun.BindingRequest, stun.RawAttribute{Type: 3, Value: make([]byte, 4)}).Raw, true)
	f.Fuzz(func(t *testing.T, b []byte, six bool) {
		from := netip.MustParseAddrPort("198.51.100.7:4242")
		if six {
			from = netip.MustParseAddrPort("[2001:db8::7]:4242")
		}
		out, ok := Answer(nil, b, from)
		if !ok {
			if out != nil {
				t.Fatal("no answer, but bytes")
			}
			return
		}
		if !Is(b) || len(out) > max(len(b), MaxAnswer) {
			t.Fatalf("%d bytes answer %x", len(out), b)
		}
		if out[1] == 0x11 {
			return
		}
		if gotID, got, err := ParseResponse(out); err != nil || got != from || !bytes.Equal(gotID[:], b[8:20]) {
			t.Fatalf("%v %v", got, err)
		}
	})
}

// FuzzParseResponse: what is accepted makes the same answer again, as far as it is understood.
func FuzzParseResponse(f *testing.F) {
	for _, from := range []string{"192.0.2.1:32853", "[2001:db8::1]:1"} {
		b, _ := Answer(nil, Request(id), netip.MustParseAddrPort(from))
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		gotID, addr, err := ParseResponse(b)
		if err != nil {
			return
		}
		again, ok := Answer(nil, Request(gotID), addr)
		if !ok {
			t.Fatalf("%v cannot be answered", addr)
		}
		if _, same, err := ParseResponse(again); err != nil || same != addr {
			t.Fatalf("%v became %v, %v", addr, same, err)
		}
	})
}
