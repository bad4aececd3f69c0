package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/overlay"
	"github.com/pilotnet/pilot/overlay/api/apitest"
)

// soundMachine is one on which nothing is wrong.
func soundMachine() machineFacts {
	return machineFacts{
		root:     true,
		state:    fileFact{mode: fs.ModeDir | 0o700, mine: true},
		identity: fileFact{mode: 0o600, mine: true},
		netAdmin: true,
		device: deviceFact{up: true, mtu: 1408, way: "pilot0", addresses: []netip.Addr{
			netip.MustParseAddr("fe80::1"), netip.MustParseAddr("fd50:494c:4f54::100")}},
		ipv6:    ipv6Fact{kernel: true, writable: true},
		servers: []serverFact{{name: "rdv.example", rtt: 12 * time.Millisecond, ahead: time.Second}},
		hosts:   []string{"files", "dns"},
	}
}

// soundDesk has an agent on it that nothing ails.
func soundDesk(t *testing.T) *desk {
	d := newDesk(t)
	d.machine = soundMachine()
	d.agent.Me.Version = release
	return d
}

// ailing is how much can be wrong at a time, on a machine with a daemon.
func ailing(d *desk) {
	d.agent.Me.Version = "0.0.9"
	d.agent.Me.Warnings = []string{"this machine's clock is off by 2h0m0s; set it"}
	m := &d.machine
	m.state.mode = fs.ModeDir | 0o755
	m.device.up = false
	m.ipv6.off = []string{"net.ipv6.conf.pilot0.disable_ipv6"}
	m.firewall.hooks = []hook{{chain: "inet filter input", at: "input", tool: "nft"}}
	m.servers[0].udp, m.servers[0].ahead = errors.New("no answer"), -2*time.Hour
}

func TestDoctorGolden(t *testing.T) {
	down := func(d *desk) { d.agent = nil }
	for name, prepare := range map[string]func(*desk){
		"doctor": func(*desk) {}, "doctor_ailing": ailing, "doctor_down": down,
	} {
		t.Run(name, func(t *testing.T) {
			var got strings.Builder
			for _, format := range []string{"--json=false", "--json"} {
				d := soundDesk(t)
				prepare(d)
				var more []string
				if d.agent == nil {
					more = []string{"--socket", "/nowhere/pilot.sock"}
				}
				stdout, stderr, status := d.call(t.Context(), "", append(more, format, "doctor")...)
				fmt.Fprintf(&got, "-- %s: exit %d --\n%s%s", format, status, stdout, stderr)
			}
			compare(t, name, got.String())
		})
	}
}

