package stun

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/pion/stun/v3"
)

// TransactionID says which request an answer belongs to. It has to be random.
type TransactionID = [stun.TransactionIDSize]byte

const (
	// RequestSize is the length of what Request returns.
	RequestSize = 44
	// MaxAnswer is the length of the longest answer to a request that is no longer itself.
	MaxAnswer = 44

	headerSize = 20
	cookie     = 0x2112A442
	software   = "pilot               " // 20 bytes
	maxUnknown = 4                      // attributes named in an error
)

// ErrNotBinding says that a message is no answer to a Binding request.
var ErrNotBinding = errors.New("stun: no binding answer")

// Is reports whether a datagram is to be taken for a STUN message.
func Is(b []byte) bool {
	return len(b) >= headerSize && b[0] <= 1 && stun.IsMessage(b)
}

// Request returns a Binding request.
func Request(id TransactionID) []byte {
	m := &stun.Message{Type: stun.BindingRequest, TransactionID: id, Raw: make([]byte, 0, RequestSize)}
	m.WriteHeader()
	m.Add(stun.AttrSoftware, []byte(software))
	return m.Raw
}

// ParseResponse reads the answer to a Binding request: the transaction it belongs to and the address that the server
// saw. An IPv4 address is never in its IPv6 form.
func ParseResponse(b []byte) (TransactionID, netip.AddrPort, error) {
	var zero netip.AddrPort
	m, err := decode(b)
	if err != nil {
		return TransactionID{}, zero, err
	}
	switch m.Type {
	case stun.BindingSuccess:
	case stun.BindingError:
		var code stun.ErrorCodeAttribute
		if err := code.GetFrom(m); err != nil {
			return TransactionID{}, zero, fmt.Errorf("%w: error without a code", ErrNotBinding)
		}
		return m.TransactionID, zero, fmt.Errorf("stun: the server refuses: error %d", code.Code)
	default:
		return TransactionID{}, zero, ErrNotBinding
	}
	value, err := m.Get(stun.AttrXORMappedAddress)
	if err != nil {
		return TransactionID{}, zero, fmt.Errorf("%w: no address in it", ErrNotBinding)
	}
	addr, ok := unmask(value, m.TransactionID)
	if !ok {
		return TransactionID{}, zero, fmt.Errorf("%w: malformed address", ErrNotBinding)
	}
	return m.TransactionID, addr, nil
}

// Answer appends the answer to a Binding request that came from an address to dst. It reports false, and appends
// nothing, if there is none.
func Answer(dst, request []byte, from netip.AddrPort) ([]byte, bool) {
	if !Is(request) || binary.BigEndian.Uint16(request) != 0x0001 || !from.IsValid() {
		return dst, false // the common case of nonsense ends here, without an allocation
	}
	m, err := decode(request)
	if err != nil {
		return dst, false
	}
	id := m.TransactionID
	if unknown := unknownAttributes(m); len(unknown) > 0 {
		return refuse(dst, id, unknown), true
	}
	return AppendMapped(dst, id, from), true
}

// AppendMapped appends the answer that tells an address and nothing else.
func AppendMapped(dst []byte, id TransactionID, mapped netip.AddrPort) []byte {
	at := len(dst)
	dst = appendHeader(dst, 0x0101, addressSize(mapped), id)
	return appendAddress(dst, stun.AttrXORMappedAddress, mapped, dst[at+4:at+headerSize])
}

// addressSize is the length of an address attribute with its header.
func addressSize(a netip.AddrPort) int { return 8 + a.Addr().Unmap().BitLen()/8 }

