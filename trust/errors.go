package trust

import "errors"

// Causes that a caller can tell apart. Errors that wrap them say more.
var (
	ErrLocked        = errors.New("another daemon uses this state")
	ErrDamaged       = errors.New("the stored state is damaged")
	ErrNewer         = errors.New("the state was written by a newer version; use that one")
	ErrWrongKey      = errors.New("the state belongs to another identity")
	ErrClosed        = errors.New("the store is closed")
	ErrNotFound      = errors.New("no such peer or request")
	ErrName          = errors.New("not a usable name")
	ErrNameTaken     = errors.New("the name is taken")
	ErrAddressTaken  = errors.New("the address belongs to another peer")
	ErrExpired       = errors.New("expired")
	ErrRevoked       = errors.New("void by revocation")
	ErrBlocked       = errors.New("the key is blocked")
	ErrScope         = errors.New("the ports do not fit")
	ErrInvite        = errors.New("no invite")
	ErrInviteUsed    = errors.New("the invite was used already")
	ErrInviteExpired = errors.New("the invite has expired")
	ErrInviteOther   = errors.New("the invite is for another key")
	ErrUnexpected    = errors.New("answers no request of ours")
	ErrSuspended     = errors.New("this agent's state is older than what it told others: a restored backup, or two instances")
	ErrNotSuspended  = errors.New("no trust is suspended")
	ErrNotKept       = errors.New("in force, but lost with a restart")
	ErrActive        = errors.New("the peer is trusted; revoke first")
)
