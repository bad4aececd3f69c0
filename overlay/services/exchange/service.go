package exchange

import (
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"

	"github.com/pilotnet/pilot/overlay/services"
)

// Service is the exchange as the frame of services runs it. It may be started
// again after a failure.
type Service struct{ *Exchange }

// Name implements services.Service.
func (Service) Name() string { return "exchange" }

// Port implements services.Service.
func (Service) Port() uint16 { return Port }

// Run implements services.Service: it answers peers, delivers the queue and tidies
// up.
func (s Service) Run(ctx context.Context, env services.Env) error {
	l, err := env.Listen(ctx, Port, nil)
	if err != nil {
		return fmt.Errorf("exchange: %w", err)
	}
	defer l.Shut()
	env.Ready()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.Serve(ctx, l, env.Whois) })
	g.Go(func() error { return s.Exchange.Run(ctx) })
	return g.Wait()
}
