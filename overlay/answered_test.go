package overlay

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/natt"
	"github.com/pilotnet/pilot/natt/natlab"
)

// fileOfAnswers is on disks of users: another name would forget what was answered.
const fileOfAnswers = "handshakes"

func TestAnsweredSurvivesARestart(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, fileOfAnswers)
	run := func(f func(a *answerLog)) {
		t.Helper()
		a, err := openAnswerLog(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer a.close()
		f(a)
	}
	note := func(a *answerLog, from, to int) {
		t.Helper()
		for i := from; i < to; i++ {
			if err := a.note(testMAC(i)); err != nil {
				t.Fatal(err)
			}
		}
	}
	run(func(a *answerLog) {
		note(a, 0, 3)
		if err := a.sync()(); err != nil || a.sync() != nil {
			t.Errorf("sync: %v, then dirty %v", err, a.dirty)
		}
	})
	// Cut in the middle of a record: the whole ones count, the next takes its place.
	if err := os.Truncate(path, 20); err != nil {
		t.Fatal(err)
	}
	run(func(a *answerLog) {
		for i, want := range []bool{true, true, false} {
			if got := a.before(testMAC(i)); got != want {
				t.Errorf("record %d: %v, want %v", i, got, want)
			}
		}
		note(a, 3, 4)
	})
	run(func(a *answerLog) {
		if !a.before(testMAC(1)) || !a.before(testMAC(3)) {
			t.Error("a record was lost after the cut one")
		}
		note(a, 10, 10+2*answeredMax)
	})
	run(func(a *answerLog) {
		if !a.before(testMAC(9+2*answeredMax)) || a.before(testMAC(1)) {
			t.Error("the newest are not known, or the oldest still are")
		}
		if len(a.old) > 2*answeredMax {
			t.Errorf("%d records", len(a.old))
		}
	})
}

// Whoever recorded the INITs of a peer hears nothing when he sends them to the
// agent that was restarted meanwhile; the peer itself is answered.
func TestReplayAfterRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, alice, bob := befriended(t, natlab.None, natlab.None)
		defer w.close()
		var mu sync.Mutex
		var inits [][]byte
		var replies int
		stranger := w.net.Host("stranger")
		elsewhere := stranger.Addr()
		target := netip.AddrPortFrom(bob.host.Addr(), bob.plane.conn.LocalAddr().Port())
		w.net.Capture(func(_, to netip.AddrPort, b []byte) {
			mu.Lock()
			defer mu.Unlock()
			if to.Addr() == elsewhere {
				replies++
			}
			if to == target && len(b) == crypto.InitSize && b[0] == byte(crypto.TypeInit) {
				inits = append(inits, append([]byte(nil), b...))
			}
		})
		count := func() (n, r int) { mu.Lock(); defer mu.Unlock(); return len(inits), replies }
		alice.pathTo("bob", "direct")
		for end := time.Now().Add(20 * time.Minute); time.Now().Before(end); pass(time.Second) {
			alice.send(bob, 1, 64)
			if n, _ := count(); n >= 3 {
				break
			}
		}
		if n, _ := count(); n < 3 {
			t.Fatalf("%d INITs came directly", n)
		}
		// All that came is shown to a run that has not seen it.
		for range 2 {
			bob.stop()
			bob.start()
			bob.registered()
		}
		seen := bob.plane.drops.counts()[dropNames[dropInInitSeen]]
		conn := stranger.Listen(4000)
		defer conn.Close()
		mu.Lock()
		recorded := append([][]byte(nil), inits...)
		mu.Unlock()
		for _, b := range recorded {
			if _, err := conn.WriteBatch([]natt.Message{{Buf: b, Addr: target}}); err != nil {
				t.Fatal(err)
			}
			pass(time.Second)
		}
		if _, r := count(); r != 0 {
			t.Errorf("%d replies to the stranger", r)
		}
		if got := bob.plane.drops.counts()[dropNames[dropInInitSeen]] - seen; got != uint64(len(recorded)) {
			t.Errorf("%d of %d dropped as seen", got, len(recorded))
		}
		alice.pathTo("bob", "direct")
	})
}

// FuzzAnswered: whatever file an earlier run left, its whole records are known, and
// what is noted then is known to the next run beside them.
func FuzzAnswered(f *testing.F) {
	f.Add([]byte("first888second88"), []byte("older888"))
	f.Add([]byte("cut"), []byte{})
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, file, old []byte) {
		for name, b := range map[string][]byte{fileOfAnswers: file, fileOfAnswers + ".old": old} {
			if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		known := func(a *answerLog) {
			for _, b := range [][]byte{file, old} {
				for ; len(b) >= 8; b = b[8:] {
					if !a.before([16]byte(append(b[:8:8], make([]byte, 8)...))) {
						t.Fatalf("%x of %x and %x is forgotten", b[:8], file, old)
					}
				}
			}
		}
		a, err := openAnswerLog(dir)
		if err != nil {
			t.Fatal(err)
		}
		known(a)
		mac := [16]byte{1, 2, 3, 4, 5, 6, 7, 8}
		if err := errors.Join(a.note(mac), a.close()); err != nil {
			t.Fatal(err)
		}
		if a, err = openAnswerLog(dir); err != nil {
			t.Fatal(err)
		}
		defer a.close()
		known(a)
		if !a.before(mac) {
			t.Fatalf("behind %x nothing is remembered", file)
		}
	})
}
