package publish

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/pilotnet/pilot/ipam"
	"github.com/pilotnet/pilot/overlay/services"
)

// MaxRules is the number of publications that an agent may have.
const MaxRules = 256

// Errors that callers tell apart. A *TakenError is one more.
var (
	ErrConflict = errors.New("the port is published already, for something else")
	ErrNotFound = errors.New("no such publication")
	ErrTooMany  = errors.New("too many publications")
	ErrStopped  = errors.New("the agent does not run")
)

// A TakenError is a port that somebody else listens on.
type TakenError struct {
	Port  uint16
	Owner string // such as "node (process 4711) listens on [::]:8080"; empty: not known
	Free  uint16 // a port that is not taken; 0: none was found
}

func (e *TakenError) Error() string {
	if e.Owner == "" {
		return fmt.Sprintf("port %d is taken", e.Port)
	}
	return fmt.Sprintf("port %d is taken: %s", e.Port, e.Owner)
}

// Config says what a Publisher needs.
type Config struct {
	Own   ipam.Addr          // the agent's address
	Rules []Rule             // from the last run
	Save  func([]Rule) error // makes the rules durable
	// Dial connects to programs on the loopback; nil: on that of this process.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// A Publisher is the service that carries out the rules.
type Publisher struct {
	cfg   Config
	ready chan struct{} // closed when Run has begun

	mu   sync.Mutex
	list []*publication // by port
	env  services.Env   // valid while ctx is not nil and has not ended
	ctx  context.Context
	life context.Context // goes on while what is under way when ctx ends may come to its end
	jobs sync.WaitGroup
}

// A publication is one rule at work.
type publication struct {
	own       ipam.Addr
	target    *target
	log       *slog.Logger
	published func(target uint16) (port uint16, ok bool)

	current  atomic.Pointer[Rule]
	warning  atomic.Pointer[string]
	listener *services.Listener    // nil: waits for its port; under the Publisher's mu
	finish   func(context.Context) // begins nothing new, and waits for what is under way; likewise
	err      error                 // why it waits; likewise
}

// State is one publication as it is now.
type State struct {
	Rule
	Err     error  // why it does not listen; nil if it does
	Warning string // what callers will stumble over
}

// New returns a Publisher. Rules that do not hold any more are left out.
func New(c Config) *Publisher {
	p := &Publisher{cfg: c, ready: make(chan struct{})}
	for _, r := range c.Rules {
		if r, err := r.Check(); err == nil && p.find(r.Port) == nil {
			p.list = append(p.list, p.make(r))
		}
	}
	p.sort()
	return p
}

func (p *Publisher) make(r Rule) *publication {
	t, _, err := parseTarget(r.Target, r.Kind)
	if err != nil {
		panic("publish: a checked rule has a bad target: " + err.Error())
	}
	t.via = p.cfg.Dial
	n := &publication{own: p.cfg.Own, target: t, published: p.published, err: errors.New("not started yet")}
	n.current.Store(&r)
	return n
}

func (n *publication) rule() Rule { return *n.current.Load() }

// warn keeps the last thing that went wrong, and logs it when it is new.
func (n *publication) warn(text string) {
	if old := n.warning.Swap(&text); text != "" && (old == nil || *old != text) {
		n.log.Warn("published program", "port", n.rule().Port, "warning", text)
	}
}

// Name implements services.Service.
func (*Publisher) Name() string { return "publish" }

// Port implements services.Service.
func (*Publisher) Port() uint16 { return 0 }

const retry = 5 * time.Second

// Run implements services.Service. It may be called once. When ctx ends, requests and
// connections under way get services.DrainTime to end.
func (p *Publisher) Run(ctx context.Context, env services.Env) error {
	life, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	p.mu.Lock()
	p.env, p.ctx, p.life = env, ctx, life
	p.openWaiting()
	p.mu.Unlock()
	close(p.ready)
	env.Ready()
	tick := time.NewTicker(retry)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			p.drain()
			cut()
			p.mu.Lock()
			for _, n := range p.list {
				n.shut()
			}
			p.mu.Unlock()
			p.jobs.Wait()
			return nil
		case <-tick.C:
			p.mu.Lock()
			p.openWaiting()
			p.mu.Unlock()
		}
	}
}

// drain waits for what is under way.
func (p *Publisher) drain() {
	ctx, cancel := context.WithTimeout(p.life, services.DrainTime)
	defer cancel()
	var all sync.WaitGroup
	defer all.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, n := range p.list {
		if n.listener != nil {
			finish := n.finish
			all.Go(func() { finish(ctx) })
		}
	}
}

func (p *Publisher) openWaiting() {
	for _, n := range p.list {
		if n.listener != nil {
			continue
		}
		was := n.err
		if n.err = p.open(n); n.err != nil && (was == nil || was.Error() != n.err.Error()) {
			p.env.Logger.Warn("a publication waits for its port", "port", n.rule().Port, "err", n.err)
		}
	}
}

