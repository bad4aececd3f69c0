package trust

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

var seeds = flag.Int("seeds", 4, "how many random sequences TestModel runs")

var firstSeed = flag.Int("seed", 0, "where TestModel begins")

// A model is two parties and the mail between them, driven at random: mail is
// copied, delayed, reordered and acknowledged late; people ask, approve, reject,
// narrow and revoke at any moment; stores are closed, and now and then lost.
type model struct {
	t      *testing.T
	rng    *rand.Rand
	sides  [2]*party
	wire   [2][]Mail // on its way to the side
	voided [2]map[[32]byte]bool
	cut    [2]uint64
	owner  map[[32]byte][32]byte // secret or private key -> the slot it was seen in
	wiped  bool
	log    []string
}

func TestModel(t *testing.T) {
	for seed := *firstSeed; seed < *firstSeed+*seeds; seed++ {
		m := &model{t: t, rng: rand.New(rand.NewPCG(uint64(seed), 7)), owner: map[[32]byte][32]byte{}}
		m.sides[0], m.sides[1] = newParty(t, "alice"), newParty(t, "bob")
		m.voided[0], m.voided[1] = map[[32]byte]bool{}, map[[32]byte]bool{}
		wipes := seed%4 == 3
		for range 150 {
			m.step(wipes)
			m.check()
		}
		m.conclude()
		m.check()
		if err := m.agreement(); err != nil {
			t.Errorf("seed %d: %v\n%s", seed, err, strings.Join(m.log, "\n"))
		}
		m.sides[0].Close()
		m.sides[1].Close()
	}
}

func (m *model) step(wipes bool) {
	i := m.rng.IntN(2)
	x, y := m.sides[i], m.sides[1-i]
	x.now, x.boot = x.now.Add(time.Duration(m.rng.IntN(3000))*time.Millisecond), x.boot+time.Second
	switch n := m.rng.IntN(100); {
	case n < 12:
		ports := []string{"7", "80", "80,443", "22"}
		ask, offer := ports[m.rng.IntN(4)], ports[m.rng.IntN(4)]
		_, err := x.tryAsk(y, ask, offer)
		m.did(err, "%s asks %s, offers %s", x.name, ask, offer)
	case n < 24:
		_, err := x.Approve(y.pub(), ApproveOptions{})
		m.did(err, "%s approves", x.name)
	case n < 27:
		ports := scope(m.t, []string{"7", "80", ""}[m.rng.IntN(3)])
		_, err := x.Approve(y.pub(), ApproveOptions{Ports: &ports})
		m.did(err, "%s grants %q", x.name, ports)
	case n < 29:
		m.did(x.Reject(y.pub()), "%s rejects", x.name)
	case n < 32:
		m.revoke(i)
	case n < 34:
		x.reopen()
	case n < 35 && wipes:
		m.wiped, m.cut[i] = true, 0
		x.wipe()
		m.did(nil, "%s loses its store", x.name)
	case n < 37:
		x.now = x.now.Add(time.Duration(m.rng.IntN(7)-3) * time.Hour)
	case n < 45:
		m.data(i)
	case n < 65:
		m.post(i)
	default:
		m.deliver(i)
	}
}

func (m *model) did(err error, format string, args ...any) {
	m.log = append(m.log, fmt.Sprintf(format, args...)+fmt.Sprintf(" (%v)", err))
	if errors.Is(err, ErrDamaged) {
		m.t.Fatal(err)
	}
}

func (m *model) revoke(i int) {
	x, y := m.sides[i], m.sides[1-i]
	for _, s := range m.slots(i) {
		m.voided[i][s.ID] = true
	}
	m.did(x.Revoke(y.pub()), "%s revokes", x.name)
	if _, ok := x.Peer(y.pub()); ok {
		m.t.Fatal("a peer after revoke")
	}
}

func (m *model) slots(i int) (list []*Slot) {
	p, ok := m.sides[i].Peer(m.sides[1-i].pub())
	if !ok {
		return nil
	}
	for _, s := range []*Slot{p.Current, p.Next} {
		if s != nil {
			list = append(list, s)
		}
	}
	return list
}

// data lets side i send under one of its slots; it arrives if the other side
// has the slot, and the answer may be lost.
func (m *model) data(i int) {
	mine := m.slots(i)
	if len(mine) == 0 {
		return
	}
	slot := mine[m.rng.IntN(len(mine))]
	for _, theirs := range m.slots(1 - i) {
		if theirs.ID != slot.ID {
			continue
		}
		if err := slotsMatch(slot, theirs); err != nil {
			m.t.Fatal(err)
		}
		m.did(m.sides[1-i].Confirmed(m.sides[i].pub(), slot.ID), "data from %s under %x", m.sides[i].name, slot.ID[:3])
		if m.rng.IntN(3) > 0 {
			m.did(m.sides[i].Confirmed(m.sides[1-i].pub(), slot.ID), "and back")
			m.remind(i)
		}
	}
}

// remind is what side i hears in a session: which of its terms the other side holds.
func (m *model) remind(i int) (said bool) {
	x, y := m.sides[i], m.sides[1-i]
	held, ok := y.Holds(x.pub())
	if !ok {
		m.t.Fatalf("%s holds no terms, but a slot", y.name)
	}
	said, err := x.Remind(y.pub(), held)
	if said || err != nil {
		m.did(err, "%s hears of %x and says its terms again", x.name, held)
	}
	return said
}

