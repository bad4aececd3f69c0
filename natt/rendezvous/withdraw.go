package rendezvous

import (
	"bytes"
	"encoding/binary"
	"errors"

	"go.etcd.io/bbolt"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/ipam"
	"github.com/pilotnet/pilot/natt/relay"
)

// withdraw handles a WITHDRAW. Whoever does not hold the registration key of the
// claim is answered before the withdrawal is looked at, and alike whether or not
// there is such an agent.
func (s *Server) withdraw(peer relay.ControlPeer, r relay.Request) (relay.Status, string) {
	if status, text := s.atHome(peer); status != relay.StatusOK {
		return status, text
	}
	w, err := ipam.ParseWithdrawal(r.Body)
	switch {
	case err != nil:
		return relay.StatusRefused, "the withdrawal is not valid: " + err.Error()
	case w.Key.Fingerprint() != peer.Fingerprint:
		return relay.StatusRefused, "the withdrawal is not of the agent that opened the channel"
	case w.Server != s.public:
		return relay.StatusRefused, "the withdrawal is for another server"
	}
	switch err := s.store.Withdraw(peer.Fingerprint, w.Serial); {
	case errors.Is(err, ErrNotFound): // by another channel, just now
	case errors.Is(err, ErrStale):
		return relay.StatusStale, "this server holds a claim with a higher serial"
	case err != nil:
		return s.storeFailed(err)
	}
	if home := s.table.home(peer.Fingerprint); home != nil {
		s.table.remove(home)
	}
	s.count.withdrawals.Add(1)
	return relay.StatusOK, ""
}

// withdrawn reports whether claim or card of a are not above a withdrawal; serial
// is 0 if there was none.
func (a Agent) withdrawn(serial uint64) bool {
	return serial > 0 && (a.ClaimSerial <= serial || a.CardSerial <= serial)
}

// Withdraw implements Store.
func (s *MemoryStore) Withdraw(fp crypto.Fingerprint, serial uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	a, ok := s.agents[fp]
	switch {
	case !ok:
		return ErrNotFound
	case a.ClaimSerial > serial:
		return ErrStale
	}
	delete(s.agents, fp)
	delete(s.boxes, fp)
	delete(s.heads, fp)
	s.gone[fp] = max(s.gone[fp], serial)
	return nil
}

// Withdraw implements Store.
func (s *BoltStore) Withdraw(fp crypto.Fingerprint, serial uint64) error {
	return wrap("withdraw", s.db.Update(func(tx *bbolt.Tx) error {
		agents := tx.Bucket(bucketAgent)
		v := agents.Get(fp[:])
		if v == nil {
			return ErrNotFound
		}
		a, err := decodeAgent(fp[:], v)
		if err != nil {
			return err
		}
		if a.ClaimSerial > serial {
			return ErrStale
		}
		gone, err := goneSerial(tx, fp)
		if err != nil {
			return err
		}
		if err := agents.Delete(fp[:]); err != nil {
			return err
		}
		if err := tx.Bucket(bucketHead).Delete(fp[:]); err != nil {
			return err
		}
		c := tx.Bucket(bucketMail).Cursor()
		for k, _ := c.Seek(fp[:]); k != nil && bytes.HasPrefix(k, fp[:]); k, _ = c.Seek(fp[:]) {
			if err := c.Delete(); err != nil {
				return err
			}
		}
		value := binary.BigEndian.AppendUint64(make([]byte, 4, 12), max(gone, serial))
		return tx.Bucket(bucketGone).Put(fp[:], withSum(fp[:], value))
	}))
}

// goneSerial is the serial up to which the claims of an agent are withdrawn, 0 for none.
func goneSerial(tx *bbolt.Tx, fp crypto.Fingerprint) (uint64, error) {
	v := tx.Bucket(bucketGone).Get(fp[:])
	if v == nil {
		return 0, nil
	}
	b, err := unsum(fp[:], v)
	if err != nil || len(b) != 8 {
		return 0, ErrDamaged
	}
	return binary.BigEndian.Uint64(b), nil
}
