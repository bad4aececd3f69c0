package dns

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/pilotnet/pilot/ipam"
)

const (
	upstreamTime = 2 * time.Second // for one upstream to answer
	maxSame      = 4               // askers of one question at a time
)

// ErrLoop means that an upstream would ask us in turn.
var ErrLoop = errors.New("dns: upstream is this resolver")

// A Forwarder puts questions to other resolvers, one after the other until one
// answers. It is for places whose only resolver we are, where a name that is not
// ours must not simply fail.
//
// A resolver that leads back to us would have the two ask each other without
// end. An upstream that is visibly ourselves is refused. A roundabout way is cut
// short: the fifth asker of a question that is still under way gets SERVFAIL.
type Forwarder struct {
	upstreams []netip.AddrPort
	dial      func(ctx context.Context, network, address string) (net.Conn, error)

	mu   sync.Mutex
	same map[string]int
}

// NewForwarder returns a forwarder to the resolvers at upstreams. It fails with
// ErrLoop if one of them lies in the overlay. A nil dial is that of net.Dialer.
func NewForwarder(upstreams []netip.AddrPort, dial func(ctx context.Context, network, address string) (net.Conn, error)) (*Forwarder, error) {
	if len(upstreams) == 0 {
		return nil, errors.New("dns: no upstream to forward to")
	}
	f := &Forwarder{dial: dial, same: map[string]int{}}
	if dial == nil {
		f.dial = new(net.Dialer).DialContext
	}
	for _, u := range upstreams {
		u = netip.AddrPortFrom(u.Addr().Unmap(), u.Port())
		switch a := u.Addr(); {
		case !a.IsValid() || a.IsUnspecified() || a.IsMulticast() || u.Port() == 0:
			return nil, fmt.Errorf("dns: upstream %v: want the address and port of a resolver", u)
		case ipam.Prefix().Contains(a):
			return nil, fmt.Errorf("%w: %v", ErrLoop, u)
		}
		f.upstreams = append(f.upstreams, u)
	}
	return f, nil
}

// notTo refuses upstreams that are one of our own sockets.
func (f *Forwarder) notTo(own []net.Addr) error {
	for _, o := range own {
		a, err := netip.ParseAddrPort(o.String())
		if err != nil {
			continue // not an IP socket
		}
		for _, u := range f.upstreams {
			here := a.Addr().Unmap() == u.Addr() || a.Addr().IsUnspecified() && u.Addr().IsLoopback()
			if here && a.Port() == u.Port() {
				return fmt.Errorf("%w: %v", ErrLoop, u)
			}
		}
	}
	return nil
}

// ask returns an upstream's reply to a query, SERVFAIL if there is none.
func (f *Forwarder) ask(ctx context.Context, query []byte, stream bool) []byte {
	question := sameQuestion(query)
	f.mu.Lock()
	crowd := f.same[question]
	if crowd < maxSame {
		f.same[question]++
	}
	f.mu.Unlock()
	if crowd < maxSame {
		defer func() {
			f.mu.Lock()
			defer f.mu.Unlock()
			if f.same[question]--; f.same[question] == 0 {
				delete(f.same, question)
			}
		}()
		for _, u := range f.upstreams {
			if reply, err := f.one(ctx, u, query, stream); err == nil {
				return reply
			}
		}
	}
	return failure(query)
}

// sameQuestion is what two queries have in common if they ask the same: all but
// their IDs, whatever the case of the letters.
func sameQuestion(query []byte) string {
	var p dnsmessage.Parser
	if _, err := p.Start(query); err != nil {
		return ""
	}
	q, err := p.Question()
	if err != nil {
		return ""
	}
	return fmt.Sprintf("%s %d %d", fold(&q.Name), q.Type, q.Class)
}

// failure is SERVFAIL to a query that parse accepted.
func failure(query []byte) []byte {
	q, _ := parse(query)
	m := dnsmessage.Message{
		Header: dnsmessage.Header{
			ID: q.header.ID, Response: true, RecursionDesired: q.header.RecursionDesired,
			RecursionAvailable: true, RCode: dnsmessage.RCodeServerFailure,
		},
		Questions: []dnsmessage.Question{q.question},
	}
	if q.edns {
		m.Additionals = []dnsmessage.Resource{q.option(m.RCode)}
	}
	b, err := m.Pack()
	if err != nil {
		return nil
	}
	return b
}

// one asks one upstream, in a datagram from a port of its own and under an ID
// of its own, so that a stranger would have to guess both.
func (f *Forwarder) one(ctx context.Context, to netip.AddrPort, query []byte, stream bool) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, upstreamTime)
	defer cancel()
	network := "udp"
	if stream {
		network = "tcp"
	}
	conn, err := f.dial(ctx, network, to.String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	asked := append([]byte(nil), query...)
	// crypto/rand never fails (it ends the process instead).
	_, _ = rand.Read(asked[:2])
	out := asked
	if stream {
		out = append(binary.BigEndian.AppendUint16(nil, uint16(len(asked))), asked...)
	}
	if _, err := conn.Write(out); err != nil {
		return nil, err
	}
	for {
		reply, err := readReply(conn, stream)
		if err != nil {
			return nil, err
		}
		if len(reply) < headerSize || !bytes.Equal(reply[:2], asked[:2]) || reply[2]&0x80 == 0 ||
			sameQuestion(reply) != sameQuestion(asked) {
			if stream {
				return nil, errors.New("dns: reply to another question")
			}
			continue
		}
		copy(reply, query[:2])
		return reply, nil
	}
}

func readReply(conn io.Reader, stream bool) ([]byte, error) {
	if stream {
		return readMessage(conn)
	}
	b := make([]byte, streamSize)
	n, err := conn.Read(b)
	return b[:n], err
}
