package main

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/pilotnet/pilot/overlay"
	"github.com/pilotnet/pilot/overlay/services"
)

// A healthAnswer is what a probe gets. It tells nothing of peers.
type healthAnswer struct {
	OK     bool   `json:"ok"`
	State  string `json:"state"`
	Reason string `json:"reason,omitempty"`
}

// listenHealth opens the port for probes that was asked for; nil if none was.
func (p *program) listenHealth(c *cli.Context) (net.Listener, error) {
	text := either(c.String("health"), p.getenv("PILOT_HEALTH"))
	if text == "" {
		return nil, nil
	}
	at, err := healthAddress(text)
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", at.String())
	if err != nil {
		return nil, overlay.Errorf(overlay.CodeConflict, "--health %s: %v", text, err).WithHint("choose a port that is free")
	}
	return l, nil
}

// healthAddress reads PORT, :PORT or IP:PORT. Without an IP it is loopback.
func healthAddress(text string) (netip.AddrPort, error) {
	loopback := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	port := text
	if text[0] == ':' {
		port = text[1:]
	}
	if n, err := strconv.ParseUint(port, 10, 16); err == nil {
		return netip.AddrPortFrom(loopback, uint16(n)), nil
	}
	at, err := netip.ParseAddrPort(text)
	if err != nil {
		return at, usagef("--health %.60q: want [IP:]PORT", text).WithHint("for example --health 8086, or --health 0.0.0.0:8086 for probes from outside")
	}
	return at, nil
}

// serveHealth answers probes until ctx ends. /healthz fails when the node does not
// answer: it is to be started anew. /readyz fails until a home server knows the
// agent: peers cannot find it yet.
func serveHealth(ctx context.Context, l net.Listener, status func() overlay.Status, logger *slog.Logger) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		s := status()
		a := healthAnswer{OK: s.State != "starting", State: s.State}
		if !a.OK {
			a.Reason = "the node does not answer"
		}
		a.write(w)
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		s := status()
		a := healthAnswer{OK: ready(s), State: s.State}
		if !a.OK {
			a.Reason = notReady(s)
		}
		a.write(w)
	})
	const patience = 10 * time.Second
	logger.Info("health", "address", l.Addr().String())
	return services.ServeHTTP(ctx, l, &http.Server{
		Handler: mux, ReadHeaderTimeout: patience, ReadTimeout: patience, WriteTimeout: patience, IdleTimeout: patience,
		MaxHeaderBytes: 8 << 10, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug),
	})
}

func (a healthAnswer) write(w http.ResponseWriter) {
	status := http.StatusOK
	if !a.OK {
		status = http.StatusServiceUnavailable
	}
	w.Header().Set("Cache-Control", "no-store")
	services.WriteJSON(w, status, a)
}
