package natt

import (
	"encoding/binary"
	"errors"
	"math"
	"slices"
)

// Traits are what the two sides of a pair tell each other about the NATs before them. They are hints: a peer that says
// what is not so only makes it harder to be reached.
type Traits struct {
	Mapping, Filtering Behavior
	// Step is the distance of the ports that the NAT gives to flows opened one after the other; 0: the same port, random or
	// not known.
	Step int8
	// Blocked says that no UDP passes, or none but to the ports of the web, which no peer has.
	Blocked bool
}

// Traits returns what a peer is told.
func (f Facts) Traits() Traits {
	web := func(port uint16) bool { return port == 80 || port == 443 }
	blocked := !slices.ContainsFunc(f.UDP, func(p uint16) bool { return !web(p) }) && slices.ContainsFunc(f.Blocked, func(p uint16) bool { return !web(p) })
	return Traits{f.Mapping, f.Filtering, int8(max(min(f.Step, math.MaxInt8), math.MinInt8)), blocked}
}

// Hard reports whether a peer cannot know beforehand which port packets to it will come from.
func (t Traits) Hard() bool {
	return t.Mapping == AddressDependent || t.Mapping == AddressAndPortDependent
}

// Open reports whether everybody may send to an address that was opened once, or to any port of it that has sent to them.
func (t Traits) open() bool {
	return t.Filtering == EndpointIndependent || t.Filtering == AddressDependent
}

// A Pool is what the side behind a hard NAT says when its sockets have opened ports for the peer.
type Pool struct {
	// Sockets is the number of ports opened; 0: none.
	Sockets uint16
	// Base is the port that the NAT gave out right before, if it counts; else 0.
	Base uint16
}

// An Offer is what one side tells the other, inside the session, so that they meet.
type Offer struct {
	Candidates []Candidate
	Traits     Traits
	Pool       Pool
}

// Parts behind the list of candidates.
const (
	partTraits = 1
	partPool   = 2
	partFlags  = 3
)

// flagBlocked is the only flag so far.
const flagBlocked = 1

var errOffer = errors.New("natt: offer: malformed")

// AppendOffer appends the encoding of an offer to dst.
func AppendOffer(dst []byte, o Offer) []byte {
	dst = AppendCandidates(dst, o.Candidates)
	if t := o.Traits; t.Mapping != 0 || t.Filtering != 0 || t.Step != 0 {
		dst = append(dst, partTraits, 3, byte(o.Traits.Mapping), byte(o.Traits.Filtering), byte(o.Traits.Step))
	}
	if o.Pool.Sockets != 0 {
		dst = append(dst, partPool, 4)
		dst = binary.BigEndian.AppendUint16(dst, o.Pool.Sockets)
		dst = binary.BigEndian.AppendUint16(dst, o.Pool.Base)
	}
	if o.Traits.Blocked {
		dst = append(dst, partFlags, 1, flagBlocked)
	}
	return dst
}

// ParseOffer reads an offer. Parts of kinds that are not known are skipped; apart from them an offer has one encoding.
func ParseOffer(b []byte) (Offer, error) {
	n, err := candidatesSize(b)
	if err != nil {
		return Offer{}, err
	}
	var o Offer
	if o.Candidates, err = ParseCandidates(b[:n]); err != nil {
		return Offer{}, err
	}
	last := byte(0)
	for b = b[n:]; len(b) > 0; {
		if len(b) < 2 || len(b) < 2+int(b[1]) || b[0] <= last {
			return Offer{}, errOffer
		}
		kind, body := b[0], b[2:2+int(b[1])]
		last, b = kind, b[2+len(body):]
		switch {
		case kind == partTraits && len(body) == 3:
			o.Traits = Traits{Mapping: Behavior(body[0]), Filtering: Behavior(body[1]), Step: int8(body[2])}
			if o.Traits == (Traits{}) || o.Traits.Mapping > AddressAndPortDependent || o.Traits.Filtering > AddressAndPortDependent {
				return Offer{}, errOffer
			}
		case kind == partPool && len(body) == 4:
			o.Pool = Pool{binary.BigEndian.Uint16(body), binary.BigEndian.Uint16(body[2:])}
			if o.Pool.Sockets == 0 {
				return Offer{}, errOffer
			}
		case kind == partFlags && len(body) == 1:
			if body[0] != flagBlocked {
				return Offer{}, errOffer
			}
			o.Traits.Blocked = true
		case kind == partTraits || kind == partPool || kind == partFlags:
			return Offer{}, errOffer
		}
	}
	return o, nil
}

// candidatesSize is how many bytes at the start of b are a list of candidates.
func candidatesSize(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, errCandidates
	}
	n := 1
	for range b[0] {
		if len(b) < n+2 {
			return 0, errCandidates
		}
		switch b[n+1] {
		case 4:
			n += 2 + 4 + 2
		case 6:
			n += 2 + 16 + 2
		default:
			return 0, errCandidates
		}
	}
	if n > len(b) {
		return 0, errCandidates
	}
	return n, nil
}
