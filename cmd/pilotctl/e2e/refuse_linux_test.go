package e2e_test

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestExpiredTrust: trust that was asked for six seconds ends by itself, on both
// sides, with what was under way.
func TestExpiredTrust(t *testing.T) {
	t.Parallel()
	l := newLab(t, "port", "linux")
	s := l.server(t)
	alice, bob := l.agent(t, "a1", "alice"), l.agent(t, "b1", "bob")
	alice.up(t, s)
	bob.up(t, s)
	l.website(t, "b1", "[::]:8080")
	alice.pilot(t, "trust", "request", bob.id(t).Contact, "--reason", "a short visit", "--ports", "8080", "--ttl", "6s")
	within(t, 10*time.Second, "the request is there", func() bool { return len(bob.status(t).Requests) > 0 })
	bob.pilot(t, "trust", "approve", "alice")
	within(t, 10*time.Second, "the grant is there", func() bool { return alice.peer(t, "bob").Out == "8080" })
	if o := alice.run(t, "curl", "-sS", "-m", "3", bobURL); o.stdout != page {
		t.Error(o)
	}
	within(t, 20*time.Second, "trust has expired", func() bool { return bob.peer(t, "alice").Trust != "active" })
	if o := alice.run(t, "curl", "-sS", "-m", "2", bobURL); o.status == 0 {
		t.Error("curl still works")
	}
	for _, a := range []*agent{alice, bob} {
		peer := map[string]string{"alice": "bob", "bob": "alice"}[a.name]
		a.refused(t, 5, []string{"trust with " + peer + " has expired", "hint: ask again: pilotctl trust request"}, "ping", peer, "-c", "1")
	}
}

// TestWrongInput: what users get wrong, and what their machines lack, ends with
// the right exit status and the next step.
func TestWrongInput(t *testing.T) {
	t.Parallel()
	l := newLab(t, "port", "linux")
	s := l.server(t)
	alice, bob := l.agent(t, "a1", "alice"), l.agent(t, "b1", "bob")
	l.website(t, "b1", "[::]:8080")
	alice.up(t, s)
	bob.up(t, s)
	trust(t, alice, bob, "8080")

	t.Run("wrong server key", func(t *testing.T) {
		wrong := strings.TrimSpace(l.output(t, "rdv", "pilotctl", "server", "key", "--state-dir", filepath.Join(l.dir, "other")))
		a := l.agent(t, "a2", "mallory")
		a.refused(t, 6, []string{"192.0.2.10 connecting: ", "key", a.state + "/daemon.log"}, "up", "--name", "mallory", "--server", "192.0.2.10#"+wrong, "--wait", "3s")
		a.pilot(t, "down")
	})
	t.Run("no server key", func(t *testing.T) {
		l.agent(t, "a2", "carol").refused(t, 2, []string{"HOST[:PORT]#KEY", "hint: "}, "up", "--server", "192.0.2.10")
	})
	t.Run("store", func(t *testing.T) { testDamagedStore(t, alice) })
	t.Run("contact", func(t *testing.T) {
		own := alice.id(t).Contact
		for _, c := range []struct {
			contact string
			status  int
			says    string
		}{
			{"bob", 2, "is no contact"},
			{own[:len(own)-20], 2, "contact"},
			{"1:0000.8c32.38e6" + own[strings.Index(own, "#"):], 2, "contact"},
			{own, 2, "your own contact"},
			{"0:0000.540a.4b3e#lswlibi5cbcytk74qraxmkrll4@192.0.2.10", 4, "knows no agent"},
			{"0:0000.540a.4b3e#lswlibi5cbcytk74qraxmkrll4@192.0.2.10:9", 6, "192.0.2.10:9"},
		} {
			alice.refused(t, c.status, []string{c.says, "hint: "}, "trust", "request", c.contact, "--reason", "a test")
		}
	})
	t.Run("token", func(t *testing.T) {
		token := invite(t, alice, "8080", "1h")
		alice.refused(t, 2, []string{"hint: "}, "trust", "accept", token[:len(token)-9])
		alice.refused(t, 2, []string{"hint: "}, "trust", "accept", token)
	})
	t.Run("second daemon", func(t *testing.T) {
		alice.refused(t, 7, []string{"pilotctl down"}, "daemon", "run")
		// Another socket does not help: the store is locked.
		alice.refused(t, 7, []string{"pilotctl down"}, "daemon", "run", "--socket", filepath.Join(l.dir, "other.sock"))
		// Nor does another agent in the same network.
		carol := &agent{lab: l, host: "a1", name: "carol", state: filepath.Join(l.dir, "carol"), hosts: alice.hosts}
		carol.refused(t, 7, []string{"hint: "}, "up", "--server", s.name)
	})
	alice.pilot(t, "down")
	t.Run("no root", func(t *testing.T) { testNoRoot(t, alice) })
	t.Run("no TUN", func(t *testing.T) {
		o := finish(t, alice.prepared(t.Context(), "mount -t tmpfs none /dev/net || exit 125;", "pilotctl", "up", "--tun", "pilot0"))
		wantRefusal(t, o, 8, "/dev/net/tun", "hint: ", "modprobe tun", "--device /dev/net/tun")
	})
	t.Run("IPv6 off", func(t *testing.T) {
		// Off for all interfaces, and for those to come: ours switches it on
		// for itself.
		alice.run(t, "sh", "-c", "for f in all default; do echo 1 >/proc/sys/net/ipv6/conf/$f/disable_ipv6; done")
		alice.pilot(t, "up")
		if o := alice.run(t, "curl", "-sS", "-m", "10", bobURL); o.stdout != page {
			t.Error(o)
		}
		alice.pilot(t, "down")
		// Where /proc/sys may only be read, as in a container, it cannot.
		o := finish(t, alice.prepared(t.Context(), "mount --bind -o ro /proc/sys /proc/sys || exit 125;", "pilotctl", "up", "--tun", "pilot0"))
		wantRefusal(t, o, 8, "IPv6", "hint: ", "net.ipv6.conf.all.disable_ipv6=0")
	})
}

