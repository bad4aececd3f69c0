package forward

import (
	"context"
	"net"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

const maxDatagram = 65535

// openUDP begins a flow with its first datagram.
func (f *Forwarder) openUDP(r *udp.ForwarderRequest) {
	_, to := ends(r.ID())
	if f.flows.Add(1) > maxFlows {
		f.flows.Add(-1)
		return
	}
	// The endpoint is made here, so that the next datagram finds it.
	var queue waiter.Queue
	ep, err := r.CreateEndpoint(&queue)
	if err != nil {
		f.flows.Add(-1)
		return
	}
	c := gonet.NewUDPConn(&queue, ep)
	if !f.begin() {
		f.flows.Add(-1)
		c.Close()
		return
	}
	go func() {
		defer f.conns.Done()
		defer f.flows.Add(-1)
		defer c.Close()
		defer context.AfterFunc(f.ctx, func() { c.Close() })()
		if f.named(to) {
			f.answerUDP(c)
			return
		}
		host, err := f.c.Dial(f.ctx, "udp", to)
		if err != nil {
			f.c.Logger.Debug("cannot send", "to", to, "error", err)
			return
		}
		defer host.Close()
		relay(c, host)
	}()
}

// relay carries datagrams both ways until there was none for a while, or the host
// hears that nobody takes them.
func relay(c, host net.Conn) {
	var last atomic.Int64
	done := make(chan struct{})
	go func() {
		defer close(done)
		shuttle(host, c, &last)
		host.Close()
	}()
	shuttle(c, host, &last)
	c.Close()
	<-done
}

// shuttle carries one direction. Traffic in the other keeps it alive.
func shuttle(to, from net.Conn, last *atomic.Int64) {
	b := make([]byte, maxDatagram)
	last.Store(time.Now().UnixNano())
	for {
		quiet := time.Since(time.Unix(0, last.Load()))
		if quiet >= flowIdle {
			return
		}
		from.SetReadDeadline(time.Now().Add(flowIdle - quiet))
		n, err := from.Read(b)
		switch {
		case err == nil:
			last.Store(time.Now().UnixNano())
			to.Write(b[:n]) // a datagram that does not go is lost
		case !isTimeout(err):
			return
		}
	}
}

// answerUDP serves the name server to one port of a program.
func (f *Forwarder) answerUDP(c net.Conn) {
	b := make([]byte, maxDatagram)
	for {
		c.SetReadDeadline(time.Now().Add(flowIdle))
		n, err := c.Read(b)
		if err != nil {
			return
		}
		query := append([]byte(nil), b[:n]...)
		f.conns.Go(func() {
			if reply, ok := f.ask("udp", query); ok {
				c.Write(reply)
			}
		})
	}
}
