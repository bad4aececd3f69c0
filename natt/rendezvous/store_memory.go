package rendezvous

import (
	"bytes"
	"slices"
	"sync"
	"time"

	"github.com/pilotnet/pilot/crypto"
)

// MemoryStore is a Store that ends with the process, for tests and for servers
// whose agents claim again anyway.
type MemoryStore struct {
	mu     sync.Mutex
	agents map[crypto.Fingerprint]Agent
	addrs  map[[6]byte]crypto.PublicKey
	gone   map[crypto.Fingerprint]uint64 // withdrawn up to this serial
	boxes  map[crypto.Fingerprint][]Mail
	heads  map[crypto.Fingerprint]keptHead
	lastID uint64
}

// NewMemoryStore returns an empty store.
func NewMemoryStore() *MemoryStore {
	return &MemoryStore{
		agents: make(map[crypto.Fingerprint]Agent),
		addrs:  make(map[[6]byte]crypto.PublicKey),
		gone:   make(map[crypto.Fingerprint]uint64),
		boxes:  make(map[crypto.Fingerprint][]Mail),
		heads:  make(map[crypto.Fingerprint]keptHead),
	}
}

func (a Agent) clone() Agent {
	a.Claim, a.Card = bytes.Clone(a.Claim), bytes.Clone(a.Card)
	return a
}

// Register implements Store.
func (s *MemoryStore) Register(a Agent) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if holder, ok := s.addrs[a.Addr]; ok && holder != a.Key {
		return ErrAddressTaken
	}
	fp := a.Key.Fingerprint()
	if a.withdrawn(s.gone[fp]) {
		return ErrStale
	}
	if prev, ok := s.agents[fp]; ok {
		if err := checkSuccessor(prev, a); err != nil {
			return err
		}
	}
	s.agents[fp], s.addrs[a.Addr] = a.clone(), a.Key
	return nil
}

// Agent implements Store.
func (s *MemoryStore) Agent(fp crypto.Fingerprint) (Agent, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a, ok := s.agents[fp]
	if !ok {
		return Agent{}, ErrNotFound
	}
	return a.clone(), nil
}

// Put implements Store.
func (s *MemoryStore) Put(to crypto.Fingerprint, m Mail, limit int) (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	box := s.boxes[to]
	for _, old := range box {
		if bytes.Equal(old.Body, m.Body) {
			return old.ID, nil
		}
	}
	for len(box) >= max(limit, 1) {
		i := victim(box, m.Bucket)
		box = slices.Delete(box, i, i+1)
	}
	s.lastID++
	m.ID, m.Body = s.lastID, bytes.Clone(m.Body)
	s.boxes[to] = append(box, m)
	return m.ID, nil
}

// Mail implements Store.
func (s *MemoryStore) Mail(of crypto.Fingerprint, after uint64, n int) ([]Mail, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Mail
	for _, m := range s.boxes[of] {
		if m.ID > after && len(out) < n {
			m.Body = bytes.Clone(m.Body)
			out = append(out, m)
		}
	}
	return out, nil
}

// Ack implements Store.
func (s *MemoryStore) Ack(of crypto.Fingerprint, ids ...uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keep(of, func(m Mail) bool { return !slices.Contains(ids, m.ID) })
	return nil
}

func (s *MemoryStore) keep(of crypto.Fingerprint, ok func(Mail) bool) (deleted int) {
	box := s.boxes[of]
	kept := slices.DeleteFunc(box, func(m Mail) bool { return !ok(m) })
	if deleted = len(box) - len(kept); len(kept) == 0 {
		delete(s.boxes, of)
	} else {
		s.boxes[of] = kept
	}
	return deleted
}

// Expire implements Store.
func (s *MemoryStore) Expire(t time.Time) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	deleted := 0
	for fp := range s.boxes {
		deleted += s.keep(fp, func(m Mail) bool { return !m.Received.Before(t) })
	}
	return deleted, nil
}

// Count implements Store.
func (s *MemoryStore) Count() (agents, mail int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, box := range s.boxes {
		mail += len(box)
	}
	return len(s.agents), mail, nil
}

// Close implements Store.
func (s *MemoryStore) Close() error { return nil }
