package crypto

import "errors"

// The errors that callers branch on. Session returns them unwrapped, because
// its methods do not allocate.
var (
	// ErrAuth: the bytes were not made by the holder of the key, or were
	// changed, or are not shaped like what was expected.
	ErrAuth = errors.New("crypto: authentication failed")
	// ErrReplay: authentic, but seen before or too old to tell.
	ErrReplay = errors.New("crypto: replayed or too old")
	// ErrLimit: the key has protected as many messages as it may.
	ErrLimit = errors.New("crypto: message limit of the key reached")
	// ErrClosed: the keys are gone (wiped, used up, or never set).
	ErrClosed = errors.New("crypto: keys are gone")
	// ErrTooLong: the plaintext is longer than one message may be.
	ErrTooLong = errors.New("crypto: message too long")
)