// testDamagedStore: a store that was cut in half, or has a damaged page, is an
// error that says what is lost and what is not.
func testDamagedStore(t *testing.T, a *agent) {
	a.pilot(t, "down")
	path := filepath.Join(a.state, "store.db")
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(good)
	page := flipped[rootPage(good)*boltPage:][:boltPage]
	for i := range page {
		page[i] ^= 0xff
	}
	for name, bad := range map[string][]byte{"cut in half": good[:len(good)/2], "flipped page": flipped} {
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		t.Logf("%s, %d of %d bytes", name, len(bad), len(good))
		a.refused(t, 1, []string{"store.db", "damaged", "hint: ", "backup", "address stays"}, "up")
		if a.daemon() != 0 {
			t.Error("a daemon runs")
		}
	}
	if err := os.WriteFile(path, good, 0o600); err != nil {
		t.Fatal(err)
	}
	a.pilot(t, "up")
}

const boltPage = 4096

// rootPage is the page of a bbolt file from which all others are found; many of
// the others are free, and nobody looks at those. Each of the first two pages is
// a header of 16 bytes and then, among others, the root at 16 and the number of
// the transaction at 48; the later one holds.
func rootPage(file []byte) uint64 {
	meta := func(page, field int) uint64 { return binary.NativeEndian.Uint64(file[page*boltPage+16+field:]) }
	if meta(1, 48) > meta(0, 48) {
		return meta(1, 16)
	}
	return meta(0, 16)
}

// testNoRoot: nobody can make an agent, but not start it with a device.
func testNoRoot(t *testing.T, a *agent) {
	dir := filepath.Join(a.lab.dir, "nobody")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	const nobody = 65534
	if err := os.Chown(dir, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	n := &agent{lab: a.lab, host: a.host, name: "nobody", state: filepath.Join(dir, "state"), hosts: a.hosts}
	as := []string{"setpriv", "--reuid", itoa(nobody), "--regid", itoa(nobody), "--clear-groups", "pilotctl"}
	if o := n.run(t, append(as, "init")...); o.status != 0 {
		t.Fatal(o)
	}
	wantRefusal(t, n.run(t, append(as, "up", "--tun", "pilot0")...), 8, "hint: ", "root", "CAP_NET_ADMIN")
}
