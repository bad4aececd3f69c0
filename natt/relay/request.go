package relay

import (
	"encoding/binary"
	"time"

	"github.com/pilotnet/pilot/crypto"
)

// An Op is an operation of the control channel.
type Op uint8

// The operations.
const (
	OpClaim Op = 1
	OpPut   Op = 2
	OpList  Op = 3
	OpAck   Op = 4
	OpTime  Op = 5

	OpWithdraw Op = 6
	OpHead     Op = 7
)

// A Status is the server's verdict on a request.
type Status uint8

// The verdicts. All but OK come with a text.
const (
	StatusOK           Status = 0
	StatusStamp        Status = 1 // a stamp is needed, or this one is too weak or too old
	StatusAddressTaken Status = 2
	StatusRefused      Status = 3 // will not be accepted in this form
	StatusBusy         Status = 4 // try again later
	StatusNotFound     Status = 5 // no agent of this fingerprint has claimed here
	StatusFailed       Status = 6 // the server could not store it
	StatusStale        Status = 7 // a higher serial is stored
)

// Limits of the control channel.
const (
	MaxObject  = 8 << 10          // a card, claim or mail
	MaxRequest = 2*MaxObject + 64 // plaintext of a request
	MaxAnswer  = 40 << 10         // plaintext of an answer
	maxText    = 300
	maxItems   = 255
)

// A Request is one request of the control channel. Op says which fields count.
type Request struct {
	Op     Op
	Number uint16             // repeated in the answer
	Stamp  Stamp              // Claim, Put
	To     crypto.Fingerprint // Put
	Claim  []byte             // Claim
	Card   []byte             // Claim
	Body   []byte             // Put, Withdraw; Head: the signed head to keep, or none to ask only
	After  uint64             // List
	IDs    []uint64           // Ack
}

// AppendRequest appends the plaintext of r.
func AppendRequest(dst []byte, r Request) []byte {
	dst = append(dst, byte(r.Op), 0)
	dst = binary.BigEndian.AppendUint16(dst, r.Number)
	switch r.Op {
	case OpClaim:
		dst = append(dst, r.Stamp[:]...)
		dst = appendBytes(appendBytes(dst, r.Claim), r.Card)
	case OpPut:
		dst = append(dst, r.To[:]...)
		dst = append(dst, r.Stamp[:]...)
		dst = appendBytes(dst, r.Body)
	case OpHead:
		dst = appendBytes(dst, r.Body)
	case OpList:
		dst = binary.BigEndian.AppendUint64(dst, r.After)
	case OpAck:
		dst = append(dst, byte(len(r.IDs)))
		for _, id := range r.IDs {
			dst = binary.BigEndian.AppendUint64(dst, id)
		}
	case OpWithdraw:
		dst = appendBytes(dst, r.Body)
	}
	return dst
}

// ParseRequest parses the plaintext of a request. The result refers to b.
func ParseRequest(b []byte) (Request, error) {
	c := cursor{b: b}
	r := Request{Op: Op(c.byte())}
	zero := c.byte()
	r.Number = c.uint16()
	switch r.Op {
	case OpClaim:
		copy(r.Stamp[:], c.take(StampSize))
		r.Claim, r.Card = c.bytes(), c.bytes()
	case OpPut:
		copy(r.To[:], c.take(len(r.To)))
		copy(r.Stamp[:], c.take(StampSize))
		r.Body = c.bytes()
	case OpList:
		r.After = c.uint64()
	case OpAck:
		n := int(c.byte())
		for i := 0; i < n && !c.bad; i++ {
			r.IDs = append(r.IDs, c.uint64())
		}
	case OpHead:
		if r.Body = c.bytes(); len(r.Body) != 0 && len(r.Body) != crypto.HeadSize {
			return Request{}, ErrMalformed
		}
	case OpTime:
	case OpWithdraw:
		r.Body = c.bytes()
	default:
		return Request{}, ErrMalformed
	}
	if zero != 0 || !c.done() {
		return Request{}, ErrMalformed
	}
	return r, nil
}

