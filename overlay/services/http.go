package services

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/pilotnet/pilot/ipam"
)

// DrainTime is what requests and connections under way get to end when the agent
// stops. Then they are cut. With what follows it, goodbyes and the withdrawal of what
// gateways map for us, a stop takes two seconds.
const DrainTime = 1500 * time.Millisecond

// ServeHTTP answers on l until ctx ends, and returns when no connection is left.
// The error says why it ended by itself.
func ServeHTTP(ctx context.Context, l net.Listener, s *http.Server) error {
	down := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(down)
		drain, cancel := context.WithTimeout(context.Background(), DrainTime)
		defer cancel()
		if s.Shutdown(drain) != nil {
			s.Close()
		}
	})
	err := s.Serve(l)
	if stop() {
		s.Close()
		return err
	}
	<-down
	return nil
}

// OwnHost says whether a Host header can mean an agent: an address, a name below
// pilot.internal, or one without dots. Other names are those of a page that has
// its own name resolve to an agent.
func OwnHost(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.ToLower(strings.TrimSuffix(strings.Trim(host, "[]"), "."))
	if _, err := netip.ParseAddr(host); err == nil {
		return true
	}
	return !strings.Contains(host, ".") || strings.HasSuffix(host, "."+ipam.Suffix)
}

// WriteJSON answers with a value.
func WriteJSON(w http.ResponseWriter, status int, v any) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.Encode(v) // fails only when the caller has gone
}
