package rendezvous

import (
	"context"
	"net/http"
	"net/netip"
	"time"

	"github.com/coder/websocket"

	"github.com/pilotnet/pilot/natt/relay"
)

const (
	carrierBuffer = 20 << 10         // of a reader: more than one message of ours
	carrierIdle   = sessionIdle      // without a datagram
	carrierNew    = 20 * time.Second // without the first one
)

// serveDatagrams makes a socket of one TLS connection. What it carries is treated
// as what comes by UDP; the source is the address of the connection.
func (s *Server) serveDatagrams(w http.ResponseWriter, r *http.Request) {
	if !s.streams.allow(s.cfg.Now().UnixNano(), remoteAddr(r)) {
		s.count.limited.Add(1)
		http.Error(w, "too many requests from your network", http.StatusTooManyRequests)
		return
	}
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		http.Error(w, "no address", http.StatusBadRequest)
		return
	}
	from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
	sock := &socket{port: s.mainPort()}
	if !s.enterCarrier() {
		s.count.limited.Add(1)
		http.Error(w, "too many carriers, or shutting down", http.StatusServiceUnavailable)
		return
	}
	defer s.leaveCarrier(sock)
	// Any origin: Noise authenticates, and a web page holds no key of ours.
	ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true})
	if err != nil {
		return
	}
	carrier := relay.NewCarrier(ws, netip.AddrPort{}, from)
	defer carrier.Close()
	sock.conn, sock.carrier = carrier, carrier
	stop := context.AfterFunc(r.Context(), func() { carrier.Close() })
	defer stop()
	s.closing.Lock()
	s.carriers[sock] = struct{}{} // complete: it may be swept now
	s.closing.Unlock()
	s.count.carriers.Add(1)
	newReader(s, sock).run() // ends without an error when the carrier does
}

// mainPort stands for a carrier in places that name a port of ours.
func (s *Server) mainPort() uint16 {
	if len(s.sockets) == 0 {
		return 0
	}
	return s.sockets[0].port
}

// enterCarrier counts a carrier in, unless there are too many or the server is
// going down.
func (s *Server) enterCarrier() bool {
	s.closing.Lock()
	defer s.closing.Unlock()
	if s.closed || s.carrying >= s.cfg.Limits.Carriers {
		return false
	}
	s.carrying++
	s.channels.Add(1)
	return true
}

func (s *Server) leaveCarrier(sock *socket) {
	s.closing.Lock()
	defer s.closing.Unlock()
	delete(s.carriers, sock)
	s.carrying--
	s.channels.Done()
}

// sweepCarriers closes those that nothing comes through.
func (s *Server) sweepCarriers(now time.Time) {
	var idle []*relay.Carrier
	s.closing.Lock()
	for sock := range s.carriers {
		age, limit := now.Sub(time.Unix(0, sock.carrier.Heard())), carrierIdle
		if sock.carrier.Heard() == 0 {
			age, limit = now.Sub(sock.carrier.Since()), carrierNew
		}
		if age > limit {
			idle = append(idle, sock.carrier)
		}
	}
	s.closing.Unlock()
	for _, c := range idle {
		go c.Close() // a connection that is stuck may take a moment
	}
}
