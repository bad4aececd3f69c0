package trust

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/pilotnet/pilot/crypto"
)

// clearMail leaves mail open: what the model is about does not depend on HPKE, which is
// most of its cost.
type clearMail struct{}

func (clearMail) seal(to crypto.SealPublic, signed []byte) ([]byte, error) {
	return append(bytes.Clone(to[:32]), signed...), nil
}

func (clearMail) open(key crypto.SealPrivate, sealed []byte) ([]byte, error) {
	to := key.Public()
	if signed, ok := bytes.CutPrefix(sealed, to[:32]); ok {
		return bytes.Clone(signed), nil
	}
	return nil, errors.New("for another")
}

// TestHostileTrustModel drives two parties, a mailbox server between them and somebody who
// recorded all mail, at random: 10,000 sequences with PILOT_HOSTILE=1, in ten parts that can be
// run alone (-run TestHostileTrustModel/from_3000). After each step no secret may be in two slots
// and nothing revoked may be back; in the end both sides agree.
func TestHostileTrustModel(t *testing.T) {
	t.Parallel()
	parts, n := 1, 50
	if os.Getenv("PILOT_HOSTILE") != "" {
		parts, n = 10, 1000
	}
	if raceEnabled {
		n /= 3
	}
	for part := range parts {
		first := *firstSeed + part*n
		t.Run(fmt.Sprintf("from %d", first), func(t *testing.T) {
			t.Parallel()
			hostilePart(t, first, n)
		})
	}
}

func hostilePart(t *testing.T, first, n int) {
	began := time.Now()
	counts := map[string]int{}
	for seed := first; seed < first+n && !t.Failed(); seed++ {
		runHostile(t, uint64(seed), counts)
	}
	t.Logf("%d sequences in %v: %v", n, time.Since(began).Round(time.Millisecond), counts)
	for _, want := range []string{
		"revoked", "granted", "renewed", "replayed", "invite used", "restored", "server wiped", "blocked", "moved", "moved back", "re-installed",
	} {
		if counts[want] == 0 && n >= 50 {
			t.Errorf("no sequence had %q", want)
		}
	}
}

// A hostile is a model with a server that loses mail, a recorder, invites, wrong clocks,
// blocks, and restored backups.
type hostile struct {
	model
	archive [2][]Mail // all mail ever sent to the side
	tokens  [2][]Invite
	used    map[[16]byte]int
	told    [2][][]byte // heads of the side since its state last began anew
	copies  [2]func()   // puts a backup of the side's state back
	copied  [2]uint64   // its head then
	counts  map[string]int
	asked   map[[32]byte]int // how often, in the end
}

func runHostile(t *testing.T, seed uint64, counts map[string]int) {
	h := &hostile{counts: counts, used: map[[16]byte]int{}, asked: map[[32]byte]int{}}
	h.model = model{t: t, rng: rand.New(rand.NewPCG(seed, 11)), owner: map[[32]byte][32]byte{}}
	for i, name := range []string{"alice", "bob"} {
		p := newBareParty(t, name)
		defer os.RemoveAll(p.dir)
		defer p.Close()
		h.sides[i], h.voided[i] = p, map[[32]byte]bool{}
	}
	defer func() {
		if t.Failed() {
			t.Logf("seed %d:\n%s", seed, strings.Join(h.log, "\n"))
		}
	}()
	for range 80 {
		h.act()
		h.check()
	}
	h.end()
	h.check()
	if err := h.agreement(); err != nil {
		t.Errorf("seed %d: %v", seed, err)
	}
	h.sides[0].Close()
	h.sides[1].Close()
}

// newBareParty is a party whose mail is not sealed.
func newBareParty(t *testing.T, name string) *party {
	p := &party{t: t, name: name, now: epoch, boot: time.Hour, clear: true}
	p.key, p.seal = partyKeys(t, name)
	var err error
	if p.dir, err = os.MkdirTemp("", "pilot-model"); err != nil {
		t.Fatal(err)
	}
	p.open()
	return p
}

// act is one step: something of the plain model, or something worse.
func (h *hostile) act() {
	i := h.rng.IntN(2)
	x, y := h.sides[i], h.sides[1-i]
	switch n := h.rng.IntN(100); {
	case n < 70:
		h.step(false)
	case n < 75:
		h.replay(i)
	case n < 78:
		x.now = h.clock(x.now)
		h.did(nil, "%s's clock is at %v", x.name, x.now)
	case n < 80:
		h.counts["blocked"]++
		for _, s := range h.slots(i) {
			h.voided[i][s.ID] = true
		}
		h.did(x.Block(y.pub()), "%s blocks", x.name)
	case n < 86:
		h.did(x.Unblock(y.pub()), "%s unblocks", x.name)
	case n < 89:
		h.invite(i)
	case n < 93:
		h.accept(i)
	case n < 95:
		h.wipeServer()
	case n < 97:
		h.copies[i], h.copied[i] = x.backup(), x.Head()
		h.did(nil, "%s's state is copied", x.name)
	case n < 98:
		h.restore(i)
	case n < 99:
		h.move(i)
	case h.rng.IntN(2) == 0:
		h.reinstall(i)
	default:
		h.heads(i)
	}
}