// Each thing that can be wrong is found by the check that is meant to, is alone
// in being found, and comes with something to do.
func TestDoctorFindsEach(t *testing.T) {
	gone := &overlay.Error{Code: overlay.CodeNotRunning, Message: "not running", Hint: "pilotctl up"}
	for what, c := range map[string]struct {
		change func(*examination)
		check  string
		state  string
		says   string
		do     string
	}{
		"old daemon":      {func(e *examination) { e.status.Version = "0.0.1" }, "daemon", doubt, "0.0.1", "pilotctl up"},
		"conflict":        {func(e *examination) { e.status.State = "conflict" }, "daemon", broken, "same identity", "--takeover"},
		"down":            {func(e *examination) { e.down = gone }, "daemon", broken, "not running", "pilotctl up"},
		"bad config":      {func(e *examination) { e.config = usagef("nonsense").WithHint("mend it") }, "config", broken, "nonsense", "mend it"},
		"open key":        {func(e *examination) { e.machine.identity.mode = 0o644 }, "state", broken, "0644", "chmod 600"},
		"open state":      {func(e *examination) { e.machine.state.mode = fs.ModeDir | 0o750 }, "state", broken, "0750", "chmod 700"},
		"foreign state":   {func(e *examination) { e.machine.state.mine = false }, "state", doubt, "another user", "chown"},
		"clock a bit off": {func(e *examination) { e.machine.servers[0].ahead = time.Minute }, "clock", doubt, "1m0s behind", "timedatectl"},
		"clock far off":   {func(e *examination) { e.machine.servers[0].ahead = -48 * time.Hour }, "clock", broken, "48h0m0s ahead", "timedatectl"},
		"no device":       {func(e *examination) { e.machine.device = deviceFact{err: errors.New("no such device")} }, "device", broken, "pilot0 cannot be seen", "namespace"},
		"device down":     {func(e *examination) { e.machine.device.up = false }, "device", broken, "is down", "ip link set"},
		"small MTU":       {func(e *examination) { e.machine.device.mtu = 1279 }, "device", broken, "1279", "mtu 1408"},
		"IPv6 off": {func(e *examination) { e.machine.ipv6.off = []string{"net.ipv6.conf.pilot0.disable_ipv6"} },
			"ipv6", broken, "disabled", "sysctl -w"},
		"no address":     {func(e *examination) { e.machine.device.addresses = nil }, "ipv6", broken, "lost the address", "pilotctl up"},
		"no route":       {func(e *examination) { e.machine.device.way = "" }, "ipv6", broken, "no route", "pilotctl up"},
		"another's way":  {func(e *examination) { e.machine.device.way = "wg0" }, "ipv6", broken, "wg0", "VPN"},
		"rival":          {func(e *examination) { e.machine.ipv6.rivals = []string{"tun7 has a route to X"} }, "ipv6", broken, "tun7", "namespace"},
		"no kernel IPv6": {func(e *examination) { e.machine.ipv6.kernel = false }, "ipv6", broken, "without IPv6", "modprobe"},
		"firewall":       {func(e *examination) { e.machine.firewall.hooks = []hook{{chain: "C", tool: "nft"}} }, "firewall", doubt, "C drops", "nft insert rule C iifname pilot0 accept"},
		"firewall out": {func(e *examination) {
			e.machine.firewall.hooks = []hook{{chain: "ip6tables OUTPUT", at: "output", tool: "ip6tables"}}
		}, "firewall", doubt, "programs here", "ip6tables -I OUTPUT -o pilot0"},
		"no UDP":          {func(e *examination) { e.machine.servers[0].udp = errors.New("no answer") }, "server", doubt, "not over UDP", "UDP"},
		"no TLS":          {func(e *examination) { e.machine.servers[0].tls = errors.New("refused") }, "server", doubt, "not over TLS", "TCP"},
		"wrong key":       {func(e *examination) { e.status.Servers[0].State = "refused" }, "server", broken, "refused", "server key"},
		"no server":       {func(e *examination) { e.machine.servers, e.status.Servers = nil, nil }, "server", doubt, "none is configured", "--server"},
		"resolver mute":   {func(e *examination) { e.names.resolver = errors.New("no answer") }, "names", broken, "no answer", "namespace"},
		"names not known": {func(e *examination) { e.names.system = errors.New("no such name") }, "names", broken, "no such name", "dns status"},
		"nsswitch": {func(e *examination) { e.names.system, e.machine.hosts = errors.New("no such name"), []string{"dns"} },
			"names", broken, "no such name", `add "files"`},
		"no proxy": {func(e *examination) {
			e.status.Device = overlay.DeviceStatus{Name: "userspace", Userspace: true, DNS: "off"}
		},
			"device", doubt, "without a proxy", "--proxy auto"},
		"service": {func(e *examination) { e.status.Services[0].Error = "port taken" }, "services", doubt, "port taken", "--services"},
	} {
		e := examination{now: apitest.Start(), at: places{state: "/s"}, status: apitest.New().Me, machine: soundMachine()}
		e.status.Version = release
		for _, f := range e.judge().Findings {
			if f.State != fine {
				t.Fatalf("a sound machine: %+v", f)
			}
		}
		c.change(&e)
		found := false
		for _, f := range e.judge().Findings {
			switch {
			case f.Check == c.check && f.State == c.state && strings.Contains(f.Says, c.says) && strings.Contains(f.Do, c.do) && f.Do != "":
				found = true
			case f.State == doubt || f.State == broken:
				t.Errorf("%s: %+v besides", what, f)
			}
		}
		if !found {
			t.Errorf("%s: not found: %+v", what, e.judge().Findings)
		}
	}
}