// appendAddress appends an address attribute, masked with key (the magic cookie and the transaction ID), or plain
// without one.
func appendAddress(dst []byte, kind stun.AttrType, a netip.AddrPort, key []byte) []byte {
	ip := a.Addr().Unmap()
	family, port := byte(1), a.Port()
	if ip.Is6() {
		family = 2
	}
	if key != nil {
		port ^= cookie >> 16
	}
	dst = binary.BigEndian.AppendUint16(dst, uint16(kind))
	dst = binary.BigEndian.AppendUint16(dst, uint16(addressSize(a)-4))
	dst = append(dst, 0, family)
	dst = binary.BigEndian.AppendUint16(dst, port)
	value := len(dst)
	dst = append(dst, ip.AsSlice()...)
	if key != nil {
		mask(dst[value:], key)
	}
	return dst
}

// refuse appends error 420 (Unknown Attribute).
func refuse(dst []byte, id TransactionID, unknown []stun.AttrType) []byte {
	unknown = unknown[:min(len(unknown), maxUnknown)]
	padded := (2*len(unknown) + 3) &^ 3
	dst = appendHeader(dst, 0x0111, 8+4+padded, id)
	dst = binary.BigEndian.AppendUint16(dst, uint16(stun.AttrErrorCode))
	dst = append(dst, 0, 4, 0, 0, 4, 20)
	dst = binary.BigEndian.AppendUint16(dst, uint16(stun.AttrUnknownAttributes))
	dst = binary.BigEndian.AppendUint16(dst, uint16(2*len(unknown)))
	for _, t := range unknown {
		dst = binary.BigEndian.AppendUint16(dst, uint16(t))
	}
	return append(dst, 0, 0)[:len(dst)+padded-2*len(unknown)]
}

func appendHeader(dst []byte, kind uint16, length int, id TransactionID) []byte {
	dst = binary.BigEndian.AppendUint16(dst, kind)
	dst = binary.BigEndian.AppendUint16(dst, uint16(length))
	dst = binary.BigEndian.AppendUint32(dst, cookie)
	return append(dst, id[:]...)
}

// decode reads a message that fills the datagram. The message borrows it.
func decode(b []byte) (*stun.Message, error) {
	if !Is(b) || headerSize+int(binary.BigEndian.Uint16(b[2:])) != len(b) {
		return nil, fmt.Errorf("%w: no STUN message", ErrNotBinding)
	}
	m := &stun.Message{Raw: b, Attributes: make(stun.Attributes, 0, 8)}
	if err := m.Decode(); err != nil {
		return nil, fmt.Errorf("%w: %v", ErrNotBinding, err)
	}
	return m, nil
}

// unknownAttributes returns the attributes that must be understood and that a server without any options does not.
// Those of authentication are understood and not asked for.
func unknownAttributes(m *stun.Message) (unknown []stun.AttrType) {
	for _, a := range m.Attributes {
		switch a.Type {
		case stun.AttrMappedAddress, stun.AttrXORMappedAddress, stun.AttrUsername, stun.AttrMessageIntegrity,
			stun.AttrErrorCode, stun.AttrUnknownAttributes, stun.AttrRealm, stun.AttrNonce,
			stun.AttrMessageIntegritySHA256, stun.AttrPasswordAlgorithm, stun.AttrUserhash:
		default:
			if a.Type.Required() {
				unknown = append(unknown, a.Type)
			}
		}
	}
	return unknown
}

// unmask reads the value of XOR-MAPPED-ADDRESS.
func unmask(value []byte, id TransactionID) (netip.AddrPort, bool) {
	if len(value) < 4 || value[0] != 0 {
		return netip.AddrPort{}, false
	}
	if size := len(value) - 4; !(value[1] == 1 && size == 4 || value[1] == 2 && size == 16) {
		return netip.AddrPort{}, false
	}
	var key, ip [16]byte
	binary.BigEndian.PutUint32(key[:], cookie)
	copy(key[4:], id[:])
	n := copy(ip[:], value[4:])
	mask(ip[:n], key[:])
	addr, _ := netip.AddrFromSlice(ip[:n])
	port := binary.BigEndian.Uint16(value[2:]) ^ cookie>>16
	return netip.AddrPortFrom(addr.Unmap(), port), true
}

func mask(b, key []byte) {
	for i := range b {
		b[i] ^= key[i]
	}
}
