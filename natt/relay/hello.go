package relay

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

	"github.com/pilotnet/pilot/crypto"
)

const (
	prologueLabel = "pilot relay v1"
	prefixSize    = 8 // type, version, zero, attempt: the part of a request bound by the prologue
	helloPayload  = 48
	welcomePlain  = 40
)

// HelloFlags are the flags of a HELLO.
type HelloFlags uint32

// FlagTakeover makes this instance the current one even if it started earlier
// than the registered one says it did.
const FlagTakeover HelloFlags = 1

// A Hello is the sealed content of a HELLO.
type Hello struct {
	Fingerprint crypto.Fingerprint
	Instance    uint64    // random, one per start of the agent
	Time        time.Time // the agent's clock
	Started     time.Time // when this instance started, by the agent's clock
	Flags       HelloFlags
}

func appendHelloBody(dst []byte, h Hello) []byte {
	dst = append(dst, h.Fingerprint[:]...)
	dst = binary.BigEndian.AppendUint64(dst, h.Instance)
	dst = binary.BigEndian.AppendUint64(dst, millis(h.Time))
	dst = binary.BigEndian.AppendUint64(dst, millis(h.Started))
	dst = binary.BigEndian.AppendUint32(dst, uint32(h.Flags))
	return append(dst, 0, 0, 0, 0)
}

func parseHelloBody(b []byte) (Hello, error) {
	if len(b) != helloPayload || binary.BigEndian.Uint32(b[44:]) != 0 {
		return Hello{}, ErrMalformed
	}
	now, ok := fromMillis(binary.BigEndian.Uint64(b[24:]))
	started, okStarted := fromMillis(binary.BigEndian.Uint64(b[32:]))
	if !ok || !okStarted {
		return Hello{}, ErrMalformed
	}
	return Hello{
		Fingerprint: crypto.Fingerprint(b[:16]),
		Instance:    binary.BigEndian.Uint64(b[16:]),
		Time:        now, Started: started,
		Flags: HelloFlags(binary.BigEndian.Uint32(b[40:])),
	}, nil
}

// A WelcomeStatus is the server's verdict on a HELLO.
type WelcomeStatus uint8

// The verdicts.
const (
	StatusWelcome    WelcomeStatus = 0
	StatusUnknown    WelcomeStatus = 1 // claim first
	StatusSuperseded WelcomeStatus = 2 // an instance that started later is registered
)

// A Welcome is the sealed content of a WELCOME or OPENED.
type Welcome struct {
	Status   WelcomeStatus
	Number   uint64 // session or channel; 0 unless the status is StatusWelcome
	Time     time.Time
	Observed netip.AddrPort
}

func appendWelcomeBody(dst []byte, w Welcome) []byte {
	dst = append(dst, byte(w.Status), 0, 0, 0)
	dst = binary.BigEndian.AppendUint64(dst, w.Number)
	dst = binary.BigEndian.AppendUint64(dst, millis(w.Time))
	dst = appendAddr(dst, w.Observed)
	return append(dst, 0, 0)
}

func parseWelcomeBody(b []byte) (Welcome, error) {
	if len(b) != welcomePlain || b[0] > byte(StatusSuperseded) || !allZero(b[1:4]) || !allZero(b[38:]) {
		return Welcome{}, ErrMalformed
	}
	w := Welcome{Status: WelcomeStatus(b[0]), Number: binary.BigEndian.Uint64(b[4:])}
	at, ok := fromMillis(binary.BigEndian.Uint64(b[12:]))
	addr, okAddr := parseAddr(b[20:])
	if !ok || !okAddr || (w.Status == StatusWelcome) == (w.Number == 0) {
		return Welcome{}, ErrMalformed
	}
	w.Time, w.Observed = at, addr
	return w, nil
}

// Visit is the sealed content of a VISIT.
type Visit struct {
	Target crypto.Fingerprint
	Inner  []byte // at most MaxInner bytes; empty only to open or move the channel
	// Ask asks where the target is seen, and lets the target know where we are: the
	// OPENED tells the target's address instead of ours, if the target wants that too.
	Ask bool
}

const visitAsk = 1

const visitPayload = 20 + MaxInner

func appendVisitBody(dst []byte, v Visit) []byte {
	dst = append(dst, v.Target[:]...)
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(v.Inner)))
	dst = append(dst, 0, 0)
	if v.Ask {
		dst[len(dst)-1] = visitAsk
	}
	dst = append(dst, v.Inner...)
	return append(dst, make([]byte, MaxInner-len(v.Inner))...)
}