// clock is where a clock may be found.
func (h *hostile) clock(now time.Time) time.Time {
	switch h.rng.IntN(8) {
	case 0:
		return time.Unix(86_400, 0)
	case 1:
		return time.Date(2046, 1, 1, 0, 0, 0, 0, time.UTC)
	case 2:
		return now.Add(24 * time.Hour)
	case 3:
		return now.Add(-24 * time.Hour)
	}
	return epoch.Add(time.Duration(h.rng.IntN(1000)) * time.Minute)
}

// replay hands over anything that was ever mailed to the side.
func (h *hostile) replay(i int) {
	for from := range h.sides {
		h.archive[1-from] = append(h.archive[1-from], h.sides[from].Outbox()...)
	}
	if len(h.archive[i]) == 0 {
		return
	}
	h.counts["replayed"]++
	m := h.archive[i][h.rng.IntN(len(h.archive[i]))]
	h.hear(i, m, "replayed ")
}

// hear gives mail to a side and keeps the books.
func (h *hostile) hear(i int, m Mail, how string) {
	ev, err := h.sides[i].Receive(m.Sealed)
	if err != nil {
		h.t.Fatal(err)
	}
	h.did(ev.Err, "%s gets %s%s: %s", h.sides[i].name, how, m.Kind, ev.Kind)
	h.counts[ev.Kind.String()]++
}

func (h *hostile) invite(i int) {
	ports := scope(h.t, "7,80")
	token, err := h.sides[i].Invite(InviteOptions{Contact: "x", Ports: ports, TTL: MaxInviteTTL})
	h.did(err, "%s invites", h.sides[i].name)
	if err != nil {
		return
	}
	inv, err := ParseInvite(token)
	if err != nil {
		h.t.Fatal(err)
	}
	h.tokens[i] = append(h.tokens[i], inv)
}

// accept uses any invite of the other side, again and again if it comes so.
func (h *hostile) accept(i int) {
	list := h.tokens[1-i]
	if len(list) == 0 {
		return
	}
	inv := list[h.rng.IntN(len(list))]
	x, y := h.sides[i], h.sides[1-i]
	_, err := x.tryAsk(y, "80", "7", func(o *RequestOptions) { o.Invite = inv.Secret[:] })
	h.did(err, "%s uses an invite", x.name)
	if err != nil {
		return
	}
	for _, m := range x.Outbox() {
		if m.Kind != KindRequest {
			continue
		}
		ev, err := y.Receive(m.Sealed)
		if err != nil {
			h.t.Fatal(err)
		}
		h.did(ev.Err, "%s gets it at once: %s", y.name, ev.Kind)
		h.counts[ev.Kind.String()]++
		if ev.Kind == InviteUsed {
			if h.used[inv.Secret]++; h.used[inv.Secret] > 1 {
				h.t.Fatal("an invite was used twice")
			}
		}
	}
}

// wipeServer loses what the senders take for delivered.
func (h *hostile) wipeServer() {
	for i, x := range h.sides {
		for _, m := range x.Outbox() {
			if h.rng.IntN(2) == 0 {
				h.wiped = h.wiped || m.Kind == KindRevoke
				h.did(x.Delivered(m.ID), "the server loses a %s of %s", m.Kind, x.name)
			}
		}
		h.wire[i] = nil
	}
	h.counts["server wiped"]++
}

// heads shows a head, or shows an old one back, which may alarm nobody.
func (h *hostile) heads(i int) {
	x := h.sides[i]
	if h.rng.IntN(2) == 0 {
		h.told[i] = append(h.told[i], x.show())
	}
	if n := len(h.told[i]); n > 0 && x.seen(h.told[i][h.rng.IntN(n)]) {
		h.t.Fatalf("%s is suspended by a head of its own past", x.name)
	}
}

// restore puts a copy of the state back after others were told of the present one. It is caught,
// and its owner revokes what was revoked before.
func (h *hostile) restore(i int) {
	x, y := h.sides[i], h.sides[1-i]
	if h.copies[i] == nil || x.Head() == h.copied[i] {
		return
	}
	head := x.show()
	h.copies[i]()
	h.copies[i], h.told[i], h.cut[i], h.wiped = nil, nil, 0, true
	h.counts["restored"]++
	lost := x.undoes()
	caught := x.seen(head)
	h.did(nil, "%s's state is restored; caught: %v", x.name, caught)
	if caught != lost {
		h.t.Fatalf("caught %v, something to lose %v", caught, lost)
	}
	if !caught {
		return
	}
	if p, ok := x.Peer(y.pub()); ok && p.State == Active {
		h.t.Fatal("a peer is active on a restored backup")
	}
	for _, inv := range h.tokens[i] { // their uses may be forgotten with the state
		h.used[inv.Secret] = 0
	}
	h.tokens[i] = nil
	h.did(x.Revoke(y.pub()), "%s revokes before it confirms", x.name)
	if err := x.Resume(); err != nil {
		h.t.Fatal(err)
	}
}