// An Item is one piece of mail.
type Item struct {
	ID   uint64
	Body []byte
}

// An Answer is the answer to one request.
type Answer struct {
	Op     Op
	Status Status
	Number uint16
	Time   time.Time // the server's clock
	Text   string    // why, unless Status is StatusOK
	More   bool      // List: there is more after the last item
	Items  []Item    // List
	Head   []byte    // Head: the signed head that is kept, or none
}

// AppendAnswer appends the plaintext of a. The text is cut to 300 bytes.
func AppendAnswer(dst []byte, a Answer) []byte {
	dst = append(dst, byte(a.Op), byte(a.Status))
	dst = binary.BigEndian.AppendUint16(dst, a.Number)
	dst = binary.BigEndian.AppendUint64(dst, millis(a.Time))
	if a.Status != StatusOK {
		return append(dst, a.Text[:min(len(a.Text), maxText)]...)
	}
	if a.Op == OpHead {
		return appendBytes(dst, a.Head)
	}
	if a.Op == OpList {
		more := byte(0)
		if a.More {
			more = 1
		}
		dst = append(dst, more, byte(len(a.Items)))
		for _, it := range a.Items {
			dst = appendBytes(binary.BigEndian.AppendUint64(dst, it.ID), it.Body)
		}
	}
	return dst
}

// ParseAnswer parses the plaintext of an answer. The result refers to b.
func ParseAnswer(b []byte) (Answer, error) {
	c := cursor{b: b}
	a := Answer{Op: Op(c.byte()), Status: Status(c.byte()), Number: c.uint16()}
	at, ok := fromMillis(c.uint64())
	if c.bad || !ok || a.Op < OpClaim || a.Op > OpHead || a.Status > StatusStale {
		return Answer{}, ErrMalformed
	}
	a.Time = at
	if a.Status != StatusOK {
		if len(c.b) > maxText {
			return Answer{}, ErrMalformed
		}
		a.Text = string(c.b)
		return a, nil
	}
	if a.Op == OpHead {
		if a.Head = c.bytes(); len(a.Head) != 0 && len(a.Head) != crypto.HeadSize {
			return Answer{}, ErrMalformed
		}
	}
	if a.Op == OpList {
		more := c.byte()
		a.More = more == 1
		n := int(c.byte())
		for i := 0; i < n && !c.bad; i++ {
			a.Items = append(a.Items, Item{ID: c.uint64(), Body: c.bytes()})
		}
		if more > 1 {
			return Answer{}, ErrMalformed
		}
	}
	if !c.done() {
		return Answer{}, ErrMalformed
	}
	return a, nil
}

func appendBytes(dst, b []byte) []byte {
	return append(binary.BigEndian.AppendUint16(dst, uint16(len(b))), b...)
}

// A cursor reads fields from the front of b. After the first field that is not
// there it is bad, and everything that it returns is zero.
type cursor struct {
	b   []byte
	bad bool
}

func (c *cursor) take(n int) []byte {
	if c.bad || len(c.b) < n {
		c.bad = true
		return make([]byte, min(n, 16))
	}
	b := c.b[:n:n]
	c.b = c.b[n:]
	return b
}

func (c *cursor) byte() byte     { return c.take(1)[0] }
func (c *cursor) uint16() uint16 { return binary.BigEndian.Uint16(c.take(2)) }
func (c *cursor) uint64() uint64 { return binary.BigEndian.Uint64(c.take(8)) }
func (c *cursor) done() bool     { return !c.bad && len(c.b) == 0 }

// bytes reads a 2-byte length and at most MaxObject bytes.
func (c *cursor) bytes() []byte {
	n := int(c.uint16())
	if c.bad || n > MaxObject || n > len(c.b) {
		c.bad = true
		return nil
	}
	return c.take(n)
}
