package ipam

import (
	"strings"
	"testing"

	"github.com/pilotnet/pilot/crypto"
)

const goldenContact = goldenAddr + "#" + goldenFingerprint + "@rdv.example.net"

func TestContact(t *testing.T) {
	t.Parallel()
	addr, fp := Addr{Node: goldenNode}, testKey("golden").Public().Fingerprint()
	for text, want := range map[string]Contact{
		goldenContact:           {addr, fp, "rdv.example.net", 3478},
		goldenContact + ":443":  {addr, fp, "rdv.example.net", 443},
		goldenContact + ":3478": {addr, fp, "rdv.example.net", 3478},
		goldenAddr + "#" + goldenFingerprint + "@192.0.2.10":           {addr, fp, "192.0.2.10", 3478},
		goldenAddr + "#" + goldenFingerprint + "@[2001:db8::1]":        {addr, fp, "2001:db8::1", 3478},
		goldenAddr + "#" + goldenFingerprint + "@[2001:DB8:0::1]:4242": {addr, fp, "2001:db8::1", 4242},
		strings.ToUpper(goldenContact):                                 {addr, fp, "rdv.example.net", 3478},
	} {
		c, err := ParseContact(text)
		if err != nil || c != want {
			t.Errorf("ParseContact(%q) = %+v, %v", text, c, err)
			continue
		}
		if again, err := ParseContact(c.String()); err != nil || again != c {
			t.Errorf("%q does not come back: %v", c, err)
		}
	}
	c, err := ParseContact(goldenContact + ":3478")
	if err != nil || c.String() != goldenContact || c.HostPort() != "rdv.example.net:3478" {
		t.Errorf("String = %q, HostPort = %q, %v", c, c.HostPort(), err)
	}
	c = Contact{addr, fp, "2001:db8::1", 443}
	if c.HostPort() != "[2001:db8::1]:443" || !strings.HasSuffix(c.String(), "@[2001:db8::1]:443") {
		t.Errorf("String = %q, HostPort = %q", c, c.HostPort())
	}
}

func TestParseContactRefuses(t *testing.T) {
	t.Parallel()
	const who = goldenAddr + "#" + goldenFingerprint
	for _, text := range []string{
		"", "#@", who, who + "@", who + "@:3478", who + "@host:", who + "@host:0", who + "@host:65536", who + "@host:03478",
		who + "@2001:db8::1", who + "@[2001:db8::1", who + "@[rdv]", who + "@ho st", who + "@host#key", who + "@@host",
		who + "@fe80::1%eth0", who + "@host\n", who + "@user@host", who + "@host/path",
		goldenAddr + "@host#" + goldenFingerprint,
		goldenAddr + "#" + goldenFingerprint[:25] + "@host", goldenAddr + "#" + goldenFingerprint[:25] + "f@host",
		"0:0000.0000.0001#" + goldenFingerprint + "@host",
		"1:0001.2152.53ca#" + goldenFingerprint + "@host",
	} {
		if c, err := ParseContact(text); err == nil {
			t.Errorf("ParseContact(%q) = %v, want an error", text, c)
		}
	}
}

