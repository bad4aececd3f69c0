package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// Every setting that a configuration file may have is shown.
func TestEverySettingIsShown(t *testing.T) {
	keys := map[string]bool{}
	for _, s := range sources() {
		keys[s.key] = true
	}
	all := reflect.TypeFor[rawSettings]()
	for i := range all.NumField() {
		if key := all.Field(i).Tag.Get("toml"); !keys[key] {
			t.Errorf("pilotctl config show does not know %s", key)
		}
	}
	if len(keys) != all.NumField() {
		t.Errorf("%d sources for %d settings", len(keys), all.NumField())
	}
}

// The origin of a setting is the highest place that says it.
func TestConfigShowOrigin(t *testing.T) {
	d := newDesk(t)
	path := filepath.Join(d.dir, "config.toml")
	text := "# mine\nname = \"alice\"\n\n\"tun\"= \"pilot7\"\ndns_search = true\nservers = [\n  \"" + goodServer + "\",\n]\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	stdout, stderr, status := d.call(t.Context(), "", "config", "show", "--origin", "--json", "--dns", "hosts", "--name", "bob")
	if status != 0 {
		t.Fatal(stderr)
	}
	var answer struct{ Data []setting }
	if err := json.Unmarshal([]byte(stdout), &answer); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, s := range answer.Data {
		got[s.Key] = s.Value + " < " + s.Origin
	}
	for key, want := range map[string]string{
		"state_dir":  "$STATE < --state-dir",
		"name":       "bob < --name",
		"tun":        "pilot7 < $STATE/config.toml:4",
		"dns_search": "true < $STATE/config.toml:5",
		"servers":    goodServer + " < $STATE/config.toml:6",
		"dns":        "hosts < --dns",
		"services":   "all < default",
	} {
		if got[key] != want {
			t.Errorf("%s: %s, want %s", key, got[key], want)
		}
	}
	stdout, _, _ = d.call(t.Context(), "", "config", "show")
	if strings.Contains(stdout, "config.toml:") || !strings.Contains(stdout, "pilot7") {
		t.Errorf("%s", stdout)
	}
	if err := os.WriteFile(path, []byte("color = \"red\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, stderr, status := d.call(t.Context(), "", "config", "show"); status != 2 || !strings.Contains(stderr, "color") {
		t.Errorf("%d %s", status, stderr)
	}
}