// move is a second instance of the side on the copy of its state, while the first one stands
// back for it, and then the first one again. On a copy as new as the state all goes on; an
// older one is caught, and is of no use to anybody as long as nobody confirms it.
func (h *hostile) move(i int) {
	x, y := h.sides[i], h.sides[1-i]
	if h.copies[i] == nil || h.rng.IntN(2) == 0 {
		h.copies[i], h.copied[i] = x.backup(), x.Head()
	}
	same, before := x.Head() == h.copied[i], h.slots(i)
	back, head := x.backup(), x.show()
	h.copies[i]()
	lost := !same && x.undoes()
	caught := x.seen(head)
	h.counts["moved"]++
	h.did(nil, "another instance of %s, as new: %v, caught: %v", x.name, same, caught)
	if caught != lost {
		h.t.Fatalf("caught %v, something to lose %v", caught, lost)
	}
	if caught {
		for _, m := range append(h.wire[i], y.Outbox()...) {
			h.hear(i, m, "suspended ")
		}
		if p, ok := x.Peer(y.pub()); ok && p.State == Active || len(x.Outbox()) > 0 && x.Outbox()[0].Kind != KindRevoke {
			h.t.Fatalf("an instance that is behind has %v and mails %d", p.State, len(x.Outbox()))
		}
	}
	if same { // the new one goes on
		if now := h.slots(i); len(now) != len(before) {
			h.t.Fatalf("%d slots moved as %d", len(before), len(now))
		}
		return
	}
	back()
	h.counts["moved back"]++
	if _, suspended := x.Suspended(); suspended || x.seen(head) {
		h.t.Fatalf("%s is caught by a head of its own", x.name)
	}
}

// reinstall begins anew with the key alone. A server may show what was left with it; that
// alarms nobody, for there is nothing to undo.
func (h *hostile) reinstall(i int) {
	x := h.sides[i]
	head := x.show()
	x.Close()
	if err := os.RemoveAll(x.dir); err != nil {
		h.t.Fatal(err)
	}
	x.open()
	h.copies[i], h.told[i], h.tokens[i], h.cut[i], h.wiped = nil, nil, nil, 0, true
	h.counts["re-installed"]++
	h.did(nil, "%s is installed again", x.name)
	if len(head) > 0 && h.rng.IntN(2) == 0 && x.seen(head) {
		h.t.Fatalf("%s is suspended with nothing to undo", x.name)
	}
}

// end lets clocks be right, all mail arrive, and people decide what is left.
func (h *hostile) end() {
	for _, x := range h.sides {
		x.now = epoch.Add(31 * 24 * time.Hour)
	}
	for i, x := range h.sides {
		h.did(x.Unblock(h.sides[1-i].pub()), "%s unblocks in the end", x.name)
	}
	for range 12 {
		h.settle()
		if moved := h.meet(); !h.decide() && !moved && !h.unheard() {
			return
		}
	}
	h.t.Fatal("requests never end")
}

// unheard is a person who hears nothing from a peer, for one of both lost its state, and asks
// once more, as `pilotctl peers` says.
func (h *hostile) unheard() bool {
	x, y := h.slots(0), h.slots(1)
	if !h.wiped || len(x) == 0 || len(y) == 0 || common(x, y) {
		return false
	}
	alice, bob := h.sides[0], h.sides[1]
	p, _ := alice.Peer(bob.pub())
	_, err := alice.Request(RequestOptions{Card: bob.card(), Addr: addrOf(bob.pub()), Ask: p.Out, Offer: p.In, Reason: "silence"})
	h.did(err, "alice hears nothing and asks again")
	h.counts["asked into silence"]++
	return err == nil
}

// decide approves what the other side still asks, rejects what it does not (a replay), and
// asks again what was lost.
func (h *hostile) decide() (moved bool) {
	for i, x := range h.sides {
		y := h.sides[1-i]
		for _, p := range x.Incoming() {
			moved = true
			if !asks(y, p) {
				h.did(x.Reject(y.pub()), "%s rejects a replay", x.name)
				continue
			}
			_, err := x.Approve(y.pub(), ApproveOptions{})
			h.did(err, "%s approves in the end", x.name)
			if err != nil {
				h.did(x.Reject(y.pub()), "%s rejects", x.name)
			}
		}
		for _, p := range x.Outgoing() {
			if h.asked[p.ID]++; h.asked[p.ID] > 2 {
				continue // it was rejected; nobody answers
			}
			moved = true
			_, err := x.Request(RequestOptions{Card: y.card(), Addr: addrOf(y.pub()), Ask: p.Ask, Offer: p.Offer, Reason: p.Reason})
			h.did(err, "%s asks again", x.name)
		}
	}
	return moved
}

func asks(x *party, p Pending) bool {
	for _, o := range x.Outgoing() {
		if o.ID == p.ID {
			return true
		}
	}
	return false
}
