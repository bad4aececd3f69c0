package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/pilotnet/pilot/ipam"
	"github.com/pilotnet/pilot/overlay"
	"github.com/pilotnet/pilot/overlay/api"
	"github.com/pilotnet/pilot/overlay/services/echo"
	"github.com/pilotnet/pilot/trust"
)

const (
	benchMaxTime    = time.Minute
	benchMaxStreams = 16
	benchPings      = 20
	benchPingGap    = 20 * time.Millisecond
	benchTimeout    = 5 * time.Second
	benchSilence    = time.Second // a path under load may pause for less
)

func (p *program) benchCommand() *cli.Command {
	return &cli.Command{
		Name:      "bench",
		Usage:     "measure the path to a peer: throughput each way, latency at rest and under load",
		ArgsUsage: "PEER",
		Description: `Sends to the peer's echo service, port 7 over TCP, which sends all back: both ways
carry the load at once, each as much as is reported for it. Pings through the
tunnel tell the latency before and during that. It uses the whole path as long
as it runs. The exit status is 5 when the trust does not include port 7.`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "time", Aliases: []string{"t"}, Value: "5s", Usage: "how long to send; at most 1m"},
			&cli.IntFlag{Name: "streams", Value: 1, Usage: "connections at once; at most 16"},
		},
		Action: func(c *cli.Context) error {
			args, err := arguments(c, "a peer")
			if err != nil {
				return err
			}
			length, err := parseDuration(c.String("time"))
			if err != nil {
				return err
			}
			b := benchmark{program: p, time: length, streams: c.Int("streams")}
			if b.time < 100*time.Millisecond || b.time > benchMaxTime || b.streams < 1 || b.streams > benchMaxStreams {
				return usagef("--time is 100ms to 1m, --streams 1 to %d", benchMaxStreams)
			}
			if b.client, err = p.client(c); err != nil {
				return err
			}
			if b.peer, err = b.find(c.Context, args[0]); err != nil {
				return err
			}
			r, err := b.run(c.Context)
			if err != nil {
				return err
			}
			return p.result(r, func(w io.Writer) { r.text(w) })
		},
	}
}

// A benchmark is one run of the command.
type benchmark struct {
	*program
	client  *api.Client
	peer    overlay.Peer
	time    time.Duration
	streams int

	up, down atomic.Int64 // bytes so far
	heard    atomic.Int64 // when the last of them came, after the start
	last     overlay.Pong
	lost     bool // the last ping had no answer
}

// A benchResult is what it found. Rates are payload of TCP, both ways at once.
type benchResult struct {
	Peer     string       `json:"peer"`
	Path     string       `json:"path"` // at the end
	Endpoint string       `json:"endpoint"`
	Seconds  float64      `json:"seconds"`
	Streams  int          `json:"streams"`
	Up       float64      `json:"up_mbit_s"`   // to the peer
	Down     float64      `json:"down_mbit_s"` // from the peer
	Idle     benchLatency `json:"idle"`
	Loaded   benchLatency `json:"loaded"`
}

// A benchLatency is round trips through the tunnel.
type benchLatency struct {
	Sent     int     `json:"sent"`
	Received int     `json:"received"`
	Median   float64 `json:"median_ms"`
	Worst    float64 `json:"max_ms"`
}

func (r benchResult) text(w io.Writer) {
	fmt.Fprintf(w, "%s, %s path by %s\n", r.Peer, r.Path, r.Endpoint)
	facts(w, "to it", rateText(r.Up), "from it", rateText(r.Down), "at rest", r.Idle.text(), "under load", r.Loaded.text())
}

func (l benchLatency) text() string {
	if l.Received == 0 {
		return fmt.Sprintf("no answer to %d pings", l.Sent)
	}
	text := fmt.Sprintf("%s median, %s worst", millis(l.Median), millis(l.Worst))
	if lost := l.Sent - l.Received; lost > 0 {
		text += fmt.Sprintf(", %d of %d lost", lost, l.Sent)
	}
	return text
}

