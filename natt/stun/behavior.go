package stun

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/pion/stun/v3"
)

// A Query is a Binding request of RFC 5780, which finds out how a NAT behaves: it may ask the server to answer from its
// other address or port, or to another port of the address that the query comes from.
type Query struct {
	ID         TransactionID
	ChangeIP   bool
	ChangePort bool
	// ResponsePort is where the answer goes; 0: to where the query came from. Ports below LeastResponsePort are refused.
	ResponsePort uint16
}

// A Reply is the answer to a Query.
type Reply struct {
	ID     TransactionID
	Mapped netip.AddrPort // our address as the server sees it
	Other  netip.AddrPort // OTHER-ADDRESS: the server's second address and port; zero if it has none
}

const (
	attrChangeRequest stun.AttrType = 0x0003
	attrResponsePort  stun.AttrType = 0x0027
	attrOtherAddress  stun.AttrType = 0x802c

	changeIP   = 0x04
	changePort = 0x02

	// LeastResponsePort keeps what listens at well-known ports out of what strangers behind the same NAT can ask for.
	LeastResponsePort = 1024

	// QuerySize is the length of every Query: as long as the longest Reply, with two IPv6 addresses.
	QuerySize = headerSize + 2*(8+16)
)

// AppendQuery appends the request.
func AppendQuery(dst []byte, q Query) []byte {
	at := len(dst)
	dst = appendHeader(dst, 0x0001, QuerySize-headerSize, q.ID)
	var change byte
	if q.ChangeIP {
		change |= changeIP
	}
	if q.ChangePort {
		change |= changePort
	}
	if change != 0 {
		dst = binary.BigEndian.AppendUint16(dst, uint16(attrChangeRequest))
		dst = append(dst, 0, 4, 0, 0, 0, change)
	}
	if q.ResponsePort != 0 {
		dst = binary.BigEndian.AppendUint16(dst, uint16(attrResponsePort))
		dst = append(dst, 0, 4)
		dst = binary.BigEndian.AppendUint16(dst, q.ResponsePort)
		dst = append(dst, 0, 0) // padding, RFC 5780 section 7.5
	}
	rest := QuerySize - (len(dst) - at) - 4
	dst = binary.BigEndian.AppendUint16(dst, uint16(stun.AttrSoftware))
	dst = binary.BigEndian.AppendUint16(dst, uint16(rest))
	for i := range rest {
		if i < 5 {
			dst = append(dst, software[i])
		} else {
			dst = append(dst, ' ')
		}
	}
	return dst
}

// ParseQuery reads a request as a server does. It reports false for what is no Binding request of QuerySize or more, or
// has an attribute that must be understood and is not: Answer is for those.
func ParseQuery(b []byte) (Query, bool) {
	if len(b) < QuerySize || !Is(b) || binary.BigEndian.Uint16(b) != 0x0001 {
		return Query{}, false
	}
	m, err := decode(b)
	if err != nil {
		return Query{}, false
	}
	q := Query{ID: m.TransactionID}
	for _, t := range unknownAttributes(m) {
		v, err := m.Get(t)
		switch {
		case err != nil:
			return Query{}, false
		case t == attrChangeRequest && len(v) == 4 && v[0] == 0 && v[1] == 0 && v[2] == 0 && v[3]&^(changeIP|changePort) == 0:
			q.ChangeIP, q.ChangePort = v[3]&changeIP != 0, v[3]&changePort != 0
		case t == attrResponsePort && (len(v) == 2 || len(v) == 4) && binary.BigEndian.Uint16(v) >= LeastResponsePort:
			q.ResponsePort = binary.BigEndian.Uint16(v)
		default:
			return Query{}, false
		}
	}
	return q, true
}

// AppendReply appends the answer of a server that has another address.
func AppendReply(dst []byte, r Reply) []byte {
	at := len(dst)
	dst = appendHeader(dst, 0x0101, addressSize(r.Mapped)+addressSize(r.Other), r.ID)
	dst = appendAddress(dst, stun.AttrXORMappedAddress, r.Mapped, dst[at+4:at+headerSize])
	return appendAddress(dst, attrOtherAddress, r.Other, nil)
}

// ParseReply reads the answer to a Query, of a server that knows RFC 5780 or of one that does not.
func ParseReply(b []byte) (Reply, error) {
	id, mapped, err := ParseResponse(b)
	if err != nil {
		return Reply{ID: id}, err
	}
	r := Reply{ID: id, Mapped: mapped}
	m, err := decode(b)
	if err != nil {
		return Reply{}, err
	}
	v, err := m.Get(attrOtherAddress)
	if err != nil {
		return r, nil
	}
	if len(v) != 8 && len(v) != 20 || v[0] != 0 || v[1] != 1 && v[1] != 2 || (v[1] == 1) != (len(v) == 8) {
		return Reply{}, fmt.Errorf("%w: malformed other address", ErrNotBinding)
	}
	ip, _ := netip.AddrFromSlice(v[4:])
	r.Other = netip.AddrPortFrom(ip.Unmap(), binary.BigEndian.Uint16(v[2:]))
	return r, nil
}