// While the daemon is down it is told whether it could start.
func TestDoctorBeforeStart(t *testing.T) {
	for what, c := range map[string]struct {
		change func(*examination)
		check  string
		state  string
		says   string
	}{
		"sound":     {func(*examination) {}, "device", fine, "may make devices"},
		"no TUN":    {func(e *examination) { e.machine.tun = fs.ErrNotExist }, "device", broken, "no /dev/net/tun"},
		"no right":  {func(e *examination) { e.machine.netAdmin = false }, "device", broken, "CAP_NET_ADMIN"},
		"no root":   {func(e *examination) { e.machine.netAdmin, e.machine.root = false, false }, "device", unknown, "this user"},
		"IPv6 off":  {func(e *examination) { e.machine.ipv6.off = []string{"x"} }, "ipv6", fine, "enables IPv6 on its own device"},
		"read only": {func(e *examination) { e.machine.ipv6.off, e.machine.ipv6.writable = []string{"x"}, false }, "ipv6", broken, "cannot be changed"},
		"no agent":  {func(e *examination) { e.machine.state.err = fs.ErrNotExist }, "state", broken, "no agent"},
		"no peek":   {func(e *examination) { e.machine.state.err = fs.ErrPermission }, "state", unknown, "not open to this user"},
		"no name": {func(e *examination) {
			e.machine.servers[0].lookup, e.machine.servers[0].tls = errors.New("no such host"), errors.New("x")
		}, "server", broken, "no such host"},
		"no server": {func(e *examination) {
			e.machine.servers[0].udp, e.machine.servers[0].tls = errors.New("a"), errors.New("b")
		}, "server", broken, "neither"},
	} {
		e := examination{now: apitest.Start(), at: places{state: "/s"}, down: overlay.Errorf(overlay.CodeNotRunning, "down"), machine: soundMachine()}
		c.change(&e)
		found := false
		for _, f := range e.judge().Findings {
			found = found || f.Check == c.check && f.State == c.state && strings.Contains(f.Says, c.says)
		}
		if !found {
			t.Errorf("%s: not found: %+v", what, e.judge().Findings)
		}
	}
}

