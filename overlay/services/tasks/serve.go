package tasks

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/a2aproject/a2a-go/v2/a2a"
	"github.com/a2aproject/a2a-go/v2/a2acompat/a2av0"
	"github.com/a2aproject/a2a-go/v2/a2asrv"
	"github.com/a2aproject/a2a-go/v2/log"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/overlay/services"
)

const (
	headerTime = 10 * time.Second
	bodyTime   = 30 * time.Second
	idleTime   = 2 * time.Minute
	readerTime = 2 * time.Minute // within which a reader must take something
	aliveTime  = 30 * time.Second
	maxHeader  = 16 << 10
)

// Whois says who has a source address now. False: nobody who is trusted.
type Whois func(netip.Addr) (services.Peer, bool)

// Serve answers peers that connect to l until ctx ends.
func (t *Tasks) Serve(ctx context.Context, l net.Listener, whois Whois) error {
	s := &http.Server{
		Handler:           t.Peers(whois),
		ReadHeaderTimeout: headerTime,
		IdleTimeout:       idleTime,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(t.logger.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
	return services.ServeHTTP(ctx, l, s)
}

// A wire answers the requests of peers.
type wire struct {
	*Tasks
	whois    Whois
	now, old http.Handler // JSON-RPC of A2A 1.0 and 0.3
}

// Peers answers peers. A request from an address that whois does not know is cut
// off without an answer.
func (t *Tasks) Peers(whois Whois) http.Handler {
	options := []a2asrv.TransportOption{
		a2asrv.WithTransportKeepAlive(aliveTime),
		a2asrv.WithTransportPanicHandler(func(v any) error {
			t.logger.Error("a call of A2A panicked", "err", fmt.Sprint(v))
			return a2a.ErrInternalError
		}),
	}
	x := &wire{Tasks: t, whois: whois, now: a2asrv.NewJSONRPCHandler(desk{t}, options...), old: a2av0.NewJSONRPCHandler(desk{t}, options...)}
	// A browser's page from elsewhere must not speak as this machine.
	pages := http.NewCrossOriginProtection()
	pages.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		services.Refuse(http.StatusForbidden, services.CodeDenied, "pages of other origins may not send tasks").Answer(w)
	}))
	return pages.Handler(x)
}

func (x *wire) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	peer, ok := x.source(r.RemoteAddr)
	if !ok {
		panic(http.ErrAbortHandler)
	}
	p := &pacedWriter{ResponseWriter: w, rc: http.NewResponseController(w)}
	p.rc.SetReadDeadline(time.Now().Add(bodyTime))
	defer p.rc.SetWriteDeadline(time.Now().Add(readerTime))
	if r.Host == "" || !services.OwnHost(r.Host) {
		services.Refuse(http.StatusMisdirectedRequest, services.CodeDenied, "this agent has no name %.60q", r.Host).Answer(p)
		return
	}
	if !x.enter(peer.Fingerprint) {
		services.Refuse(http.StatusTooManyRequests, services.CodeQuota, "more than %d requests at once", maxRequests).Retry().Answer(p)
		return
	}
	defer x.exit(peer.Fingerprint)
	read := r.Method == http.MethodGet || r.Method == http.MethodHead
	switch {
	case read && (r.URL.Path == a2asrv.WellKnownAgentCardPath || r.URL.Path == "/.well-known/agent.json"):
		x.card(p, r)
	case r.Method == http.MethodPost && r.URL.Path == "/":
		x.call(p, r, peer)
	case r.URL.Path == "/":
		p.Header().Set("Allow", http.MethodPost)
		services.Refuse(http.StatusMethodNotAllowed, services.CodeInvalid, "this is A2A: POST JSON-RPC here").WithHint("GET %s tells more", a2asrv.WellKnownAgentCardPath).Answer(p)
	default:
		services.Refuse(http.StatusNotFound, services.CodeNotFound, "there is nothing at %.80q", r.URL.Path).WithHint("GET %s tells more", a2asrv.WellKnownAgentCardPath).Answer(p)
	}
}

func (x *wire) source(remote string) (services.Peer, bool) {
	from, err := netip.ParseAddrPort(remote)
	if err != nil {
		return services.Peer{}, false
	}
	return x.whois(from.Addr().Unmap().WithZone(""))
}

