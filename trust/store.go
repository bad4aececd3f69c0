package trust

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"go.etcd.io/bbolt"

	"github.com/pilotnet/pilot/crypto"
)

// Grace is how far a clock may be off: a new statement is accepted this long
// after it expired.
const Grace = 25 * time.Hour

// Names of the files in the state directory.
const (
	StoreFile      = "store.db"
	RevocationFile = "revocations"
	LockFile       = "store.lock"
)

// Config is what a Store needs. Key, Dir, Now and CheckCard are required.
type Config struct {
	Dir       string // made when missing
	Key       crypto.PrivateKey
	Seal      []crypto.SealPrivate // newest first: the current key and old ones
	Name      string               // the name that we suggest to others for ourselves
	Now       func() time.Time
	Boot      func() time.Duration // time since boot, sleep included (CLOCK_BOOTTIME); nil: none
	Logger    *slog.Logger
	CheckCard func(crypto.Card) (addr [6]byte, err error) // checks the node ID; takes milliseconds
	Card      func() []byte                               // our own signed card
	ValidName func(string) error                          // rule for petnames; nil: ValidName
	NoSync    bool                                        // for tests: durable only against a crash of the process
}

// A Store is the durable book of trust of one identity. Its methods are safe
// for concurrent use; a change is on disk when the method returns. Reads come
// from memory and never wait for the disk.
type Store struct {
	cfg    Config
	key    crypto.PublicKey
	lock   *os.File
	db     *bbolt.DB
	cuts   *cutFile
	writer sync.Mutex // held for a whole change

	mu      sync.RWMutex // guards what follows; written only by the holder of writer
	closed  bool
	broken  error // the database is not written any more
	faulted bool  // nor touched
	trouble error // why the last change could not be written
	book    map[crypto.PublicKey]*relation
	byPrint map[crypto.Fingerprint]crypto.PublicKey
	outbox  map[uint64]*mailRecord
	invites map[[32]byte]*inviteRecord
	meta    map[string][]byte
	state   stateRecord
	owed    *change // what the database could not take; part of the next transaction
	limits  limits
	sealer  sealing
	views   map[crypto.PublicKey]*Peer // without what depends on the time; built when asked for
	sorted  []*Peer                    // by name; nil: stale
}

// sealing is how mail is closed and opened: HPKE, but in tests of a hundred thousand
// mails, which are about something else.
type sealing interface {
	seal(to crypto.SealPublic, signed []byte) ([]byte, error)
	open(key crypto.SealPrivate, sealed []byte) ([]byte, error)
}

type hpke struct{}

func (hpke) seal(to crypto.SealPublic, signed []byte) ([]byte, error) {
	return to.Seal(mailInfo, signed)
}

func (hpke) open(key crypto.SealPrivate, sealed []byte) ([]byte, error) {
	return key.Open(mailInfo, sealed)
}

// limits bound what strangers can make us keep: requests that wait, and strangers
// of whom anything is remembered. Beyond, the oldest goes.
type limits struct{ pending, strangers int }