func parseVisitBody(b []byte) (Visit, error) {
	if len(b) != visitPayload || b[18] != 0 || b[19] > visitAsk {
		return Visit{}, ErrMalformed
	}
	n := int(binary.BigEndian.Uint16(b[16:]))
	if n > MaxInner || !allZero(b[20+n:]) {
		return Visit{}, ErrMalformed
	}
	return Visit{Target: crypto.Fingerprint(b[:16]), Inner: b[20 : 20+n], Ask: b[19] == visitAsk}, nil
}

// A request is the initiator's side of a HELLO or VISIT: a complete datagram and
// the handshake that reads its answer.
type request struct {
	hs  *crypto.Handshake
	msg []byte
}

// newRequest makes a HELLO (static given) or a VISIT.
func newRequest(server crypto.DHPublic, static *crypto.DHPrivate, attempt uint32, payload, cookie []byte) (*request, error) {
	typ, pattern, size := byte(TypeVisit), crypto.NK, VisitSize
	if static != nil {
		typ, pattern, size = TypeHello, crypto.IK, HelloSize
	}
	msg := append(make([]byte, 0, size), typ, version, 0, 0)
	msg = binary.BigEndian.AppendUint32(msg, attempt)
	hs, err := crypto.NewHandshake(crypto.HandshakeConfig{
		Pattern: pattern, Initiator: true, Prologue: prologue(msg),
		Static: static, RemoteStatic: &server,
	})
	if err != nil {
		return nil, fmt.Errorf("relay: start handshake: %w", err)
	}
	if msg, err = hs.Write(msg, payload); err != nil {
		return nil, fmt.Errorf("relay: start handshake: %w", err)
	}
	return &request{hs: hs, msg: NewMAC(server).append(msg, cookie)}, nil
}

func prologue(msg []byte) []byte {
	return append([]byte(prologueLabel), msg[:prefixSize]...)
}

// complete reads the WELCOME or OPENED that answers r. An error changes nothing,
// so a forged answer does not spoil the true one.
func (r *request) complete(b []byte) (Welcome, *crypto.Handshake, error) {
	if len(b) != WelcomeSize || b[0] != r.msg[0]+1 || [7]byte(b[1:8]) != [7]byte(r.msg[1:8]) {
		return Welcome{}, nil, ErrMalformed
	}
	hs := r.hs.Clone()
	var plain [welcomePlain]byte
	body, err := hs.Read(plain[:0], b[prefixSize:])
	if err != nil {
		return Welcome{}, nil, fmt.Errorf("relay: open answer: %w", err)
	}
	w, err := parseWelcomeBody(body)
	return w, hs, err
}

// An Accepted is a HELLO or VISIT that the server has opened and may answer.
type Accepted struct {
	Static crypto.DHPublic // who sent a HELLO, proven; zero for a VISIT
	Hello  Hello           // of a HELLO
	Visit  Visit           // of a VISIT; Inner is the Accepted's own memory

	hs     *crypto.Handshake
	prefix [prefixSize]byte
}

// Accept opens a HELLO or VISIT for which [MAC.Check] holds. It costs two
// Diffie-Hellman operations (one for a VISIT) and changes nothing.
func Accept(key crypto.DHPrivate, msg []byte) (*Accepted, error) {
	if !requestForm(msg) {
		return nil, ErrMalformed
	}
	a := &Accepted{prefix: [prefixSize]byte(msg)}
	pattern := crypto.IK
	if msg[0] == TypeVisit {
		pattern = crypto.NK
	}
	hs, err := crypto.NewHandshake(crypto.HandshakeConfig{Pattern: pattern, Prologue: prologue(msg), Static: &key})
	if err != nil {
		return nil, fmt.Errorf("relay: accept: %w", err)
	}
	body, err := hs.Read(nil, msg[prefixSize:len(msg)-2*macSize])
	if err != nil {
		return nil, fmt.Errorf("relay: accept: %w", err)
	}
	a.hs = hs
	if msg[0] == TypeVisit {
		a.Visit, err = parseVisitBody(body)
		return a, err
	}
	a.Static = hs.RemoteStatic()
	a.Hello, err = parseHelloBody(body)
	return a, err
}

// Answer returns the WELCOME or OPENED. The handshake is done after it.
func (a *Accepted) Answer(w Welcome) ([]byte, error) {
	msg := append(make([]byte, 0, WelcomeSize), a.prefix[:]...)
	msg[0]++
	msg, err := a.hs.Write(msg, appendWelcomeBody(nil, w))
	if err != nil {
		return nil, fmt.Errorf("relay: answer: %w", err)
	}
	return msg, nil
}

// Transport returns the session's transport after Answer.
func (a *Accepted) Transport() (*crypto.Transport, error) {
	keys, err := a.hs.Split()
	if err != nil {
		return nil, fmt.Errorf("relay: accept: %w", err)
	}
	return crypto.NewTransport(keys), nil
}
