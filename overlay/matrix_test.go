package overlay

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/pilotnet/pilot/natt/natlab"
)

// Which kinds of NAT meet directly, and which stay on the relay. Everybody
// reaches everybody.
func TestEveryKindOfNAT(t *testing.T) {
	hard := func(k natlab.Kind) bool { return k == natlab.Sym || k == natlab.SymAddr || k == natlab.SymSeq }
	filters := func(k natlab.Kind) bool {
		return hard(k) || k == natlab.Firewall || k == natlab.Port || k == natlab.Linux || k == natlab.Docker
	}
	kinds := natlab.Kinds()
	for i, a := range kinds {
		for _, b := range kinds[i:] {
			want := "direct"
			if hard(a) && filters(b) || hard(b) && filters(a) {
				want = "relay"
			}
			t.Run(a.String()+"-"+b.String(), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { meet(t, a, b, want) })
			})
		}
	}
}

func meet(t *testing.T, a, b natlab.Kind, want string) {
	w := newWorldWith(t, true)
	defer w.close()
	alice, bob := w.agent("alice", a), w.agent("bob", b)
	w.befriend(alice, bob, "7", "7")
	if r := stream(alice, bob, 1500, time.Millisecond); r.lost != 0 || r.twice != 0 {
		t.Errorf("%+v", r)
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
