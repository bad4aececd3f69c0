package exchange

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"sync"
	"time"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/overlay/services"
	"github.com/pilotnet/pilot/overlay/services/disk"
)

// Port is the well-known port of the data exchange.
const Port = 1001

// Config says how an Exchange works. Dir and Peer are required.
type Config struct {
	Dir        string // holds everything; made when it is not there
	Quota      int64  // bytes that one peer may leave here; 0: 1 GiB
	MaxMessage int64  // 0: 1 MiB
	MaxQueue   int64  // bytes that may wait for peers that are offline; 0: 4 GiB
	// Peer finds a trusted peer; false: there is none now.
	Peer func(crypto.Fingerprint) (services.Peer, bool)
	// Dial reaches the exchange of a peer; nil: by the network of this machine.
	Dial   func(context.Context, services.Peer) (net.Conn, error)
	Logger *slog.Logger // nil: for nobody
}

// Whois says who has a source address now. False: nobody who is trusted.
type Whois func(netip.Addr) (services.Peer, bool)

const (
	defaultQuota   = 1 << 30
	defaultMessage = 1 << 20
	defaultQueue   = 4 << 30
	maxItems       = 10_000
	maxAtWork      = 64
	spareDisk      = 64 << 20 // is never filled
	uploadAge      = 7 * 24 * time.Hour
	sweepEvery     = time.Hour
)

// An Exchange holds what peers left, what is offered to them and what waits for
// them.
type Exchange struct {
	Config
	root    *os.Root
	share   sync.Mutex // guards changes in share
	digests digests
	queue   *Queue
	courier *courier
	arrived signal
	named   sync.Map // directories whose names are durable

	mu    sync.Mutex
	boxes map[crypto.Fingerprint]*box
}

// schema is the number of the layout of the directory (package disk).
const schema = 1

// New opens the directory. The caller makes sure that no other process does.
func New(c Config) (*Exchange, error) {
	c.Quota = orDefault(c.Quota, defaultQuota)
	c.MaxMessage = orDefault(c.MaxMessage, defaultMessage)
	c.MaxQueue = orDefault(c.MaxQueue, defaultQueue)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	dir, err := filepath.Abs(c.Dir)
	if err != nil {
		return nil, err
	}
	c.Dir = dir
	if err := disk.MakeDir(dir); err != nil {
		return nil, fmt.Errorf("exchange: open: %w", err)
	}
	// A newer layout is not for us to tidy up: the queue drops what it cannot read.
	if err := disk.CheckSchema(dir, schema); err != nil {
		return nil, fmt.Errorf("exchange: open: %w", err)
	}
	for _, name := range []string{"temp", "share/all", "queue"} {
		if err := disk.MakeDir(filepath.Join(dir, name)); err != nil {
			return nil, fmt.Errorf("exchange: open: %w", err)
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("exchange: open: %w", err)
	}
	x := &Exchange{Config: c, root: root, boxes: map[crypto.Fingerprint]*box{}}
	x.arrived.init()
	if err := x.emptyTemp(); err != nil {
		root.Close()
		return nil, fmt.Errorf("exchange: open: %w", err)
	}
	if x.queue, err = OpenQueue(filepath.Join(dir, "queue"), c.MaxQueue); err != nil {
		root.Close()
		return nil, err
	}
	x.courier = newCourier(x.queue, c)
	return x, nil
}

// Close closes the directory.
func (x *Exchange) Close() error {
	return errors.Join(x.queue.Close(), x.root.Close())
}

// Run delivers the queue and tidies up until ctx ends.
func (x *Exchange) Run(ctx context.Context) error {
	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() { x.courier.run(ctx) })
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		x.sweep(time.Now())
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Reachable tells that a peer was just heard of, so that what waits for it goes
// at once.
func (x *Exchange) Reachable(fp crypto.Fingerprint) { x.courier.kick(fp) }

// sweep drops unfinished uploads that rest for too long.
func (x *Exchange) sweep(now time.Time) {
	for _, fp := range x.known() {
		if b, err := x.box(fp); err == nil {
			b.expire(now)
		}
	}
}

// known lists the peers that ever left something here.
func (x *Exchange) known() []crypto.Fingerprint {
	entries, err := fs.ReadDir(x.root.FS(), ".")
	if err != nil {
		return nil
	}
	var list []crypto.Fingerprint
	for _, e := range entries {
		if fp, err := crypto.ParseFingerprint(e.Name()); err == nil && e.IsDir() && fp.String() == e.Name() {
			list = append(list, fp)
		}
	}
	return list
}

func (x *Exchange) emptyTemp() error {
	entries, err := fs.ReadDir(x.root.FS(), "temp")
	for _, e := range entries {
		err = errors.Join(err, x.root.RemoveAll("temp/"+e.Name()))
	}
	return err
}

// temp makes a file that Run of a later process removes if we do not.
func (x *Exchange) temp() (*os.File, string, error) {
	name := "temp/" + randomID()
	f, err := x.root.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	return f, name, err
}

// syncDir makes the names in a directory durable, and the first time its own and those
// above it, too.
func (x *Exchange) syncDir(dir string) error {
	d, err := x.root.Open(dir)
	if err != nil {
		return err
	}
	if err := disk.SyncOpen(d); err != nil || dir == "." {
		return err
	}
	if _, named := x.named.Load(dir); named {
		return nil
	}
	if err := x.syncDir(path.Dir(dir)); err != nil {
		return err
	}
	x.named.Store(dir, true)
	return nil
}

// room checks that n more bytes leave some of the disk.
func (x *Exchange) room(n int64) error {
	if left, ok := free(x.Dir); ok && left-n < spareDisk {
		return diskFull()
	}
	return nil
}

func randomID() string {
	var b [16]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

func orDefault(v, usual int64) int64 {
	if v <= 0 {
		return usual
	}
	return v
}

// nameOf is the petname of a peer, or its fingerprint when it is none any more.
func (x *Exchange) nameOf(fp crypto.Fingerprint) string {
	if p, ok := x.Peer(fp); ok && p.Name != "" {
		return p.Name
	}
	return fp.String()
}

// A signal wakes all who wait for the next time.
type signal struct {
	mu sync.Mutex
	ch chan struct{}
}

func (s *signal) init() { s.ch = make(chan struct{}) }

func (s *signal) next() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ch
}

func (s *signal) raise() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.ch)
	s.ch = make(chan struct{})
}

// Serve answers peers that connect to l until ctx ends.
func (x *Exchange) Serve(ctx context.Context, l net.Listener, whois Whois) error {
	s := &http.Server{
		Handler:           x.Handler(whois),
		ReadHeaderTimeout: headerTime,
		IdleTimeout:       idleTime,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(x.Logger.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
	return services.ServeHTTP(ctx, l, s)
}
