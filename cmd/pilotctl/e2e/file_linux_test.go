package e2e_test

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestFiles: the data exchange as curl and pilotctl see it, by name, with both
// sides killed in the middle, a peer that is away and one without the port.
func TestFiles(t *testing.T) {
	t.Parallel()
	l := newLab(t, "port", "linux")
	s := l.server(t)
	alice, bob, carol := l.agent(t, "a1", "alice"), l.agent(t, "b1", "bob"), l.agent(t, "a2", "carol")
	for _, a := range []*agent{alice, bob, carol} {
		a.up(t, s)
	}
	trust(t, alice, bob, "7,1001")
	trust(t, carol, bob, "7")
	small, big := l.noise(t, "small.bin", 10_000), l.noise(t, "big.bin", 200<<20)

	t.Run("curl", func(t *testing.T) {
		base := "http://bob.pilot.internal:1001/v1/"
		curl := func(want string, args ...string) {
			t.Helper()
			if o := alice.run(t, append([]string{"curl", "-sS", "-m", "20", "-o", "/dev/null", "-w", "%{http_code}"}, args...)...); o.stdout != want {
				t.Errorf("curl %v: %s, want %s", args, o, want)
			}
		}
		curl("201", "-T", small, base+"files/small.bin")
		curl("409", "-T", small, base+"files/small.bin")
		curl("201", "--json", `{"n":1}`, base+"messages")
		curl("400", "-T", small, "--path-as-is", base+"files/..%2f..%2fstore.db")
		curl("413", "-H", "Content-Length: 2000000000", "-H", "Expect: 100-continue", "-X", "PUT", "--data-binary", "x", base+"files/huge")
		bob.pilot(t, "file", "cp", small, "share:offer.bin")
		curl("206", "-r", "100-199", base+"files/offer.bin")
		if o := alice.run(t, "curl", "-sS", base+"files/"); !strings.Contains(o.stdout, `"offer.bin"`) {
			t.Errorf("%s", o)
		}
	})
	t.Run("inbox", func(t *testing.T) {
		out := bob.pilot(t, "file", "inbox")
		if !strings.Contains(out, "small.bin") || !strings.Contains(out, "message application/json") || !strings.Contains(out, "alice") {
			t.Errorf("%s", out)
		}
		to := filepath.Join(l.dir, "taken.bin")
		bob.pilot(t, "file", "get", "inbox:alice/small.bin", to)
		wantSame(t, small, to)
		bob.pilot(t, "file", "rm", "inbox:alice/small.bin")
	})
	t.Run("get", func(t *testing.T) {
		to := filepath.Join(l.dir, "offer.bin")
		alice.pilot(t, "file", "get", "bob:offer.bin", to)
		wantSame(t, small, to)
	})
	t.Run("outside the scope", func(t *testing.T) {
		carol.refused(t, 5, []string{"does not let this agent reach"}, "file", "ls", "bob")
		if o := carol.run(t, "curl", "-sS", "-m", "3", "http://bob.pilot.internal:1001/v1/"); o.status == 0 {
			t.Errorf("%s", o)
		}
	})
	t.Run("killed sender", func(t *testing.T) {
		c := alice.command(t.Context(), "pilotctl", "file", "cp", big, "bob:one.bin")
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		within(t, 20*time.Second, "a part is there", func() bool { return bob.unfinished() > 20<<20 })
		c.Process.Kill()
		c.Wait()
		alice.pilot(t, "file", "cp", big, "bob:one.bin")
		wantSame(t, big, bob.received(t, "one.bin"))
	})
	t.Run("killed receiver", func(t *testing.T) {
		ended := make(chan outcome)
		go func() { ended <- alice.run(t, "pilotctl", "file", "cp", big, "bob:two.bin", "--patience", "2m") }()
		within(t, 20*time.Second, "a part is there", func() bool { return bob.unfinished() > 20<<20 })
		bob.kill(t)
		part := bob.unfinished()
		bob.up(t, s)
		if o := <-ended; o.status != 0 {
			t.Fatalf("%s", o)
		}
		t.Logf("%d MiB of 200 had arrived when the daemon was killed", part>>20)
		wantSame(t, big, bob.received(t, "two.bin"))
	})
	t.Run("queue", func(t *testing.T) {
		bob.kill(t)
		o := alice.run(t, "pilotctl", "file", "cp", small, "bob:later.bin", "--queue")
		if o.status != 0 || !strings.HasPrefix(o.stdout, "queued") {
			t.Fatalf("%s", o)
		}
		alice.kill(t)
		alice.up(t, s)
		bob.up(t, s)
		within(t, 90*time.Second, "the queue is empty", func() bool {
			return strings.HasPrefix(alice.run(t, "pilotctl", "file", "ls", "queue").stdout, "nothing")
		})
		wantSame(t, small, bob.received(t, "later.bin"))
	})
}

// noise writes a file that all agents may read.
func (l *lab) noise(t *testing.T, name string, size int64) string {
	t.Helper()
	path := filepath.Join(l.dir, name)
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := io.CopyN(f, rand.NewChaCha8([32]byte{1}), size); err != nil {
		t.Fatal(err)
	}
	return path
}

// unfinished is how much of uploads lies with an agent.
func (a *agent) unfinished() (n int64) {
	parts, _ := filepath.Glob(filepath.Join(a.state, "exchange", "*", "uploads", "????????????????????????????????"))
	for _, p := range parts {
		if info, err := os.Stat(p); err == nil {
			n += info.Size()
		}
	}
	return n
}

// received is the path of a file in the inbox.
func (a *agent) received(t *testing.T, name string) string {
	t.Helper()
	found, _ := filepath.Glob(filepath.Join(a.state, "exchange", "*", "files", name))
	if len(found) != 1 {
		t.Fatalf("%s in the inbox: %v", name, found)
	}
	return found[0]
}

func wantSame(t *testing.T, want, got string) {
	t.Helper()
	sum := func(path string) string {
		f, err := os.Open(path)
		if err != nil {
			return fmt.Sprint(err)
		}
		defer f.Close()
		h := sha256.New()
		io.Copy(h, f)
		return hex.EncodeToString(h.Sum(nil))
	}
	if w, g := sum(want), sum(got); w != g {
		t.Errorf("%s is %s, want %s", got, g, w)
	}
}
