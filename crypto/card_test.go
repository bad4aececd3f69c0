package crypto

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"
)

func testCard(t testing.TB) Card {
	t.Helper()
	seal, err := NewSealPrivate([32]byte{1})
	if err != nil {
		t.Fatal(err)
	}
	return Card{
		Key: testKey(1).Public(), Counter: 123, Seal: seal.Public(), Registration: testDH(1).Public(), Serial: 9,
		Servers: []Server{
			{Host: "rdv.example.org", Port: 3478, Key: testDH(2).Public()},
			{Host: "2001:db8::1", Port: 443, Key: testDH(3).Public()},
		},
	}
}

func TestCard(t *testing.T) {
	t.Parallel()
	k := testKey(1)
	for n := range MaxServers + 1 {
		c := testCard(t)
		c.Servers = nil
		for range n {
			c.Servers = append(c.Servers, Server{Host: strings.Repeat("a.", 126) + "a", Port: 65535, Key: testDH(2).Public()})
		}
		b, err := c.Sign(k)
		if err != nil || len(b) > MaxCardSize {
			t.Fatalf("%d servers: %d bytes, %v", n, len(b), err)
		}
		if got, err := ParseCard(b); err != nil || !reflect.DeepEqual(got, c) {
			t.Errorf("%d servers: %v", n, err)
		}
	}
}

func TestCardRefuses(t *testing.T) {
	t.Parallel()
	k := testKey(1)
	for name, change := range map[string]func(*Card){
		"another key":          func(c *Card) { c.Key = testKey(2).Public() },
		"zero sealing key":     func(c *Card) { c.Seal = SealPublic{} },
		"zero registration":    func(c *Card) { c.Registration = DHPublic{} },
		"five servers":         func(c *Card) { c.Servers = make([]Server, 5) },
		"upper-case host":      func(c *Card) { c.Servers[0].Host = "RDV.example.org" },
		"long form of IPv6":    func(c *Card) { c.Servers[0].Host = "2001:db8:0::1" },
		"mapped IPv4":          func(c *Card) { c.Servers[0].Host = "::ffff:192.0.2.1" },
		"brackets":             func(c *Card) { c.Servers[0].Host = "[::1]" },
		"control character":    func(c *Card) { c.Servers[0].Host = "a\x1b[31m" },
		"empty host":           func(c *Card) { c.Servers[0].Host = "" },
		"host of 254":          func(c *Card) { c.Servers[0].Host = strings.Repeat("a.", 126) + "aa" },
		"port 0":               func(c *Card) { c.Servers[0].Port = 0 },
		"low-order server":     func(c *Card) { c.Servers[0].Key = DHPublic{1} },
		"unreduced server":     func(c *Card) { c.Servers[0].Key[31] |= 0x80 },
		"small-order identity": func(c *Card) { c.Key = PublicKey{1} },
	} {
		c := testCard(t)
		change(&c)
		if _, err := c.Sign(k); err == nil {
			t.Errorf("%s: signed", name)
		}
		// The same card from a signer who does not check.
		body := c.appendBody(nil)
		if _, err := ParseCard(append(body, k.Sign(cardContext, body)...)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestCardTampering(t *testing.T) {
	t.Parallel()
	b, err := testCard(t).Sign(testKey(1))
	if err != nil {
		t.Fatal(err)
	}
	for i := range b {
		bad := bytes.Clone(b)
		bad[i] ^= 1 << (i % 8)
		if _, err := ParseCard(bad); err == nil {
			t.Fatalf("byte %d changed: accepted", i)
		}
	}
	for n := range b {
		if _, err := ParseCard(b[:n]); err == nil {
			t.Fatalf("cut to %d bytes: accepted", n)
		}
	}
	for _, tail := range []int{1, 32, 64, MaxCardSize} {
		if _, err := ParseCard(append(bytes.Clone(b), make([]byte, tail)...)); err == nil {
			t.Errorf("%d bytes more: accepted", tail)
		}
	}
	body := b[:len(b)-SignatureSize]
	if _, err := ParseCard(append(bytes.Clone(body), testKey(1).Sign("pilot claim v1", body)...)); !errors.Is(err, ErrAuth) {
		t.Errorf("signature of another context: %v", err)
	}
}

func TestParseServer(t *testing.T) {
	t.Parallel()
	key := testDH(2).Public().String()
	for in, want := range map[string]string{
		"rdv":                   "rdv",
		"RDV.Example.ORG:3478":  "rdv.example.org",
		"rdv.example.org:443":   "rdv.example.org:443",
		"192.0.2.1":             "192.0.2.1",
		"192.0.2.1:1":           "192.0.2.1:1",
		"[2001:DB8:0::1]":       "[2001:db8::1]",
		"[2001:db8::1]:65535":   "[2001:db8::1]:65535",
		"[::ffff:192.0.2.1]:99": "192.0.2.1:99",
		"xn--bcher-kva.example": "xn--bcher-kva.example",
		"3com.example":          "3com.example",
		strings.Repeat("a", 63): strings.Repeat("a", 63),
		"a-b.c":                 "a-b.c",
	} {
		s, err := ParseServer(in + "#" + strings.ToUpper(key))
		if err != nil || s.String() != want+"#"+key || s.check() != nil {
			t.Errorf("%s: %q, %v", in, s.String(), err)
		}
		if again, err := ParseServer(s.String()); err != nil || again != s {
			t.Errorf("%s: not stable: %v, %v", in, again, err)
		}
	}
	s, _ := ParseServer("[::1]#" + key)
	if s.HostPort() != "[::1]:3478" || s.Host != "::1" {
		t.Errorf("HostPort %q, Host %q", s.HostPort(), s.Host)
	}
	if s, _ := ParseServer("rdv:9#" + key); s.HostPort() != "rdv:9" {
		t.Errorf("HostPort %q", s.HostPort())
	}
}

func TestParseServerRefuses(t *testing.T) {
	t.Parallel()
	key := testDH(2).Public().String()
	for _, where := range []string{
		"", ":3478", "rdv:", "rdv:0", "rdv:65536", "rdv:+1", "rdv:01", "rdv:x", "rdv:1:2", "2001:db8::1", "2001:db8::1:3478",
		"[2001:db8::1", "[2001:db8::1]x", "[2001:db8::1]3478", "[192.0.2.1]", "[rdv]", "[]", "fe80::1%eth0", "[fe80::1%eth0]",
		"-rdv", "rdv-", "a..b", "rdv.", ".rdv", "a b", "a_b", "a/b", "bücher", "127.1", "1.2.3.4.5", "1.2.3.256", "0x7f.1", "123",
		strings.Repeat("a", 64), "a\x00b", "a\nb", "user@rdv", "ſ", "\u212a.example",
	} {
		if s, err := ParseServer(where + "#" + key); err == nil {
			t.Errorf("%q: accepted as %s", where, s)
		}
	}
	for _, text := range []string{"", "rdv", "rdv#", "rdv#" + key[:51], "rdv#" + key + "a", "rdv#" + key + "#" + key,
		"rdv##" + key, "rdv# " + key, "rdv#" + encodeText(make([]byte, 32)), "rdv#" + key + "\n"} {
		if _, err := ParseServer(text); err == nil {
			t.Errorf("%q: accepted", text)
		}
	}
}
