package resolv

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// probe asks the resolver at server for the IPv6 address of name, and wants it to
// be want.
func probe(ctx context.Context, server netip.AddrPort, name string, want netip.Addr, wait time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	host, err := dnsmessage.NewName(name + ".")
	if err != nil {
		return err
	}
	var id [2]byte
	// crypto/rand never fails (it ends the process instead).
	_, _ = rand.Read(id[:])
	query := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: uint16(id[0])<<8 | uint16(id[1]), RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: host, Type: dnsmessage.TypeAAAA, Class: dnsmessage.ClassINET}},
	}
	b, err := query.Pack()
	if err != nil {
		return err
	}
	conn, err := new(net.Dialer).DialContext(ctx, "udp", server.String())
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if _, err := conn.Write(b); err != nil {
		return err
	}
	b = make([]byte, 1500)
	for {
		n, err := conn.Read(b)
		if ctx.Err() != nil {
			return fmt.Errorf("%v does not answer", server)
		}
		if err != nil {
			return err
		}
		var reply dnsmessage.Message
		if reply.Unpack(b[:n]) == nil && reply.ID == query.ID && reply.Response {
			return contains(&reply, want)
		}
	}
}

func contains(reply *dnsmessage.Message, want netip.Addr) error {
	for _, a := range reply.Answers {
		if v, ok := a.Body.(*dnsmessage.AAAAResource); ok && netip.AddrFrom16(v.AAAA) == want {
			return nil
		}
	}
	if reply.RCode != dnsmessage.RCodeSuccess {
		return fmt.Errorf("the answer is %v", reply.RCode)
	}
	return errors.New("the answer is another")
}