func rateText(mbit float64) string {
	if mbit >= 1000 {
		return fmt.Sprintf("%.2f Gbit/s", mbit/1000)
	}
	return fmt.Sprintf("%.1f Mbit/s", mbit)
}

// find returns the peer, if its trust lets us measure.
func (b *benchmark) find(ctx context.Context, name string) (overlay.Peer, error) {
	ref, err := ipam.ParseRef(name)
	if err != nil {
		return overlay.Peer{}, badInput(err, "a peer is a name, an address, a ULA, a fingerprint or a contact: pilotctl peers")
	}
	peers, err := b.client.Peers(ctx)
	if err != nil {
		return overlay.Peer{}, err
	}
	i := slices.IndexFunc(peers, func(p overlay.Peer) bool { return means(ref, p.Name, p.Address, p.Fingerprint) })
	if i < 0 {
		return overlay.Peer{}, overlay.Errorf(overlay.CodeNotFound, "no peer is called %s", name).WithHint("pilotctl peers lists them")
	}
	peer := peers[i]
	scope, err := trust.ParseScope(peer.Out)
	if err != nil {
		return overlay.Peer{}, overlay.Errorf(overlay.CodeInternal, "the daemon says that we may reach %q: %v", peer.Out, err)
	}
	if !scope.Allows(trust.ProtoTCP, echo.Port) {
		return overlay.Peer{}, overlay.Errorf(overlay.CodeNotTrusted, "%s lets us reach %s, and the measurement needs port 7, echo", peer.Name, peer.Out).
			WithHint("ask for it: pilotctl trust request CONTACT --reason TEXT --ports %s", withEcho(peer.Out))
	}
	return peer, nil
}

// withEcho is a scope with port 7 added, as text.
func withEcho(scope string) string {
	if scope == "" || scope == "none" {
		return "7"
	}
	return "7," + scope
}

func (b *benchmark) run(ctx context.Context) (r benchResult, err error) {
	r = benchResult{Peer: b.peer.Name, Streams: b.streams}
	if r.Idle, err = b.latency(ctx, func(n int) bool { return n < benchPings }); err != nil {
		return r, err
	}
	if r.Idle.Received == 0 {
		return r, overlay.Errorf(overlay.CodePeerOffline, "no answer from %s", b.peer.Name).
			WithHint("pilotctl status says by which paths it was tried").Retry()
	}
	conns, err := b.connect(ctx)
	if err != nil {
		return r, err
	}
	stopShowing := b.show()
	loaded := make(chan error, 1)
	began := time.Now()
	go func() {
		var err error
		r.Loaded, err = b.latency(ctx, func(int) bool { return time.Since(began) < b.time })
		loaded <- err
	}()
	err = b.load(ctx, conns, began)
	r.Seconds = time.Since(began).Seconds()
	err = errors.Join(err, <-loaded)
	stopShowing()
	if ctx.Err() != nil {
		return r, ctx.Err()
	}
	if err != nil {
		return r, overlay.Errorf(overlay.CodeTimeout, "the measurement broke off: %v", err).WithHint("pilotctl ping %s", b.peer.Name).Retry()
	}
	if heard := time.Duration(b.heard.Load()); b.lost && b.time-heard > min(benchSilence, b.time/2) {
		return r, overlay.Errorf(overlay.CodePeerOffline, "%s stopped answering after %.1f s", b.peer.Name, heard.Seconds()).
			WithHint("pilotctl ping %s", b.peer.Name).Retry()
	}
	r.Up, r.Down = rate(b.up.Load(), r.Seconds), rate(b.down.Load(), r.Seconds)
	r.Path, r.Endpoint = b.last.Path, b.last.Endpoint
	return r, nil
}

func rate(bytes int64, seconds float64) float64 { return float64(bytes) * 8 / 1e6 / seconds }