// Open opens the store of a state directory and creates it when there is none.
// The errors ErrLocked, ErrDamaged, ErrNewer and ErrWrongKey can be told apart.
func Open(c Config) (*Store, error) {
	if c.Key.IsZero() || c.Dir == "" || c.Now == nil || c.CheckCard == nil {
		return nil, errors.New("trust: open: key, directory, clock or card check missing")
	}
	if c.Boot == nil {
		c.Boot = func() time.Duration { return 0 }
	}
	if c.Card == nil {
		c.Card = func() []byte { return nil }
	}
	if c.ValidName == nil {
		c.ValidName = ValidName
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Store{
		cfg: c, key: c.Key.Public(),
		book:    map[crypto.PublicKey]*relation{},
		byPrint: map[crypto.Fingerprint]crypto.PublicKey{},
		outbox:  map[uint64]*mailRecord{},
		invites: map[[32]byte]*inviteRecord{},
		meta:    map[string][]byte{},
		views:   map[crypto.PublicKey]*Peer{},
		limits:  limits{pending: 256, strangers: 1024},
		sealer:  hpke{},
	}
	if err := s.open(); err != nil {
		s.closeFiles()
		return nil, err
	}
	return s, nil
}

func (s *Store) open() (err error) {
	if err := os.MkdirAll(s.cfg.Dir, 0o700); err != nil {
		return fmt.Errorf("trust: state directory: %w", err)
	}
	if s.lock, err = lockFile(filepath.Join(s.cfg.Dir, LockFile)); err != nil {
		return err
	}
	cutPath, dbPath := filepath.Join(s.cfg.Dir, RevocationFile), filepath.Join(s.cfg.Dir, StoreFile)
	noCuts, noDB := absent(cutPath), absent(dbPath)
	if noCuts && !noDB {
		return fmt.Errorf("trust: %s is missing beside %s: %w; restore it from a backup, "+
			"or move the store away too and start again: the address stays, peers have to be asked once more", cutPath, StoreFile, ErrDamaged)
	}
	if noCuts {
		if err := createCuts(cutPath, cutStep, !s.cfg.NoSync); err != nil {
			return err
		}
	}
	if noDB {
		if err := createDB(dbPath, stateRecord{Schema: schema, Key: s.key}, s.cfg.NoSync); err != nil {
			return err
		}
	}
	if s.cuts, err = openCuts(cutPath, !s.cfg.NoSync); err != nil {
		return err
	}
	if err := s.cuts.settle(); err != nil {
		s.cfg.Logger.Warn("trust: revocation file cannot be written", "err", err)
	}
	var seen tally
	if s.db, seen, err = openDB(dbPath, s.cfg.NoSync); err != nil {
		return err
	}
	if !s.cfg.NoSync {
		if err := settleDB(dbPath); err != nil {
			s.broken = fmt.Errorf("trust: write store: %w; what is read may not be durable, so only revocations are written", err)
			s.cfg.Logger.Warn("trust: store cannot be written", "err", s.broken)
		}
	}
	if err := guard(func() error { return s.db.View(s.load) }); err != nil {
		if errors.Is(err, ErrNewer) || errors.Is(err, ErrWrongKey) || errors.Is(err, ErrDamaged) {
			return fmt.Errorf("trust: %s: %w", dbPath, err)
		}
		return damagedStore(dbPath, err)
	}
	if s.state.Tally != seen {
		return damagedStore(dbPath, errors.New("records are missing"))
	}
	return s.applyCuts()
}

func absent(path string) bool {
	_, err := os.Lstat(path)
	return errors.Is(err, os.ErrNotExist)
}

// load fills the memory from the database.
func (s *Store) load(tx *bbolt.Tx) error {
	err := load(tx, bucketState, func(key []byte, v *stateRecord) error {
		s.state = *v
		return nil
	})
	switch {
	case err != nil:
		return err
	case s.state.Schema > schema:
		return fmt.Errorf("schema %d, this program knows %d: %w", s.state.Schema, schema, ErrNewer)
	case s.state.Schema != schema:
		return fmt.Errorf("schema %d is unknown", s.state.Schema)
	case s.state.Key != s.key:
		return fmt.Errorf("it is of %s, the identity is %s: %w", s.state.Key, s.key, ErrWrongKey)
	}
	err = load(tx, bucketRelations, func(key []byte, v *relation) error {
		if len(key) != len(crypto.PublicKey{}) || v.Pair != nil && v.Pair.newest() == nil {
			return errors.New("record without a key or a pair without a slot")
		}
		s.set(crypto.PublicKey(key), v)
		return nil
	})
	if err != nil {
		return err
	}
	err = load(tx, bucketMail, func(key []byte, v *mailRecord) error {
		if len(key) != 8 {
			return errors.New("mail without a number")
		}
		s.outbox[mailID(key)] = v
		return nil
	})
	if err != nil {
		return err
	}
	err = load(tx, bucketInvites, func(key []byte, v *inviteRecord) error {
		if len(key) != 32 {
			return errors.New("invite without a hash")
		}
		s.invites[[32]byte(key)] = v
		return nil
	})
	if err != nil {
		return err
	}
	if tx.Bucket(bucketAnswers) == nil {
		return fmt.Errorf("bucket %q is missing", bucketAnswers)
	}
	return each(tx, bucketMeta, func(key, content []byte) error {
		s.meta[string(key)] = slices.Clone(content)
		return nil
	})
}

// set puts a relation into the memory; nil takes it out. The caller holds mu,
// or is Open.
func (s *Store) set(key crypto.PublicKey, r *relation) {
	s.sorted = nil
	delete(s.views, key)
	if r == nil {
		delete(s.book, key)
		delete(s.byPrint, key.Fingerprint())
		return
	}
	if _, known := s.book[key]; !known {
		s.byPrint[key.Fingerprint()] = key
	}
	s.book[key] = r
}

// applyCuts lets the revocation file win over the database, which may be older:
// it could not be written at the time, or it was restored from a backup.
func (s *Store) applyCuts() error {
	d := s.begin()
	defer d.end()
	for key, c := range s.cuts.cuts {
		r := s.book[key]
		// The record may also be the older one: when its file could not be written, the
		// database was. To unblock takes no new serial, so among equals the file counts.
		if r != nil && (r.Cut > c.serial || r.Cut == c.serial && r.Blocked == c.blocked) {
			c.stored = true
			continue
		}
		n := d.relation(key)
		d.cutOff(key, n, c.serial, c.blocked)
	}
	if len(d.rel) > 0 {
		if err := d.commit(); err != nil {
			s.owe(&d.change) // read-only or full disk: the memory is right, and that is what counts
			s.cfg.Logger.Warn("trust: store cannot be written", "err", err)
		}
	}
	if err := s.cuts.grow(); err != nil {
		s.cfg.Logger.Warn("trust: revocation file did not grow", "err", err)
	}
	return nil
}

// Close ends the use of the store and lets another process open it.
func (s *Store) Close() error {
	s.writer.Lock()
	defer s.writer.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	return s.closeFiles()
}

func (s *Store) closeFiles() error {
	var errs []error
	if s.db != nil && !s.faulted {
		errs = append(errs, guard(s.db.Close))
	}
	if s.cuts != nil {
		errs = append(errs, s.cuts.close())
	}
	if s.lock != nil {
		errs = append(errs, s.lock.Close())
	}
	return errors.Join(errs...)
}

// Trouble is why the last change could not be written, or why none can before the store
// is opened again; nil: all is well.
func (s *Store) Trouble() error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return cmp.Or(s.broken, s.trouble)
}

