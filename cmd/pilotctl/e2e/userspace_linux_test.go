package e2e_test

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const nobody = 65534

// nobody makes an agent of the user nobody, who has no capability and can get none,
// with its files where that user's are. It is not up yet.
func (l *lab) nobody(t *testing.T, host, name string) *agent {
	t.Helper()
	a := l.machine(t, host, name)
	home := filepath.Join(l.dir, "home-"+name)
	a.state = filepath.Join(home, ".local", "state", "pilot")
	id, err := os.ReadFile(filepath.Join(root, "ipam", "testdata", name+".identity"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(a.state, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(a.state, "identity"), id, 0o600); err != nil {
		t.Fatal(err)
	}
	for dir := a.state; dir != l.dir; dir = filepath.Dir(dir) {
		if err := os.Chown(dir, nobody, nobody); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(filepath.Join(a.state, "identity"), nobody, nobody); err != nil {
		t.Fatal(err)
	}
	a.as = []string{"env", "-u", "PILOT_STATE_DIR", "HOME=" + home, "setpriv", "--reuid", itoa(nobody), "--regid", itoa(nobody),
		"--clear-groups", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"}
	return a
}

// proxied is the agent's machine in a shell that has the exports of "proxy env".
func (a *agent) proxied() *agent {
	b := &agent{lab: a.lab, host: a.host, name: a.name, state: a.state, hosts: a.hosts}
	b.as = append(append(b.as, a.as...), "sh", "-c", `eval "$(pilotctl proxy env)"; exec "$@"`, "sh")
	return b
}

// TestUserspace: an ordinary user without any right is an agent. Programs beside
// it reach peers by name through its proxy, peers reach what it serves, every byte
// is right, and who calls is known on both sides. 100 MiB each way with
// PILOT_LONG=1.
func TestUserspace(t *testing.T) {
	t.Parallel()
	size := 5
	if os.Getenv("PILOT_LONG") == "1" {
		size = 100
	}
	l := newLab(t, "port", "linux")
	s := l.server(t)
	alice, bob, carol := l.nobody(t, "a1", "alice"), l.agent(t, "b1", "bob"), l.agent(t, "a2", "carol")
	out := alice.pilot(t, "up", "--name", "alice", "--server", s.name)
	t.Logf("%s", out)
	for _, says := range []string{"userspace (tun: ", "/dev/net/tun", `eval "$(pilotctl proxy env)"`} {
		if !strings.Contains(out, says) {
			t.Errorf("up does not say %q", says)
		}
	}
	noRights(t, alice)
	bob.up(t, s)
	carol.up(t, s)
	trust(t, alice, bob, "7,1001-1003,8080", "--offer", "7,80")
	trust(t, carol, bob, "8080,8090")
	site := l.website(t, "b1", "[::]:8080", size)
	own := l.website(t, "a1", "127.0.0.1:8000", size)
	direct(t, alice, bob)
	shell := alice.proxied()

	t.Run("there", func(t *testing.T) {
		if o := shell.run(t, "curl", "-sS", "-m", "10", bobURL); o.stdout != page {
			t.Fatal(o)
		}
		site.download(t, shell, bobURL, size)
		direct(t, carol, bob)
		site.download(t, carol, bobURL, size) // with a device, to compare
		if o := shell.run(t, "curl", "-sS", "-m", "10", "http://"+bob.reach(t, "8080")+"/"); o.stdout != page {
			t.Errorf("by address: %s", o)
		}
	})
	t.Run("back", func(t *testing.T) {
		alice.pilot(t, "serve", "http", "8000", "--port", "80")
		const url = "http://alice.pilot.internal/"
		within(t, 10*time.Second, "bob reaches what alice serves", func() bool {
			return bob.run(t, "curl", "-sS", "-m", "5", url).stdout == page
		})
		own.download(t, bob, url, size)
		if o := carol.run(t, "curl", "-sS", "-m", "3", "http://"+alice.reach(t, "80")+"/"); o.status == 0 {
			t.Errorf("a stranger got %s", o)
		}
	})
	t.Run("identity", func(t *testing.T) {
		l.events(t, "a1", "127.0.0.1:3000", nil)
		alice.pilot(t, "serve", "rm", "80")
		alice.pilot(t, "serve", "http", "3000", "--port", "80")
		o := bob.run(t, "curl", "-sS", "-m", "10", "http://alice.pilot.internal/whoami")
		id := bob.id(t)
		if !strings.Contains(o.stdout, `"bob","`+id.Fingerprint+`","`+id.ULA+`"`) {
			t.Errorf("alice's program sees %s", o)
		}
	})
	t.Run("outside", func(t *testing.T) {
		l.website(t, "rdv", "192.0.2.10:8090")
		for _, by := range []string{"socks5h://127.0.0.1:1080", "http://127.0.0.1:1080"} {
			if o := alice.run(t, "curl", "-sS", "-m", "10", "-x", by, "http://192.0.2.10:8090/"); o.stdout != page {
				t.Errorf("%s: %s", by, o)
			}
		}
		if o := shell.run(t, "curl", "-sS", "-m", "10", "http://mallory.pilot.internal/"); o.status != 0 || !strings.Contains(o.stdout, "no peer") {
			t.Errorf("an unknown name: %s", o)
		}
	})
	t.Run("commands", func(t *testing.T) {
		file := filepath.Join(filepath.Dir(alice.hosts), "report")
		if err := os.WriteFile(file, []byte("a report\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		alice.pilot(t, "file", "cp", file, "bob:")
		within(t, 10*time.Second, "the file is there", func() bool { return strings.Contains(bob.pilot(t, "file", "inbox"), "report") })
		alice.pilot(t, "bench", "bob", "--time", "1s")
		if o := alice.run(t, "pilotctl", "doctor"); !strings.Contains(o.stdout, "userspace mode") {
			t.Errorf("doctor: %s", o)
		}
	})
	t.Run("drain in userspace", func(t *testing.T) {
		alice.pilot(t, "serve", "rm", "80")
		testDrain(t, alice, bob, "80")
	})
	t.Run("drain", func(t *testing.T) { testDrain(t, bob, carol, "8090") })
	t.Run("a device or nothing", func(t *testing.T) {
		alice.refused(t, 8, []string{"/dev/net/tun", "hint: "}, "up", "--tun", "pilot0")
	})
}

// noRights checks that the daemon is what the test is about.
func noRights(t *testing.T, a *agent) {
	t.Helper()
	status, err := os.ReadFile(filepath.Join("/proc", itoa(a.daemon()), "status"))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"Uid:\t65534\t65534\t65534\t65534", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1"} {
		if !bytes.Contains(status, []byte(line+"\n")) {
			t.Errorf("the daemon's status does not have %q:\n%s", line, status)
		}
	}
	d := a.status(t).Device
	if at, err := netip.ParseAddrPort(d.Proxy); !d.Userspace || d.Why == "" || err != nil || !at.Addr().IsLoopback() {
		t.Errorf("%+v", d)
	}
}
