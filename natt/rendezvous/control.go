package rendezvous

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/natt/relay"
)

// Limits of the stream side. A connection that does nothing is closed soon.
const (
	headerTimeout    = 5 * time.Second
	greetingTimeout  = 10 * time.Second
	controlIdle      = 60 * time.Second
	controlLife      = 10 * time.Minute
	writeTimeout     = 15 * time.Second
	maxHeader        = 8 << 10
	requestsPerRoute = 4096
)

// publicHandler serves cards and control channels.
func (s *Server) publicHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+relay.CardPath+"{fingerprint}", s.serveCard)
	mux.HandleFunc("GET "+relay.ControlPath, s.serveControl)
	mux.HandleFunc("GET "+relay.DatagramsPath, s.serveDatagrams)
	return mux
}

func (s *Server) httpServer(ctx context.Context, h http.Handler) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       greetingTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       headerTimeout,
		MaxHeaderBytes:    maxHeader,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnContext:       withMark,
		ErrorLog:          slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug), // scanners' noise
	}
}

func remoteAddr(r *http.Request) netip.Addr {
	a, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.IPv6Unspecified()
	}
	return a.Addr().Unmap()
}

// serveCard answers with the card of an agent. It is public and checks itself.
func (s *Server) serveCard(w http.ResponseWriter, r *http.Request) {
	if !s.streams.allow(s.cfg.Now().UnixNano(), remoteAddr(r)) {
		s.count.limited.Add(1)
		http.Error(w, "too many requests from your network", http.StatusTooManyRequests)
		return
	}
	fp, err := crypto.ParseFingerprint(strings.ToLower(r.PathValue("fingerprint")))
	if err != nil {
		http.Error(w, "not a fingerprint", http.StatusNotFound)
		return
	}
	a, err := s.store.Agent(fp)
	switch {
	case errors.Is(err, ErrNotFound):
		http.Error(w, "no such agent here", http.StatusNotFound)
		return
	case err != nil:
		s.storeFailed(err)
		http.Error(w, "store failed", http.StatusServiceUnavailable)
		return
	}
	s.count.cards.Add(1)
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.Write(a.Card)
}

// serveControl runs one control channel.
func (s *Server) serveControl(w http.ResponseWriter, r *http.Request) {
	from := remoteAddr(r)
	if !s.streams.allow(s.cfg.Now().UnixNano(), from) {
		s.count.limited.Add(1)
		http.Error(w, "too many requests from your network", http.StatusTooManyRequests)
		return
	}
	if !s.enter() {
		http.Error(w, "shutting down", http.StatusServiceUnavailable)
		return
	}
	defer s.channels.Done()
	// Any origin: Noise authenticates, and a web page holds no key of ours.
	ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true})
	if err != nil {
		return
	}
	defer ws.CloseNow()
	ws.SetReadLimit(relay.MaxRequest + crypto.TransportOverhead)
	ctx, cancel := context.WithTimeout(r.Context(), controlLife)
	defer cancel()
	s.control(ctx, ws, from, shownMark(r.Context()))
}

// enter counts a control channel in, unless the server is going down.
func (s *Server) enter() bool {
	s.closing.Lock()
	defer s.closing.Unlock()
	if s.closed {
		return false
	}
	s.channels.Add(1)
	return true
}

