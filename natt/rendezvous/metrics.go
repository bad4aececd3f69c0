package rendezvous

import (
	"encoding/json"
	"net/http"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Handler serves /metrics (Prometheus) and /health (Status as JSON; 503 when the
// store cannot be read).
func (s *Server) Handler() http.Handler {
	reg := prometheus.NewRegistry()
	for _, c := range []struct {
		name, help string
		value      *atomic.Uint64
	}{
		{"hellos_total", "HELLOs opened.", &s.count.hellos},
		{"visits_total", "VISITs opened.", &s.count.visits},
		{"hellos_refused_total", "HELLOs of unknown or superseded agents.", &s.count.refused},
		{"cookies_total", "Requests answered by a cookie, under load.", &s.count.cookies},
		{"limited_total", "Requests dropped by a limit.", &s.count.limited},
		{"malformed_total", "Datagrams that were not understood or not authentic.", &s.count.malformed},
		{"unknown_total", "Datagrams of unknown sessions and channels left unanswered.", &s.count.unknown},
		{"hints_total", "Datagrams of unknown sessions and channels answered by a hint.", &s.count.hints},
		{"stun_total", "STUN binding requests answered.", &s.count.stun},
		{"relay_frames_total", "Frames relayed.", &s.count.frames},
		{"relay_bytes_total", "Bytes relayed.", &s.count.bytes},
		{"relay_dropped_total", "Frames dropped by a channel's limit.", &s.count.dropped},
		{"relay_offline_total", "Frames for agents that are not at home.", &s.count.offline},
		{"send_errors_total", "Sends that failed.", &s.count.sendErrors},
		{"claims_total", "Claims stored.", &s.count.claims},
		{"withdrawals_total", "Claims withdrawn.", &s.count.withdrawals},
		{"mail_total", "Mail items stored.", &s.count.mail},
		{"mail_fetched_total", "Mail items fetched.", &s.count.mailFetched},
		{"carriers_total", "TLS connections that carried datagrams.", &s.count.carriers},
		{"cards_total", "Cards served.", &s.count.cards},
	} {
		reg.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Namespace: "pilot_server", Name: c.name, Help: c.help},
			func() float64 { return float64(c.value.Load()) }))
	}
	gauge := func(name, help string, value func() float64) {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "pilot_server", Name: name, Help: help}, value))
	}
	gauge("sessions", "Agents at home now.", func() float64 { n, _ := s.table.count(); return float64(n) })
	gauge("channels", "Relay channels now.", func() float64 { _, n := s.table.count(); return float64(n) })

	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if _, _, err := s.store.Count(); err != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		json.NewEncoder(w).Encode(s.Status())
	})
	return mux
}
