package portmap

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"
)

// PCP, RFC 6887. The layouts are in the package comment.
const (
	pcpVersion    = 2
	pcpAnnounce   = 0
	pcpMap        = 1
	pcpAnswer     = 0x80 // the bit that marks an answer
	pcpHeader     = 24
	pcpMapSize    = 60
	pcpMaxSize    = 1100
	protocolUDP   = 17
	nonceSize     = 12
	pcpMismatch   = 12 // result: client address and source address differ
	pcpBadVersion = 1  // result: this version is not spoken
)

// pcpResults says what the result codes mean (RFC 6887 section 7.4).
var pcpResults = [...]string{
	1: "protocol version not supported", 2: "not authorised", 3: "malformed request", 4: "operation not supported",
	5: "option not supported", 6: "malformed option", 7: "the gateway has no network", 8: "no resources left",
	9: "protocol not supported", 10: "quota exceeded", 11: "cannot provide the external port",
	pcpMismatch: "another NAT stands between us and the gateway", 13: "too many remote peers",
}

// pcpRequest is a MAP request. A lifetime of 0 withdraws the mapping.
type pcpRequest struct {
	Client   netip.Addr // our address, as the gateway sees it
	Lifetime uint32     // seconds
	Nonce    [nonceSize]byte
	Internal uint16
	External netip.AddrPort // what we would like; an unspecified address for any
}

// pcpReply is an answer of a PCP server. The fields below Epoch are those of MAP.
type pcpReply struct {
	Opcode   uint8
	Result   uint8
	Lifetime uint32
	Epoch    uint32
	Nonce    [nonceSize]byte
	Protocol uint8
	Internal uint16
	External netip.AddrPort
}

func (r pcpRequest) append(dst []byte) []byte {
	dst = append(dst, pcpVersion, pcpMap, 0, 0)
	dst = binary.BigEndian.AppendUint32(dst, r.Lifetime)
	client := r.Client.As16()
	dst = append(dst, client[:]...)
	return appendMap(dst, r.Nonce, protocolUDP, r.Internal, r.External)
}

// appendMap appends the part that requests and answers of MAP share.
func appendMap(dst []byte, nonce [nonceSize]byte, protocol uint8, internal uint16, external netip.AddrPort) []byte {
	dst = append(dst, nonce[:]...)
	dst = append(dst, protocol, 0, 0, 0)
	dst = binary.BigEndian.AppendUint16(dst, internal)
	dst = binary.BigEndian.AppendUint16(dst, external.Port())
	ip := external.Addr().As16()
	return append(dst, ip[:]...)
}

// parsePCPRequest reads what pcpRequest.append writes, and nothing else. Gateways in tests use it.
func parsePCPRequest(b []byte) (r pcpRequest, ok bool) {
	if len(b) != pcpMapSize || b[0] != pcpVersion || b[1] != pcpMap || b[2]|b[3] != 0 || b[36] != protocolUDP || b[37]|b[38]|b[39] != 0 {
		return r, false
	}
	r.Lifetime = binary.BigEndian.Uint32(b[4:])
	r.Client = netip.AddrFrom16([16]byte(b[8:24])).Unmap()
	r.Nonce = [nonceSize]byte(b[24:])
	r.Internal = binary.BigEndian.Uint16(b[40:])
	r.External = netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[44:60])).Unmap(), binary.BigEndian.Uint16(b[42:]))
	return r, true
}

// append writes an answer without options: 24 bytes for ANNOUNCE, 60 for MAP.
func (r pcpReply) append(dst []byte) []byte {
	dst = append(dst, pcpVersion, r.Opcode|pcpAnswer, 0, r.Result)
	dst = binary.BigEndian.AppendUint32(dst, r.Lifetime)
	dst = binary.BigEndian.AppendUint32(dst, r.Epoch)
	dst = append(dst, make([]byte, 12)...)
	if r.Opcode != pcpMap {
		return dst
	}
	return appendMap(dst, r.Nonce, r.Protocol, r.Internal, r.External)
}

// parsePCPReply reads an answer to ANNOUNCE or MAP. As RFC 6887 asks, reserved bytes and options behind the answer are
// ignored: we send none that could be answered.
func parsePCPReply(b []byte) (r pcpReply, ok bool) {
	if len(b) < pcpHeader || len(b) > pcpMaxSize || len(b)%4 != 0 || b[0] != pcpVersion || b[1]&pcpAnswer == 0 {
		return r, false
	}
	r.Opcode, r.Result = b[1]&^pcpAnswer, b[3]
	r.Lifetime = binary.BigEndian.Uint32(b[4:])
	r.Epoch = binary.BigEndian.Uint32(b[8:])
	switch {
	case r.Opcode == pcpAnnounce:
		return r, true
	case r.Opcode != pcpMap || len(b) < pcpMapSize:
		return r, false
	}
	r.Nonce = [nonceSize]byte(b[24:])
	r.Protocol = b[36]
	r.Internal = binary.BigEndian.Uint16(b[40:])
	r.External = netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[44:60])).Unmap(), binary.BigEndian.Uint16(b[42:]))
	return r, true
}

// pcp is the wire of a lease by PCP.
type pcp struct {
	client   netip.Addr
	nonce    [nonceSize]byte
	internal uint16
}

func (p *pcp) ask(external netip.AddrPort, lifetime time.Duration) [][]byte {
	if !external.Addr().IsValid() {
		anywhere := netip.IPv6Unspecified()
		if p.client.Is4() {
			anywhere = netip.IPv4Unspecified()
		}
		external = netip.AddrPortFrom(anywhere, external.Port())
	}
	r := pcpRequest{p.client, uint32(lifetime / time.Second), p.nonce, p.internal, external}
	return [][]byte{r.append(nil)}
}

func (p *pcp) read(b []byte) (answer, bool) {
	r, ok := parsePCPReply(b)
	if !ok {
		return p.readOther(b)
	}
	a := answer{epoch: r.Epoch, dated: true}
	if r.Opcode == pcpAnnounce {
		return a, r.Result == 0
	}
	if r.Nonce != p.nonce || r.Protocol != protocolUDP || r.Internal != p.internal {
		return a, false
	}
	if r.Result != 0 {
		a.failure, a.pause = result(pcpResults[:], int(r.Result)), time.Duration(r.Lifetime)*time.Second
		return a, true
	}
	a.mapped, a.lifetime, a.port = true, r.Lifetime, r.External.Port()
	if a.addr = r.External.Addr(); a.addr.Is4() != p.client.Is4() {
		a.failure = fmt.Sprintf("the gateway offers %v, which is of the wrong family", a.addr)
	}
	return a, true
}

// readOther understands a refusal by a server that does not speak PCP version 2: one of NAT-PMP says so in its own
// format (RFC 6887 appendix A), one of another version may leave out the rest of the answer.
func (p *pcp) readOther(b []byte) (answer, bool) {
	switch {
	case len(b) >= 8 && b[0] == natpmpVersion && b[1]&pcpAnswer != 0 && binary.BigEndian.Uint16(b[2:]) == natpmpBadVersion:
		return answer{failure: "the gateway speaks NAT-PMP only"}, true
	case len(b) >= pcpHeader && len(b) <= pcpMaxSize && b[0] > 0 && b[1] == pcpMap|pcpAnswer && b[3] == pcpBadVersion:
		return answer{failure: pcpResults[pcpBadVersion]}, true
	}
	return answer{}, false
}

// result names a result code.
func result(names []string, code int) string {
	if code < len(names) && names[code] != "" {
		return names[code]
	}
	return fmt.Sprintf("result code %d", code)
}
