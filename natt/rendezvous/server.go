package rendezvous

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/natt/relay"
)

// Server is a rendezvous server. Make it with New, start it with Run.
type Server struct {
	cfg       Config
	public    crypto.DHPublic
	store     Store
	ownStore  bool
	cookies   relay.Cookies
	blind     [32]byte // blinds senders' networks in the store
	proofKey  [32]byte // of what shows that an agent reads at its address
	started   time.Time
	sockets   []*socket
	listeners []net.Listener

	table      *table
	bindings   *bindings
	board      noticeboard
	work       chan job
	nodes      chan nodeCheck
	checks     share // of nodes
	handshakes *limiter
	hints      *limiter
	stuns      *limiter
	streams    *limiter
	count      counters

	closing  sync.Mutex
	closed   bool
	carriers map[*socket]struct{}
	carrying int            // carriers, and those about to be
	channels sync.WaitGroup // control channels and carriers

	alwaysCookie  atomic.Bool // tests: as if under load
	acmeDirectory string      // tests: another authority
}

func newServer(cfg Config) *Server {
	var secret [32]byte
	rand.Read(secret[:]) // never fails (crypto/rand)
	s := &Server{
		cfg: cfg, public: cfg.Key.Public(), store: cfg.Store, table: newTable(), started: cfg.Now(),
		carriers:   make(map[*socket]struct{}),
		board:      noticeboard{sessions: make(map[*session]bool)},
		work:       make(chan job, cfg.Limits.Queue),
		nodes:      make(chan nodeCheck, nodeQueue),
		checks:     share{used: make(map[[6]byte]int)},
		handshakes: newLimiter(perSecond(cfg.Limits.Handshakes, cfg.Limits.HandshakeBurst)),
		hints:      newLimiter(perSecond(20, 200)),
		stuns:      newLimiter(perSecond(50, 500)),
		streams:    newLimiter(perSecond(cfg.Limits.Requests, cfg.Limits.RequestBurst)),
	}
	s.cookies = relay.NewCookies(s.public, secret)
	rand.Read(s.blind[:])
	rand.Read(s.proofKey[:])
	return s
}

const (
	nodeQueue     = 64 // first claims that wait for Argon2id
	nodeShare     = 8  // of them, those of one /24 or /48
	sweepInterval = 10 * time.Second
	mailInterval  = time.Hour
)

// Run serves until ctx ends, then closes everything and returns nil. Any other
// end is an error. It may be called once.
func (s *Server) Run(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, s.closeAll()) }()
	if err := s.listen(); err != nil {
		return err
	}
	certs, err := s.certificates()
	if err != nil {
		return err
	}
	line, err := s.line()
	if err != nil {
		return err
	}
	b, old, err := openBindings(s.cfg.StateDir, s.table.current)
	if err != nil {
		return err
	}
	s.bindings = b
	g, ctx := errgroup.WithContext(ctx)
	for _, sock := range s.sockets {
		g.Go(newReader(s, sock).run)
	}
	for range max(1, runtime.GOMAXPROCS(0)/2) {
		g.Go(func() error { s.worker(ctx); return nil })
	}
	g.Go(func() error { s.nodeWorker(ctx); return nil })
	g.Go(func() error { s.noticeLoop(ctx); return nil })
	g.Go(func() error { s.sweepLoop(ctx); return nil })
	g.Go(func() error { s.recall(ctx, old); return nil })
	if err := s.serveStreams(ctx, g, certs); err != nil {
		g.Go(func() error { return err }) // ends the others
	} else if s.cfg.Ready != nil {
		s.cfg.Ready(line)
	}
	g.Go(func() error { // the end: readers and listeners return when theirs is closed
		<-ctx.Done()
		for _, sock := range s.sockets {
			sock.conn.Close()
		}
		return nil
	})
	return g.Wait()
}

// serveStreams starts the HTTP servers. They end when ctx does.
func (s *Server) serveStreams(ctx context.Context, g *errgroup.Group, certs *certificates) error {
	conf := certs.config()
	if certs.acme != nil {
		g.Go(func() error { certs.obtain(ctx); return nil })
	}
	for _, l := range s.listeners {
		limited := limitListener(l, s.cfg.Limits.Connections, s.cfg.Limits.NetConnections)
		s.serve(ctx, g, tls.NewListener(limited, conf), s.publicHandler())
	}
	if s.cfg.Metrics.IsValid() {
		l, err := net.Listen("tcp", s.cfg.Metrics.String())
		if err != nil {
			return fmt.Errorf("rendezvous: metrics: %w", err)
		}
		s.serve(ctx, g, l, s.Handler())
	}
	return nil
}

func (s *Server) serve(ctx context.Context, g *errgroup.Group, l net.Listener, h http.Handler) {
	srv := s.httpServer(ctx, h)
	g.Go(func() error {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("rendezvous: serve %s: %w", l.Addr(), err)
		}
		return nil
	})
	g.Go(func() error {
		<-ctx.Done()
		return srv.Close()
	})
}

func (s *Server) closeAll() error {
	s.closing.Lock()
	s.closed = true
	s.closing.Unlock()
	s.channels.Wait() // their contexts have ended
	for _, sock := range s.sockets {
		sock.conn.Close()
	}
	for _, l := range s.listeners {
		l.Close()
	}
	err := s.bindings.close()
	if s.ownStore {
		err = errors.Join(err, s.store.Close())
	}
	return err
}

func (s *Server) sweepLoop(ctx context.Context) {
	next := s.cfg.Now()
	for {
		now := s.cfg.Now()
		if !now.Before(next) {
			next = now.Add(mailInterval)
			if _, err := s.store.Expire(now.Add(-s.cfg.Limits.MailAge)); err != nil {
				s.cfg.Logger.Error("expire mail", "err", err)
			}
		}
		if !sleep(ctx, sweepInterval) {
			return
		}
		s.table.sweep(s.cfg.Now().UnixNano())
		s.sweepCarriers(s.cfg.Now())
	}
}

// Status is what the operator may know. It names no agent.
type Status struct {
	Started  time.Time `json:"started"`
	Key      string    `json:"key"`
	Listen   []string  `json:"listen"`
	Agents   int       `json:"agents"`   // that have claimed
	Sessions int       `json:"sessions"` // at home now
	Channels int       `json:"channels"`
	Mail     int       `json:"mail"`
	Frames   uint64    `json:"frames"`
	Bytes    uint64    `json:"bytes"`
}

// Status returns the state of the server now.
func (s *Server) Status() Status {
	st := Status{Started: s.started, Key: s.public.String(), Frames: s.count.frames.Load(), Bytes: s.count.bytes.Load()}
	st.Sessions, st.Channels = s.table.count()
	for _, sock := range s.sockets {
		st.Listen = append(st.Listen, sock.conn.LocalAddr().String())
	}
	var err error
	if st.Agents, st.Mail, err = s.store.Count(); err != nil {
		s.cfg.Logger.Error("count", "err", err)
	}
	return st
}
