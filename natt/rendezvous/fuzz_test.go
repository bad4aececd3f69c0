package rendezvous

import (
	"bytes"
	"net/netip"
	"testing"
	"time"

	"github.com/pilotnet/pilot/crypto"
)

// FuzzStored: what the store reads as an agent, a piece of mail or a head is what it
// writes for it, and one flipped bit makes it damaged.
func FuzzStored(f *testing.F) {
	key := []byte("sixteen bytes of a mailb")
	fp := crypto.Fingerprint(key[:16])
	f.Add(Agent{Counter: 1, ClaimSerial: 2, CardSerial: 3, Claim: []byte("claim"), Card: []byte("card")}.encode(fp)[4:])
	f.Add(encodeMail(key, Mail{ID: 1, Received: time.UnixMilli(1_800_000_000_000), Bucket: 9, Body: []byte("sealed")})[4:])
	f.Add([]byte("\x00\x00\x00\x00\x00\x00\x00\x05signed"))
	f.Fuzz(func(t *testing.T, body []byte) {
		prefixed := func() []byte { return append(make([]byte, 4), body...) }
		v := withSum(fp[:], prefixed())
		if a, err := decodeAgent(fp[:], v); err == nil && !bytes.Equal(a.encode(fp), v) {
			t.Errorf("agent %x: %x", v, a.encode(fp))
		}
		if count, signed, err := decodeHead(fp[:], v); err == nil && (len(signed) != len(body)-8 || count>>56 != uint64(body[0])) {
			t.Errorf("head %x: %d, %x", v, count, signed)
		}
		m := withSum(key, prefixed())
		if mail, err := decodeMail(key, m); err == nil && !bytes.Equal(encodeMail(key, mail), m) {
			t.Errorf("mail %x: %x", m, encodeMail(key, mail))
		}
		bad := bytes.Clone(v)
		bad[len(body)%len(bad)] ^= 1 << (len(body) % 8)
		if _, err := decodeAgent(fp[:], bad); err == nil {
			t.Errorf("%x is not damaged", bad)
		}
		if _, err := decodeAgent(key[8:], v); err == nil {
			t.Errorf("%x is another agent's too", v)
		}
	})
}

// FuzzBindings: a record that is read is the one that was written; what is damaged
// is skipped, and costs no other.
func FuzzBindings(f *testing.F) {
	k := known{session: 5, remote: netip.MustParseAddrPort("198.51.100.7:4242"), local: netip.MustParseAddrPort("192.0.2.10:3478")}
	f.Add(appendBinding(nil, k))
	k.remote, k.local = netip.MustParseAddrPort("[2001:db8::1]:9"), netip.AddrPort{}
	f.Add(appendBinding(appendBinding(nil, k), known{session: 6, remote: k.remote}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if got, ok := parseBinding(b); ok && !bytes.Equal(appendBinding(nil, got), b) {
			t.Errorf("%x: %x", b, appendBinding(nil, got))
		}
		whole := b[:len(b)/bindingSize*bindingSize]
		list, err := readBindings(bytes.NewReader(appendBinding(bytes.Clone(whole), k)))
		if err != nil || len(list) == 0 || len(list) > len(whole)/bindingSize+1 {
			t.Fatalf("%x: %v, %v", b, list, err)
		}
		found := false
		for _, l := range list {
			found = found || l == k
		}
		if !found {
			t.Errorf("%x: the record behind it is lost", b)
		}
	})
}
