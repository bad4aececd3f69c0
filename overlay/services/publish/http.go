package publish

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/pilotnet/pilot/overlay/services"
)

const (
	headerTime  = 20 * time.Second // for a peer to send the headers of a request
	restTime    = 5 * time.Minute  // of a connection between two requests
	maxHeader   = 64 << 10
	maxIdle     = 64 // connections to the program, unused
	proxyBuffer = 32 << 10
)

type connKey struct{}

// server makes the server of an HTTP publication.
func (p *publication) server(h http.Handler) *http.Server {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{
		Handler: h, Protocols: &protocols,
		ReadHeaderTimeout: headerTime, IdleTimeout: restTime, MaxHeaderBytes: maxHeader,
		ErrorLog: slog.NewLogLogger(p.log.Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, c)
		},
	}
}

// serveHTTP answers on l until that is shut. After s.Shutdown requests under way have
// until life ends.
func (p *publication) serveHTTP(life context.Context, l *services.Listener, s *http.Server, x *proxy) {
	switch err := s.Serve(l); {
	case errors.Is(err, http.ErrServerClosed):
		<-life.Done()
	case !errors.Is(err, net.ErrClosed):
		p.log.Error("a publication ends", "port", p.rule().Port, "err", err)
	}
	s.Close()
	l.Shut()
	x.close()
}

// A proxy is the handler of one HTTP publication.
type proxy struct {
	*publication
	reverse httputil.ReverseProxy
	plain   *http.Transport // HTTP/1.1
	framed  *http.Transport // HTTP/2, for gRPC
	life    sync.RWMutex    // held for reading by each request
	closed  bool
}

func (p *publication) handler() *proxy {
	transport := func(h2 bool) *http.Transport {
		var protocols http.Protocols
		protocols.SetHTTP1(!h2)
		protocols.SetUnencryptedHTTP2(h2)
		return &http.Transport{
			Protocols: &protocols, DisableCompression: true, MaxIdleConnsPerHost: maxIdle, IdleConnTimeout: restTime,
			ExpectContinueTimeout: time.Second, WriteBufferSize: 8 << 10, ReadBufferSize: 8 << 10,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return p.target.dial(ctx) },
		}
	}
	x := &proxy{publication: p, plain: transport(false), framed: transport(true)}
	x.reverse = httputil.ReverseProxy{
		Rewrite: x.rewrite, ModifyResponse: x.respond, ErrorHandler: x.fail, Transport: x,
		FlushInterval: -1, BufferPool: &buffers{}, ErrorLog: slog.NewLogLogger(p.log.Handler(), slog.LevelDebug),
	}
	return x
}

// close waits for the requests under way, whose connections are closed already.
func (x *proxy) close() {
	x.life.Lock()
	x.closed = true
	x.life.Unlock()
	x.plain.CloseIdleConnections()
	x.framed.CloseIdleConnections()
}

// RoundTrip sends a request to the program.
func (x *proxy) RoundTrip(r *http.Request) (*http.Response, error) {
	if isGRPC(r) {
		return x.framed.RoundTrip(r)
	}
	return x.plain.RoundTrip(r)
}

func isGRPC(r *http.Request) bool {
	return r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc")
}

// ServeHTTP refuses what must not reach the program, and lets the rest pass.
func (x *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	x.life.RLock()
	defer x.life.RUnlock()
	conn, ok := r.Context().Value(connKey{}).(*services.Conn)
	if !ok {
		panic("publish: a connection that did not come from a services.Listener")
	}
	peer, ok := conn.Whois()
	switch {
	case !ok || x.closed: // lost trust since it connected
		services.Reset(conn)
		panic(http.ErrAbortHandler)
	case !ownHost(r.Host, x.own):
		http.Error(w, fmt.Sprintf("421: no agent is called %.100q here", r.Host), http.StatusMisdirectedRequest)
		return
	case r.Method == http.MethodConnect:
		http.Error(w, "405: this is not a forward proxy", http.StatusMethodNotAllowed)
		return
	case r.URL.Opaque != "":
		http.Error(w, "400: want a path", http.StatusBadRequest)
		return
	}
	if up := r.Header.Values("Upgrade"); len(up) > 0 && (len(up) > 1 || !strings.EqualFold(up[0], "websocket")) {
		r.Header.Del("Upgrade")
	}
	x.reverse.ServeHTTP(&flusher{ResponseWriter: w, length: -1}, r.WithContext(context.WithValue(r.Context(), peerKey{}, peer)))
}

