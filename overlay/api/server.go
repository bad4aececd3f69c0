package api

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/pilotnet/pilot/overlay"
)

const (
	maxBody     = 64 << 10
	maxHeader   = 16 << 10
	maxUse      = 256 // connections, see gate; long waits hold one each
	maxGovern   = 32
	readTimeout = 10 * time.Second // of headers and of the body
	callTimeout = 2 * time.Minute  // of calls that name no time of their own
	maxWait     = time.Hour
	maxPing     = time.Minute
	defaultPing = 5 * time.Second
	drainTime   = 2 * time.Second
)

// Config is what a Server needs. All fields are required.
type Config struct {
	Agent  Agent
	Logger *slog.Logger
	Stop   func() // asks the daemon to end; called once an answer to /v1/down is on its way
	// Mounts are the owner's sides of services, by the path below which each
	// is served, on both sockets. They set deadlines of their own. May be nil.
	Mounts map[string]http.Handler
}

// A Server answers local programs about one agent.
type Server struct {
	agent  Agent
	logger *slog.Logger
	stop   func()
	mounts map[string]http.Handler
}

// NewServer returns a server that Run starts.
func NewServer(c Config) *Server {
	return &Server{agent: c.Agent, logger: c.Logger, stop: c.Stop, mounts: c.Mounts}
}

// Run serves both sockets until ctx ends, and closes them. Calls under way are
// cancelled with ctx and have two seconds to return.
func (s *Server) Run(ctx context.Context, sockets *Sockets) error {
	use, govern := s.server(ctx, false), s.server(ctx, true)
	errs := make(chan error, 2)
	var running sync.WaitGroup
	running.Go(func() { errs <- use.Serve(newGate(sockets.use, maxUse)) })
	running.Go(func() { errs <- govern.Serve(newGate(sockets.govern, maxGovern)) })

	var failed error
	select {
	case <-ctx.Done():
	case failed = <-errs:
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
	defer cancel()
	for _, h := range []*http.Server{use, govern} {
		if h.Shutdown(drain) != nil {
			h.Close()
		}
	}
	running.Wait()
	sockets.Close()
	if errors.Is(failed, http.ErrServerClosed) {
		return nil
	}
	return failed
}

func (s *Server) server(ctx context.Context, govern bool) *http.Server {
	return &http.Server{
		Handler:           s.handler(govern),
		ReadHeaderTimeout: readTimeout,
		ReadTimeout:       readTimeout,
		IdleTimeout:       readTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(s.logger.Handler(), slog.LevelWarn),
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnContext:       withConn,
		ConnState:         rested,
	}
}

// handler builds the route table of one socket.
func (s *Server) handler(govern bool) http.Handler {
	mux := http.NewServeMux()
	a := s.agent
	get := func(path string, f func(*http.Request) (any, error)) {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) { answer(w, r, f) })
	}
	get("/v1/id", func(*http.Request) (any, error) { return a.ID(), nil })
	get("/v1/status", func(*http.Request) (any, error) { return filled(a.Status()), nil })
	get("/v1/peers", func(*http.Request) (any, error) { return list(a.Peers()), nil })
	get("/v1/pending", func(*http.Request) (any, error) { return requests(a.Pending()), nil })
	get("/v1/outgoing", func(*http.Request) (any, error) { return requests(a.Outgoing()), nil })
	get("/v1/invites", func(*http.Request) (any, error) { return list(a.Invites()), nil })
	get("/v1/netcheck", func(r *http.Request) (any, error) { return a.Netcheck(r.Context()) })
	get("/v1/whois", func(r *http.Request) (any, error) { return a.Whois(r.URL.Query().Get("addr")) })

	post(mux, "/v1/request", a.Request)
	post(mux, "/v1/wait", s.wait)
	post(mux, "/v1/accept", func(ctx context.Context, in acceptBody) (overlay.TrustResult, error) {
		return a.Accept(ctx, in.Token, in.As, in.Offer)
	})
	post(mux, "/v1/revoke", onPeer(a.Revoke))
	post(mux, "/v1/ping", s.ping)

	get("/v1/served", func(*http.Request) (any, error) { return list(a.Served()), nil })
	post(mux, "/v1/serve", a.Serve)
	post(mux, "/v1/unserve", func(ctx context.Context, in unserveBody) (struct{}, error) {
		return struct{}{}, a.Unserve(ctx, in.Port)
	})

	governed := func(path string, register func(mux *http.ServeMux, path string)) {
		if govern {
			inner := http.NewServeMux()
			register(inner, path)
			mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
				s.logger.Info("govern call", append([]any{"path", path}, caller(r.Context())...)...)
				inner.ServeHTTP(w, r)
			})
			return
		}
		mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
			write(w, Failure(overlay.Errorf(overlay.CodeDenied, "%s is a matter of the govern socket", path).
				WithHint("use govern.sock, as root or as the daemon's user")))
		})
	}
	governed("/v1/approve", func(m *http.ServeMux, p string) { post(m, p, a.Approve) })
	governed("/v1/reject", func(m *http.ServeMux, p string) { post(m, p, onPeer(a.Reject)) })
	governed("/v1/block", func(m *http.ServeMux, p string) { post(m, p, onPeer(a.Block)) })
	governed("/v1/confirm", func(m *http.ServeMux, p string) {
		post(m, p, func(ctx context.Context, _ struct{}) ([]overlay.Peer, error) {
			peers, err := a.Confirm(ctx)
			return list(peers), err
		})
	})
	governed("/v1/invite", func(m *http.ServeMux, p string) {
		post(m, p, func(ctx context.Context, o overlay.InviteOptions) (inviteAnswer, error) {
			token, err := a.Invite(ctx, o)
			return inviteAnswer{Token: token}, err
		})
	})
	governed("/v1/invites/end", func(m *http.ServeMux, p string) { post(m, p, a.EndInvite) })
	governed("/v1/withdraw", func(m *http.ServeMux, p string) {
		post(m, p, func(ctx context.Context, _ struct{}) ([]overlay.Withdrawal, error) {
			w, err := a.Withdraw(ctx)
			return list(w), err
		})
	})
	governed("/v1/down", func(m *http.ServeMux, p string) { m.HandleFunc("POST "+p, s.down) })

	for path, h := range s.mounts {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			working(r.Context())
			h.ServeHTTP(w, r)
		})
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		write(w, Failure(overlay.Errorf(overlay.CodeNotFound, "no such call: %s %.100q", r.Method, r.URL.Path).
			WithHint("the calls are listed in the documentation of package overlay/api")))
	})
	return mux
}

