package proxy

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"strconv"
	"syscall"
	"time"
)

// Numbers of RFC 1928.
const (
	socksVersion = 5

	methodNone     = 0
	methodPassword = 2 // RFC 1929
	methodRefused  = 0xff

	commandConnect = 1

	typeIPv4 = 1
	typeName = 3
	typeIPv6 = 4

	replyDone                = 0
	replyFailed              = 1
	replyNoNetwork           = 3
	replyNoHost              = 4
	replyRefused             = 5
	replyExpired             = 6
	replyUnknownCommand      = 7
	replyUnknownAddress      = 8
	passwordVersion     byte = 1
)

var errSOCKS = errors.New("proxy: not SOCKS 5")

// A socksRequest is what a program asks for after the greeting.
type socksRequest struct {
	command byte
	kind    byte // of the address
	host    string
	port    uint16
}

// readSOCKS reads a request. It reads no byte more than that.
func readSOCKS(r io.Reader) (q socksRequest, err error) {
	var b [256]byte
	if _, err := io.ReadFull(r, b[:4]); err != nil {
		return q, err
	}
	if b[0] != socksVersion || b[2] != 0 {
		return q, errSOCKS
	}
	q.command, q.kind = b[1], b[3]
	size := 0
	switch q.kind {
	case typeIPv4:
		size = 4
	case typeIPv6:
		size = 16
	case typeName:
		if _, err := io.ReadFull(r, b[:1]); err != nil {
			return q, err
		}
		size = int(b[0])
		if size == 0 {
			return q, errSOCKS
		}
	default:
		return q, nil // the caller says that it is unknown
	}
	if _, err := io.ReadFull(r, b[:size]); err != nil {
		return q, err
	}
	if q.kind == typeName {
		q.host = string(b[:size])
	} else {
		ip, _ := netip.AddrFromSlice(b[:size])
		q.host = ip.String()
	}
	if _, err := io.ReadFull(r, b[:2]); err != nil {
		return q, err
	}
	q.port = binary.BigEndian.Uint16(b[:])
	return q, nil
}

// append writes the request as a program does.
func (q socksRequest) append(b []byte) []byte {
	b = append(b, socksVersion, q.command, 0, q.kind)
	switch q.kind {
	case typeName:
		b = append(append(b, byte(len(q.host))), q.host...)
	case typeIPv4, typeIPv6:
		b = append(b, netip.MustParseAddr(q.host).AsSlice()...)
	default:
		return b
	}
	return binary.BigEndian.AppendUint16(b, q.port)
}

func (s *Server) serveSOCKS(ctx context.Context, c *peekConn) {
	c.SetDeadline(time.Now().Add(helloTime))
	if greet(c) != nil {
		return
	}
	q, err := readSOCKS(c.in)
	if err != nil {
		return
	}
	switch {
	case q.host == "":
		answer(c, replyUnknownAddress)
		return
	case q.command != commandConnect:
		answer(c, replyUnknownCommand)
		return
	}
	c.SetDeadline(time.Time{})
	to, err := s.dial(ctx, q.host, strconv.Itoa(int(q.port)))
	if err != nil {
		s.c.Logger.Debug("proxy: cannot connect", "host", q.host, "port", q.port, "err", err)
		code := replyTo(err)
		if op := new(net.OpError); code == replyFailed && s.c.Inside(q.host) && !errors.As(err, &op) {
			code = replyNoHost // there is no such peer
		}
		answer(c, code)
		return
	}
	defer to.Close()
	if answer(c, replyDone) == nil {
		join(ctx, c, to)
	}
}

// greet agrees on a method: none, or a user and password that mean nothing, for
// programs that insist on them.
func greet(c *peekConn) error {
	var b [257]byte
	if _, err := io.ReadFull(c.in, b[:2]); err != nil {
		return err
	}
	methods := b[2 : 2+int(b[1])]
	if _, err := io.ReadFull(c.in, methods); err != nil {
		return err
	}
	method := byte(methodRefused)
	for _, m := range methods {
		if m == methodNone || m == methodPassword && method == methodRefused {
			method = m
		}
	}
	if _, err := c.Write([]byte{socksVersion, method}); err != nil {
		return err
	}
	switch method {
	case methodNone:
		return nil
	case methodRefused:
		return errSOCKS
	}
	if _, err := io.ReadFull(c.in, b[:2]); err != nil {
		return err
	}
	user := int(b[1])
	if _, err := io.ReadFull(c.in, b[:user+1]); err != nil { // and the length of the password
		return err
	}
	if _, err := io.CopyN(io.Discard, c.in, int64(b[user])); err != nil {
		return err
	}
	_, err := c.Write([]byte{passwordVersion, 0})
	return err
}

// answer sends a reply. The address in it is of no use to anybody.
func answer(c net.Conn, code byte) error {
	_, err := c.Write([]byte{socksVersion, code, 0, typeIPv4, 0, 0, 0, 0, 0, 0})
	return err
}

func replyTo(err error) byte {
	var unknown *net.DNSError
	timeout := net.Error(nil)
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return replyRefused
	case errors.Is(err, syscall.EHOSTUNREACH), errors.As(err, &unknown):
		return replyNoHost
	case errors.Is(err, syscall.ENETUNREACH):
		return replyNoNetwork
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return replyExpired
	}
	return replyFailed
}
