package proxy

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"syscall"
	"time"
)

// Dial connects to HOST:PORT through the proxy that listens at. What keeps the
// proxy from it is the error that a direct connection would give.
func Dial(ctx context.Context, at, address string) (net.Conn, error) {
	host, text, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil || len(host) == 0 || len(host) > 255 {
		return nil, &net.AddrError{Err: "want HOST:PORT", Addr: address}
	}
	q := socksRequest{command: commandConnect, kind: typeName, host: host, port: uint16(port)}
	if ip, err := netip.ParseAddr(host); err == nil && ip.Is4() {
		q.kind = typeIPv4
	} else if err == nil && ip.Zone() == "" {
		q.kind = typeIPv6
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", at)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	err = q.ask(conn)
	if !stop() {
		err = ctx.Err()
	}
	if err != nil {
		conn.Close()
		return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: named(address), Err: err}
	}
	return conn, nil
}

// named is an address that is not resolved here.
type named string

func (named) Network() string  { return "tcp" }
func (n named) String() string { return string(n) }

func (q socksRequest) ask(conn net.Conn) error {
	var b [10]byte
	if _, err := conn.Write([]byte{socksVersion, 1, methodNone}); err != nil {
		return err
	}
	if _, err := io.ReadFull(conn, b[:2]); err != nil {
		return err
	}
	if b[0] != socksVersion || b[1] != methodNone {
		return errSOCKS
	}
	if _, err := conn.Write(q.append(nil)); err != nil {
		return err
	}
	if _, err := io.ReadFull(conn, b[:]); err != nil { // our server answers with an IPv4 address
		return err
	}
	if b[0] != socksVersion || b[3] != typeIPv4 {
		return errSOCKS
	}
	switch b[1] {
	case replyDone:
		return nil
	case replyRefused:
		return syscall.ECONNREFUSED
	case replyNoHost:
		return syscall.EHOSTUNREACH
	case replyNoNetwork:
		return syscall.ENETUNREACH
	case replyExpired:
		return syscall.ETIMEDOUT
	}
	return fmt.Errorf("the proxy's answer is %d", b[1])
}
