package relay

import (
	"crypto/hmac"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/pilotnet/pilot/crypto"
)

// The paths and the close code of the control channel.
const (
	ControlPath = "/v1/control"
	CardPath    = "/card/"

	// CloseWrongKey closes the WebSocket of a client that expects another server key.
	CloseWrongKey = 4001
)

const (
	controlLabel  = "pilot control v1"
	patternIK     = 1
	patternNK     = 2
	greetingAhead = 4 // version, pattern, zero
	controlHello  = 16
)

// A Greeting is what a server says first on the control channel.
type Greeting struct {
	Time      time.Time
	ClaimBits int            // of a stamp for a first claim
	MailBits  int            // of a stamp for mail
	Mark      [MarkSize]byte // of the server's TLS certificate; zero: it does not say
}

func appendGreeting(dst []byte, g Greeting) []byte {
	dst = binary.BigEndian.AppendUint64(dst, millis(g.Time))
	dst = append(dst, byte(g.ClaimBits), byte(g.MailBits))
	return append(dst, g.Mark[:]...)
}

func parseGreeting(b []byte) (Greeting, error) {
	if len(b) != controlHello {
		return Greeting{}, ErrMalformed
	}
	at, ok := fromMillis(binary.BigEndian.Uint64(b))
	if !ok {
		return Greeting{}, ErrMalformed
	}
	return Greeting{Time: at, ClaimBits: int(b[8]), MailBits: int(b[9]), Mark: [MarkSize]byte(b[10:])}, nil
}

func controlPrologue(msg []byte) []byte {
	return append([]byte(controlLabel), msg[:greetingAhead]...)
}

// newControlHello makes the client's first message, IK with a static key, NK without.
func newControlHello(server crypto.DHPublic, static *crypto.DHPrivate, who crypto.Fingerprint) ([]byte, *crypto.Handshake, error) {
	msg := []byte{version, patternNK, 0, 0}
	pattern := crypto.NK
	var payload [controlHello]byte
	if static != nil {
		msg[1], pattern, payload = patternIK, crypto.IK, who
	}
	hs, err := crypto.NewHandshake(crypto.HandshakeConfig{
		Pattern: pattern, Initiator: true, Prologue: controlPrologue(msg),
		Static: static, RemoteStatic: &server,
	})
	if err != nil {
		return nil, nil, fmt.Errorf("relay: start handshake: %w", err)
	}
	if msg, err = hs.Write(msg, payload[:]); err != nil {
		return nil, nil, fmt.Errorf("relay: start handshake: %w", err)
	}
	mac := NewMAC(server)
	tag := sum(mac.key[:], msg)
	return append(msg, tag[:]...), hs, nil
}

// A ControlPeer is who opened a control channel.
type ControlPeer struct {
	Visitor     bool
	Static      crypto.DHPublic    // proven; zero for a visitor
	Fingerprint crypto.Fingerprint // what it says; compare the claim's registration key with Static
}

// AcceptControl opens the client's first message and returns the server's, the
// transport and who it is. It returns ErrServerKey if the message is for a
// server with another key.
func AcceptControl(key crypto.DHPrivate, msg []byte, g Greeting) ([]byte, *crypto.Transport, ControlPeer, error) {
	var peer ControlPeer
	fail := func(err error) ([]byte, *crypto.Transport, ControlPeer, error) {
		return nil, nil, ControlPeer{}, fmt.Errorf("relay: accept control: %w", err)
	}
	n := len(msg) - macSize
	if n < greetingAhead || n > 256 || msg[0] != version || msg[2]|msg[3] != 0 || msg[1] < patternIK || msg[1] > patternNK {
		return fail(ErrMalformed)
	}
	mac := NewMAC(key.Public())
	if want := sum(mac.key[:], msg[:n]); !hmac.Equal(want[:], msg[n:]) {
		return fail(ErrServerKey)
	}
	pattern := crypto.IK
	if peer.Visitor = msg[1] == patternNK; peer.Visitor {
		pattern = crypto.NK
	}
	hs, err := crypto.NewHandshake(crypto.HandshakeConfig{Pattern: pattern, Prologue: controlPrologue(msg), Static: &key})
	if err != nil {
		return fail(err)
	}
	payload, err := hs.Read(nil, msg[greetingAhead:n])
	if err != nil {
		return fail(err)
	}
	if len(payload) != controlHello {
		return fail(ErrMalformed)
	}
	if !peer.Visitor {
		peer.Static, peer.Fingerprint = hs.RemoteStatic(), crypto.Fingerprint(payload)
	}
	answer, err := hs.Write(nil, appendGreeting(nil, g))
	if err != nil {
		return fail(err)
	}
	keys, err := hs.Split()
	if err != nil {
		return fail(err)
	}
	return answer, crypto.NewTransport(keys), peer, nil
}
