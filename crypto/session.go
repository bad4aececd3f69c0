package crypto

import (
	"crypto/cipher"
	"encoding/binary"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Limits of a key. Rekey limits are when the initiator asks for a new session;
// at the reject limits the old one is dead. A session enforces its message
// limits itself; time is the caller's, measured on a clock that runs in sleep.
const (
	RekeyAfterMessages  = 1 << 26
	RejectAfterMessages = 1 << 28
	RekeyAfterTime      = 120 * time.Second
	RejectAfterTime     = 180 * time.Second
)

// Session seals and opens DATA frames under the keys of one handshake. All
// methods are safe for concurrent use, and Seal and Open do not allocate as
// long as dst has room.
type Session struct {
	local, remote uint32
	send          sendKey
	recv          recvKey
}

// NewSession makes the session of a finished handshake. Frames to us carry the
// local index, frames to the peer the remote one. Never make two sessions of
// the same keys: both would count from zero.
func NewSession(k Keys, local, remote uint32) *Session {
	s := &Session{local: local, remote: remote}
	s.send.init(k.Send)
	s.recv.init(k.Recv)
	return s
}

// Seal appends one frame to dst: header, ciphertext, tag; Overhead bytes more
// than the plaintext. The plaintext may lie where its ciphertext goes, that is
// at dst[len(dst)+HeaderSize:] of the same array, and must not overlap the
// frame in another way. Partial sets the bit of that name in the header.
//
// Every call that is not refused takes a counter of its own. From
// RejectAfterMessages on all are refused with ErrLimit, for good.
func (s *Session) Seal(dst, plaintext []byte, partial bool) ([]byte, error) {
	if len(plaintext) > MaxFrame-Overhead {
		return nil, ErrTooLong
	}
	aead, counter, err := s.send.next()
	if err != nil {
		return nil, err
	}
	start := len(dst)
	dst = slices.Grow(dst, Overhead+len(plaintext))[:start+HeaderSize]
	header := dst[start:]
	putDataHeader(header, s.remote, counter, partial)
	return s.send.seal(aead, dst, counter, plaintext, header), nil
}

// Open checks a frame and appends its plaintext to dst, which may be
// frame[HeaderSize:HeaderSize] to decrypt in place. The order is: shape and
// index, authentication, and only then the replay window, so that nobody
// without the key can move it. After an error no byte of the result is to be
// used, and a frame that was decrypted in place is gone.
func (s *Session) Open(dst, frame []byte) (plaintext []byte, partial bool, counter uint64, err error) {
	if index, ok := DataIndex(frame); !ok || index != s.local {
		return nil, false, 0, ErrAuth
	}
	partial = frame[1]&flagPartial != 0
	counter = binary.BigEndian.Uint64(frame[8:])
	plaintext, err = s.recv.open(dst, counter, frame[HeaderSize:], frame[:HeaderSize])
	if err != nil {
		return nil, false, 0, err
	}
	return plaintext, partial, counter, nil
}

// Local returns our index: the one in frames to us.
func (s *Session) Local() uint32 { return s.local }

// Remote returns the peer's index: the one in frames that we seal.
func (s *Session) Remote() uint32 { return s.remote }

// Sent returns how many frames were sealed.
func (s *Session) Sent() uint64 { return s.send.sent() }

// Wipe drops the keys: Seal and Open fail with ErrClosed afterwards. A call
// that has already begun may still finish.
func (s *Session) Wipe() {
	s.send.aead.Store(nil)
	s.recv.aead.Store(nil)
}

// boxed lets a cipher stand behind an atomic pointer.
type boxed struct{ cipher.AEAD }

func newBoxed(key [32]byte) *boxed { return &boxed{newGCM(key)} }

// noncePool lends nonces: handing a slice of a local array to a cipher.AEAD
// would allocate it on the heap for each message.
type noncePool struct{ pool sync.Pool }

func (p *noncePool) get(counter uint64) *[12]byte {
	nonce, _ := p.pool.Get().(*[12]byte)
	if nonce == nil {
		nonce = new([12]byte)
	}
	binary.BigEndian.PutUint64(nonce[4:], counter) // the first four stay zero
	return nonce
}

func (p *noncePool) put(nonce *[12]byte) { p.pool.Put(nonce) }

// sendKey is a key that only seals, with the counter that makes its nonces.
type sendKey struct {
	aead    atomic.Pointer[boxed] // nil when wiped
	counter atomic.Uint64
	nonces  noncePool
}

func (k *sendKey) init(key [32]byte) { k.aead.Store(newBoxed(key)) }

// next hands out a counter that no other call gets. At the limit the counter
// is set back to the limit, not below it: it cannot run on and wrap.
func (k *sendKey) next() (*boxed, uint64, error) {
	aead := k.aead.Load()
	if aead == nil {
		return nil, 0, ErrClosed
	}
	n := k.counter.Add(1) - 1
	if n >= RejectAfterMessages {
		k.counter.Store(RejectAfterMessages)
		return nil, 0, ErrLimit
	}
	return aead, n, nil
}

func (k *sendKey) seal(aead *boxed, dst []byte, counter uint64, plaintext, ad []byte) []byte {
	nonce := k.nonces.get(counter)
	dst = aead.Seal(dst, nonce[:], plaintext, ad)
	k.nonces.put(nonce)
	return dst
}

// sent is the number of counters handed out.
func (k *sendKey) sent() uint64 { return min(k.counter.Load(), RejectAfterMessages) }

// recvKey is a key that only opens, with the window of counters seen.
type recvKey struct {
	aead   atomic.Pointer[boxed] // nil when wiped
	nonces noncePool
	mu     sync.Mutex
	window replayWindow
}

func (k *recvKey) init(key [32]byte) { k.aead.Store(newBoxed(key)) }

func (k *recvKey) open(dst []byte, counter uint64, ciphertext, ad []byte) ([]byte, error) {
	aead := k.aead.Load()
	if aead == nil {
		return nil, ErrClosed
	}
	if counter >= RejectAfterMessages {
		return nil, ErrLimit
	}
	nonce := k.nonces.get(counter)
	out, err := aead.Open(dst, nonce[:], ciphertext, ad)
	k.nonces.put(nonce)
	if err != nil {
		return nil, ErrAuth
	}
	k.mu.Lock()
	fresh := k.window.take(counter)
	k.mu.Unlock()
	if !fresh {
		return nil, ErrReplay
	}
	return out, nil
}
