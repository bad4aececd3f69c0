package firewall

import (
	"encoding/binary"
	"testing"
)

// inner is an IPv6 packet without addresses.
func inner(next uint8, payload ...byte) []byte {
	p := append(make([]byte, ipv6HeaderSize), payload...)
	p[0], p[6] = 6<<4, next
	binary.BigEndian.PutUint16(p[4:], uint16(len(payload)))
	return p
}

func TestParseReadsPorts(t *testing.T) {
	var h Header
	syn := inner(6, 0x13, 0x88, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 5<<4, 0x02, 0, 0, 0, 0, 0, 0)
	if h.parse(syn) != Pass || h.src != 5000 || h.dst != 7 || !h.opensTCP() {
		t.Errorf("%+v", h)
	}
	follower := inner(protoFragment, 17, 0, 1232>>8, 1232&0xff, 0xde, 0xad, 0xbe, 0xef, 1, 2, 3, 4, 5)
	if h.parse(follower) != Pass || h.fragment != laterFragment || h.fragID != 0xdeadbeef || h.fragAt != 1232/8 || len(h.body) != 5 {
		t.Errorf("%+v", h)
	}
}