// open makes the listener of a publication and serves it.
func (p *Publisher) open(n *publication) error {
	r := n.rule()
	l, err := p.env.Listen(p.ctx, r.Port, func(peer services.Peer) bool { return n.rule().Admits(peer) })
	if errors.Is(err, syscall.EADDRINUSE) {
		return &TakenError{Port: r.Port, Owner: owner(r.Port), Free: p.free(r.Port)}
	}
	if err != nil {
		return fmt.Errorf("publish: port %d: %w", r.Port, err)
	}
	n.listener = l
	if n.log == nil {
		n.log = p.env.Logger
	}
	life := p.life
	if r.Kind == TCP {
		n.finish = l.Drain
		p.jobs.Go(func() {
			defer l.Shut()
			_ = services.Serve(life, l, n.forward) // ends when the listener is closed
		})
		return nil
	}
	x := n.handler()
	s := n.server(x)
	n.finish = func(ctx context.Context) { _ = s.Shutdown(ctx) } // what it did not wait for is cut
	p.jobs.Go(func() {
		defer l.Shut()
		n.serveHTTP(life, l, s, x)
	})
	return nil
}

// free finds a port near the one that is taken. It tries each by listening.
func (p *Publisher) free(port uint16) uint16 {
	for i := range uint16(50) {
		try := port + 1 + i
		if try < 1024 || try == 0 || p.find(try) != nil {
			continue
		}
		if l, err := p.env.Network.Listen(p.ctx, try); err == nil {
			l.Close()
			return try
		}
	}
	return 0
}

func (n *publication) shut() {
	if n.listener != nil {
		n.listener.Shut()
		n.listener = nil
	}
}

// Add publishes, durably, or changes who may reach what is published. It returns
// once peers can connect.
func (p *Publisher) Add(ctx context.Context, r Rule) (State, error) {
	r, err := r.Check()
	if err != nil {
		return State{}, err
	}
	if err := p.lock(ctx); err != nil {
		return State{}, err
	}
	defer p.mu.Unlock()
	n := p.find(r.Port)
	if n == nil {
		return p.add(r)
	}
	old := n.rule()
	if old.Kind != r.Kind || old.Target != r.Target {
		return n.state(), fmt.Errorf("%w: port %d is for %s %s", ErrConflict, r.Port, old.Kind, old.Target)
	}
	if !old.equal(r) {
		n.current.Store(&r)
		if err := p.save(); err != nil {
			n.current.Store(&old)
			return n.state(), err
		}
		if n.listener != nil {
			n.listener.Recheck()
		}
	}
	return n.state(), nil
}

func (p *Publisher) add(r Rule) (State, error) {
	if len(p.list) >= MaxRules {
		return State{}, fmt.Errorf("%w: the most is %d", ErrTooMany, MaxRules)
	}
	n := p.make(r)
	if n.err = p.open(n); n.err != nil {
		return State{}, n.err
	}
	p.list = append(p.list, n)
	p.sort()
	if err := p.save(); err != nil {
		p.drop(n)
		return State{}, err
	}
	return n.state(), nil
}

// Remove ends a publication and the connections through it, and forgets it.
func (p *Publisher) Remove(ctx context.Context, port uint16) (Rule, error) {
	if err := p.lock(ctx); err != nil {
		return Rule{}, err
	}
	defer p.mu.Unlock()
	n := p.find(port)
	if n == nil {
		return Rule{}, fmt.Errorf("%w on port %d", ErrNotFound, port)
	}
	p.drop(n)
	if err := p.save(); err != nil {
		n.err = errors.New("not started yet") // the rule stays, and opens again soon
		p.list = append(p.list, n)
		p.sort()
		return Rule{}, err
	}
	return n.rule(), nil
}

func (p *Publisher) drop(n *publication) {
	n.shut()
	p.list = slices.DeleteFunc(p.list, func(o *publication) bool { return o == n })
}

// List shows all publications by port.
func (p *Publisher) List() []State {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := make([]State, len(p.list))
	for i, n := range p.list {
		list[i] = n.state()
	}
	return list
}

func (n *publication) state() State {
	s := State{Rule: n.rule()}
	if n.listener == nil {
		s.Err = n.err
	}
	if w := n.warning.Load(); w != nil {
		s.Warning = *w
	}
	return s
}

// lock waits for Run to begin and takes mu.
func (p *Publisher) lock(ctx context.Context) error {
	select {
	case <-p.ready:
	case <-ctx.Done():
		return ErrStopped
	}
	p.mu.Lock()
	if p.ctx.Err() != nil {
		p.mu.Unlock()
		return ErrStopped
	}
	return nil
}

func (p *Publisher) save() error {
	rules := make([]Rule, len(p.list))
	for i, n := range p.list {
		rules[i] = n.rule()
	}
	return p.cfg.Save(rules)
}

func (p *Publisher) find(port uint16) *publication {
	i := slices.IndexFunc(p.list, func(n *publication) bool { return n.rule().Port == port })
	if i < 0 {
		return nil
	}
	return p.list[i]
}

// published finds the port under which another publication offers a target's.
func (p *Publisher) published(target uint16) (uint16, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, n := range p.list {
		if n.target.port == target {
			return n.rule().Port, true
		}
	}
	return 0, false
}

func (p *Publisher) sort() {
	slices.SortFunc(p.list, func(a, b *publication) int { return cmp.Compare(a.rule().Port, b.rule().Port) })
}