func (s *Server) wait(ctx context.Context, in waitBody) (overlay.TrustResult, error) {
	ctx, cancel := context.WithTimeout(ctx, limit(in.Timeout, maxWait, maxWait))
	defer cancel()
	t, err := s.agent.Wait(ctx, in.Fingerprint)
	if err != nil && ctx.Err() != nil {
		return t, overlay.Errorf(overlay.CodeTrustPending, "not granted yet").Retry()
	}
	return t, err
}

func (s *Server) ping(ctx context.Context, in pingBody) (overlay.Pong, error) {
	ctx, cancel := context.WithTimeout(ctx, limit(in.Timeout, defaultPing, maxPing))
	defer cancel()
	return s.agent.Ping(ctx, in.Peer, in.Seq)
}

func (s *Server) down(w http.ResponseWriter, _ *http.Request) {
	write(w, Success(downAnswer{PID: os.Getpid()}))
	http.NewResponseController(w).Flush()
	s.stop()
}

func limit(asked, usual, most time.Duration) time.Duration {
	if asked <= 0 {
		return usual
	}
	return min(asked, most)
}

// post registers a call whose body is an In and whose answer is an Out.
func post[In, Out any](mux *http.ServeMux, path string, f func(context.Context, In) (Out, error)) {
	mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
		answer(w, r, func(r *http.Request) (any, error) {
			var in In
			if err := decode(w, r, &in); err != nil {
				return nil, err
			}
			ctx := r.Context()
			working(ctx)
			if path != "/v1/wait" {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, callTimeout)
				defer cancel()
			}
			return f(ctx, in)
		})
	})
}

func onPeer(f func(context.Context, string) error) func(context.Context, peerBody) (struct{}, error) {
	return func(ctx context.Context, in peerBody) (struct{}, error) {
		if in.Peer == "" {
			return struct{}{}, overlay.Errorf(overlay.CodeInvalidArgument, "which peer?").
				WithHint("give a name, an address, a fingerprint or a contact as \"peer\"")
		}
		return struct{}{}, f(ctx, in.Peer)
	}
}

func answer(w http.ResponseWriter, r *http.Request, f func(*http.Request) (any, error)) {
	data, err := f(r)
	if err != nil {
		write(w, Failure(err))
		return
	}
	write(w, Success(data))
}

func write(w http.ResponseWriter, e Envelope) {
	w.Header().Set("Content-Type", "application/json")
	if e.Error != nil {
		w.WriteHeader(httpStatus(e.Error.Code))
	}
	json.NewEncoder(w).Encode(e) // fails only when the caller has gone
}

// decode reads exactly one JSON object of at most maxBody bytes.
func decode(w http.ResponseWriter, r *http.Request, in any) error {
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	d.DisallowUnknownFields()
	err := d.Decode(in)
	var big *http.MaxBytesError
	switch {
	case errors.As(err, &big):
		return overlay.Errorf(overlay.CodeInvalidArgument, "the request is larger than %d bytes", maxBody)
	case errors.Is(err, io.EOF):
		return overlay.Errorf(overlay.CodeInvalidArgument, "the request has no body").
			WithHint("send a JSON object")
	case err != nil:
		return overlay.Errorf(overlay.CodeInvalidArgument, "the request is not what this call expects: %.200v", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return overlay.Errorf(overlay.CodeInvalidArgument, "the request holds more than one JSON object")
	}
	return nil
}

// list gives an empty list instead of null.
func list[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

func filled(s overlay.Status) overlay.Status {
	s.Requests, s.Servers, s.Peers, s.Services = requests(s.Requests), list(s.Servers), list(s.Peers), list(s.Services)
	if s.Drops == nil {
		s.Drops = map[string]uint64{}
	}
	return s
}

// requests copies the list, since its elements are the agent's.
func requests(in []overlay.Request) []overlay.Request {
	out := make([]overlay.Request, len(in))
	for i, r := range in {
		r.Untrusted = list(r.Untrusted)
		out[i] = r
	}
	return out
}
