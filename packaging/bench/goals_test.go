package main

import (
	"strings"
	"testing"
)

func TestVerdict(t *testing.T) {
	for _, test := range []struct {
		v, goal, floor float64
		less           bool
		want           string
	}{
		{2.6, 2.6, 2.2, false, "goal met"},
		{2.3, 2.6, 2.2, false, "floor met"},
		{2.1, 2.6, 2.2, false, "missed"},
		{0.28, 0.28, 0.34, true, "goal met"},
		{0.3, 0.28, 0.34, true, "floor met"},
		{0.35, 0.28, 0.34, true, "missed"},
	} {
		if got := verdict(test.v, test.goal, test.floor, test.less); got != test.want {
			t.Errorf("%v of %v (%v): %s, want %s", test.v, test.goal, test.floor, got, test.want)
		}
	}
}

// TestTargets: each target names a figure that is measured on a link that exists.
func TestTargets(t *testing.T) {
	for _, x := range targets {
		found := false
		for _, f := range figures {
			if got, ok := targetOf(x.variant, f); ok && got == x {
				found = true
			}
		}
		if _, ok := links[x.variant]; !ok || !found || x.goal > x.floor == x.less {
			t.Errorf("%+v", x)
		}
	}
}

func TestBound(t *testing.T) {
	r := &report{options: options{contenders: []string{"veth", rival, "pilot"}}}
	r.add(result{variant: "default", test: "http", figures: map[string]metrics{
		"veth": {"rps": 30, "p50": 2}, rival: {"rps": 10, "p50": 10}, "pilot": {"rps": 20, "p50": 4},
	}})
	var b strings.Builder
	r.summary(&b, "default")
	for _, want := range []string{"**2** (2-2) | >= 3.5 (3) | missed |", "**0.4** (0.4-0.4) | <= 0.23 (0.3) | missed |", "requests/s"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in:\n%s", want, b.String())
		}
	}
	if !strings.Contains(b.String(), "HTTP, 32 connections, 1 KiB: the bare link itself comes to 3 of") ||
		strings.Contains(b.String(), "HTTP, median latency: the bare link") {
		t.Errorf("what bounds HTTP:\n%s", b.String())
	}
	if n := strings.Count(b.String(), "in a profile"); n != 1 || strings.Contains(b.String(), "\n\nHTTP, median latency: in") {
		t.Errorf("HTTP is explained %d times:\n%s", n, b.String())
	}
	r.add(result{variant: "default", test: "ping", figures: map[string]metrics{rival: {"p50": 10}, "pilot": {"p50": 5}}})
	b.Reset()
	if r.summary(&b, "default"); strings.Contains(b.String(), "ping, median: in") {
		t.Errorf("a figure that met its floor is explained:\n%s", b.String())
	}
}
