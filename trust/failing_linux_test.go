package trust

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/trust/crashtest"
)

// failingWork carries out a plan on a disk that fails: one sync of a step, or
// everything from some step to another. It wants at once what must hold whatever the
// disk does: after an error the memory is as before, a revocation is in force and the
// user is told if it will not last. Ack(2i) is a step that is done, Ack(2i+1) one that
// may be: the user was told an error.
func failingWork(t *testing.T, dir string, arg int) {
	rng := rand.New(rand.NewPCG(uint64(arg), 5))
	bob := crashBob(t, dir, true)
	bob.open()
	defer func() { bob.Close() }()
	peers, doubts, kept := crashParties(t), 0, 0
	for i, step := range crashPlan(arg) {
		p := peers[step.peer]
		trusted, blocked := step.begins(bob, p)
		if bob.broken != nil && step.what == "grant" { // no mail can be taken: the user does what he is told
			bob.reopen()
			_, trusted = bob.Peer(p.pub())
		}
		if step.what == "grant" && !trusted && !blocked {
			p.ask(bob, "80", "7")
			p.send(bob)
		}
		dead := rng.IntN(4) == 0
		if dead {
			crashtest.FailAll()
		} else if step.what == "meta" {
			crashtest.FailSync(1) // of the page that ends a transaction
		} else if rng.IntN(4) > 0 {
			crashtest.FailSync(rng.IntN(4))
		}
		var err error
		switch {
		case step.what == "grant" && !trusted && !blocked && len(bob.Incoming()) > 0:
			if _, err = bob.Approve(p.pub(), ApproveOptions{}); err != nil {
				if _, now := bob.Peer(p.pub()); now {
					t.Fatalf("step %d: an approval that failed (%v) is in force", i, err)
				}
			}
		case step.what == "grant" && !trusted:
			err = errors.New("nothing was asked")
		case step.what == "revoke" && trusted || step.what == "block":
			if step.what == "block" {
				err = bob.Block(p.pub())
			} else {
				err = bob.Revoke(p.pub())
			}
			if _, now := bob.Peer(p.pub()); now {
				t.Fatalf("step %d: %s is not in force: %v", i, step.what, err)
			}
			if err != nil && !strings.Contains(err.Error(), "in force, but lost with a restart") {
				t.Fatalf("step %d: the user is told %v", i, err)
			}
			if err == nil && dead {
				t.Fatalf("step %d: nothing was written, and the user is not told", i)
			}
		case step.what == "unblock" && blocked:
			err = bob.Unblock(p.pub())
		case step.what == "meta":
			before, _ := bob.GetMeta(p.name)
			if err = bob.PutMeta(p.name, fmt.Append(nil, i+1)); err != nil {
				if now, _ := bob.GetMeta(p.name); string(now) != string(before) {
					t.Fatalf("step %d: a record that was not kept (%v) is there", i, err)
				}
			}
		case step.what == "revoke", step.what == "unblock":
			err = errors.New("there is nothing to take back")
		}
		crashtest.Heal()
		if i%2 == 0 && errors.Is(err, ErrNotKept) && bob.broken == nil {
			if err = bob.Retry(); err != nil || bob.Trouble() != nil {
				t.Fatalf("step %d: the disk works again: %v, %v", i, err, bob.Trouble())
			}
			kept++
		}
		done := 2 * i
		if err != nil {
			done++
		}
		crashtest.Ack(done)
		if bob.broken != nil {
			doubts++
		}
		if step.what == "reopen" || rng.IntN(3) == 0 {
			bob.reopen() // what was left can be read, whatever failed
		}
	}
	if doubts == 0 {
		t.Fatal("no sync failed at the end of a transaction")
	}
	if arg == 1 && kept == 0 {
		t.Fatal("no revocation had to wait for the disk")
	}
}

// failingCheck opens what was left, at any moment and after a power failure, too.
func failingCheck(t *testing.T, dir string, plan []crashStep, acked []int) (err error) {
	// What may be of each peer: a step that failed, and the one under way, may be done.
	may := make([]map[crashState]bool, crashPeers)
	for i := range may {
		may[i] = map[crashState]bool{{}: true}
	}
	for i, step := range plan {
		if i > len(acked) {
			break
		}
		next := map[crashState]bool{}
		for s := range may[step.peer] {
			if i == len(acked) || acked[i]%2 == 1 {
				next[s] = true
			}
			step.apply(i, &s)
			next[s] = true
		}
		may[step.peer] = next
	}
	bob := crashBob(t, dir, false)
	bob.now = epoch.Add(time.Hour)
	if bob.Store, err = Open(bob.config()); err != nil {
		return err
	}
	defer bob.Close()
	for i := range may {
		key := crypto.NewPrivateKey(sha256.Sum256(fmt.Append(nil, "peer", i))).Public()
		if got := crashFound(bob, i, key); !may[i][got] {
			return fmt.Errorf("peer %d is %+v, which is none of %+v", i, got, may[i])
		}
	}
	return bob.PutMeta("after", []byte("x"))
}

// TestHostileFailingDisk: single syncs fail, on every page of the store and on the
// revocation file, and everything does for a while. Memory and disk do not part, the
// user is told, and after any restart or power failure the store can be opened and
// holds what was acknowledged.
func TestHostileFailingDisk(t *testing.T) {
	crashtest.Test{
		Work:  func(dir string, plan int) error { failingWork(t, dir, plan+1); return nil },
		Check: func(dir string, plan int, acked []int) error { return failingCheck(t, dir, crashPlan(plan+1), acked) },
		Syncs: 30, Changes: 60, Seeds: 60, Hostile: 10_000, Plans: 40,
	}.Run(t)
}
