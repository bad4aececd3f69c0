package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestBugReportHasNoSecrets plants what must not be passed on wherever it could
// be, and looks for each piece of it in the report.
func TestBugReportHasNoSecrets(t *testing.T) {
	d := soundDesk(t)
	d.writeIdentity(t)
	const seed = "z4jhf2lpbe3jkngkjfkf7luyibihgzfdk33hutkbsoem5roejnzq"
	secrets := []string{
		seed, "abcdefgh12345", "hunter2", "sesame-open", "c2VjcmV0LXBpZWNlLW9mLXRleHQtdGhhdC1ub2JvZHkgbWF5IHNlZQ==",
		"QWxhZGRpbjpvcGVu", "deadbeefdeadbeefdeadbeefdeadbeef", "MIIBVgIBADANBg", "s3cr3t-value",
	}
	identities := []string{
		"alice", "bob", "carol", "dave", "mallory-7", "rdv.example", "proxy.corp.example", "aaaaaaaaaaaaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbbbbbbbbbbba",
		"ccccccccccccccccccccccccca", strings.Repeat("a", 52), "0000.0000.0100", "0000.0000.0200", "fd50:494c:4f54::100", "fd50:494c:4f54::200",
		"198.51.100.7", "203.0.113.9", "93.184.216.34", "2a00:1450:4001:81b::200e", "fe80::5054:ff:fe12:3456", "52:54:00:12:34:56",
		"weekly report", "jdoe", "someone@mail.example", "eve.report",
	}
	d.agent.Me.Peers[0].Note = "2a00:1450:4001:81b::200e did not answer, 93.184.216.34 neither"
	d.agent.Me.Servers[0].Error = "proxy.corp.example:3128: 407; sent Proxy-Authorization: Basic QWxhZGRpbjpvcGVu"
	log := `time=2026-11-22T23:32:27.789Z level=INFO msg=mail outcome=granted peer=bbbbbbbbbbbbbbbbbbbbbbbbba name=dave err=<nil>
level=INFO msg="a queued file" peer=mallory-7 name="eve.report" url=http://bob.pilot.internal:80/x observed=198.51.100.7:40001
level=INFO token=sesame-open password: "s3cr3t-value" invite pilot-invite1.abcdefgh12345 for carol-2 and Bob.
level=WARN proxy=http://jdoe:hunter2@proxy.corp.example:3128 path=/home/jdoe/x mail=someone@mail.example mac=52:54:00:12:34:56
level=WARN key c2VjcmV0LXBpZWNlLW9mLXRleHQtdGhhdC1ub2JvZHkgbWF5IHNlZQ== deadbeefdeadbeefdeadbeefdeadbeef from=[fe80::5054:ff:fe12:3456%eth0]:53
seed ` + seed + `
-----BEGIN PRIVATE KEY-----
MIIBVgIBADANBg
-----END PRIVATE KEY-----
level=INFO msg="stays" gateway=192.168.1.1 resolver=fd50:494c:4f54::35 error="dial tcp 10.1.2.3:443: connect: connection refused" at=12:30:45
`
	for name, text := range map[string]string{
		logFile:       log,
		"config.toml": "name = \"alice\"\nservers = [\"rdv.example#" + strings.TrimPrefix(goodServer, strings.SplitAfter(goodServer, "#")[0]) + "\"]\n",
	} {
		if err := os.WriteFile(filepath.Join(d.dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	_, serverKey, _ := strings.Cut(goodServer, "#")
	secrets = append(secrets, serverKey)
	d.environment = map[string]string{"HTTPS_PROXY": "http://jdoe:hunter2@proxy.corp.example:3128"}
	out := filepath.Join(d.dir, "report.txt")
	stdout, stderr, status := d.call(t.Context(), "", "bugreport", "--out", out, "--json")
	if status != 0 || !strings.Contains(stdout, `"file"`) {
		t.Fatalf("exit %d: %s%s", status, stdout, stderr)
	}
	info, err := os.Stat(out)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatal(info, err)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	report := string(b)
	for _, s := range append(secrets, identities...) {
		if at := strings.Index(strings.ToLower(report), strings.ToLower(s)); at >= 0 && !partOfWord(report, at, len(s)) {
			t.Errorf("%q is in the report: %.120q", s, report[max(at-40, 0):])
		}
	}
	// What a reader needs is still there.
	for _, s := range []string{
		"== version ==", "== settings ==", "== doctor ==", "== status ==", "== netcheck ==", "== log ==", "unknown_tag", "HTTPS_PROXY",
		"both NATs map per destination", "connection refused", "192.168.1.1", "10.1.2.3:443", "fd50:494c:4f54::35", "fd50:494c:4f54::/48", "at=12:30:45", "config.toml:1",
		"outcome=granted peer=<key#", "407",
	} {
		if !strings.Contains(report, s) {
			t.Errorf("%q is not in the report", s)
		}
	}
	if m := regexp.MustCompile(`"name": "(<name#\d+>)",\n\s+"address": "[^"]+",\n\s+"ula": "[^"]+",\n\s+"fingerprint": "[^"]+",\n\s+"trust"`).FindStringSubmatch(report); m == nil ||
		!strings.Contains(report, "http://"+m[1]+".pilot.internal") {
		t.Errorf("bob cannot be followed through the report: %q", m)
	}
	if t.Failed() {
		t.Log(report)
	}
	if _, stderr, status := d.call(t.Context(), "", "bugreport", "--out", out); status != 7 || !strings.Contains(stderr, "already") {
		t.Errorf("a file was replaced: %d %s", status, stderr)
	}
}

// partOfWord: "bob" may be a part of another word.
func partOfWord(text string, at, n int) bool {
	letter := func(i int) bool {
		return i >= 0 && i < len(text) && strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", rune(text[i]))
	}
	return letter(at-1) || letter(at+n)
}

// While the daemon is down the report says so and holds what can be known.
func TestBugReportWithoutDaemon(t *testing.T) {
	d := soundDesk(t)
	stdout, stderr, status := d.call(t.Context(), "", "bugreport", "--out", "-", "--socket", "/nowhere/pilot.sock")
	if status != 0 || strings.Count(stdout, "not available: the daemon is not running") != 4 || !strings.Contains(stdout, "fail     daemon") {
		t.Errorf("exit %d: %s%s", status, stdout, stderr)
	}
	stdout, _, status = d.call(t.Context(), "", "bugreport", "--out", "-", "--json")
	var answer struct{ OK bool }
	if err := json.Unmarshal([]byte(stdout), &answer); err != nil || answer.OK || status != 2 {
		t.Errorf("exit %d: %s", status, stdout)
	}
}
