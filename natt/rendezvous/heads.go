package rendezvous

import (
	"bytes"
	"encoding/binary"
	"errors"

	"go.etcd.io/bbolt"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/natt/relay"
)

// head handles a HEAD: it keeps the newest signed head that an agent leaves with
// its home server, and shows it back. The signature is checked so that nothing
// else is kept; the agent checks it again.
func (s *Server) head(peer relay.ControlPeer, r relay.Request) ([]byte, relay.Status, string) {
	if status, text := s.atHome(peer); status != relay.StatusOK {
		return nil, status, text
	}
	var kept []byte
	var err error
	if len(r.Body) == 0 {
		if kept, err = s.store.Head(peer.Fingerprint); errors.Is(err, ErrNotFound) {
			return nil, relay.StatusOK, ""
		}
	} else {
		h, parseErr := crypto.ParseHead(r.Body)
		if parseErr != nil || h.Key.Fingerprint() != peer.Fingerprint {
			return nil, relay.StatusRefused, "this is no head that the agent signed"
		}
		kept, err = s.store.PutHead(peer.Fingerprint, h.Count, r.Body)
	}
	if err != nil {
		status, text := s.storeFailed(err)
		return nil, status, text
	}
	return kept, relay.StatusOK, ""
}

type keptHead struct {
	count  uint64
	signed []byte
}

// PutHead implements Store.
func (s *MemoryStore) PutHead(of crypto.Fingerprint, count uint64, signed []byte) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if old, ok := s.heads[of]; !ok || count > old.count {
		s.heads[of] = keptHead{count, bytes.Clone(signed)}
	}
	return bytes.Clone(s.heads[of].signed), nil
}

// Head implements Store.
func (s *MemoryStore) Head(of crypto.Fingerprint) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h, ok := s.heads[of]
	if !ok {
		return nil, ErrNotFound
	}
	return bytes.Clone(h.signed), nil
}

// decodeHead returns a head in the transaction's memory.
func decodeHead(k, v []byte) (count uint64, signed []byte, err error) {
	b, err := unsum(k, v)
	if err != nil {
		return 0, nil, err
	}
	if len(b) < 8 {
		return 0, nil, ErrDamaged
	}
	return binary.BigEndian.Uint64(b), b[8:], nil
}

// PutHead implements Store.
func (s *BoltStore) PutHead(of crypto.Fingerprint, count uint64, signed []byte) (kept []byte, err error) {
	err = s.db.Update(func(tx *bbolt.Tx) error {
		b := tx.Bucket(bucketHead)
		if v := b.Get(of[:]); v != nil {
			old, is, err := decodeHead(of[:], v)
			if err != nil {
				return err
			}
			if old >= count {
				kept = bytes.Clone(is)
				return nil
			}
		}
		kept = bytes.Clone(signed)
		v := binary.BigEndian.AppendUint64(make([]byte, 4, 12+len(signed)), count)
		return b.Put(of[:], withSum(of[:], append(v, signed...)))
	})
	return kept, wrap("put head", err)
}

// Head implements Store.
func (s *BoltStore) Head(of crypto.Fingerprint) (signed []byte, err error) {
	err = s.db.View(func(tx *bbolt.Tx) error {
		v := tx.Bucket(bucketHead).Get(of[:])
		if v == nil {
			return ErrNotFound
		}
		_, is, err := decodeHead(of[:], v)
		signed = bytes.Clone(is)
		return err
	})
	return signed, wrap("read head", err)
}
