package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pilotnet/pilot/ipam"
)

// away calls pilotctl on a machine of its own, without a daemon.
func away(t *testing.T, dir, passphrase string, args ...string) (string, int) {
	t.Helper()
	var out bytes.Buffer
	p := &program{stdin: strings.NewReader(""), stdout: &out, stderr: &out, getenv: func(name string) string {
		return map[string]string{"PILOT_PASSPHRASE": passphrase}[name]
	}}
	status := p.run(context.Background(), append([]string{"pilotctl", "--state-dir", dir}, args...))
	return out.String(), status
}

func TestExportAndImport(t *testing.T) {
	dir := t.TempDir()
	a, b, file := filepath.Join(dir, "a"), filepath.Join(dir, "b"), filepath.Join(dir, "agent")
	text, err := os.ReadFile("../../ipam/testdata/alice.identity")
	if err != nil {
		t.Fatal(err)
	}
	id, err := ipam.ParseIdentity(text)
	if err != nil {
		t.Fatal(err)
	}
	store := openTrust(t, a)
	for name, data := range map[string]string{identityFile: string(text), "seal.key": "seal", "daemon.log": "noise", "config.toml": "name = \"alice\"\ndns = \"off\"\n"} {
		if err := os.WriteFile(filepath.Join(a, name), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const good = "correct horse"
	check := func(what, got string, status, want int, says string) {
		t.Helper()
		if status != want || !strings.Contains(got, says) {
			t.Errorf("%s: exit %d, want %d with %q: %s", what, status, want, says, got)
		}
	}
	got, status := away(t, a, good, "id", "export", "--out", file)
	check("running", got, status, 7, "pilotctl down")
	store.Close()
	got, status = away(t, a, "", "id", "export", "--out", file)
	check("no passphrase", got, status, 2, "PILOT_PASSPHRASE")
	got, status = away(t, a, "short", "id", "export", "--out", file)
	check("short passphrase", got, status, 2, "8 at least")
	got, status = away(t, b, good, "id", "export", "--out", file)
	check("no agent", got, status, 4, "no agent")
	got, status = away(t, a, good, "id", "export", "--out", file)
	check("export", got, status, 0, id.Addr().String())
	got, status = away(t, a, good, "id", "export", "--out", file)
	check("export again", got, status, 7, "is there already")
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("%v, %v", info, err)
	}
	sealed, err := os.ReadFile(file)
	if err != nil || bytes.Contains(sealed, []byte("seed ")) {
		t.Fatalf("not sealed, %v", err)
	}

	cut := filepath.Join(dir, "cut")
	if err := os.WriteFile(cut, sealed[:len(sealed)-1], 0o600); err != nil {
		t.Fatal(err)
	}
	got, status = away(t, b, good, "id", "import", cut)
	check("cut off", got, status, 2, "cut off")
	got, status = away(t, b, "battery staple", "id", "import", file)
	check("wrong passphrase", got, status, 8, "wrong passphrase")
	if _, err := os.Stat(b); err == nil {
		t.Error("a refused import left something")
	}
	got, status = away(t, b, good, "id", "import", file)
	check("import", got, status, 0, id.Addr().String())
	for _, name := range []string{identityFile, "seal.key", "store.db", "revocations"} {
		was, err1 := os.ReadFile(filepath.Join(a, name))
		is, err2 := os.ReadFile(filepath.Join(b, name))
		if err1 != nil || err2 != nil || !bytes.Equal(was, is) {
			t.Errorf("%s differs: %v, %v", name, err1, err2)
		}
	}
	config, err := os.ReadFile(filepath.Join(b, "config.toml"))
	if err != nil || !strings.Contains(string(config), `name = "alice"`) || strings.Contains(string(config), "dns") {
		t.Errorf("%s, %v", config, err)
	}
	if _, err := os.Stat(filepath.Join(b, "daemon.log")); err == nil {
		t.Error("the log has moved")
	}
	got, status = away(t, b, good, "id", "import", file)
	check("import again", got, status, 7, "identity already")
	os.Remove(filepath.Join(b, identityFile))
	got, status = away(t, b, good, "id", "import", file)
	check("import over trust", got, status, 7, "is there already")
	got, status = away(t, filepath.Join(dir, "c"), good, "id", "import", filepath.Join(dir, "none"))
	check("no file", got, status, 4, "id export --out")
}
