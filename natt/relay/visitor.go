package relay

import (
	crand "crypto/rand"
	"encoding/binary"
	"fmt"
	"io"
	"net/netip"
	"time"

	"github.com/pilotnet/pilot/crypto"
)

const (
	visitsKept = 4 // unanswered VISITs whose OPENED still counts
	visitHold  = time.Second
	keepLength = HintSize // a keepalive frame, so that a HINT is no longer than it
)

// VisitorConfig describes a relay channel. Server and Target are required.
type VisitorConfig struct {
	Server crypto.DHPublic
	Target crypto.Fingerprint
	Rand   io.Reader // for attempt numbers; nil: crypto/rand
}

// Visitor opens and keeps a relay channel to an agent through that agent's home
// server. It is a pure machine: the owner sends what Open, Advance and Keepalive
// return to the server and passes every datagram of types 11, 13 and 14, and
// RELAY frames that [Visitor.Echo] recognises, from the server's address to
// Receive. It has no timers: opening is driven by the owner's INIT retries.
// Not safe for concurrent use.
type Visitor struct {
	cfg      VisitorConfig
	mac      MAC
	visits   []*request // unanswered, oldest first
	asks     []*request // the same, of those that ask where the target is
	other    netip.AddrPort
	channel  uint64
	stale    bool      // the server does not know the channel from this address
	held     time.Time // no HINT is honoured before
	resend   []byte
	cookies  int // COOKIEs honoured since the last Open
	cookie   []byte
	until    time.Time
	observed netip.AddrPort
	heard    time.Time
}

// NewVisitor returns a visitor without a channel.
func NewVisitor(cfg VisitorConfig) *Visitor {
	if cfg.Rand == nil {
		cfg.Rand = crand.Reader
	}
	return &Visitor{cfg: cfg, mac: NewMAC(cfg.Server)}
}

// Channel returns the number to send RELAY frames with, 0 until the first
// OPENED. A number stays until a new one replaces it.
func (v *Visitor) Channel() uint64 { return v.channel }

// Stale reports that there is no channel, or that the server said it does not
// know it (it was restarted, or our address changed): call Open again.
func (v *Visitor) Stale() bool { return v.channel == 0 || v.stale }

// Observed returns our address as the server saw it when it opened the channel.
func (v *Visitor) Observed() netip.AddrPort { return v.observed }

// Located returns the target's address as the server told it in answer to [Visitor.Ask] since the last
// call: zero if it has not answered, until the target has asked too, and where that is not reached by UDP.
func (v *Visitor) Located() netip.AddrPort {
	a := v.other
	v.other = netip.AddrPort{}
	return a
}

// Ask returns a VISIT that asks where the server sees the target, nil without a channel. The
// target learns our address in return, if it asks too. A server that does not know the question
// does not answer.
func (v *Visitor) Ask(now time.Time) []byte {
	if v.channel == 0 {
		return nil
	}
	r, err := v.request(now, Visit{Target: v.cfg.Target, Ask: true})
	if err != nil {
		return nil
	}
	v.asks = appendRequest(v.asks, r)
	return r.msg
}

// request makes a VISIT.
func (v *Visitor) request(now time.Time, visit Visit) (*request, error) {
	var attempt [4]byte
	if _, err := io.ReadFull(v.cfg.Rand, attempt[:]); err != nil {
		return nil, fmt.Errorf("relay: visit: %w", err)
	}
	var cookie []byte
	if now.Before(v.until) {
		cookie = v.cookie
	}
	return newRequest(v.cfg.Server, nil, binary.BigEndian.Uint32(attempt[:]), appendVisitBody(nil, visit), cookie)
}

// appendRequest keeps the last few.
func appendRequest(list []*request, r *request) []*request {
	if len(list) == visitsKept {
		list = append(list[:0], list[1:]...)
	}
	return append(list, r)
}

