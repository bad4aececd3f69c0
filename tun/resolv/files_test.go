package resolv

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestFiles works on a directory as macOS has it; no macOS was there to ask.
func TestFiles(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "resolver")
	f := &files{dir: dir, Config: Config{
		Server: bob[0].Addr, Domain: "pilot.internal", Reverse: "d.f.ip6.arpa", Search: true,
	}}
	for range 2 { // the second has nothing to do
		must(t, f.set(t.Context(), bob))
	}
	const server = "nameserver fd50:494c:4f54::a91c:33f0\n"
	for name, want := range map[string]string{"pilot.internal": server, "d.f.ip6.arpa": server, "search.pilot": "search pilot.internal\n"} {
		if got := read(t, filepath.Join(dir, name)); got != filesHeader+want {
			t.Errorf("%s: %q", name, got)
		}
	}
	must(t, os.WriteFile(filepath.Join(dir, "example"), []byte("nameserver 192.0.2.1\n"), 0o644))
	must(t, f.undo(t.Context()))
	onlyFile(t, filepath.Join(dir, "example"))

	theirs := filepath.Join(dir, "pilot.internal")
	must(t, os.WriteFile(theirs, []byte("nameserver 192.0.2.1\n"), 0o644))
	if err := f.set(t.Context(), bob); err == nil || !strings.Contains(err.Error(), "somebody else") {
		t.Errorf("set over a file of others: %v", err)
	}
	must(t, os.Remove(filepath.Join(dir, "example")))
	onlyFile(t, theirs)
	if got := read(t, theirs); got != "nameserver 192.0.2.1\n" {
		t.Errorf("a file of others is %q", got)
	}
}
