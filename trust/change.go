package trust

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"go.etcd.io/bbolt"

	"github.com/pilotnet/pilot/crypto"
)

// A change is a set of records to write in one transaction.
type change struct {
	rel    map[crypto.PublicKey]*relation // nil: delete
	add    map[uint64]*mailRecord
	drop   []uint64
	answer map[crypto.PublicKey][]byte // nil: delete
	invite map[[32]byte]*inviteRecord  // nil: delete
	meta   map[string][]byte           // nil: delete
	floor  int64                       // a new floor, unix milliseconds; 0: none
}

func newChange() change {
	return change{
		rel: map[crypto.PublicKey]*relation{}, add: map[uint64]*mailRecord{}, answer: map[crypto.PublicKey][]byte{},
		invite: map[[32]byte]*inviteRecord{}, meta: map[string][]byte{},
	}
}

// A draft is a change in the making. It holds the writer lock: begin, change
// copies, commit, end. Until commit the memory is as before; an error leaves it so.
type draft struct {
	change
	s      *Store
	mailID uint64
	edit   func(*stateRecord) // a change of the store's own state, or nil
}

func (s *Store) begin() *draft {
	s.writer.Lock()
	return &draft{change: newChange(), s: s, mailID: s.state.Mail}
}

func (d *draft) end() { d.s.writer.Unlock() }

// relation returns a copy that the draft will write.
func (d *draft) relation(key crypto.PublicKey) *relation {
	if r := d.rel[key]; r != nil {
		return r
	}
	r := d.s.book[key].clone()
	d.rel[key] = r
	return r
}

// nextSerial is above every serial between the two keys, in either direction:
// the later of two statements has the higher serial even if the clocks differ.
func (d *draft) nextSerial(r *relation) (uint64, error) {
	n := max(r.Last, r.High, r.Cut) + 1
	if ms := d.s.now().UnixMilli(); ms > 0 {
		n = max(n, uint64(ms))
	}
	if n >= maxSerial {
		return 0, errors.New("trust: no serials are left with this key, which used them up")
	}
	return n, nil
}

// statement starts a statement of ours to the key.
func (d *draft) statement(kind Kind, to crypto.PublicKey, r *relation) (Statement, error) {
	serial, err := d.nextSerial(r)
	return Statement{Kind: kind, Serial: serial, Issuer: d.s.key, Subject: to, Head: d.s.state.Head + 1}, err
}

// secrets fills in our half of a pair's secrets and returns the tunnel private key.
func (d *draft) secrets(st *Statement) (crypto.DHPrivate, error) {
	static, err := crypto.GenerateDH()
	if err != nil {
		return static, err
	}
	rand.Read(st.Random[:])
	st.Tunnel = static.Public()
	return static, nil
}

// post seals a signed statement into the outbox. It takes the place of mail
// that it makes pointless: a revocation of all, a grant of older grants and
// terms, otherwise of mail of its class.
func (d *draft) post(to crypto.PublicKey, card *cardRecord, class mailClass, signed []byte, serial, rests uint64) error {
	if card == nil {
		return fmt.Errorf("trust: mail to %s: no card is known", to)
	}
	sealed, err := d.s.sealer.seal(card.card(to).Seal, signed)
	if err != nil {
		return fmt.Errorf("trust: mail to %s: %w", to, err)
	}
	d.unpost(to, func(m *mailRecord) bool {
		return m.Class == class || class == mailRevoke || class == mailGrant && m.Class == mailTerms
	})
	d.mailID++
	d.add[d.mailID] = &mailRecord{To: to, Card: card, Sealed: sealed, Class: class, Serial: serial, Rests: rests}
	return nil
}

// unpost drops mail to the key that fits.
func (d *draft) unpost(to crypto.PublicKey, fits func(*mailRecord) bool) {
	for id, m := range d.s.outbox {
		if m.To == to && fits(m) {
			d.drop = append(d.drop, id)
		}
	}
	maps.DeleteFunc(d.add, func(_ uint64, m *mailRecord) bool { return m.To == to && fits(m) })
}

