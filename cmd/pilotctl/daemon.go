package main

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"

	"github.com/pilotnet/pilot/ipam"
	"github.com/pilotnet/pilot/overlay/api"
	"github.com/pilotnet/pilot/tun/resolv"
)

func (p *program) daemonCommand() *cli.Command {
	return &cli.Command{
		Name:  "daemon",
		Usage: "run the agent in the foreground",
		Subcommands: []*cli.Command{{
			Name:  "run",
			Usage: "run the agent until it is told to end, logging on stderr",
			Description: `For service managers and containers; "pilotctl up" runs it in the background.
SIGTERM, SIGINT and "pilotctl down" end it. With PILOT_INVITE=TOKEN or PILOT_INVITE_FILE=PATH
it uses that invitation by itself, and makes the home server of the agent that invites its
own if it has none.`,
			Flags: slices.Concat(nodeFlags(), runFlags(), enrolFlags(), []cli.Flag{
				inviteFlag(),
				&cli.BoolFlag{Name: "init", Usage: "make the agent first if there is none, as up does"},
				&cli.IntFlag{Name: "report-fd", Hidden: true},
			}),
			Action: func(c *cli.Context) error {
				if _, err := arguments(c); err != nil {
					return err
				}
				err := p.daemon(c)
				if fd := c.Int("report-fd"); fd >= reportFD && err != nil {
					reportTo(fd, api.AsError(err))
				}
				return err
			},
		}},
	}
}

func (p *program) daemon(c *cli.Context) error {
	at, err := p.places(c)
	if err != nil {
		return err
	}
	ephemeral := p.ephemeral(c)
	if ephemeral {
		usual := at.config
		if at, err = p.memoryPlaces(at); err != nil {
			return err
		}
		if c.Int("report-fd") < reportFD { // otherwise up has made it
			if err := makeMemory(at, usual); err != nil {
				return err
			}
		}
		defer os.RemoveAll(at.state)
	}
	var token string
	if !c.Bool("no-invite") {
		if token, err = p.standingInvite(c); err == nil {
			err = p.prepareInvite(c, at, token)
		}
		if err != nil {
			return err
		}
	}
	set, err := p.settings(c, at)
	if err != nil {
		return err
	}
	id, err := readIdentity(at)
	if errors.Is(err, errNoIdentity) && (c.Bool("init") || ephemeral) {
		if _, err := p.makeAgent(c, at); err != nil {
			return err
		}
		id, err = readIdentity(at)
	}
	if errors.Is(err, errNoIdentity) {
		return noAgent(at)
	}
	if err != nil {
		return err
	}
	logger := p.logger(c.Bool("verbose"))
	if err := keepSecret(); err != nil {
		logger.Warn("a core dump of this process would hold keys", "error", err)
	}
	proxies, err := p.proxies(set.caFile)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(c.Context, syscall.SIGTERM)
	defer stop()

	// The sockets come first: taking them is cheap to undo, and refuses a
	// second daemon before it has opened a device.
	sockets, err := api.Listen(at.socket)
	if err != nil {
		return err
	}
	defer sockets.Close()
	if err := prepareDNS(resolv.Mode(set.dns), id, logger); err != nil {
		return err
	}
	health, err := p.listenHealth(c)
	if err != nil {
		return err
	}
	if health != nil {
		defer health.Close()
	}
	config := nodeConfig(c, at, set, id, logger)
	config.Proxies = proxies
	n, err := p.newNode(config)
	if err != nil {
		return err
	}
	logger.Info("daemon is up", "version", release, "address", id.Addr().String(), "socket", at.socket)
	var more extras
	if health != nil {
		more.beside = append(more.beside, func(ctx context.Context) error { return serveHealth(ctx, health, n.Status, logger) })
	}
	if token != "" {
		more.beside = append(more.beside, func(ctx context.Context) error {
			useInvite(ctx, n, token, logger) // it tells the log; the agent is of use without
			return nil
		})
	}
	if ephemeral {
		more.leave = func() { leave(n, logger) }
	}
	err = serve(ctx, n, sockets, mounts(set.services), logger, more)
	logger.Info("daemon is down")
	return err
}

// prepareDNS checks that a mode that was asked for can be had. Where the names
// are not to be made known it removes what a killed daemon left with resolvconf;
// in the other modes the node does.
func prepareDNS(mode resolv.Mode, id ipam.Identity, logger *slog.Logger) error {
	switch mode {
	case resolv.Resolvconf:
		if err := resolv.CheckResolvconf(); err != nil {
			return usagef("--dns resolvconf: neither resolvconf nor openresolv is installed").
				WithHint("apt-get install openresolv, or --dns auto, which takes what this system has")
		}
	case resolv.Off:
		if err := resolv.RemoveResolvconf(id.Key.Public().Fingerprint().String(), ipam.Prefix()); err != nil {
			logger.Warn("cannot take back what an earlier start told resolvconf", "error", err)
		}
	}
	return nil
}

// extras are what a daemon does besides running its node.
type extras struct {
	beside []func(context.Context) error
	leave  func() // the last that is done before the node ends; may be nil
}

// serve runs the node and the local interface to it until one of them ends.
func serve(asked context.Context, n node, sockets *api.Sockets, owners map[string]http.Handler, logger *slog.Logger, more extras) error {
	asked, stop := context.WithCancel(asked)
	defer stop()
	ctx, end := context.WithCancel(context.WithoutCancel(asked))
	defer end()
	left := context.AfterFunc(asked, func() {
		if more.leave != nil {
			more.leave()
		}
		end()
	})
	defer left()
	server := api.NewServer(api.Config{Agent: n, Logger: logger, Stop: stop, Mounts: owners})
	group, both := errgroup.WithContext(ctx)
	group.Go(func() error {
		defer stop()
		return n.Run(both)
	})
	group.Go(func() error { return server.Run(both, sockets) })
	group.Go(func() error { fitProcessors(both); return nil })
	group.Go(func() error { unmapStartLater(both, logger); return nil })
	for _, f := range more.beside {
		group.Go(func() error { return f(both) })
	}
	told := notifyManager(both, func() { n.Status() }, logger)
	err := group.Wait()
	told()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// logger writes text for people and machines; the journal knows the time itself.
func (p *program) logger(verbose bool) *slog.Logger {
	level := slog.LevelInfo
	if verbose {
		level = slog.LevelDebug
	}
	o := &slog.HandlerOptions{Level: level}
	if p.getenv("JOURNAL_STREAM") != "" {
		o.ReplaceAttr = func(groups []string, a slog.Attr) slog.Attr {
			if len(groups) == 0 && a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		}
	}
	return slog.New(slog.NewTextHandler(p.stderr, o))
}