// meet lets both sides have a session, if they hold a common slot, and reports whether there
// was anything to say.
func (m *model) meet() bool {
	if !common(m.slots(0), m.slots(1)) {
		return false
	}
	alice, bob := m.remind(0), m.remind(1)
	return alice || bob
}

// post copies one mail of side i to the wire; the outbox keeps it.
func (m *model) post(i int) {
	if box := m.sides[i].Outbox(); len(box) > 0 {
		m.wire[1-i] = append(m.wire[1-i], box[m.rng.IntN(len(box))])
	}
}

// deliver hands one mail on the wire to side i, whichever comes; sometimes it
// stays and comes again; mostly it is acknowledged.
func (m *model) deliver(i int) {
	if len(m.wire[i]) == 0 {
		return
	}
	n := m.rng.IntN(len(m.wire[i]))
	mail := m.wire[i][n]
	if m.rng.IntN(4) > 0 {
		m.wire[i] = slices.Delete(m.wire[i], n, n+1)
	}
	m.receive(i, mail)
}

func (m *model) receive(i int, mail Mail) {
	ev, err := m.sides[i].Receive(mail.Sealed)
	if err != nil {
		m.t.Fatal(err)
	}
	m.did(ev.Err, "%s gets %s: %s", m.sides[i].name, mail.Kind, ev.Kind)
	if ev.Kind == Revoked {
		for _, id := range m.slots(i) {
			delete(m.voided[i], id.ID) // what a newer request gave stays
		}
	}
	if m.rng.IntN(4) > 0 {
		if err := m.sides[1-i].Delivered(mail.ID); err != nil {
			m.t.Fatal(err)
		}
	}
}

// check holds after every step.
func (m *model) check() {
	m.t.Helper()
	for i := range m.sides {
		x, y := m.sides[i], m.sides[1-i]
		for _, s := range m.slots(i) {
			if m.voided[i][s.ID] {
				m.t.Fatalf("%s: a revoked slot is back\n%s", x.name, strings.Join(m.log, "\n"))
			}
			for _, secret := range [][32]byte{s.Secret, s.Static} {
				if id, ok := m.owner[secret]; ok && id != s.ID {
					m.t.Fatalf("%s: a secret in two slots\n%s", x.name, strings.Join(m.log, "\n"))
				}
				m.owner[secret] = s.ID
			}
		}
		r := x.book[y.pub()]
		if r == nil {
			continue
		}
		if r.Cut < m.cut[i] {
			m.t.Fatalf("%s: a cut went back", x.name)
		}
		m.cut[i] = r.Cut
		if r.Pair != nil {
			for _, s := range []*slotRecord{r.Pair.Current, r.Pair.Next} {
				if s != nil && (s.Request <= r.Cut || s.Grant <= s.Request) {
					m.t.Fatalf("%s: slot rests on serial %d, cut is %d", x.name, s.Request, r.Cut)
				}
			}
		}
		if n := len(x.Outbox()); n > 4 {
			m.t.Fatalf("%s: %d mails to one peer", x.name, n)
		}
	}
}

// settle delivers all mail; what people have to decide stays undecided.
func (m *model) settle() {
	for range 50 {
		moved := false
		for i := range m.sides {
			for _, mail := range append(m.wire[i], m.sides[1-i].Outbox()...) {
				moved = true
				m.receive(i, mail)
				if err := m.sides[1-i].Delivered(mail.ID); err != nil {
					m.t.Fatal(err)
				}
			}
			m.wire[i] = nil
		}
		if !moved {
			return
		}
	}
	m.t.Fatal("mail never ends")
}

// conclude lets all mail arrive and people approve what waits, until nothing moves.
func (m *model) conclude() {
	for range 10 {
		m.settle()
		moved := m.meet()
		for i, x := range m.sides {
			if len(x.Incoming()) > 0 {
				moved = true
				_, err := x.Approve(m.sides[1-i].pub(), ApproveOptions{})
				m.did(err, "%s approves in the end", x.name)
				if err != nil {
					m.t.Fatal(err)
				}
			}
		}
		if !moved {
			return
		}
	}
	m.t.Fatalf("requests never end\n%s", strings.Join(m.log, "\n"))
}

// agreement is what must hold when all mail has arrived and nobody waits for a
// decision: the same terms on both sides wherever there is a common slot, and one unless
// a state was lost.
func (m *model) agreement() error {
	a, b := m.sides[0], m.sides[1]
	x, y := m.slots(0), m.slots(1)
	if common(x, y) {
		p, _ := a.Peer(b.pub())
		q, _ := b.Peer(a.pub())
		if p.In.String() != q.Out.String() || q.In.String() != p.Out.String() {
			return fmt.Errorf("alice has in %s, out %s; bob has in %s, out %s", p.In, p.Out, q.In, q.Out)
		}
	}
	switch {
	case len(x) == 0 && len(y) == 0:
		return nil
	case m.wiped && (len(x) == 0 || len(y) == 0 || common(x, y)):
		return nil // a request from before the loss may have been granted in vain
	case len(x) == 0 || len(y) == 0:
		return fmt.Errorf("%d slots against %d", len(x), len(y))
	}
	if last, other := x[len(x)-1], y[len(y)-1]; last.ID != other.ID {
		return fmt.Errorf("newest slots differ: %x and %x", last.ID[:3], other.ID[:3])
	} else if err := slotsMatch(last, other); err != nil {
		return err
	}
	return nil
}

func common(x, y []*Slot) bool {
	return slices.ContainsFunc(x, func(s *Slot) bool {
		return slices.ContainsFunc(y, func(o *Slot) bool { return slotsMatch(s, o) == nil })
	})
}
