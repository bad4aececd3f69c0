package relay

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"net/netip"
	"time"

	"github.com/pilotnet/pilot/crypto"
)

const macSize = 16

// A MAC is the keyed check of one server's requests, mac1. Its key follows from
// the server's public key, so it keeps out those who do not know the server,
// cheaply; it is no secret.
type MAC struct{ key [32]byte }

// NewMAC returns the check for requests to server.
func NewMAC(server crypto.DHPublic) MAC {
	return MAC{key: sha256.Sum256(append([]byte("pilot relay mac v1"), server[:]...))}
}

func sum(key []byte, parts ...[]byte) [macSize]byte {
	h := hmac.New(sha256.New, key)
	for _, p := range parts {
		h.Write(p)
	}
	var full [sha256.Size]byte
	return [macSize]byte(h.Sum(full[:0]))
}

// Check reports whether msg, a HELLO or VISIT, has the right type, size and mac1.
func (m MAC) Check(msg []byte) bool {
	if !requestForm(msg) {
		return false
	}
	n := len(msg) - 2*macSize
	want := sum(m.key[:], msg[:n])
	return hmac.Equal(want[:], msg[n:n+macSize])
}

// A Checker is a MAC for one goroutine, which checks without allocating.
type Checker struct {
	h   hash.Hash
	sum []byte
}

// NewChecker returns a Checker for requests to server.
func NewChecker(server crypto.DHPublic) *Checker {
	m := NewMAC(server)
	return &Checker{h: hmac.New(sha256.New, m.key[:]), sum: make([]byte, 0, sha256.Size)}
}

// Check is MAC.Check.
func (c *Checker) Check(msg []byte) bool {
	if !requestForm(msg) {
		return false
	}
	n := len(msg) - 2*macSize
	c.h.Reset()
	c.h.Write(msg[:n])
	c.sum = c.h.Sum(c.sum[:0])
	return hmac.Equal(c.sum[:macSize], msg[n:n+macSize])
}

func requestForm(msg []byte) bool {
	if len(msg) < 4 || msg[1] != version || msg[2]|msg[3] != 0 {
		return false
	}
	switch msg[0] {
	case TypeHello:
		return len(msg) == HelloSize
	case TypeVisit:
		return len(msg) == VisitSize
	}
	return false
}

// append adds mac1 and mac2 to a request that has neither. cookie may be nil.
func (m MAC) append(msg, cookie []byte) []byte {
	mac1 := sum(m.key[:], msg)
	return setMAC2(append(append(msg, mac1[:]...), make([]byte, macSize)...), cookie)
}

// setMAC2 replaces mac2 of a complete request.
func setMAC2(msg, cookie []byte) []byte {
	if cookie == nil {
		return msg
	}
	n := len(msg) - macSize
	mac2 := sum(cookie, msg[:n])
	copy(msg[n:], mac2[:])
	return msg
}

// openCookie returns the cookie of a COOKIE that answers request.
func (m MAC) openCookie(b, request []byte) ([]byte, bool) {
	if len(b) != CookieSize || b[0] != TypeCookie || b[1]|b[2]|b[3] != 0 || [4]byte(b[4:8]) != [4]byte(request[4:8]) {
		return nil, false
	}
	n := len(request) - 2*macSize
	want := sum(m.key[:], b[:24], request[n:n+macSize])
	if !hmac.Equal(want[:], b[24:]) {
		return nil, false
	}
	return append([]byte(nil), b[8:24]...), true
}

// cookieLife is how long a server accepts a cookie at least.
const cookieLife = 2 * time.Minute

// Cookies makes and checks the cookies of one server. It keeps no state but its
// secret.
type Cookies struct {
	mac    MAC
	secret [32]byte
}

// NewCookies returns the cookies of server, under a random secret.
func NewCookies(server crypto.DHPublic, secret [32]byte) Cookies {
	return Cookies{mac: NewMAC(server), secret: secret}
}

func (c Cookies) cookie(now time.Time, age int64, src netip.AddrPort) [macSize]byte {
	var b [8 + addrSize]byte
	binary.BigEndian.PutUint64(b[:], uint64(now.Unix()/int64(cookieLife/time.Second)-age))
	appendAddr(b[:8], src)
	return sum(c.secret[:], b[:])
}

// Check reports whether request, of good form and mac1, proves its source by mac2.
func (c Cookies) Check(now time.Time, request []byte, src netip.AddrPort) bool {
	n := len(request) - macSize
	if allZero(request[n:]) {
		return false
	}
	for age := range int64(2) {
		cookie := c.cookie(now, age, src)
		want := sum(cookie[:], request[:n])
		if hmac.Equal(want[:], request[n:]) {
			return true
		}
	}
	return false
}

// Append appends the COOKIE that answers request.
func (c Cookies) Append(dst []byte, now time.Time, request []byte, src netip.AddrPort) []byte {
	start := len(dst)
	dst = append(dst, TypeCookie, 0, 0, 0)
	dst = append(dst, request[4:8]...)
	cookie := c.cookie(now, 0, src)
	dst = append(dst, cookie[:]...)
	n := len(request) - 2*macSize
	mac := sum(c.mac.key[:], dst[start:], request[n:n+macSize])
	return append(dst, mac[:]...)
}