// cutOff applies a revocation by us: everything up to the serial is void, and
// the peer is told if it has something to lose.
func (d *draft) cutOff(key crypto.PublicKey, r *relation, serial uint64, blocked bool) {
	card, had := r.Card, r.Pair != nil || len(r.Out) > 0
	r.void(serial)
	tell := had && r.Pair == nil && len(r.Out) == 0
	r.Last, r.Blocked, r.Stray = max(r.Last, serial), blocked, false
	d.forgetAnswer(key, r)
	d.unpost(key, func(m *mailRecord) bool { return m.Class != mailRevoke && m.Rests <= serial })
	if !tell || card == nil {
		return
	}
	st := Statement{Kind: KindRevoke, Serial: serial, Issuer: d.s.key, Subject: key, Head: d.s.state.Head + 1}
	signed, err := st.Sign(d.s.cfg.Key)
	if err == nil {
		err = d.post(key, card, mailRevoke, signed, serial, serial)
	}
	if err != nil { // the peer then meets silence, which is the effect wanted
		d.s.cfg.Logger.Warn("trust: revocation not mailed", "peer", key, "err", err)
	}
}

func (d *draft) forgetAnswer(key crypto.PublicKey, r *relation) {
	if r.Pair == nil {
		d.answer[key] = nil
	}
}

// witness raises the floor of time. A time counts when two clocks agree that it
// has passed: ours, and that of a peer in a statement of its own. Its serial is
// its clock only if it lies clearly above all ours; otherwise it may be our own
// clock, handed back. So neither a jump of our clock nor a peer alone can move
// the floor into the future.
func (d *draft) witness(serial, last uint64) {
	const margin = 1000
	if serial <= last+margin || serial > 1<<53 {
		return
	}
	t := min(int64(serial), d.s.cfg.Now().UnixMilli())
	if time.UnixMilli(t).After(d.s.floor()) {
		d.floor = max(d.floor, t)
	}
}

