package main

import (
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestProxies(t *testing.T) {
	target := &url.URL{Scheme: "https", Host: "server.example:3478"}
	for _, c := range []struct {
		env  map[string]string
		want string
	}{
		{nil, ""},
		{map[string]string{"HTTPS_PROXY": "http://a:1", "HTTP_PROXY": "http://b:2"}, "http://a:1"},
		{map[string]string{"https_proxy": "http://a:1"}, "http://a:1"},
		{map[string]string{"HTTP_PROXY": "http://b:2"}, "http://b:2"},
		{map[string]string{"HTTPS_PROXY": "http://a:1", "NO_PROXY": "server.example"}, ""},
		{map[string]string{"HTTPS_PROXY": "http://a:1", "no_proxy": "*"}, ""},
	} {
		p := &program{getenv: func(name string) string { return c.env[name] }}
		found, err := p.proxies("")
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		if found.Find != nil {
			if u, err := found.Find(target); err != nil {
				t.Error(err)
			} else if u != nil {
				got = u.String()
			}
		}
		if got != c.want {
			t.Errorf("%v: %q, want %q", c.env, got, c.want)
		}
	}
	p := &program{getenv: func(string) string { return "" }}
	file := filepath.Join(t.TempDir(), "ca.pem")
	if _, err := p.proxies(file); err == nil {
		t.Error("a file that is not there")
	}
	if err := os.WriteFile(file, []byte("no PEM"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := p.proxies(file); err == nil || !strings.Contains(err.Error(), "no certificate in it") {
		t.Error(err)
	}
}
