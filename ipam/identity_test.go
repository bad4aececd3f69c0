package ipam

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"
)

// testIdentity reads a committed identity.
func testIdentity(tb testing.TB, name string) Identity {
	tb.Helper()
	text, err := os.ReadFile("testdata/" + name + ".identity")
	if err != nil {
		tb.Fatal(err)
	}
	id, err := ParseIdentity(text)
	if err != nil {
		tb.Fatal(err)
	}
	return id
}

func TestCommittedIdentities(t *testing.T) {
	t.Parallel()
	seen := map[Addr]string{}
	for _, name := range []string{"alice", "bob", "carol", "mallory"} {
		id := testIdentity(t, name)
		if id.Key.Public() != testKey(name).Public() {
			t.Errorf("%s: not the seed that testdata/README.md names", name)
		}
		if err := id.Verify(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if other, ok := seen[id.Addr()]; ok {
			t.Errorf("%s and %s have one address", name, other)
		}
		seen[id.Addr()] = name
	}
}

func TestParseIdentityRefuses(t *testing.T) {
	t.Parallel()
	const seed = "pfg7besteof7dkjurkan3m5nnwvovx26niq7sk4amsnba3coo2uq"
	change := func(from, to string) string { return strings.Replace(goldenFile, from, to, 1) }
	for name, text := range map[string]string{
		"empty":                "",
		"header only":          "pilot-identity-v1\n",
		"other version":        change("v1", "v2"),
		"no last line feed":    strings.TrimSuffix(goldenFile, "\n"),
		"further line":         goldenFile + "\n",
		"carriage returns":     strings.ReplaceAll(goldenFile, "\n", "\r\n"),
		"upper-case seed":      change(seed, strings.ToUpper(seed)),
		"unused bits of seed":  change(seed, seed[:51]+"r"),
		"short seed":           change(seed, seed[:51]),
		"line feed in seed":    change(seed, seed[:10]+"\n"+seed[10:]),
		"counter with zero":    change("counter 35", "counter 035"),
		"negative counter":     change("counter 35", "counter -35"),
		"counter too large":    change("counter 35", "counter 18446744073709551616"),
		"two spaces":           change("counter 35", "counter  35"),
		"missing counter":      change("counter 35\n", ""),
		"reserved address":     change(goldenAddr, "0:0000.0000.0001"),
		"upper-case address":   change(goldenAddr, strings.ToUpper(goldenAddr)),
		"other network":        change(goldenAddr, "1:0001.2152.53ca"),
		"fields in wrong rank": "pilot-identity-v1\ncounter 35\nseed " + seed + "\naddress " + goldenAddr + "\n",
	} {
		_, err := ParseIdentity([]byte(text))
		if err == nil {
			t.Errorf("%s: accepted", name)
		} else if strings.Contains(err.Error(), seed[:8]) {
			t.Errorf("%s: the error shows the seed: %v", name, err)
		}
	}
}

func TestIdentityVerifyRefusesForeignAddress(t *testing.T) {
	t.Parallel()
	id := testIdentity(t, "alice")
	id.Node++
	if err := id.Verify(); !errors.Is(err, ErrNotDerived) {
		t.Errorf("changed node: %v, want ErrNotDerived", err)
	}
	id = testIdentity(t, "alice")
	id.Key = testKey("mallory")
	if err := id.Verify(); !errors.Is(err, ErrNotDerived) {
		t.Errorf("changed key: %v, want ErrNotDerived", err)
	}
}

func TestIdentityDoesNotPrintSeed(t *testing.T) {
	t.Parallel()
	id := testIdentity(t, "alice")
	seed := id.Key.Seed()
	secret := seedText.EncodeToString(seed[:])
	var out bytes.Buffer
	fmt.Fprintf(&out, "%v %+v %#v %s %x %d %q", id, id, &id, id, id, id, []Identity{id})
	slog.New(slog.NewTextHandler(&out, nil)).Info("start", "identity", id)
	slog.New(slog.NewJSONHandler(&out, nil)).Info("start", "identity", id)
	if s := out.String(); strings.Contains(s, secret) || strings.Contains(s, fmt.Sprintf("%x", seed[:4])) || !strings.Contains(s, id.Addr().String()) {
		t.Errorf("printed: %s", s)
	}
}

// FuzzParseIdentity: what is accepted is written back the same.
func FuzzParseIdentity(f *testing.F) {
	f.Add([]byte(goldenFile))
	f.Add([]byte("pilot-identity-v1\nseed a\ncounter 0\naddress 0:0000.0000.0100\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		id, err := ParseIdentity(b)
		if err != nil {
			return
		}
		if text, err := id.MarshalText(); err != nil || !bytes.Equal(text, b) {
			t.Errorf("%q is written back as %q, %v", b, text, err)
		}
	})
}
