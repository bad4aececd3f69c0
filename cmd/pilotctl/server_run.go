package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os/signal"
	"strings"
	"syscall"

	"github.com/urfave/cli/v2"

	"github.com/pilotnet/pilot/natt/rendezvous"
	"github.com/pilotnet/pilot/overlay"
)

// In Mbit/s: what a home connection has, and what a hundred pairs at once do not
// fill a usual server's with.
const usualRelayRate, maxRelayRate = 50, 1_000_000

func (p *program) serverRunCommand() *cli.Command {
	return &cli.Command{
		Name:  "run",
		Usage: "run the server in the foreground, logging on stderr",
		Description: `When it is ready it prints the line with --server that agents need. UDP and TLS
are served on each port; the default is 3478 and 443 on all addresses.
` + serverStateText,
		Flags: []cli.Flag{
			&cli.StringSliceFlag{Name: "listen", Usage: "IP:PORT to serve; repeatable"},
			&cli.StringFlag{Name: "public", Usage: "HOST[:PORT] by which agents reach it, if that is not where it listens"},
			&cli.StringFlag{Name: "cert", Usage: "file of a TLS certificate in PEM to show instead of a self-signed one; read again when it changes"},
			&cli.StringFlag{Name: "key-file", Usage: "file of the key of --cert"},
			&cli.StringFlag{Name: "acme", Usage: "domain to get a TLS certificate for from Let's Encrypt, which asks on port 443; accepts its terms"},
			&cli.Float64Flag{Name: "relay-rate", Value: usualRelayRate, Usage: "most that is relayed for two agents each way, in Mbit/s"},
			&cli.StringFlag{Name: "metrics", Usage: "loopback IP:PORT for /metrics and /health"},
		},
		Action: p.serverRun,
	}
}

func (p *program) serverRun(c *cli.Context) error {
	if _, err := arguments(c); err != nil {
		return err
	}
	config, err := p.serverConfig(c)
	if err != nil {
		return err
	}
	if err := keepSecret(); err != nil {
		config.Logger.Warn("a core dump of this process would hold keys", "error", err)
	}
	ctx, stop := signal.NotifyContext(c.Context, syscall.SIGTERM)
	defer stop()
	config.Ready = func(line string) {
		server := strings.TrimPrefix(line, "--server ")
		p.tell("the server is ready; agents join it with: pilotctl up --name NAME and this line")
		p.result(map[string]string{"server": server}, func(w io.Writer) { fmt.Fprintln(w, "--server "+server) })
	}
	server, err := rendezvous.New(config)
	if err == nil {
		err = server.Run(ctx)
	}
	return serverError(err, config.StateDir)
}

func (p *program) serverConfig(c *cli.Context) (rendezvous.Config, error) {
	dir, err := p.serverState(c)
	if err != nil {
		return rendezvous.Config{}, err
	}
	config := rendezvous.Config{StateDir: dir, Public: c.String("public"), Logger: p.logger(c.Bool("verbose"))}
	for _, text := range c.StringSlice("listen") {
		addr, err := parseListen(text)
		if err != nil {
			return config, usagef("--listen %.60q: want IP:PORT", text).WithHint("for example --listen 0.0.0.0:3478, or :3478 for all addresses")
		}
		config.Listen = append(config.Listen, addr)
	}
	rate := c.Float64("relay-rate")
	if !(rate >= 1 && rate <= maxRelayRate) {
		return config, usagef("--relay-rate is 1 to %d Mbit/s", maxRelayRate)
	}
	config.Limits.ChannelRate = int64(rate * 1e6 / 8)
	config.CertFile, config.CertKeyFile, config.ACME = c.String("cert"), c.String("key-file"), c.String("acme")
	if (config.CertFile == "") != (config.CertKeyFile == "") {
		return config, usagef("--cert and --key-file come together")
	}
	if config.ACME != "" && config.CertFile != "" {
		return config, usagef("--acme and --cert exclude each other")
	}
	if text := c.String("metrics"); text != "" {
		config.Metrics, err = netip.ParseAddrPort(text)
		if err != nil || !config.Metrics.Addr().IsLoopback() {
			return config, usagef("--metrics %.60q: want a loopback IP:PORT", text).WithHint("--metrics %s", usualMetrics)
		}
	}
	return config, nil
}

// parseListen reads IP:PORT, and :PORT for all addresses.
func parseListen(text string) (netip.AddrPort, error) {
	if strings.HasPrefix(text, ":") {
		text = "[::]" + text
	}
	return netip.ParseAddrPort(text)
}

// serverError puts what ended a server into the terms of this program.
func serverError(err error, dir string) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, rendezvous.ErrLocked):
		return overlay.Errorf(overlay.CodeConflict, "a server is running with the state in %s", dir).
			WithHint("stop it, or choose another place with --state-dir")
	case errors.Is(err, rendezvous.ErrDamaged):
		return overlay.Errorf(overlay.CodeInternal, "%v", err).
			WithHint("set %s/server.db aside and start again: agents claim anew, waiting mail is lost", dir)
	case errors.Is(err, rendezvous.ErrNewer):
		return overlay.Errorf(overlay.CodeConflict, "%v", err).
			WithHint("install the version of pilotctl that wrote it, or restore a backup of before")
	case errors.Is(err, syscall.EADDRINUSE):
		return overlay.Errorf(overlay.CodeConflict, "%v", err).WithHint("another program has the port; choose one with --listen")
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return usagef("%v", err).WithHint("--listen takes an address of this machine; --public names the outer one")
	}
	return systemError("the server", err)
}
