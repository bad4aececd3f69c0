package exchange

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/pilotnet/pilot/overlay/services"
)

// A Service is the exchange as the frame of services runs it, in the directory
// exchange of the agent's state.
type Service struct{ open atomic.Pointer[Exchange] }

// NewService returns the service.
func NewService() *Service { return new(Service) }

// Name implements services.Service.
func (*Service) Name() string { return "exchange" }

// Port implements services.Service.
func (*Service) Port() uint16 { return Port }

// Run implements services.Service: it answers peers, delivers the queue and tidies
// up.
func (s *Service) Run(ctx context.Context, env services.Env) error {
	c := Config{Dir: filepath.Join(env.StateDir, "exchange"), Peer: env.Peer, Logger: env.Logger}
	if env.Dial != nil {
		c.Dial = func(ctx context.Context, to services.Peer) (net.Conn, error) { return env.Dial(ctx, to, Port) }
	}
	x, err := New(c)
	if err != nil {
		return err
	}
	l, err := env.Listen(ctx, Port, nil)
	if err != nil {
		return errors.Join(fmt.Errorf("exchange: %w", err), x.Close())
	}
	s.open.Store(x)
	env.Ready()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return x.Serve(ctx, l, env.Whois) })
	g.Go(func() error { return x.Run(ctx) })
	err = g.Wait()
	l.Shut()
	s.open.Store(nil)
	return errors.Join(err, x.Close())
}

// Owner returns the owner's side, and the path below which it is to be served.
func (s *Service) Owner() (string, http.Handler) {
	return OwnerPath, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		x := s.open.Load()
		if x == nil {
			services.Refuse(http.StatusServiceUnavailable, services.CodeInternal, "the data exchange does not run").WithHint("pilotctl status says why").Retry().Answer(w)
			return
		}
		x.Owner().ServeHTTP(w, r)
	})
}