// fails notes the error of a change for Trouble.
func (s *Store) fails(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trouble = err
	return err
}

// Now is the time that expiry is judged by: the wall clock, but never before
// the floor. Setting the clock back revives nothing.
func (s *Store) Now() time.Time {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.now()
}

func (s *Store) now() time.Time {
	now, floor := s.cfg.Now(), s.floor()
	if now.Before(floor) {
		return floor
	}
	return now
}

// floor is a time that has certainly passed: the last one that two clocks bore
// witness to, plus the time that the machine has been awake or asleep since. A
// smaller time since boot than the stored one means that the machine was booted
// again, after the floor was written.
func (s *Store) floor() time.Time {
	if s.state.Floor == 0 {
		return time.Time{}
	}
	boot := s.cfg.Boot()
	since := boot - time.Duration(s.state.Boot)
	if since < 0 {
		since = boot
	}
	return time.UnixMilli(s.state.Floor).Add(since)
}

// GetMeta returns a value that PutMeta stored.
func (s *Store) GetMeta(key string) ([]byte, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	v, ok := s.meta[key]
	return slices.Clone(v), ok
}

// PutMeta stores a small value of the caller; nil deletes it.
func (s *Store) PutMeta(key string, value []byte) error {
	if key == "" || len(key) > 1024 {
		return errors.New("trust: put meta: key must have 1 to 1024 bytes")
	}
	d := s.begin()
	defer d.end()
	d.meta[key] = slices.Clone(value)
	return d.commit()
}

// Outbox returns the mail that waits, oldest first. The same mail comes again
// until Delivered.
func (s *Store) Outbox() []Mail {
	s.mu.RLock()
	defer s.mu.RUnlock()
	list := make([]Mail, 0, len(s.outbox))
	for id, m := range s.outbox {
		if s.state.Suspended != nil && m.Class != mailRevoke {
			continue // it may have been taken back since
		}
		card := m.Card
		if r := s.book[m.To]; r != nil && r.Card != nil && r.Card.Serial > card.Serial {
			card = r.Card // newer servers; old sealing keys are kept for a while
		}
		list = append(list, Mail{ID: id, To: m.To, Card: card.card(m.To), Sealed: m.Sealed, Kind: m.Class.kind()})
	}
	slices.SortFunc(list, func(a, b Mail) int { return cmp.Compare(a.ID, b.ID) })
	return list
}

// Delivered removes a mail. An unknown number is no error: newer mail may have
// taken the place of the old.
func (s *Store) Delivered(id uint64) error {
	d := s.begin()
	defer d.end()
	if s.outbox[id] == nil {
		return nil
	}
	d.drop = append(d.drop, id)
	return d.commit()
}
