package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pilotnet/pilot/ipam"
	"github.com/pilotnet/pilot/overlay"
	"github.com/pilotnet/pilot/overlay/api"
)

const goodServer = "rdv.example#2klg6peuq32ij2rlahbixsxtphnkvudkyy65oysrkshgao5nvzba"

func TestParseConfig(t *testing.T) {
	for _, c := range []struct {
		text, fails string
		want        rawSettings
	}{
		{text: "", want: rawSettings{}},
		{text: "name = \"alice\"\nservers = [\"a\", \"b\"]\ntun = \"p0\"\ndns = \"off\"\ndns_search = true\nport = 7\n",
			want: rawSettings{Name: "alice", Servers: []string{"a", "b"}, TUN: "p0", DNS: "off", Search: true, Port: 7}},
		{text: "nmae = \"alice\"\n", fails: `unknown key "nmae"`},
		{text: "name = 3\n", fails: "incompatible types"},
		{text: "name = \"alice\n", fails: "line 1"},
		{text: "servers = \"a\"\n", fails: "servers"},
		{text: "port = 99999999999999999999\n", fails: "out of range"},
	} {
		got, err := parseConfig(strings.NewReader(c.text))
		if c.fails != "" {
			if err == nil || !strings.Contains(err.Error(), c.fails) {
				t.Errorf("%q: got %v, want %q", c.text, err, c.fails)
			}
			continue
		}
		if err != nil {
			t.Errorf("%q: %v", c.text, err)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%q: %s", c.text, diff)
		}
	}
}

func TestCheckSettings(t *testing.T) {
	for _, c := range []struct {
		name  string
		raw   rawSettings
		fails bool
	}{
		{"nothing", rawSettings{}, false},
		{"all", rawSettings{Name: "alice", Servers: []string{goodServer}, TUN: "pilot0", DNS: "off", Port: 4242}, false},
		{"same server twice", rawSettings{Servers: []string{goodServer, goodServer, goodServer, goodServer, goodServer}}, false},
		{"stun", rawSettings{STUN: []string{"stun.example", "stun.example:3478", "192.0.2.1:19302", "[2001:db8::1]:3478", "stun:stun.example:7"}}, false},
		{"stun port", rawSettings{STUN: []string{"stun.example:99999"}}, true},
		{"stun nowhere", rawSettings{STUN: []string{":3478"}}, true},
		{"stun at loopback", rawSettings{STUN: []string{"127.0.0.1:3478"}}, true},
		{"stun at a URL", rawSettings{STUN: []string{"https://stun.example/"}}, true},
		{"too many", rawSettings{STUN: []string{"a", "b", "c", "d", "e"}}, true},
		{"bad name", rawSettings{Name: "Alice!"}, true},
		{"reserved name", rawSettings{Name: "localhost"}, true},
		{"server without key", rawSettings{Servers: []string{"rdv.example"}}, true},
		{"server with a wrong key", rawSettings{Servers: []string{"rdv.example#abc"}}, true},
		{"dns", rawSettings{DNS: "yes"}, true},
		{"dns auto", rawSettings{DNS: "auto"}, false},
		{"dns hosts", rawSettings{DNS: "hosts"}, false},
		{"dns resolvconf", rawSettings{DNS: "resolvconf"}, false},
		{"userspace", rawSettings{TUN: "userspace"}, false},
		{"proxy", rawSettings{Proxy: "127.0.0.1:1080"}, false},
		{"proxy over IPv6", rawSettings{Proxy: "[::1]:0"}, false},
		{"proxy auto", rawSettings{Proxy: "auto"}, false},
		{"proxy off", rawSettings{Proxy: "off"}, false},
		{"proxy for everybody", rawSettings{Proxy: "0.0.0.0:1080"}, true},
		{"proxy without a port", rawSettings{Proxy: "127.0.0.1"}, true},
		{"port", rawSettings{Port: 65536}, true},
		{"negative port", rawSettings{Port: -1}, true},
	} {
		_, err := c.raw.check()
		if c.fails != (err != nil) {
			t.Errorf("%s: %v", c.name, err)
		}
		if e := api.AsError(err); err != nil && e.Code != overlay.CodeInvalidArgument {
			t.Errorf("%s: %+v", c.name, e)
		}
	}
}

