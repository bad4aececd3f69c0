package natt

import (
	"bytes"
	"reflect"
	"testing"
)

var offers = []Offer{
	{},
	{Candidates: []Candidate{candidate(Host, "192.0.2.1:1")}},
	{Traits: Traits{AddressAndPortDependent, AddressDependent, -3, false}},
	{Traits: Traits{Blocked: true}},
	{Traits: Traits{Mapping: BehaviorNone, Blocked: true}, Pool: Pool{1, 2}},
	{Candidates: []Candidate{candidate(Observed, "[2001:db8::1]:2")}, Traits: Traits{Mapping: BehaviorNone}, Pool: Pool{256, 40000}},
	{Pool: Pool{Sockets: 1}},
}

func TestOffer(t *testing.T) {
	t.Parallel()
	for _, o := range offers {
		b := AppendOffer(nil, o)
		got, err := ParseOffer(b)
		if o.Candidates == nil {
			o.Candidates = []Candidate{}
		}
		if err != nil || !reflect.DeepEqual(got, o) {
			t.Errorf("%+v came back as %+v, %v", o, got, err)
		}
		if got, err = ParseOffer(append(b, 200, 2, 0, 0)); err != nil || !reflect.DeepEqual(got, o) {
			t.Errorf("with an unknown part: %+v, %v", got, err)
		}
	}
	for _, bad := range []string{
		"", "\x01", "\x00\x01", "\x00\x01\x03\x01\x01", "\x00\x01\x03\x00\x00\x00", "\x00\x01\x03\x09\x00\x00", "\x00\x01\x02\x01\x01",
		"\x00\x02\x04\x00\x00\x00\x01", "\x00\x02\x03\x00\x01\x01", "\x00\x02\x04\x00\x01\x00\x01\x01\x03\x01\x01\x00", "\x11", "\x00\x03\x01\x00", "\x00\x03\x01\x03", "\x00\x03\x02\x01\x01",
	} {
		if o, err := ParseOffer([]byte(bad)); err == nil {
			t.Errorf("% x: accepted as %+v", bad, o)
		}
	}
}

func FuzzParseOffer(f *testing.F) {
	for _, o := range offers {
		f.Add(AppendOffer(nil, o))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		o, err := ParseOffer(b)
		if err != nil {
			return
		}
		again := AppendOffer(nil, o)
		// Parts that are not known are the only thing lost, and they come last.
		if !bytes.HasPrefix(b, again) || len(b) > len(again) && b[len(again)] <= partFlags {
			t.Errorf("% x is encoded as % x", b, again)
		}
	})
}