// commit writes the change and then lets the memory show it.
func (d *draft) commit() error {
	s := d.s
	if s.closed {
		return fmt.Errorf("trust: %w", ErrClosed)
	}
	for key, r := range d.rel {
		if r != nil && r.empty() {
			d.rel[key] = nil
		}
	}
	whole := &d.change
	if s.owed != nil {
		whole = s.owed.merge(&d.change)
	}
	state := d.nextState()
	if s.broken != nil {
		return s.broken
	}
	var before []byte // the state record as it was
	err := guard(func() error {
		return s.db.Update(func(tx *bbolt.Tx) error {
			before = slices.Clone(tx.Bucket(bucketState).Get(stateKey))
			return whole.write(tx, &state)
		})
	})
	if err != nil {
		return s.fails(s.failed(err, before))
	}
	for key, r := range whole.rel {
		if r != nil {
			s.cuts.markStored(key, r.Cut)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.owed, s.trouble = nil, nil
	s.show(&d.change, state)
	return nil
}

// failed judges a transaction that failed. When the disk failed at its very end, whoever
// reads the file sees it all the same, and nobody knows whether it is durable. The
// memory does not follow, and nothing is built on such a file: after a restart it is
// one or the other, and whole.
func (s *Store) failed(err error, before []byte) error {
	same := true
	if !errors.Is(err, errFault) && before != nil {
		fault := guard(func() error {
			return s.db.View(func(tx *bbolt.Tx) error {
				same = bytes.Equal(before, tx.Bucket(bucketState).Get(stateKey))
				return nil
			})
		})
		if errors.Is(fault, errFault) {
			err = errors.Join(err, fault)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case errors.Is(err, errFault):
		s.faulted = true
		s.broken = fmt.Errorf("trust: write store: %w; restart, and restore the file if that does not help", err)
	case !same:
		s.broken = fmt.Errorf("trust: write store: %w; the disk failed, and whether this is kept a restart tells; until then only revocations are", err)
	default:
		return fmt.Errorf("trust: write store: %w", err)
	}
	return s.broken
}

func (d *draft) nextState() stateRecord {
	state := d.s.state
	state.Mail = d.mailID
	if len(d.rel)+len(d.invite) > 0 || d.s.owed != nil {
		state.Head++ // what the caller keeps here, and what was delivered, can be repeated
		state.mark(d.s.now())
	}
	if floor := max(d.floor, d.s.floor().UnixMilli()); floor > 0 {
		state.Floor, state.Boot = floor, int64(d.s.cfg.Boot())
	}
	if d.edit != nil {
		d.edit(&state)
	}
	return state
}

// show makes a change visible in memory. The caller holds mu.
func (s *Store) show(c *change, state stateRecord) {
	s.state = state
	for key, r := range c.rel {
		s.set(key, r)
	}
	for _, id := range c.drop {
		delete(s.outbox, id)
	}
	maps.Copy(s.outbox, c.add)
	for key, v := range c.invite {
		if v == nil {
			delete(s.invites, key)
			continue
		}
		s.invites[key] = v
	}
	for key, v := range c.meta {
		if v == nil {
			delete(s.meta, key)
			continue
		}
		s.meta[key] = v
	}
}

// owe shows a change that the database could not take, and keeps it for the
// next transaction. Only a revocation, which has its own file, may do this.
func (s *Store) owe(c *change) {
	s.mu.Lock()
	defer s.mu.Unlock()
	state := s.state
	for id := range c.add {
		state.Mail = max(state.Mail, id)
	}
	s.show(c, state)
	if s.owed != nil {
		c = s.owed.merge(c)
	}
	s.owed = c
}

// merge returns c followed by n.
func (c *change) merge(n *change) *change {
	m := newChange()
	m.drop = append(slices.Clone(c.drop), n.drop...)
	for _, part := range []*change{c, n} {
		maps.Copy(m.rel, part.rel)
		maps.Copy(m.add, part.add)
		maps.Copy(m.answer, part.answer)
		maps.Copy(m.invite, part.invite)
		maps.Copy(m.meta, part.meta)
	}
	for _, id := range m.drop {
		delete(m.add, id)
	}
	return &m
}

// write makes the change part of a transaction and sets the tally of state.
func (c *change) write(tx *bbolt.Tx, state *stateRecord) error {
	b := &batch{tx: tx, tally: state.Tally}
	var errs []error
	record := func(bucket, key []byte, v any, gone bool) {
		if gone {
			errs = append(errs, b.delete(bucket, key))
			return
		}
		errs = append(errs, b.putJSON(bucket, key, v))
	}
	raw := func(bucket, key, v []byte) {
		if v == nil {
			errs = append(errs, b.delete(bucket, key))
			return
		}
		errs = append(errs, b.put(bucket, key, v))
	}
	for key, r := range c.rel {
		record(bucketRelations, key[:], r, r == nil)
	}
	for _, id := range c.drop {
		record(bucketMail, mailKey(id), nil, true)
	}
	for id, m := range c.add {
		record(bucketMail, mailKey(id), m, false)
	}
	for key, v := range c.invite {
		record(bucketInvites, key[:], v, v == nil)
	}
	for key, signed := range c.answer {
		raw(bucketAnswers, key[:], signed)
	}
	for key, v := range c.meta {
		raw(bucketMeta, []byte(key), v)
	}
	state.Tally = b.tally
	record(bucketState, stateKey, state, false)
	return errors.Join(errs...)
}

func mailKey(id uint64) []byte { return binary.BigEndian.AppendUint64(nil, id) }

func mailID(key []byte) uint64 { return binary.BigEndian.Uint64(key) }
