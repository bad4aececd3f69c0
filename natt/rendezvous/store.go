package rendezvous

import (
	"errors"
	"time"

	"github.com/pilotnet/pilot/crypto"
)

// Errors of a Store that a caller branches on.
var (
	ErrNotFound     = errors.New("no such agent")
	ErrAddressTaken = errors.New("another key holds this address")
	ErrStale        = errors.New("a newer version is stored")
	ErrLocked       = errors.New("another server uses this state")
	ErrDamaged      = errors.New("the store is damaged")
	ErrNewer        = errors.New("a newer version wrote the store")
)

// An Agent is what the store keeps of one agent: its claim and card, as signed,
// and the fields by which it is found and checked. All of it is public.
type Agent struct {
	Key          crypto.PublicKey
	Addr         [6]byte
	Counter      uint64
	Registration crypto.DHPublic
	ClaimSerial  uint64
	CardSerial   uint64
	Claim, Card  []byte
}

// A Mail is one sealed item of somebody's mailbox. Bucket stands for the sender's
// network in a way that nobody can turn back after the server has ended: it only
// serves to find out who fills a box.
type Mail struct {
	ID       uint64
	Received time.Time
	Bucket   uint32
	Body     []byte
}

// Store keeps claims, cards, heads and mail. Every method that changes something returns
// only when the change is durable, and changes all or nothing. Slices handed in
// and out belong to the caller. All methods are safe for concurrent use.
// Package storetest holds the conformance suite.
type Store interface {
	// Register stores a. Its address must be free or held by the same key; an address
	// once held is never given to another key (ErrAddressTaken). Claim and card must
	// each be byte-equal to the stored one or have a higher serial (ErrStale).
	Register(a Agent) error
	// Withdraw forgets the agent with this fingerprint, and its mail, unless its claim
	// has a serial above the given one (ErrStale); ErrNotFound if there is none. The address
	// stays the key's. From then on Register answers ErrStale to a claim or card
	// of the key that is not above the serial.
	Withdraw(fp crypto.Fingerprint, serial uint64) error
	// Agent returns the agent with this fingerprint, or ErrNotFound.
	Agent(fp crypto.Fingerprint) (Agent, error)
	// Put adds mail to a box and returns its ID, which is higher than all before it
	// in this box. An item with the same body is not stored twice. If the box holds
	// limit items, the oldest item of the bucket with most items (the new one
	// counted) makes room; between equal buckets the one with the oldest item.
	// It does not check that the agent exists.
	Put(to crypto.Fingerprint, m Mail, limit int) (id uint64, err error)
	// Mail returns at most n items with IDs above after, in the order of IDs.
	Mail(of crypto.Fingerprint, after uint64, n int) ([]Mail, error)
	// Ack deletes items. Unknown IDs are ignored.
	Ack(of crypto.Fingerprint, ids ...uint64) error
	// Expire deletes all mail received before t and returns how many items it was.
	Expire(t time.Time) (int, error)
	// PutHead keeps the signed head of an agent, unless one with as high a count is kept,
	// and returns the one that is kept then. Withdraw deletes it.
	PutHead(of crypto.Fingerprint, count uint64, signed []byte) ([]byte, error)
	// Head returns the signed head that is kept of an agent, or ErrNotFound.
	Head(of crypto.Fingerprint) ([]byte, error)
	// Count returns the number of agents and of mail items.
	Count() (agents, mail int, err error)
	Close() error
}

// checkSuccessor says whether next may replace prev.
func checkSuccessor(prev, next Agent) error {
	sameClaim, sameCard := string(prev.Claim) == string(next.Claim), string(prev.Card) == string(next.Card)
	if !sameClaim && next.ClaimSerial <= prev.ClaimSerial || !sameCard && next.CardSerial <= prev.CardSerial {
		return ErrStale
	}
	return nil
}

// victim returns which item of a full box makes room for one of bucket: an index
// into box, which is in the order of IDs.
func victim(box []Mail, bucket uint32) int {
	count := map[uint32]int{bucket: 1}
	for _, m := range box {
		count[m.Bucket]++
	}
	best := 0
	for i, m := range box {
		if count[m.Bucket] > count[box[best].Bucket] {
			best = i
		}
	}
	return best
}
