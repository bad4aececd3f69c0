package api

import (
	"context"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

type callerKey struct{}

// withCaller notes who opened the connection, as the kernel recorded it.
func withCaller(ctx context.Context, c net.Conn) context.Context {
	u, ok := c.(syscall.Conn)
	if !ok {
		return ctx
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return ctx
	}
	var cred *unix.Ucred
	raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if cred == nil || err != nil {
		return ctx
	}
	return context.WithValue(ctx, callerKey{}, *cred)
}

// caller returns key-value pairs for the log.
func caller(ctx context.Context) []any {
	cred, ok := ctx.Value(callerKey{}).(unix.Ucred)
	if !ok {
		return nil
	}
	return []any{"uid", cred.Uid, "gid", cred.Gid, "pid", cred.Pid}
}

// Caller says which user opened the connection of a call. False: it is not known.
func Caller(ctx context.Context) (uid, gid uint32, ok bool) {
	cred, ok := ctx.Value(callerKey{}).(unix.Ucred)
	return cred.Uid, cred.Gid, ok
}
