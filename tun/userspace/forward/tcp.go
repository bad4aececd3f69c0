package forward

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// openTCP carries one connection, from its SYN to its end, in a goroutine of its
// own.
func (f *Forwarder) openTCP(r *tcp.ForwarderRequest) {
	if !f.begin() {
		r.Complete(false)
		return
	}
	defer f.conns.Done()
	_, to := ends(r.ID())
	if f.named(to) {
		if c, _, ok := accept(r); ok {
			f.answerTCP(c)
		}
		return
	}
	ctx, cancel := context.WithTimeout(f.ctx, dialTime)
	host, err := f.c.Dial(ctx, "tcp", to)
	cancel()
	if err != nil {
		f.c.Logger.Debug("cannot connect", "to", to, "error", err)
		r.Complete(!isTimeout(err)) // a host that is silent to us is so to the program
		return
	}
	defer host.Close()
	c, ep, ok := accept(r)
	if !ok {
		return
	}
	defer c.Close()
	defer context.AfterFunc(f.ctx, func() { c.Close(); host.Close() })()
	sent := make(chan error, 1)
	go func() { sent <- pipe(host, c) }()
	back := pipe(c, host)
	if back != nil {
		reset(host, ep, c)
	}
	if err := <-sent; err != nil && back == nil {
		reset(host, ep, c)
	}
}

// accept answers the SYN.
func accept(r *tcp.ForwarderRequest) (*gonet.TCPConn, tcpip.Endpoint, bool) {
	var queue waiter.Queue
	ep, err := r.CreateEndpoint(&queue)
	r.Complete(err != nil)
	if err != nil {
		return nil, nil, false
	}
	return gonet.NewTCPConn(&queue, ep), ep, true
}

// pipe copies one direction and passes its end on.
func pipe(to, from net.Conn) error {
	_, err := io.Copy(to, from)
	if err != nil {
		return err
	}
	if w, ok := to.(interface{ CloseWrite() error }); ok {
		w.CloseWrite() // fails if the other direction has closed it
	}
	return nil
}

// reset ends both sides with a reset, as one of them did, or its network.
func reset(host net.Conn, ep tcpip.Endpoint, c net.Conn) {
	if t, ok := host.(*net.TCPConn); ok {
		t.SetLinger(0)
	}
	ep.SocketOptions().SetLinger(tcpip.LingerOption{Enabled: true})
	host.Close()
	c.Close()
}

func isTimeout(err error) bool {
	var e net.Error
	return errors.As(err, &e) && e.Timeout() || errors.Is(err, os.ErrDeadlineExceeded)
}

// answerTCP serves the name server over one connection: each message has its length
// before it (RFC 7766).
func (f *Forwarder) answerTCP(c net.Conn) {
	defer c.Close()
	defer context.AfterFunc(f.ctx, func() { c.Close() })()
	for {
		c.SetDeadline(time.Now().Add(flowIdle))
		query, err := ReadMessage(c)
		if err != nil {
			return
		}
		reply, ok := f.ask("tcp", query)
		if !ok || WriteMessage(c, reply) != nil {
			return
		}
	}
}

// ask has a query answered.
func (f *Forwarder) ask(network string, query []byte) ([]byte, bool) {
	ctx, cancel := context.WithTimeout(f.ctx, queryTime)
	defer cancel()
	reply, err := f.c.Names(ctx, network, query)
	if err != nil {
		f.c.Logger.Debug("a name was not answered", "error", err)
	}
	return reply, err == nil
}

// ReadMessage reads one DNS message of a stream.
func ReadMessage(r io.Reader) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	b := make([]byte, binary.BigEndian.Uint16(size[:]))
	_, err := io.ReadFull(r, b)
	return b, err
}

// errLong is a DNS message that no stream can carry.
var errLong = errors.New("forward: a DNS message of more than 65,535 octets")

// WriteMessage writes one DNS message to a stream.
func WriteMessage(w io.Writer, message []byte) error {
	if len(message) > 65535 {
		return errLong
	}
	_, err := w.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(message))), message...))
	return err
}