func (t *Tasks) enter(fp crypto.Fingerprint) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.requests[fp] >= maxRequests {
		return false
	}
	t.requests[fp]++
	return true
}

func (t *Tasks) exit(fp crypto.Fingerprint) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.requests[fp]--; t.requests[fp] <= 0 {
		delete(t.requests, fp)
	}
}

// call answers a JSON-RPC call of either version.
func (x *wire) call(w http.ResponseWriter, r *http.Request, peer services.Peer) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxMessage))
	if big := new(http.MaxBytesError); errors.As(err, &big) {
		rpcError(w, http.StatusRequestEntityTooLarge, fmt.Sprintf("the request is larger than %d bytes", big.Limit))
		return
	}
	if err != nil {
		rpcError(w, http.StatusRequestTimeout, "the request came too slowly or broke off")
		return
	}
	http.NewResponseController(w).SetReadDeadline(time.Time{}) // the answer takes the time that the task takes
	var peek struct {
		Method string `json:"method"`
	}
	_ = json.Unmarshal(body, &peek) // what is wrong is said by the handler
	r = r.WithContext(log.AttachLogger(withPeer(r.Context(), peer), slog.New(slog.DiscardHandler)))
	r.Body = io.NopCloser(bytes.NewReader(body))
	if strings.Contains(peek.Method, "/") {
		x.old.ServeHTTP(w, r)
		return
	}
	x.now.ServeHTTP(w, r)
}

func rpcError(w http.ResponseWriter, status int, text string) {
	const invalidRequest = -32600
	services.WriteJSON(w, status, map[string]any{"jsonrpc": "2.0", "id": nil, "error": map[string]any{"code": invalidRequest, "message": text}})
}

// card answers with the agent card. Its URL is where the caller found it.
func (x *wire) card(w http.ResponseWriter, r *http.Request) {
	name := "agent"
	if a, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
		if self, ok := x.source(a.String()); ok && self.Self && self.Name != "" {
			name = self.Name
		}
	}
	url := "http://" + r.Host + "/"
	modes := []string{"text/plain"}
	card := &a2a.AgentCard{
		Name: name, Description: "This agent takes no tasks now.", Version: "1",
		Capabilities:      a2a.AgentCapabilities{Streaming: true},
		DefaultInputModes: modes, DefaultOutputModes: modes, Skills: []a2a.AgentSkill{},
		SupportedInterfaces: []*a2a.AgentInterface{
			{URL: url, ProtocolBinding: a2a.TransportProtocolJSONRPC, ProtocolVersion: a2a.Version},
			{URL: url, ProtocolBinding: a2a.TransportProtocolJSONRPC, ProtocolVersion: a2av0.Version},
		},
	}
	if h := x.Handler(); h != nil {
		card.Description = h.Description
		if card.Description == "" {
			card.Description = "Takes tasks of its peers."
		}
		if h.Format == FormatJSON {
			card.DefaultInputModes, card.DefaultOutputModes = []string{"application/json", "text/plain"}, []string{"application/json"}
		}
		card.Skills = []a2a.AgentSkill{{ID: "task", Name: "task", Description: card.Description, Tags: []string{"task"}}}
	}
	producer, ok := a2av0.NewStaticAgentCardProducer(card).(a2asrv.AgentCardJSONProducer)
	if !ok {
		services.Refuse(http.StatusInternalServerError, services.CodeInternal, "no card").Answer(w)
		return
	}
	text, err := producer.CardJSON(r.Context())
	if err != nil {
		services.Refuse(http.StatusInternalServerError, services.CodeInternal, "no card").Answer(w)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-cache")
	h.Set("X-Content-Type-Options", "nosniff")
	w.Write(text)
}

// pacedWriter gives a reader time anew whenever it took something.
type pacedWriter struct {
	http.ResponseWriter
	rc *http.ResponseController
}

func (w *pacedWriter) Write(p []byte) (int, error) {
	w.rc.SetWriteDeadline(time.Now().Add(readerTime))
	return w.ResponseWriter.Write(p)
}

// Flush implements http.Flusher, which the A2A library asks for.
func (w *pacedWriter) Flush() { w.rc.Flush() }

func (w *pacedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
