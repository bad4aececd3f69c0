package rendezvous

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"sync"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/ipam"
	"github.com/pilotnet/pilot/natt/relay"
)

// claim handles a CLAIM. The order is by cost: one lookup for a claim already
// known, then the stamp, the signatures, and Argon2id last.
func (s *Server) claim(ctx context.Context, peer relay.ControlPeer, from netip.Addr, r relay.Request) (relay.Status, string) {
	known, err := s.store.Agent(peer.Fingerprint)
	switch {
	case err == nil:
		if known.Registration == peer.Static && bytes.Equal(known.Claim, r.Claim) && bytes.Equal(known.Card, r.Card) {
			return relay.StatusOK, ""
		}
	case !errors.Is(err, ErrNotFound):
		return s.storeFailed(err)
	case !r.Stamp.Check(s.public, relay.OpClaim, relay.ClaimSubject(r.Claim), s.cfg.Limits.ClaimBits, s.cfg.Now()):
		return relay.StatusStamp, "a first claim needs a stamp"
	}
	agent, claim, text := parseClaim(peer, r)
	if text != "" {
		return relay.StatusRefused, text
	}
	if known.Key != agent.Key || known.Addr != agent.Addr || known.Counter != agent.Counter {
		if err := s.verifyNode(ctx, from, claim); errors.Is(err, errBusy) {
			return relay.StatusBusy, "too many first claims, try again in a minute"
		} else if err != nil {
			return relay.StatusRefused, "the address does not follow from the key: " + err.Error()
		}
	}
	switch err := s.store.Register(agent); {
	case errors.Is(err, ErrAddressTaken):
		return relay.StatusAddressTaken, "another key holds " + claim.Addr.String() + " on this server"
	case errors.Is(err, ErrStale):
		return relay.StatusStale, "this server holds a claim or card with a higher serial, or a withdrawal of this one"
	case err != nil:
		return s.storeFailed(err)
	}
	s.count.claims.Add(1)
	return relay.StatusOK, ""
}

func (s *Server) storeFailed(err error) (relay.Status, string) {
	s.cfg.Logger.Error("store failed", "err", err)
	return relay.StatusFailed, "the server could not read or write its store"
}

// parseClaim checks everything but the node ID. text says what is wrong.
func parseClaim(peer relay.ControlPeer, r relay.Request) (a Agent, claim ipam.Claim, text string) {
	claim, err := ipam.ParseClaim(r.Claim)
	if err != nil {
		return a, claim, "the claim is not valid: " + err.Error()
	}
	card, err := crypto.ParseCard(r.Card)
	switch {
	case err != nil:
		text = "the card is not valid: " + err.Error()
	case card.Key != claim.Key || card.Counter != claim.Counter:
		text = "claim and card are of different identities"
	case claim.Key.Fingerprint() != peer.Fingerprint:
		text = "the claim is not of the agent that opened the channel"
	case claim.Registration != peer.Static || card.Registration != peer.Static:
		text = "claim and card name another registration key than the one that opened the channel"
	}
	return Agent{
		Key: claim.Key, Addr: claim.Addr.Bytes(), Counter: claim.Counter, Registration: claim.Registration,
		ClaimSerial: claim.Serial, CardSerial: card.Serial, Claim: r.Claim, Card: r.Card,
	}, claim, text
}

var errBusy = errors.New("busy")

// A nodeCheck asks the one worker to run Argon2id.
type nodeCheck struct {
	claim  ipam.Claim
	result chan error
}

// verifyNode lets the worker check that the address follows from the key. One
// network may fill only a part of the queue, so that it cannot keep others out.
func (s *Server) verifyNode(ctx context.Context, from netip.Addr, c ipam.Claim) error {
	home := network(from)
	if !s.checks.take(home) {
		return errBusy
	}
	defer s.checks.give(home)
	check := nodeCheck{claim: c, result: make(chan error, 1)}
	select {
	case s.nodes <- check:
	default:
		return errBusy
	}
	select {
	case err := <-check.result:
		return err
	case <-ctx.Done():
		return errBusy
	}
}

// nodeWorker is the only one to run Argon2id: 8 MiB and some 10 ms each.
func (s *Server) nodeWorker(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case c := <-s.nodes:
			c.result <- c.claim.Verify()
		}
	}
}

// A share counts what each network has in a queue.
type share struct {
	mu   sync.Mutex
	used map[[6]byte]int
}

// take adds one, unless the network has as many as it may.
func (s *share) take(home [6]byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.used[home] >= nodeShare {
		return false
	}
	s.used[home]++
	return true
}

func (s *share) give(home [6]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.used[home]--; s.used[home] == 0 {
		delete(s.used, home)
	}
}
