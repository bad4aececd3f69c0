package portmap

import (
	"encoding/binary"
	"net/netip"
	"time"
)

// NAT-PMP, RFC 6886. The layouts are in the package comment.
const (
	natpmpVersion    = 0
	natpmpAddress    = 0
	natpmpMapUDP     = 1
	natpmpAnswer     = 128 // added to the operation in an answer
	natpmpBadVersion = 1   // result: this version is not spoken
)

// natpmpResults says what the result codes mean (RFC 6886 section 3.5).
var natpmpResults = [...]string{
	natpmpBadVersion: "protocol version not supported", 2: "not authorised", 3: "the gateway has no network",
	4: "no resources left", 5: "operation not supported",
}

// natpmpRequest asks for the external address (Op 0, the rest unused) or for a mapping (Op 1).
type natpmpRequest struct {
	Op       uint8
	Internal uint16
	External uint16 // what we would like; 0 for any
	Lifetime uint32 // seconds; 0 withdraws
}

// natpmpReply is an answer: Addr belongs to Op 0, the fields below it to Op 1.
type natpmpReply struct {
	Op       uint8
	Result   uint16
	Epoch    uint32
	Addr     netip.Addr
	Internal uint16
	External uint16
	Lifetime uint32
}

func (r natpmpRequest) append(dst []byte) []byte {
	dst = append(dst, natpmpVersion, r.Op)
	if r.Op != natpmpMapUDP {
		return dst
	}
	dst = append(dst, 0, 0)
	dst = binary.BigEndian.AppendUint16(dst, r.Internal)
	dst = binary.BigEndian.AppendUint16(dst, r.External)
	return binary.BigEndian.AppendUint32(dst, r.Lifetime)
}

// parseNATPMPRequest reads what natpmpRequest.append writes, and nothing else. Gateways in tests use it.
func parseNATPMPRequest(b []byte) (r natpmpRequest, ok bool) {
	switch {
	case len(b) == 2 && b[0] == natpmpVersion && b[1] == natpmpAddress:
		return r, true
	case len(b) == 12 && b[0] == natpmpVersion && b[1] == natpmpMapUDP && b[2]|b[3] == 0:
		r.Op = natpmpMapUDP
		r.Internal = binary.BigEndian.Uint16(b[4:])
		r.External = binary.BigEndian.Uint16(b[6:])
		r.Lifetime = binary.BigEndian.Uint32(b[8:])
		return r, true
	}
	return r, false
}

func (r natpmpReply) append(dst []byte) []byte {
	dst = append(dst, natpmpVersion, r.Op+natpmpAnswer)
	dst = binary.BigEndian.AppendUint16(dst, r.Result)
	dst = binary.BigEndian.AppendUint32(dst, r.Epoch)
	if r.Op == natpmpAddress {
		ip := r.Addr.As4()
		return append(dst, ip[:]...)
	}
	dst = binary.BigEndian.AppendUint16(dst, r.Internal)
	dst = binary.BigEndian.AppendUint16(dst, r.External)
	return binary.BigEndian.AppendUint32(dst, r.Lifetime)
}

// parseNATPMPReply reads an answer of exactly the length that belongs to its operation. A refusal may end behind the
// epoch.
func parseNATPMPReply(b []byte) (r natpmpReply, ok bool) {
	if len(b) < 8 || b[0] != natpmpVersion || b[1] < natpmpAnswer {
		return r, false
	}
	r.Op = b[1] - natpmpAnswer
	r.Result = binary.BigEndian.Uint16(b[2:])
	r.Epoch = binary.BigEndian.Uint32(b[4:])
	switch {
	case r.Op == natpmpAddress && len(b) == 12:
		r.Addr = netip.AddrFrom4([4]byte(b[8:]))
	case r.Op == natpmpMapUDP && len(b) == 16:
		r.Internal = binary.BigEndian.Uint16(b[8:])
		r.External = binary.BigEndian.Uint16(b[10:])
		r.Lifetime = binary.BigEndian.Uint32(b[12:])
	case r.Op > natpmpMapUDP || r.Result == 0 || len(b) != 8:
		return r, false
	default:
		r.Addr = netip.IPv4Unspecified()
	}
	return r, true
}

// natpmp is the wire of a lease by NAT-PMP.
type natpmp struct{ internal uint16 }

func (p *natpmp) ask(external netip.AddrPort, lifetime time.Duration) [][]byte {
	r := natpmpRequest{Op: natpmpMapUDP, Internal: p.internal, External: external.Port(), Lifetime: uint32(lifetime / time.Second)}
	if lifetime == 0 {
		return [][]byte{r.append(nil)}
	}
	return [][]byte{natpmpRequest{Op: natpmpAddress}.append(nil), r.append(nil)}
}

func (p *natpmp) read(b []byte) (answer, bool) {
	r, ok := parseNATPMPReply(b)
	if !ok {
		return answer{}, false
	}
	a := answer{epoch: r.Epoch, dated: true}
	switch {
	case r.Result != 0:
		a.failure = result(natpmpResults[:], int(r.Result))
	case r.Op == natpmpAddress:
		a.addr = r.Addr
	case r.Internal != p.internal:
		return a, false
	default:
		a.mapped, a.port, a.lifetime = true, r.External, r.Lifetime
	}
	return a, true
}
