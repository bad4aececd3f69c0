package e2e_test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// strict does what ProtectSystem=strict, ProtectHome=yes and the directories of the
// unit do: nothing can be written but the agent's own directory and the hosts
// file.
const strict = `mount --bind "$PILOT_STATE_DIR" "$PILOT_STATE_DIR" || exit 125
cut -d' ' -f5 /proc/self/mountinfo | while read -r m; do
	case $m in /proc|/proc/*|/sys|/sys/*|/dev|/dev/*|/etc/hosts|"$PILOT_STATE_DIR") ;; *) mount -o remount,bind,ro "$m" 2>/dev/null ;; esac
done
mount -t tmpfs -o ro,mode=0 none /home && mount -t tmpfs -o ro,mode=0 none /root || exit 125
if touch /etc/pilot-e2e /var/pilot-e2e /tmp/pilot-e2e 2>/dev/null; then echo 'the system can be written' >&2; exit 125; fi
`

// setting is what the unit says of a key, in all its lines.
func setting(unit, key string) string {
	var values []string
	for line := range strings.Lines(unit) {
		if v, ok := strings.CutPrefix(line, key+"="); ok {
			values = append(values, strings.TrimSpace(v))
		}
	}
	return strings.Join(values, " ")
}

// underUnit is the command with which a service manager would start the daemon.
func underUnit(t *testing.T, unit string) (args []string, capabilities uint64) {
	t.Helper()
	numbers := map[string]int{"CAP_NET_ADMIN": unix.CAP_NET_ADMIN, "CAP_NET_BIND_SERVICE": unix.CAP_NET_BIND_SERVICE, "CAP_NET_RAW": unix.CAP_NET_RAW}
	set := "-all"
	for _, name := range strings.Fields(setting(unit, "CapabilityBoundingSet")) {
		n, ok := numbers[name]
		if !ok {
			t.Fatalf("the unit has %s, which this test does not know", name)
		}
		capabilities |= 1 << n
		set += ",+" + strings.ToLower(strings.TrimPrefix(name, "CAP_"))
	}
	if capabilities == 0 || setting(unit, "NoNewPrivileges") != "yes" || setting(unit, "ProtectSystem") != "strict" || setting(unit, "User") != "" {
		t.Fatalf("the unit is not what this test runs:\n%s", unit)
	}
	return append([]string{"setpriv", "--bounding-set", set, "--inh-caps=-all", "--no-new-privs", "--regid", "65534", "--clear-groups"},
		"sh", "-c", "umask "+setting(unit, "UMask")+`; exec "$@"`, "sh"), capabilities
}

// TestService: with the rights that the unit leaves it the daemon comes up, says
// so, feeds the watchdog, carries traffic, makes names known and ends in time.
func TestService(t *testing.T) {
	t.Parallel()
	l := wire(t, "a1", "b1")
	s := l.server(t)
	alice, bob := l.agent(t, "a1", "alice"), l.agent(t, "b1", "bob")
	alice.up(t, s) // its settings are kept
	bob.up(t, s)
	trust(t, alice, bob, "8080")
	alice.pilot(t, "down")

	unit := alice.pilot(t, "service", "print", "systemd", "--program", pilotctl)
	args, capabilities := underUnit(t, unit)
	notify := filepath.Join(alice.state, "notify")
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: notify, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	words := make(chan string, 100)
	go func() {
		b := make([]byte, 200)
		for {
			n, err := socket.Read(b)
			if err != nil {
				return
			}
			words <- string(b[:n])
		}
	}()
	hears := func(want string) {
		t.Helper()
		within(t, 20*time.Second, "the manager hears "+want, func() bool {
			select {
			case got := <-words:
				return got == want
			default:
				return false
			}
		})
	}

	command := alice.prepared(t.Context(), strict, append(args, strings.Fields(setting(unit, "ExecStart"))...)...)
	command.Env = append(command.Env, "NOTIFY_SOCKET="+notify, "WATCHDOG_USEC=1000000")
	daemon := launch(t, "the service", command)
	hears("READY=1")
	hears("WATCHDOG=1")
	pid := l.daemonOf(t, "a1")
	wantRights(t, pid, capabilities)

	if o := alice.run(t, "pilotctl", "wait", "--timeout", "20s"); o.status != 0 {
		t.Fatal(o)
	}
	alice.pilot(t, "ping", "bob", "-c", "3")
	direct(t, alice, bob)
	site := l.website(t, "b1", "[::]:8080", 5)
	site.download(t, alice, bobURL, 5)

	daemon.end(t, terminate(pid))
	hears("STOPPING=1")
	if text, err := os.ReadFile(alice.hosts); err != nil || strings.Contains(string(text), "bob") {
		t.Errorf("names remain: %v: %s", err, text)
	}
}

// daemonOf is the process of the agent on a host.
func (l *lab) daemonOf(t *testing.T, host string) int {
	t.Helper()
	list := slices.DeleteFunc(l.processes(host), func(pid int) bool {
		name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		return err != nil || strings.TrimSpace(string(name)) != "pilotctl"
	})
	if len(list) != 1 {
		t.Fatalf("processes of pilotctl on %s: %v", host, list)
	}
	return list[0]
}

// wantRights checks that a process has exactly these capabilities and can get no
// more.
func wantRights(t *testing.T, pid int, capabilities uint64) {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ":\t")
		switch key {
		case "CapBnd", "CapEff", "CapPrm":
			if n, err := strconv.ParseUint(value, 16, 64); err != nil || n != capabilities {
				t.Errorf("%s is %s, want %x", key, value, capabilities)
			}
			t.Logf("%s %s", key, value)
		case "NoNewPrivs":
			if value != "1" {
				t.Errorf("NoNewPrivs is %s", value)
			}
		}
	}
}