// The rules of a firewall as the tools print them.
func TestFirewallRules(t *testing.T) {
	chain := func(hook, policy string) string {
		return fmt.Sprintf(`{"chain":{"family":"inet","table":"f","name":"c","handle":1,"type":"filter","hook":%q,"prio":0,"policy":%q}}`, hook, policy)
	}
	rule := func(expr string) string {
		return `{"rule":{"family":"inet","table":"f","chain":"c","handle":4,"expr":[` + expr + `]}}`
	}
	const pilot = `{"match":{"op":"==","left":{"meta":{"key":"iifname"}},"right":%q}},{"accept":null}`
	for what, c := range map[string]struct {
		objects []string
		hooks   int
		names   bool
	}{
		"nothing":          {nil, 0, false},
		"accepts":          {[]string{chain("input", "accept")}, 0, false},
		"policy":           {[]string{chain("input", "drop")}, 1, false},
		"last rule":        {[]string{chain("output", "accept"), rule(`{"counter":{"packets":0,"bytes":0}},{"drop":null}`)}, 1, false},
		"condition":        {[]string{chain("input", "accept"), rule(`{"match":{"op":"==","left":{"x":"y"},"right":22}},{"drop":null}`)}, 0, false},
		"forward":          {[]string{chain("forward", "drop")}, 0, false},
		"names the device": {[]string{chain("input", "drop"), rule(fmt.Sprintf(pilot, "pilot0"))}, 1, true},
		"wildcard":         {[]string{chain("input", "drop"), rule(fmt.Sprintf(pilot, "pilot*"))}, 1, true},
		"another device":   {[]string{chain("input", "drop"), rule(fmt.Sprintf(pilot, "pilot1"))}, 1, false},
		"set": {[]string{chain("input", "drop"),
			rule(`{"match":{"op":"==","left":{"meta":{"key":"iifname"}},"right":{"set":["lo","pilot0"]}}},{"accept":null}`)}, 1, true},
		"named set": {[]string{`{"set":{"family":"inet","name":"s","table":"f","type":"ifname","elem":["pilot0"]}}`, chain("input", "drop")}, 1, true},
		"our prefix": {[]string{chain("input", "drop"),
			rule(`{"match":{"op":"==","left":{"payload":{"protocol":"ip6","field":"saddr"}},"right":{"prefix":{"addr":"fd50:494c:4f54::","len":48}}}},{"accept":null}`)}, 1, true},
	} {
		hooks, err := parseNFT([]byte(`{"nftables":[{"metainfo":{"version":"1.0.6"}}` + strings.Join(append([]string{""}, c.objects...), ",") + `]}`))
		if err != nil || len(hooks) != c.hooks || c.hooks > 0 && hooks[0].names("pilot0") != c.names {
			t.Errorf("%s: %+v, %v", what, hooks, err)
		}
	}
	if _, err := parseNFT([]byte("table inet f {")); err == nil {
		t.Error("text was taken for JSON")
	}
	old := "*mangle\n:INPUT DROP [0:0]\nCOMMIT\n*filter\n:INPUT DROP [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT ACCEPT [0:0]\n-A INPUT -i pilot+ -j ACCEPT\n-A OUTPUT -j REJECT\nCOMMIT\n"
	hooks, err := parseIPTables([]byte(old))
	if err != nil || len(hooks) != 2 || hooks[0].chain != "ip6tables INPUT" || !hooks[0].names("pilot0") || hooks[0].names("wg0") {
		t.Errorf("%+v, %v", hooks, err)
	}
}

// The clock is read from a server's answer, whatever its certificate; a server
// that answers nothing is said to be such.
func TestServerClock(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Date", now.Add(-90*time.Minute).Format(http.TimeFormat))
		w.WriteHeader(http.StatusNotFound)
	}))
	defer s.Close()
	_, port, _ := strings.Cut(strings.TrimPrefix(s.URL, "https://"), ":")
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		t.Fatal(err)
	}
	server := crypto.Server{Host: "127.0.0.1", Port: uint16(n)}
	f := examineServer(t.Context(), server, subject{now: func() time.Time { return now }})
	if f.tls != nil || f.ahead.Round(time.Minute) != -90*time.Minute {
		t.Errorf("%+v", f)
	}
	if f.udp == nil {
		t.Error("nobody answered over UDP")
	}
	s.Close()
	if f := examineServer(t.Context(), server, subject{now: time.Now}); f.tls == nil {
		t.Errorf("%+v", f)
	}
}

// Where another machine has the identity, nothing is said about the server's key.
func TestDoctorOtherInstance(t *testing.T) {
	e := examination{now: apitest.Start(), at: places{state: "/s"}, status: apitest.New().Me, machine: soundMachine()}
	e.status.Version, e.status.State, e.status.Servers[0].State = release, "conflict", "refused"
	n := 0
	for _, f := range e.judge().Findings {
		if f.State != fine {
			n++
			if !strings.Contains(f.Do, "--takeover") {
				t.Errorf("%+v", f)
			}
		}
	}
	if n != 2 {
		t.Errorf("%d findings: the daemon's and the server's", n)
	}
}