func TestValidName(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"a", "alice", "bob-2", "2fast", "x1", "0xg", strings.Repeat("a", 25), strings.Repeat("a", MaxName), "server", "localhost-2"} {
		if err := ValidName(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{
		"", "Alice", "alice_b", "a.b", "a b", "-a", "a-", "-", "xn--bcher-kva", "ab--c", "böb", "a\n", "a#b", "a@b", "a:b",
		"1", "8080", "0x7f", "0x", strings.Repeat("a", MaxName+1), goldenFingerprint, goldenFingerprint[:25] + "f",
		"localhost", "wpad", "local", "internal", "gateway", "dns", "pilot", "metadata",
	} {
		if err := ValidName(name); err == nil {
			t.Errorf("%q: accepted", name)
		}
	}
}

func TestParseRef(t *testing.T) {
	t.Parallel()
	addr, fp := Addr{Node: goldenNode}, testKey("golden").Public().Fingerprint()
	contact := Contact{addr, fp, "rdv.example.net", crypto.DefaultPort}
	for text, want := range map[string]Ref{
		"bob":                              {Kind: RefName, Name: "bob"},
		"Bob":                              {Kind: RefName, Name: "bob"},
		"bob.pilot.internal":               {Kind: RefName, Name: "bob"},
		"BOB.Pilot.Internal.":              {Kind: RefName, Name: "bob"},
		strings.Repeat("a", 25):            {Kind: RefName, Name: strings.Repeat("a", 25)},
		goldenAddr:                         {Kind: RefAddr, Addr: addr},
		strings.ToUpper(goldenAddr):        {Kind: RefAddr, Addr: addr},
		goldenULA:                          {Kind: RefAddr, Addr: addr},
		"FD50:494C:4F54:0:0:0:2152:53CA":   {Kind: RefAddr, Addr: addr},
		"fd50:494c:4f54::33.82.83.202":     {Kind: RefAddr, Addr: addr},
		goldenFingerprint:                  {Kind: RefFingerprint, Fingerprint: fp},
		strings.ToUpper(goldenFingerprint): {Kind: RefFingerprint, Fingerprint: fp},
		goldenContact:                      {Kind: RefContact, Addr: addr, Fingerprint: fp, Contact: contact},
	} {
		got, err := ParseRef(text)
		if err != nil || got != want {
			t.Errorf("ParseRef(%q) = %+v, %v", text, got, err)
			continue
		}
		if again, err := ParseRef(got.String()); err != nil || again != got {
			t.Errorf("ParseRef(%q) = %+v, %v", got, again, err)
		}
	}
	for _, text := range []string{
		"", ".", "bob.", "bob.internal", "bob.example.net", ".pilot.internal", "a.b.pilot.internal", "pilot.internal",
		"localhost", "localhost.pilot.internal", "bob\n", " bob", "8080", "10.0.0.1", "::1", "2001:db8::1", goldenULA + "%eth0",
		"1:0001.0000.0001", goldenAddr + ":80", goldenAddr + "#" + goldenFingerprint, goldenFingerprint[:25] + "f",
		goldenFingerprint + ".pilot.internal", "\u212aevin", "bob..pilot.internal", "bob.pilot.internal..", "bob:80", "#", "@",
	} {
		if r, err := ParseRef(text); err == nil {
			t.Errorf("ParseRef(%q) = %+v, want an error", text, r)
		}
	}
}

// FuzzParseContact: the canonical text of what is accepted is a fixed point,
// and differs from the input at most in case, port and spelling of an IP.
func FuzzParseContact(f *testing.F) {
	for _, s := range []string{goldenContact, goldenContact + ":443", goldenAddr + "#" + goldenFingerprint + "@[2001:db8::1]:1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		c, err := ParseContact(s)
		if err != nil {
			return
		}
		again, err := ParseContact(c.String())
		if err != nil || again != c {
			t.Errorf("%q becomes %q, then %q, %v", s, c, again, err)
		}
		who, _, _ := strings.Cut(s, "@")
		if !strings.HasPrefix(c.String(), strings.ToLower(who)+"@") {
			t.Errorf("%q is written back as %q", s, c)
		}
	})
}

// FuzzParseRef: what is accepted has exactly one kind, and its canonical text
// names the same.
func FuzzParseRef(f *testing.F) {
	for _, s := range []string{"bob", "bob.pilot.internal.", goldenAddr, goldenULA, goldenFingerprint, goldenContact} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseRef(s)
		if err != nil {
			return
		}
		if again, err := ParseRef(r.String()); err != nil || again != r {
			t.Errorf("%q becomes %+v, then %+v, %v", s, r, again, err)
		}
		if r.Kind == RefName && ValidName(r.Name) != nil {
			t.Errorf("%q gives the name %q: %v", s, r.Name, ValidName(r.Name))
		}
	})
}
