package api_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pilotnet/pilot/overlay"
	"github.com/pilotnet/pilot/overlay/api"
	"github.com/pilotnet/pilot/overlay/api/apitest"
)

// liveSocket names the socket of a running daemon, and liveAddress a source
// address that it knows, for BenchmarkWhois to ask.
const (
	liveSocket  = "PILOT_BENCH_SOCKET"
	liveAddress = "PILOT_BENCH_WHOIS"
)

// BenchmarkWhois is what a server pays to learn who calls, on a connection that
// is open already.
func BenchmarkWhois(b *testing.B) {
	client, address := api.NewClient(os.Getenv(liveSocket)), os.Getenv(liveAddress)
	if os.Getenv(liveSocket) == "" {
		client, address = start(b).Client, "[fd50:494c:4f54::200]:40000"
	}
	defer client.Close()
	var took []time.Duration
	for b.Loop() {
		begin := time.Now()
		if _, err := client.Whois(b.Context(), address); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(begin))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2])/1e3, "p50-us")
	b.ReportMetric(float64(took[len(took)*99/100])/1e3, "p99-us")
}

// A countedListener counts who connects.
type countedListener struct {
	net.Listener
	accepted atomic.Int32
}

func (l *countedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		l.accepted.Add(1)
	}
	return c, err
}

// TestConnectionsAreKept: many calls, one after the other, need one connection to
// each socket; and a Client outlives its daemon.
func TestConnectionsAreKept(t *testing.T) {
	dir := socketDir(t)
	outer, inner := filepath.Join(dir, "pilot.sock"), filepath.Join(dir, "inner.sock")
	run := func() (stop func()) {
		sockets, err := api.Listen(inner)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		s := api.NewServer(api.Config{Agent: apitest.New(), Logger: slog.New(slog.DiscardHandler), Stop: func() {}})
		go func() { ended <- s.Run(ctx, sockets) }()
		return func() {
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	}
	stop := run()
	use, govern := through(t, outer, inner), through(t, api.GovernPath(outer), api.GovernPath(inner))
	client := api.NewClient(outer)
	defer client.Close()
	for range 100 {
		if _, err := client.Whois(t.Context(), "fd50:494c:4f54::200"); err != nil {
			t.Fatal(err)
		}
		if err := client.Revoke(t.Context(), "bob"); err != nil {
			t.Fatal(err)
		}
		if err := client.Reject(t.Context(), "carol"); err != nil {
			t.Fatal(err)
		}
	}
	if u, g := use.accepted.Load(), govern.accepted.Load(); u != 1 || g != 1 {
		t.Errorf("%d connections to use, %d to govern, want 1 and 1", u, g)
	}
	stop()
	var e *overlay.Error
	if err := client.Revoke(t.Context(), "bob"); !errors.As(err, &e) || e.Code != overlay.CodeNotRunning {
		t.Errorf("without a daemon: %v", err)
	}
	defer run()()
	if _, err := client.Whois(t.Context(), "fd50:494c:4f54::200"); err != nil {
		t.Errorf("after a restart: %v", err)
	}
}

// through passes connections on and counts them.
func through(t *testing.T, from, to string) *countedListener {
	t.Helper()
	l, err := net.Listen("unix", from)
	if err != nil {
		t.Fatal(err)
	}
	counted := &countedListener{Listener: l}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			a, err := counted.Accept()
			if err != nil {
				return
			}
			b, err := net.Dial("unix", to)
			if err != nil {
				a.Close()
				continue
			}
			pass := func(dst, src net.Conn) {
				buf := make([]byte, 4096)
				for {
					n, err := src.Read(buf)
					if n > 0 {
						if _, err := dst.Write(buf[:n]); err != nil {
							break
						}
					}
					if err != nil {
						break
					}
				}
				dst.Close()
				src.Close()
			}
			go pass(a, b)
			go pass(b, a)
		}
	}()
	return counted
}
