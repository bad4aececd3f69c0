package trust

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/trust/crashtest"
)

// A crashStep is what bob does to one of his peers.
type crashStep struct {
	peer int
	what string
}

const crashPeers = 6

// crashPlan is the same in the traced process and in the test. Each kind of step
// is possible whenever it comes, or does nothing.
func crashPlan(arg int) (plan []crashStep) {
	rng := rand.New(rand.NewPCG(uint64(arg), 3))
	for range 60 {
		kinds := []string{"grant", "grant", "grant", "revoke", "revoke", "block", "unblock", "meta", "reopen"}
		plan = append(plan, crashStep{rng.IntN(crashPeers), kinds[rng.IntN(len(kinds))]})
	}
	return plan
}

// A crashState is what must be known of a peer.
type crashState struct {
	trusted, blocked, cut bool
	meta                  int
}

func (s crashStep) apply(i int, st *crashState) {
	switch s.what {
	case "grant":
		st.trusted = st.trusted || !st.blocked
	case "revoke":
		st.cut = st.cut || st.trusted
		st.trusted = false
	case "block":
		st.trusted, st.blocked, st.cut = false, true, true
	case "unblock":
		st.blocked = false
	case "meta":
		st.meta = i + 1
	}
}

func crashBob(t testing.TB, dir string, sync bool) *party {
	p := &party{t: t, name: "bob", dir: dir, now: epoch, boot: time.Hour}
	p.key = crypto.NewPrivateKey(sha256.Sum256([]byte(p.name)))
	var err error
	if p.seal, err = crypto.NewSealPrivate(sha256.Sum256([]byte("seal " + p.name))); err != nil {
		t.Fatal(err)
	}
	p.tweak = func(c *Config) { c.NoSync = !sync }
	return p
}

// crashWork carries out the plan in a directory, and tells of each step when the
// store said that it is done.
func crashWork(t *testing.T, dir string, arg int) {
	bob := crashBob(t, dir, true)
	if arg%2 == 1 { // a revocation file that has to grow
		if err := createCuts(filepath.Join(dir, RevocationFile), 4, true); err != nil {
			t.Fatal(err)
		}
	}
	bob.open()
	defer func() { bob.Close() }()
	peers := crashParties(t)
	for i, step := range crashPlan(arg) {
		p := peers[step.peer]
		trusted, blocked := step.begins(bob, p)
		var err error
		switch {
		case step.what == "grant" && !trusted && !blocked:
			p.ask(bob, "80", "7")
			p.send(bob)
			bob.approve(p)
		case step.what == "revoke" && trusted:
			err = bob.Revoke(p.pub())
		case step.what == "block":
			err = bob.Block(p.pub())
		case step.what == "unblock" && blocked:
			err = bob.Unblock(p.pub())
		case step.what == "meta":
			err = bob.PutMeta(p.name, fmt.Append(nil, i+1))
		case step.what == "reopen":
			bob.reopen()
		}
		if err != nil {
			t.Fatal(err)
		}
		crashtest.Ack(i)
		settle(bob, p)
	}
}

// crashCheck opens what a power failure left. What was acknowledged must be there;
// the step that was under way may be.
func crashCheck(t *testing.T, dir string, plan []crashStep, acked []int) (err error) {
	var want, next [crashPeers]crashState
	for i, step := range plan {
		if i < len(acked) {
			step.apply(i, &want[step.peer])
			next = want
		} else if i == len(acked) {
			step.apply(i, &next[step.peer])
		}
	}
	bob := crashBob(t, dir, false)
	bob.now = epoch.Add(time.Hour)
	if bob.Store, err = Open(bob.config()); err != nil {
		return err
	}
	defer bob.Close()
	for i := range want {
		key := crypto.NewPrivateKey(sha256.Sum256(fmt.Append(nil, "peer", i))).Public()
		got := crashFound(bob, i, key)
		if got != want[i] && got != next[i] {
			return fmt.Errorf("peer %d is %+v, want %+v or %+v", i, got, want[i], next[i])
		}
	}
	return bob.PutMeta("after", []byte("x")) // it can be written, too
}

// crashFound is what a store knows of a peer.
func crashFound(bob *party, i int, key crypto.PublicKey) (got crashState) {
	_, got.trusted = bob.Peer(key)
	got.blocked = slices.Contains(bob.Blocked(), key)
	got.cut = bob.book[key] != nil && bob.book[key].Cut != 0
	if v, ok := bob.GetMeta(fmt.Sprint("peer", i)); ok {
		fmt.Sscan(string(v), &got.meta)
	}
	return got
}

// TestHostilePowerFailure: whenever the power fails, and whatever of the unsynced
// bytes and names survives, the store can be opened and holds all that was
// acknowledged: trust, revocations, blocks and the caller's own records.
func TestHostilePowerFailure(t *testing.T) {
	crashtest.Test{
		Work:  func(dir string, plan int) error { crashWork(t, dir, plan+1); return nil },
		Check: func(dir string, plan int, acked []int) error { return crashCheck(t, dir, crashPlan(plan+1), acked) },
		Syncs: 60, Changes: 100, Seeds: 60, Hostile: 10_000, Plans: 20,
	}.Run(t)
}

func crashParties(t *testing.T) []*party {
	peers := make([]*party, crashPeers)
	for i := range peers {
		peers[i] = newParty(t, fmt.Sprint("peer", i))
	}
	return peers
}

// begins moves the clocks on to a step with p, and says how bob stands with it.
func (step crashStep) begins(bob, p *party) (trusted, blocked bool) {
	bob.now, bob.boot = bob.now.Add(time.Second), bob.boot+time.Second
	p.now = bob.now
	_, trusted = bob.Peer(p.pub())
	return trusted, slices.Contains(bob.Blocked(), p.pub())
}
