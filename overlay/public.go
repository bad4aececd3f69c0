package overlay

import (
	"context"
	"errors"
	"syscall"

	"github.com/pilotnet/pilot/trust"
	"github.com/pilotnet/pilot/tun"
)

// suspendedHint says how trust comes back into force after a restored backup.
const suspendedHint = "look at `pilotctl trust list`, revoke who should not be there, then `pilotctl trust confirm`"

// publicError turns an inner error into what users get: a code, and what to do
// next.
func publicError(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	for _, m := range publicErrors {
		if !errors.Is(err, m.err) {
			continue
		}
		if help := new(tun.HelpError); errors.As(err, &help) { // it knows more, and would say it twice
			return &Error{Code: m.code, Message: help.Err.Error(), Hint: help.Help, Retryable: m.retry}
		}
		return &Error{Code: m.code, Message: err.Error(), Hint: m.hint, Retryable: m.retry}
	}
	return Errorf(CodeInternal, "%v", err)
}

func publicErrorOrNil(err error) error {
	if err == nil {
		return nil
	}
	return publicError(err)
}

const diskHint = "the disk of the state directory fails (dmesg says more): mend it, then pilotctl down; pilotctl up"

var publicErrors = []struct {
	err   error
	code  Code
	hint  string
	retry bool
}{
	{trust.ErrLocked, CodeConflict, "stop the other daemon with `pilotctl down`, or give this one its own --state-dir", false},
	{trust.ErrDamaged, CodeInternal, "restore the state directory from a backup, or move store.db away: the address stays, trust must be asked for again", false},
	{trust.ErrNewer, CodeConflict, "install the version of pilotctl that wrote it, or restore a backup of before", false},
	{trust.ErrWrongKey, CodeConflict, "use the identity that belongs to this state, or another --state-dir", false},
	{trust.ErrNameTaken, CodeConflict, "choose another name with --as, or say which one by its fingerprint", false},
	{trust.ErrName, CodeInvalidArgument, "choose a name of letters, digits and hyphens with --as", false},
	{trust.ErrAddressTaken, CodeConflict, "revoke the peer that has the address first", false},
	{trust.ErrActive, CodeConflict, "", false},
	{trust.ErrSuspended, CodeConflict, suspendedHint, false},
	{trust.ErrNotSuspended, CodeNotFound, "there is nothing to confirm; `pilotctl status` shows the state", false},
	{trust.ErrNotFound, CodeNotFound, "`pilotctl trust pending` and `pilotctl peers` list what is known", false},
	{trust.ErrExpired, CodeNotTrusted, "ask again with `pilotctl trust request`", false},
	{trust.ErrRevoked, CodeNotTrusted, "ask again with `pilotctl trust request`", false},
	{trust.ErrBlocked, CodeDenied, "the key was blocked here", false},
	{trust.ErrScope, CodeDenied, "ask for fewer ports, or grant them with --ports", false},
	{trust.ErrInviteUsed, CodeConflict, "ask for a new invite", false},
	{trust.ErrInviteExpired, CodeNotTrusted, "ask for a new invite", false},
	{trust.ErrInvite, CodeInvalidArgument, "check that the whole token was pasted", false},
	{trust.ErrClosed, CodeNotRunning, "", false},
	{tun.ErrPermission, CodeDenied, "run it as root, or with the capability CAP_NET_ADMIN", false},
	{tun.ErrNoDevice, CodeNoTUN, "load the tun module (modprobe tun), or give the container --device /dev/net/tun", false},
	{tun.ErrIPv6Disabled, CodeIPv6Disabled, "set the sysctl net.ipv6.conf.all.disable_ipv6 to 0", false},
	{tun.ErrNameTaken, CodeConflict, "choose another name with --tun", false},
	{tun.ErrRouteTaken, CodeConflict, "another agent runs in this network namespace; stop it, or start this one in its own", false},
	{trust.ErrNotKept, CodeInternal, "mend the disk of the state directory before the agent ends (dmesg says more): it tries again each minute, and status warns until it is done", false},
	{syscall.ENOSPC, CodeQuota, "the disk of the state directory is full: make room there, and try again", true},
	{syscall.EDQUOT, CodeQuota, "the disk quota of the agent's user is used up: make room, and try again", true},
	{syscall.EROFS, CodeInternal, "the state directory cannot be written: dmesg may say why; mount it writable again, and try again", true},
	{syscall.EIO, CodeInternal, diskHint, false},
	{context.DeadlineExceeded, CodeTimeout, "", true},
}
