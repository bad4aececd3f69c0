package events

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"go.etcd.io/bbolt"
	"golang.org/x/sync/semaphore"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/overlay/services"
	"github.com/pilotnet/pilot/overlay/services/disk"
)

// Port is the well-known port of events.
const Port = 1002

// Config says how a Broker works. Dir and Peer are required.
type Config struct {
	Dir string // holds everything; made when it is not there
	// Peer finds a trusted peer; false: there is none now.
	Peer   func(crypto.Fingerprint) (services.Peer, bool)
	Quota  int64        // bytes of events that one peer may cause to be stored; 0: 64 MiB
	Logger *slog.Logger // nil: for nobody
}

// Limits of what one peer can take of this agent.
const (
	MaxPayload = 1 << 20 // bytes of an event

	defaultQuota  = 64 << 20
	ownFactor     = 16      // the owner's quota, in quotas of peers
	liveQuota     = 8 << 20 // bytes that wait in memory for a session without a store
	retainedQuota = 4 << 20 // bytes of retained events of one peer
	maxSessions   = 64
	maxSubs       = 256
	maxClientID   = 128
	maxPending    = 1024 // events of one connection that wait to be stored
	maxWindow     = 1024 // events of one connection that wait for the subscriber
	maxPacket     = MaxPayload + 64<<10
	looseEvents   = 4096 // at QoS 0, that wait for one connection
	looseBytes    = 1 << 20
	cacheBytes    = 32 << 20 // of stored events, in memory
	maxExpiry     = 7 * 24 * 60 * 60
	sweepEvery    = 15 * time.Second
	flushEvery    = 200 * time.Millisecond
	maxBatch      = 1024
	gateBytes     = 8 << 20 // of events of one peer that wait to be stored
)

// A Broker holds the sessions of subscribers and what waits for them. It uses the
// library for the protocol on each connection, and does itself what must survive:
// it stores events before they are acknowledged and keeps the queues.
type Broker struct {
	Config
	db     *disk.DB
	server *mqtt.Server
	boot   string    // tells the event IDs of this process from others
	jobs   chan *job // in the order in which events came
	ended  chan struct{}
	locals sync.WaitGroup // connections of the owner over the local API

	mu          sync.Mutex
	sessions    map[string]*session
	lastSession uint64
	perPeer     map[crypto.Fingerprint]*account
	access      Access
	seq         uint64
	stored      map[uint64]*stored
	cached      int64
	retained    map[string]*Message
	history     history
	trash       []garbage
	streams     uint64
	serving     context.Context // of Serve; nil: it does not run
	gates       map[crypto.Fingerprint]*semaphore.Weighted
}

// An account is what one peer has here.
type account struct {
	sessions int
	stored   int64 // bytes of events from it that wait for subscribers
	waiting  int64 // bytes that wait for it
	retained int64
}

// A job is one change, in order with all others. plan and done run with the lock,
// write inside a transaction that many jobs share; none of them may block.
type job struct {
	plan  func()
	write func(*bbolt.Tx) error // set by plan, or nil: nothing is stored
	done  func(error)
}

// Garbage is a record that is not needed any more. It goes with the next write.
type garbage struct{ bucket, key []byte }

// New opens the store. The caller makes sure that no other process does.
func New(c Config) (*Broker, error) {
	if c.Quota <= 0 {
		c.Quota = defaultQuota
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	b := &Broker{
		Config: c, boot: strconv.FormatInt(time.Now().UnixMicro(), 36), jobs: make(chan *job, maxBatch), ended: make(chan struct{}),
		sessions: map[string]*session{}, perPeer: map[crypto.Fingerprint]*account{}, access: defaultAccess(),
		stored: map[uint64]*stored{}, retained: map[string]*Message{}, gates: map[crypto.Fingerprint]*semaphore.Weighted{},
	}
	if err := makeDir(c.Dir); err != nil {
		return nil, err
	}
	var err error
	if b.server, err = newServer(b); err != nil {
		return nil, err
	}
	if b.db, err = openStore(b.path()); err != nil {
		return nil, err
	}
	if err := b.load(); err != nil {
		return nil, errors.Join(err, b.db.Close())
	}
	return b, nil
}

func (b *Broker) path() string { return filepath.Join(b.Dir, "events.db") }

// Close closes the store. Run has returned, or was not called.
func (b *Broker) Close() error { return b.db.Close() }

// Run stores and tidies until ctx ends. Nothing is acknowledged without it.
func (b *Broker) Run(ctx context.Context) error {
	defer close(b.ended)
	flush, sweep := time.NewTicker(flushEvery), time.NewTicker(sweepEvery)
	defer flush.Stop()
	defer sweep.Stop()
	for {
		var batch []*job
		select {
		case <-ctx.Done():
			b.commit(nil) // what is not needed any more
			return nil
		case j := <-b.jobs:
			batch = b.collect(j)
		case <-flush.C:
		case <-sweep.C:
			b.expire(time.Now())
		}
		b.commit(batch)
	}
}

// collect takes what waits already: it shares one write with the first.
func (b *Broker) collect(first *job) []*job {
	batch := []*job{first}
	for len(batch) < maxBatch {
		select {
		case j := <-b.jobs:
			batch = append(batch, j)
		default:
			return batch
		}
	}
	return batch
}

// do puts a job in order. False: the broker ends, and the job will not be done.
func (b *Broker) do(ctx context.Context, j *job) bool {
	select {
	case b.jobs <- j:
		return true
	case <-ctx.Done():
	case <-b.ended:
	}
	return false
}

// wait is do, and returns after the job is stored.
func (b *Broker) wait(ctx context.Context, plan func(*job)) error {
	result := make(chan error, 1)
	j := &job{done: func(err error) { result <- err }}
	j.plan = func() { plan(j) }
	if !b.do(ctx, j) {
		return errEnds
	}
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
	case <-b.ended:
	}
	return errEnds
}

