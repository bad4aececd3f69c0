package trust

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"github.com/pilotnet/pilot/crypto"
)

// maxShown is how many of our own heads that were shown are remembered, and how many
// that were not. Those before the shown ones are not judged.
const maxShown = 64

// A shownHead is a head of this state's past. Its mark is drawn with the change that it
// counts, so a copy of the state that was made after it knows it too.
type shownHead struct {
	Count  uint64 `json:"count"`
	Mark   uint64 `json:"mark"`
	Millis uint64 `json:"ms"`
	Untold bool   `json:"untold,omitempty"` // not shown to anybody by this state
}

// A suspension is why no trust is in force although the store holds some.
type suspension struct {
	Seen  uint64 `json:"seen"` // highest count that was shown back
	Ours  uint64 `json:"ours"` // ours at that moment
	Made  uint64 `json:"made"` // when the head was made, unix ms, by our clock of then
	Since int64  `json:"since"`
	By    string `json:"by"`
}

// A Suspension says that this state is older than what others were told: it was
// restored from a backup, or another instance of this key went on without it.
// Revocations may be missing from it, so no trust is in force until Resume.
type Suspension struct {
	Seen, Ours uint64    // changes: told to others, and in this state
	Made       time.Time // when the others were told, by this agent's clock of then
	Since      time.Time
	By         string // who showed it: a server or a peer
}

// Head is how many changes of trust this state has seen.
func (s *Store) Head() uint64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.state.Head
}

// Suspended reports whether trust is suspended, and why.
func (s *Store) Suspended() (Suspension, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	x := s.state.Suspended
	if x == nil {
		return Suspension{}, false
	}
	return Suspension{
		Seen: x.Seen, Ours: x.Ours, Made: time.UnixMilli(int64(x.Made)).UTC(), Since: time.UnixMilli(x.Since).UTC(), By: x.By,
	}, true
}

// ShowHead returns our signed head for others to keep, nil while trust is
// suspended. That it was shown is on disk before it returns.
func (s *Store) ShowHead() ([]byte, error) {
	d := s.begin()
	defer d.end()
	if s.state.Suspended != nil {
		return nil, nil
	}
	h, ok := s.state.newestHead()
	if !ok || h.Untold {
		d.edit = func(state *stateRecord) {
			if !ok {
				state.mark(s.now())
			}
			h = state.tell()
		}
		if err := d.commit(); err != nil {
			return nil, err
		}
	}
	return crypto.Head{Key: s.key, Count: h.Count, Mark: h.Mark, Millis: h.Millis}.Sign(s.cfg.Key)
}

// newestHead is the head of the present count, if it has a mark.
func (state *stateRecord) newestHead() (h shownHead, ok bool) {
	if n := len(state.Shown); n > 0 && state.Shown[n-1].Count == state.Head {
		return state.Shown[n-1], true
	}
	return h, false
}

// mark gives the present count a mark of its own. Only so many that were never shown are
// remembered: strangers can make many.
func (state *stateRecord) mark(now time.Time) {
	var b [8]byte
	rand.Read(b[:])
	h := shownHead{Count: state.Head, Mark: binary.BigEndian.Uint64(b[:]), Millis: uint64(max(now.UnixMilli(), 0)), Untold: true}
	state.Shown = append(slices.Clone(state.Shown), h)
	untold, oldest := 0, -1
	for i := range state.Shown {
		if state.Shown[i].Untold {
			if untold++; oldest < 0 {
				oldest = i
			}
		}
	}
	if untold > maxShown {
		state.Shown = slices.Delete(state.Shown, oldest, oldest+1)
	}
}

// tell notes that the newest head is shown. What is forgotten to make room is not judged
// any more.
func (state *stateRecord) tell() shownHead {
	state.Shown = slices.Clone(state.Shown)
	newest := &state.Shown[len(state.Shown)-1]
	newest.Untold = false
	told := 0
	for i := len(state.Shown) - 1; i >= 0; i-- {
		if h := state.Shown[i]; !h.Untold {
			if told++; told > maxShown {
				state.Settled = max(state.Settled, h.Count)
				state.Shown = state.Shown[i+1:]
				break
			}
		}
	}
	return state.Shown[len(state.Shown)-1]
}

// knows reports whether a head of ours is part of this state's past, or too old
// to tell.
func (state *stateRecord) knows(h crypto.Head) bool {
	if h.Count <= state.Settled {
		return true
	}
	return slices.ContainsFunc(state.Shown, func(o shownHead) bool { return o.Count == h.Count && o.Mark == h.Mark })
}

// SeenHead takes a signed head of ours that somebody shows back. If it is not part of this
// state's past, all trust is suspended until Resume, and caught is true. A store in
// which there is nothing to undo goes on above the head instead: the key was kept,
// the store was not.
func (s *Store) SeenHead(signed []byte, by string) (caught bool, err error) {
	h, err := crypto.ParseHead(signed)
	if err != nil {
		return false, fmt.Errorf("trust: head shown by %s: %w", by, err)
	}
	if h.Key != s.key {
		return false, fmt.Errorf("trust: head shown by %s is of %s", by, h.Key)
	}
	d := s.begin()
	defer d.end()
	if s.state.knows(h) || s.state.Suspended != nil && h.Count <= s.state.Suspended.Seen {
		return false, nil
	}
	caught = s.state.Suspended != nil || s.undoes()
	if !caught {
		d.edit = func(state *stateRecord) {
			state.Head, state.Settled, state.Shown = max(state.Head, h.Count), max(state.Settled, h.Count), nil
			state.mark(s.now())
		}
		return false, d.commit()
	}
	x := suspension{Seen: h.Count, Ours: s.state.Head, Made: h.Millis, Since: s.now().UnixMilli(), By: by}
	if old := s.state.Suspended; old != nil {
		x.Ours, x.Since = old.Ours, old.Since
	}
	d.edit = func(state *stateRecord) { state.Suspended = &x }
	if err := d.commit(); err != nil { // in force all the same; it is seen again after a restart
		s.cfg.Logger.Warn("trust: suspension not in the store", "err", err)
		s.mu.Lock()
		s.state.Suspended = &x
		s.mu.Unlock()
	}
	return true, nil
}

// undoes reports whether this store, if it is an old one, may give what was taken back
// since: trust, or the promise of it. The caller holds the writer lock.
func (s *Store) undoes() bool {
	for _, r := range s.book {
		if r.Pair != nil || len(r.Out) > 0 {
			return true
		}
	}
	now := s.now()
	for _, inv := range s.invites {
		if len(inv.users()) < max(inv.Uses, 1) && !passed(inv.Expires, now, 0) {
			return true
		}
	}
	return false
}

// Resume ends a suspension: somebody looked at the peers and takes this state as it
// is. From then on it counts above all that others were told.
func (s *Store) Resume() error {
	d := s.begin()
	defer d.end()
	x := s.state.Suspended
	if x == nil {
		return fmt.Errorf("trust: resume: %w", ErrNotSuspended)
	}
	d.edit = func(state *stateRecord) {
		state.Head, state.Settled, state.Shown, state.Suspended = max(state.Head, x.Seen)+1, max(state.Settled, x.Seen), nil, nil
		state.mark(s.now())
	}
	return d.commit()
}

// granting reports ErrSuspended while nothing may be granted or asked. The caller
// holds the writer lock.
func (s *Store) granting() error {
	if x := s.state.Suspended; x != nil {
		return fmt.Errorf("trust: %w: %s was shown %d changes, this state has %d", ErrSuspended, x.By, x.Seen, x.Ours)
	}
	return nil
}