type peerKey struct{}

// rewrite makes the request that the program sees.
func (x *proxy) rewrite(r *httputil.ProxyRequest) {
	out := r.Out
	peer := out.Context().Value(peerKey{}).(services.Peer)
	host := r.In.Host
	out.URL.Scheme, out.URL.Host, out.URL.User = "http", x.target.name(), nil
	out.URL.RawQuery = r.In.URL.RawQuery
	out.Host = x.target.name()
	strip(out.Header)
	out.Trailer = nil
	if origin := out.Header.Get("Origin"); origin != "" && sameOrigin(origin, host) {
		out.Header.Set("Origin", "http://"+x.target.name())
	}
	out.Header.Set("X-Forwarded-For", peer.Addr.ULA().String())
	out.Header.Set("X-Forwarded-Host", host)
	out.Header.Set("X-Forwarded-Proto", "http")
	out.Header.Set("Pilot-Peer-Address", peer.Addr.String())
	out.Header.Set("Pilot-Peer-Name", peer.Name)
	out.Header.Set("Pilot-Peer-Fingerprint", peer.Fingerprint.String())
	if x.rule().Kind == A2A && isCard(out.URL.Path) {
		// The whole card is needed, in a form that can be read, and what
		// identifies the program's version of it says nothing about ours.
		for _, name := range []string{"Accept-Encoding", "Range", "If-Range", "If-None-Match", "If-Modified-Since"} {
			out.Header.Del(name)
		}
	}
}

// respond changes what the program's answer says about where the program is.
func (x *proxy) respond(r *http.Response) error {
	host := r.Request.Header.Get("X-Forwarded-Host")
	for _, name := range []string{"Location", "Content-Location"} {
		if u, err := url.Parse(r.Header.Get(name)); err == nil && u.Host != "" && u.Scheme == "http" &&
			isLocal(u.Hostname()) && portOf(u) == x.target.port {
			u.Host = host
			r.Header.Set(name, u.String())
		}
	}
	if x.rule().Kind == A2A && isCard(r.Request.URL.Path) && r.Request.Method == http.MethodGet && r.StatusCode == http.StatusOK {
		return x.respondCard(r, host)
	}
	return nil
}

func portOf(u *url.URL) uint16 {
	if u.Port() == "" {
		if u.Scheme == "https" {
			return 443
		}
		return 80
	}
	n, err := strconv.ParseUint(u.Port(), 10, 16)
	if err != nil {
		return 0
	}
	return uint16(n)
}

// fail answers for a program that does not.
func (x *proxy) fail(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil {
		return // the peer has gone
	}
	x.log.Debug("a published program does not answer", "port", x.rule().Port, "target", x.rule().Target, "err", err)
	text := "502: the program behind this port does not answer"
	if c := new(cardError); errors.As(err, &c) {
		text = "502: " + c.Error()
		x.warn(c.Error())
	}
	http.Error(w, text, http.StatusBadGateway)
}

// buffers is a pool for the copies of bodies.
type buffers struct{ pool sync.Pool }

// Get implements httputil.BufferPool.
func (b *buffers) Get() []byte {
	if v, ok := b.pool.Get().(*[proxyBuffer]byte); ok {
		return v[:]
	}
	return make([]byte, proxyBuffer)
}

// Put implements httputil.BufferPool.
func (b *buffers) Put(buf []byte) { b.pool.Put((*[proxyBuffer]byte)(buf)) }