// latency pings as long as more says so.
func (b *benchmark) latency(ctx context.Context, more func(sent int) bool) (l benchLatency, err error) {
	var times []float64
	for more(l.Sent) && ctx.Err() == nil {
		l.Sent++
		pong, err := b.client.Ping(ctx, b.peer.Name, l.Sent, benchTimeout)
		b.lost = err != nil
		if err == nil {
			times, b.last = append(times, pong.RTTMillis), pong
		} else if e := api.AsError(err); ctx.Err() == nil && e.Code != overlay.CodeTimeout && e.Code != overlay.CodePeerOffline {
			return l, err
		} else if len(times) == 0 {
			break // one unanswered ping took long enough
		}
		select {
		case <-ctx.Done():
		case <-time.After(benchPingGap):
		}
	}
	if l.Received = len(times); l.Received > 0 {
		slices.Sort(times)
		l.Median, l.Worst = times[len(times)/2], times[len(times)-1]
	}
	return l, ctx.Err()
}

// connect opens the connections to the echo service.
func (b *benchmark) connect(ctx context.Context) ([]net.Conn, error) {
	dial := b.toPeers(b.client)
	ctx, cancel := context.WithTimeout(ctx, benchTimeout)
	defer cancel()
	var conns []net.Conn
	for range b.streams {
		conn, err := dial(ctx, "tcp", net.JoinHostPort(b.peer.ULA, strconv.Itoa(echo.Port)))
		if err != nil {
			for _, c := range conns {
				c.Close()
			}
			e := overlay.Errorf(overlay.CodePeerOffline, "%s answers, but not its echo service: %v", b.peer.Name, err).Retry()
			if errors.Is(err, syscall.ECONNREFUSED) {
				return nil, e.WithHint("its owner has switched the service off: pilotctl up --services all turns it on there")
			}
			return nil, e.WithHint("pilotctl status --drops says if something is in the way here")
		}
		conns = append(conns, conn)
	}
	return conns, nil
}

// load sends over all connections until time is up and counts what comes back.
func (b *benchmark) load(ctx context.Context, conns []net.Conn, began time.Time) error {
	end := began.Add(b.time)
	errs := make(chan error, 2*len(conns))
	var group sync.WaitGroup
	stop := context.AfterFunc(ctx, func() {
		for _, c := range conns {
			c.Close()
		}
	})
	defer stop()
	for _, c := range conns {
		if err := c.SetDeadline(end); err != nil {
			return err
		}
		group.Go(func() { errs <- pump(&b.up, c.Write) })
		group.Go(func() {
			errs <- pump(&b.down, func(p []byte) (int, error) {
				n, err := c.Read(p)
				if n > 0 {
					b.heard.Store(int64(time.Since(began)))
				}
				return n, err
			})
		})
	}
	group.Wait()
	close(errs)
	for _, c := range conns {
		b.up.Add(-int64(unsent(c)))
		c.Close()
	}
	for err := range errs {
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
	}
	return nil
}

// pump moves bytes until move fails, which the deadline makes it do.
func pump(count *atomic.Int64, move func([]byte) (int, error)) error {
	buf := make([]byte, 128<<10)
	for {
		n, err := move(buf)
		count.Add(int64(n))
		if err != nil {
			return err
		}
	}
}

// show draws a bar on a terminal until the returned function is called.
func (b *benchmark) show() (stop func()) {
	f, ok := b.stderr.(*os.File)
	if !ok || b.json || !term.IsTerminal(int(f.Fd())) {
		return func() {}
	}
	bar := progressbar.NewOptions64(b.time.Milliseconds(), progressbar.OptionSetWriter(f),
		progressbar.OptionSetWidth(progressWidth), progressbar.OptionClearOnFinish(), progressbar.OptionSetPredictTime(false))
	began, done := time.Now(), make(chan struct{})
	var ended sync.WaitGroup
	ended.Go(func() {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-done:
				_ = bar.Finish() // drawing is not the matter
				return
			case <-tick.C:
				bar.Describe(rateText(rate(b.down.Load(), time.Since(began).Seconds())))
				_ = bar.Set64(min(time.Since(began), b.time).Milliseconds())
			}
		}
	})
	return func() { close(done); ended.Wait() }
}
