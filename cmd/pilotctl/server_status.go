package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/pilotnet/pilot/natt/rendezvous"
	"github.com/pilotnet/pilot/overlay"
)

const (
	usualMetrics  = "127.0.0.1:9100"
	maxHealth     = 1 << 20
	healthTimeout = 5 * time.Second
)

func (p *program) serverStatusCommand() *cli.Command {
	return &cli.Command{
		Name:        "status",
		Usage:       "ask a server on this machine how it does",
		Description: "The server must run with --metrics, at the same address.",
		Flags:       []cli.Flag{&cli.StringFlag{Name: "metrics", Value: usualMetrics, Usage: "where it serves /health"}},
		Action: func(c *cli.Context) error {
			if _, err := arguments(c); err != nil {
				return err
			}
			addr, err := netip.ParseAddrPort(c.String("metrics"))
			if err != nil {
				return usagef("--metrics %.60q: want IP:PORT", c.String("metrics"))
			}
			s, err := health(c, addr)
			if err != nil {
				return err
			}
			return p.result(s, func(w io.Writer) {
				fmt.Fprintf(w, "the server has been up for %s\n", span(p.now().Sub(s.Started)))
				facts(w, "key", s.Key, "listens on", strings.Join(s.Listen, ", "),
					"agents", fmt.Sprintf("%d known, %d here now", s.Agents, s.Sessions),
					"relay", fmt.Sprintf("%d channels, %d frames, %s", s.Channels, s.Frames, bytesText(s.Bytes)),
					"mail waiting", strconv.Itoa(s.Mail))
			})
		},
	}
}

func health(c *cli.Context, addr netip.AddrPort) (s rendezvous.Status, err error) {
	r, err := http.NewRequestWithContext(c.Context, http.MethodGet, "http://"+addr.String()+"/health", nil)
	if err != nil {
		return s, err
	}
	client := http.Client{Timeout: healthTimeout, Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := client.Do(r)
	if err != nil {
		return s, overlay.Errorf(overlay.CodeNotRunning, "no server answers on %s: %v", addr, err).
			WithHint("pilotctl server run --metrics %s", addr).Retry()
	}
	defer answer.Body.Close()
	if err := json.NewDecoder(io.LimitReader(answer.Body, maxHealth)).Decode(&s); err != nil {
		return s, overlay.Errorf(overlay.CodeInternal, "what answers on %s is no rendezvous server", addr)
	}
	if answer.StatusCode != http.StatusOK {
		return s, overlay.Errorf(overlay.CodeInternal, "the server on %s cannot read its store", addr).WithHint("see its log")
	}
	return s, nil
}
