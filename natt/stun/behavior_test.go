package stun

import (
	"bytes"
	"net/netip"
	"testing"
)

func TestQueryAndReply(t *testing.T) {
	for _, q := range []Query{{ID: TransactionID{1}}, {ID: TransactionID{2}, ChangePort: true}, {ID: TransactionID{3}, ChangeIP: true, ChangePort: true},
		{ID: TransactionID{4}, ResponsePort: 1024}, {ID: TransactionID{5}, ChangeIP: true, ChangePort: true, ResponsePort: 65535}} {
		b := AppendQuery(nil, q)
		if len(b) != QuerySize {
			t.Errorf("%+v: %d bytes", q, len(b))
		}
		if got, ok := ParseQuery(b); !ok || got != q {
			t.Errorf("%+v came back as %+v, %v", q, got, ok)
		}
	}
	if q, ok := ParseQuery(AppendQuery(nil, Query{ResponsePort: 53})); ok {
		t.Errorf("%+v: a well-known port is accepted", q)
	}
	for _, pair := range [][2]string{{"192.0.2.1:1", "192.0.2.2:443"}, {"[2001:db8::1]:65535", "[2001:db8::2]:3478"}} {
		r := Reply{TransactionID{9}, netip.MustParseAddrPort(pair[0]), netip.MustParseAddrPort(pair[1])}
		b := AppendReply(nil, r)
		if len(b) > QuerySize {
			t.Errorf("reply of %d bytes is longer than the query", len(b))
		}
		if got, err := ParseReply(b); err != nil || got != r {
			t.Errorf("%+v came back as %+v, %v", r, got, err)
		}
	}
	plain, _ := Answer(nil, AppendQuery(nil, Query{ID: TransactionID{4}}), netip.MustParseAddrPort("192.0.2.1:7"))
	if r, err := ParseReply(plain); err != nil || r.Other.IsValid() || r.Mapped.Port() != 7 {
		t.Errorf("answer of a server with one address: %+v, %v", r, err)
	}
}

func FuzzParseQuery(f *testing.F) {
	f.Add(AppendQuery(nil, Query{ChangeIP: true}))
	f.Add(AppendQuery(nil, Query{ResponsePort: 4000}))
	f.Fuzz(func(t *testing.T, b []byte) {
		q, ok := ParseQuery(b)
		if !ok {
			return
		}
		if again, ok := ParseQuery(AppendQuery(nil, q)); !ok || again != q {
			t.Errorf("%x: %+v, again %+v", b, q, again)
		}
	})
}

func FuzzParseReply(f *testing.F) {
	r := Reply{TransactionID{9}, netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("[2001:db8::2]:3478")}
	f.Add(AppendReply(nil, r))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := ParseReply(b)
		if err != nil || !r.Other.IsValid() {
			return
		}
		again := AppendReply(nil, r)
		if got, err := ParseReply(again); err != nil || got != r || !bytes.Equal(AppendReply(nil, got), again) {
			t.Errorf("%x: %+v, again %+v, %v", b, r, got, err)
		}
	})
}