// Heard returns when the server last answered a VISIT or a keepalive, zero if never.
func (v *Visitor) Heard() time.Time { return v.heard }

// Open returns the VISIT that carries inner, at most MaxInner bytes (an INIT, or
// nothing, only to move the channel). Each call makes a new one; the answers to
// the last four count.
func (v *Visitor) Open(now time.Time, inner []byte) ([]byte, error) {
	if len(inner) > MaxInner {
		return nil, fmt.Errorf("relay: visit: inner frame of %d bytes is longer than %d", len(inner), MaxInner)
	}
	r, err := v.request(now, Visit{Target: v.cfg.Target, Inner: inner})
	if err != nil {
		return nil, err
	}
	v.visits = appendRequest(v.visits, r)
	v.cookies, v.resend = 0, nil
	return r.msg, nil
}

// Advance returns what an answer made due: the last VISIT again, with a cookie.
// Call it after Receive.
func (v *Visitor) Advance(time.Time) [][]byte {
	if v.resend == nil {
		return nil
	}
	out := [][]byte{v.resend}
	v.resend = nil
	return out
}

// Keepalive returns a frame that holds the NAT mapping and the channel open and
// that the server sends back, or nil without a channel.
func (v *Visitor) Keepalive(time.Time) []byte {
	if v.channel == 0 {
		return nil
	}
	b := make([]byte, keepLength)
	PutFrameHeader(b, v.channel)
	return b
}

// Echo reports whether b is a keepalive frame that came back on this channel.
func (v *Visitor) Echo(b []byte) bool {
	channel, inner, ok := ParseFrame(b)
	return ok && v.channel != 0 && channel == v.channel && len(b) == keepLength && allZero(inner)
}

// Receive takes a datagram from the server's address. An error says that it was
// not for this channel and changed nothing; try the next visitor.
func (v *Visitor) Receive(now time.Time, b []byte) error {
	if len(b) == 0 {
		return ErrMalformed
	}
	switch b[0] {
	case TypeOpened:
		return v.opened(now, b)
	case TypeCookie:
		return v.takeCookie(now, b)
	case TypeHint:
		kind, number, ok := ParseHint(b)
		if !ok || kind != HintChannel || number != v.channel || number == 0 {
			return ErrMalformed
		}
		if !now.Before(v.held) {
			v.held, v.stale = now.Add(visitHold), true
		}
		return nil
	case TypeFrame:
		if v.Echo(b) {
			v.heard, v.stale = now, false
			return nil
		}
	}
	return ErrMalformed
}

func (v *Visitor) opened(now time.Time, b []byte) error {
	for _, r := range v.asks {
		if w, _, err := r.complete(b); err == nil && w.Status == StatusWelcome && w.Number == v.channel {
			v.other, v.heard, v.asks = w.Observed, now, v.asks[:0]
			return nil
		}
	}
	for _, r := range v.visits {
		w, _, err := r.complete(b)
		if err != nil {
			continue
		}
		if w.Status != StatusWelcome {
			return ErrMalformed
		}
		if w.Number != v.channel {
			v.other, v.asks = netip.AddrPort{}, v.asks[:0]
		}
		v.channel, v.observed, v.heard = w.Number, w.Observed, now
		v.stale, v.held = false, time.Time{}
		v.visits, v.resend = v.visits[:0], nil
		return nil
	}
	return ErrMalformed
}

func (v *Visitor) takeCookie(now time.Time, b []byte) error {
	if len(v.visits) == 0 || v.cookies >= 2 {
		return ErrMalformed
	}
	r := v.visits[len(v.visits)-1]
	cookie, ok := v.mac.openCookie(b, r.msg)
	if !ok {
		return ErrMalformed
	}
	v.cookie, v.until = cookie, now.Add(cookieLife)
	v.cookies++
	r.msg = setMAC2(append([]byte(nil), r.msg...), cookie)
	v.resend = r.msg
	return nil
}
