package main

import (
	"bytes"
	"strings"
	"testing"
)

// Programs go past the proxy to what they went to before, but never to peers.
func TestNoProxy(t *testing.T) {
	for _, c := range []struct{ had, want, says string }{
		{"", "localhost,127.0.0.1,::1", ""},
		{"localhost, db.example ,10.0.0.0/8", "localhost,127.0.0.1,::1,db.example,10.0.0.0/8", ""},
		{"*", "localhost,127.0.0.1,::1", "* in NO_PROXY is left out"},
		{".internal,corp", "localhost,127.0.0.1,::1,corp", ".internal in NO_PROXY"},
		{"*.pilot.internal", "localhost,127.0.0.1,::1", "*.pilot.internal in NO_PROXY"},
		{"Pilot.Internal", "localhost,127.0.0.1,::1", "Pilot.Internal in NO_PROXY"},
		{"web.corp.internal", "localhost,127.0.0.1,::1,web.corp.internal", ""},
		{"lot.internal", "localhost,127.0.0.1,::1,lot.internal", ""},
	} {
		var errs bytes.Buffer
		p := &program{stderr: &errs, getenv: func(name string) string { return map[string]string{"NO_PROXY": c.had}[name] }}
		if got := p.noProxy(); got != c.want || !strings.Contains(errs.String(), c.says) || c.says == "" && errs.Len() > 0 {
			t.Errorf("%q: %q, want %q; says %q", c.had, got, c.want, errs.String())
		}
	}
}

// A value with a quote in it does not end the word that the shell reads.
func TestProxyEnvText(t *testing.T) {
	var out bytes.Buffer
	proxyEnv{Variables: []variable{{"no_proxy", "a';reboot;'"}}}.text(&out)
	if want := `export no_proxy='a'\'';reboot;'\'''` + "\n"; out.String() != want {
		t.Errorf("%q, want %q", out.String(), want)
	}
}
