package overlay

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/pilotnet/pilot/natt/natlab"
)

// Which kinds of NAT meet directly, and which stay on the relay. Everybody
// reaches everybody. Two hard NATs meet only if both count their ports.
func TestLongEveryKindOfNAT(t *testing.T) {
	hard := func(k natlab.Kind) bool { return k == natlab.Sym || k == natlab.SymAddr || k == natlab.SymSeq }
	kinds := natlab.Kinds()
	for i, a := range kinds {
		for j, b := range kinds[i:] {
			if raceEnabled && (j > 1 || j == 1 && i%2 == 1) {
				break // each with itself, some with a neighbour; all without the detector
			}
			want := "direct"
			if hard(a) && hard(b) && !(a == natlab.SymSeq && b == natlab.SymSeq) {
				want = "relay"
			}
			t.Run(a.String()+"-"+b.String(), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { meet(t, a, b, want, hard(a) != hard(b)) })
			})
		}
	}
}

func meet(t *testing.T, a, b natlab.Kind, want string, search bool) {
	w := newWorldWith(t, true)
	defer w.close()
	alice, bob := w.agent("alice", a), w.agent("bob", b)
	w.befriend(alice, bob, "7", "7")
	eventually(t, "both know each other", func() bool {
		return alice.plane.snapshot.Load().peers[bob.cfg.Identity.Node] != nil && bob.plane.snapshot.Load().peers[alice.cfg.Identity.Node] != nil
	})
	began := time.Now()
	go func() {
		for time.Since(began) < 10*time.Second && alice.peer("bob").Path != "direct" {
			pass(20 * time.Millisecond)
		}
		if d := time.Since(began); d > 600*time.Millisecond {
			t.Logf("direct after %v", d)
		}
	}()
	if r := stream(alice, bob, 2000, 5*time.Millisecond); r.lost != 0 || r.twice != 0 {
		t.Errorf("%+v", r)
	}
	if search {
		untilMet(t, alice, bob)
	}
	for _, v := range []struct {
		at *agent
		of string
	}{{alice, "bob"}, {bob, "alice"}} {
		p := v.at.peer(v.of)
		if p.Path != want || (p.WhyNot == "") != (want == "direct") {
			t.Errorf("%s sees %s by %q, want %q; why not direct: %q", v.at.cfg.Name, v.of, p.Path, want, p.WhyNot)
		}
	}
}