func TestSettingsOrder(t *testing.T) {
	flags := rawSettings{Name: "flag"}
	file := rawSettings{Name: "file", Servers: []string{"file"}, DNS: "off", Port: 7}
	want := rawSettings{Name: "flag", Servers: []string{"file"}, DNS: "off", Port: 7}
	if diff := cmp.Diff(want, flags.over(file)); diff != "" {
		t.Error(diff)
	}
}

func TestSaveConfig(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dir", "config.toml")
	save := func(r rawSettings, differs ...string) string {
		t.Helper()
		got, err := saveConfig(path, r)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(differs, got); diff != "" {
			t.Error(diff)
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	first := save(rawSettings{Name: "alice"})
	if again := save(rawSettings{Name: "alice"}); again != first {
		t.Error("changed without a change")
	}
	if err := os.WriteFile(path, []byte(first+"# mine\nport = 7\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	second := save(rawSettings{Servers: []string{goodServer}})
	if !strings.HasSuffix(second, first+"# mine\nport = 7\n") {
		t.Errorf("lines were lost: %s", second)
	}
	if third := save(rawSettings{Name: "bob", Servers: []string{"x"}}, "name", "servers"); third != second {
		t.Errorf("a value was replaced: %s", third)
	}
	got, err := readConfig(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(rawSettings{Name: "alice", Servers: []string{goodServer}, Port: 7}, got); diff != "" {
		t.Error(diff)
	}
}

func TestParseDuration(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"90s": 90 * time.Second, "30m": 30 * time.Minute, "30d": 720 * time.Hour, "2w": 336 * time.Hour,
		"": 0, "d": 0, "-1d": 0, "-3h": 0, "0s": 0, "1.5d": 0, "99999999d": 0, "soon": 0,
	} {
		got, err := parseDuration(text)
		if got != want || (err == nil) != (want != 0) {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
}

func TestCleanName(t *testing.T) {
	for host, want := range map[string]string{
		"alice": "alice", "Build-7.example.org": "build-7", "a_b": "a-b", "localhost": "agent-localhost", "8080": "agent-8080",
		"": "agent", "--": "agent", strings.Repeat("x", 80): strings.Repeat("x", 32), "ubuntu": "ubuntu", "日本": "agent",
	} {
		got := cleanName(host)
		if got != want {
			t.Errorf("%q: %q, want %q", host, got, want)
		}
		if err := ipam.ValidName(got); err != nil {
			t.Errorf("%q: %v", host, err)
		}
	}
}

// FuzzConfig: a configuration that holds is the same when its name and servers are
// saved into a new file, and the file that it came from stays as it is but for lines
// above.
func FuzzConfig(f *testing.F) {
	f.Add([]byte("name = \"alice\"\nservers = [\"" + goodServer + "\"]\n"))
	f.Add([]byte("name = 'bob'\nport = 4000\nstun = ['stun.example']\n"))
	f.Add([]byte("tun = \"\\u0070ilot0\"\ndns = \"off\"\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := parseConfig(bytes.NewReader(text))
		if err != nil {
			return
		}
		if _, err := r.check(); err != nil {
			return
		}
		path := filepath.Join(t.TempDir(), "config.toml")
		if differs, err := saveConfig(path, r); err != nil || len(differs) > 0 {
			t.Fatalf("%q: %v, %v", text, differs, err)
		}
		saved, err := readConfig(path)
		if err != nil || saved.Name != r.Name || !slices.Equal(saved.Servers, r.Servers) {
			t.Fatalf("%q was saved as %+v, %v", text, saved, err)
		}
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		if differs, err := saveConfig(path, rawSettings{Name: "carol", Servers: r.Servers}); err != nil || len(differs) > 1 {
			t.Fatalf("%q: %v, %v", text, differs, err)
		}
		if got, err := readConfig(path); err != nil || got.Name != either(r.Name, "carol") || got.Port != r.Port {
			t.Errorf("%q with a name is %+v, %v", text, got, err)
		}
	})
}