var errEnds = errors.New("events: the service ends")

// commit stores a batch in one transaction, which is on the disk when it returns,
// and then tells those who wait.
func (b *Broker) commit(batch []*job) {
	b.mu.Lock()
	writes := 0
	for _, j := range batch {
		j.plan()
		if j.write != nil {
			writes++
		}
	}
	var trash []garbage
	if writes > 0 || len(batch) == 0 || len(b.trash) > maxBatch {
		trash, b.trash = b.trash, nil
	}
	b.mu.Unlock()
	var err error
	if writes > 0 || len(trash) > 0 {
		if err = b.db.Update(func(tx *bbolt.Tx) error { return apply(tx, batch, trash) }); err != nil {
			err = fmt.Errorf("events: store: %w", err)
			b.Logger.Error("events cannot be stored", "err", err)
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if err != nil {
		b.trash = append(trash, b.trash...)
	}
	for _, j := range batch {
		if j.write == nil {
			j.done(nil)
			continue
		}
		j.done(err)
	}
}

func apply(tx *bbolt.Tx, batch []*job, trash []garbage) error {
	for _, g := range trash {
		if err := tx.Bucket(g.bucket).Delete(g.key); err != nil {
			return err
		}
	}
	for _, j := range batch {
		if j.write == nil {
			continue
		}
		if err := j.write(tx); err != nil {
			return err
		}
	}
	return nil
}

func (b *Broker) account(fp crypto.Fingerprint) *account {
	a := b.perPeer[fp]
	if a == nil {
		a = &account{}
		b.perPeer[fp] = a
	}
	return a
}

// gate bounds what a peer can have on the way into the store; whoever brings more
// has to wait.
func (b *Broker) gate(fp crypto.Fingerprint) *semaphore.Weighted {
	b.mu.Lock()
	defer b.mu.Unlock()
	g := b.gates[fp]
	if g == nil {
		g = semaphore.NewWeighted(gateBytes)
		b.gates[fp] = g
	}
	return g
}

// quota is how much may be stored of a peer's events, or for it.
func (b *Broker) quota(p services.Peer) int64 {
	if p.Self {
		return ownFactor * b.Quota
	}
	return b.Quota
}

// peerOf is who a session belongs to now.
func (b *Broker) peerOf(s *session) (services.Peer, bool) {
	if s.self {
		return services.Peer{Self: true, Fingerprint: s.peer}, true
	}
	return b.Peer(s.peer)
}

// track begins to count an event that is stored, or will be with the next write.
func (b *Broker) track(st *stored) {
	b.stored[st.seq] = st
	b.account(st.owner).stored += st.size
}

// release takes one reference from an event.
func (b *Broker) release(st *stored) {
	if st.refs--; st.refs > 0 {
		return
	}
	b.account(st.owner).stored -= st.size
	delete(b.stored, st.seq)
	if st.msg != nil {
		b.cached -= st.size
	}
	if st.disk {
		b.trash = append(b.trash, garbage{bucketMessages, number(st.seq)})
	}
}

// expire ends sessions that were away for too long, and drops events that nobody
// wants any more.
func (b *Broker) expire(now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range b.sessions {
		if s.out == nil && now.Sub(s.since) > time.Duration(s.expiry)*time.Second {
			b.removeSession(s)
		}
	}
	for topic, m := range b.retained {
		if m.expired(now.Unix()) {
			b.dropRetained(topic)
			b.trash = append(b.trash, garbage{bucketRetained, []byte(topic)})
		}
	}
	for fp, a := range b.perPeer {
		if *a == (account{}) {
			delete(b.perPeer, fp)
		}
	}
}
