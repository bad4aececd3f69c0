package tasks

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"sync/atomic"

	"github.com/pilotnet/pilot/overlay/services"
)

// A Service is Tasks as the frame of services runs it, in the directory tasks of
// the agent's state.
type Service struct {
	caller Caller
	open   atomic.Pointer[Tasks]
}

// NewService returns the service. caller says who asks on the local API.
func NewService(caller Caller) *Service { return &Service{caller: caller} }

// Name implements services.Service.
func (*Service) Name() string { return "tasks" }

// Port implements services.Service.
func (*Service) Port() uint16 { return Port }

// Run implements services.Service.
func (s *Service) Run(ctx context.Context, env services.Env) error {
	t, err := New(Config{Dir: filepath.Join(env.StateDir, "tasks"), Logger: env.Logger})
	if err != nil {
		return err
	}
	l, err := env.Listen(ctx, Port, nil)
	if err != nil {
		return errors.Join(fmt.Errorf("tasks: %w", err), t.Close())
	}
	s.open.Store(t)
	env.Ready()
	err = t.Serve(ctx, l, env.Whois)
	l.Shut()
	s.open.Store(nil)
	return errors.Join(err, t.Close())
}

// Trouble implements services.Troubled.
func (s *Service) Trouble() error {
	if t := s.open.Load(); t != nil {
		return t.book.db.Trouble()
	}
	return nil
}

// Owner returns the owner's side, and the path below which it is to be served.
func (s *Service) Owner() (string, http.Handler) {
	return OwnerPath, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		t := s.open.Load()
		if t == nil {
			services.Refuse(http.StatusServiceUnavailable, services.CodeInternal, "the service tasks does not run").WithHint("pilotctl status says why").Retry().Answer(w)
			return
		}
		t.Owner(s.caller).ServeHTTP(w, r)
	})
}