func (s *Server) control(ctx context.Context, ws *websocket.Conn, from netip.Addr, mark [relay.MarkSize]byte) {
	msg, err := read(ctx, ws, greetingTimeout)
	if err != nil {
		return
	}
	greeting := relay.Greeting{Time: s.cfg.Now(), ClaimBits: s.cfg.Limits.ClaimBits, MailBits: s.cfg.Limits.MailBits, Mark: mark}
	answer, tr, peer, err := relay.AcceptControl(s.cfg.Key, msg, greeting)
	if err != nil {
		if errors.Is(err, relay.ErrServerKey) {
			ws.Close(relay.CloseWrongKey, "server key does not match")
		}
		return
	}
	if write(ctx, ws, answer) != nil {
		return
	}
	for range requestsPerRoute {
		sealed, err := read(ctx, ws, controlIdle)
		if err != nil {
			return
		}
		plain, err := tr.Open(sealed[8:8:cap(sealed)], sealed)
		if err != nil {
			return
		}
		req, err := relay.ParseRequest(plain)
		if err != nil {
			return
		}
		sealed, err = tr.Seal(nil, relay.AppendAnswer(nil, s.answer(ctx, peer, from, req)))
		if err != nil || write(ctx, ws, sealed) != nil {
			return
		}
	}
}

func read(ctx context.Context, ws *websocket.Conn, patience time.Duration) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	typ, b, err := ws.Read(ctx)
	if err == nil && (typ != websocket.MessageBinary || len(b) < crypto.TransportOverhead) {
		err = relay.ErrMalformed
	}
	return b, err
}

func write(ctx context.Context, ws *websocket.Conn, b []byte) error {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	return ws.Write(ctx, websocket.MessageBinary, b)
}

// answer does one request.
func (s *Server) answer(ctx context.Context, peer relay.ControlPeer, from netip.Addr, r relay.Request) relay.Answer {
	a := relay.Answer{Op: r.Op, Number: r.Number}
	switch {
	case r.Op == relay.OpTime:
	case r.Op == relay.OpPut && !peer.Visitor:
		a.Status, a.Text = relay.StatusRefused, "mail is left by visitors, so that the server does not learn who writes"
	case r.Op == relay.OpPut:
		a.Status, a.Text = s.put(from, r)
	case peer.Visitor:
		a.Status, a.Text = relay.StatusRefused, "a visitor may only leave mail"
	case r.Op == relay.OpClaim:
		a.Status, a.Text = s.claim(ctx, peer, from, r)
	case r.Op == relay.OpList:
		a.Items, a.More, a.Status, a.Text = s.list(peer, r)
	case r.Op == relay.OpAck:
		a.Status, a.Text = s.ack(peer, r)
	case r.Op == relay.OpHead:
		a.Head, a.Status, a.Text = s.head(peer, r)
	case r.Op == relay.OpWithdraw:
		a.Status, a.Text = s.withdraw(peer, r)
	}
	a.Time = s.cfg.Now()
	return a
}

// A limitedListener accepts so many connections at a time, in all and of each network.
type limitedListener struct {
	net.Listener
	total, each int

	mu     sync.Mutex
	open   int
	byHome map[[6]byte]int
}

func limitListener(l net.Listener, total, each int) *limitedListener {
	return &limitedListener{Listener: l, total: total, each: each, byHome: make(map[[6]byte]int)}
}

// Accept closes what is too many, without a word: TLS costs more than it.
func (l *limitedListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		relay.TuneStream(c)
		var from [6]byte
		if a, err := netip.ParseAddrPort(c.RemoteAddr().String()); err == nil {
			from = network(a.Addr())
		}
		l.mu.Lock()
		ok := l.open < l.total && l.byHome[from] < l.each
		if ok {
			l.open++
			l.byHome[from]++
		}
		l.mu.Unlock()
		if ok {
			return &limitedConn{Conn: c, l: l, from: from}, nil
		}
		c.Close()
	}
}

type limitedConn struct {
	net.Conn
	l    *limitedListener
	from [6]byte
	once sync.Once
	mark atomic.Pointer[[relay.MarkSize]byte] // of the certificate that was shown
}

func (c *limitedConn) Close() error {
	c.once.Do(func() {
		c.l.mu.Lock()
		defer c.l.mu.Unlock()
		c.l.open--
		if c.l.byHome[c.from]--; c.l.byHome[c.from] == 0 {
			delete(c.l.byHome, c.from)
		}
	})
	return c.Conn.Close()
}
