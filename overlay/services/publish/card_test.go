package publish

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
)

// places knows the program itself, and one more publication.
func places(port uint16) (string, bool) {
	host, ok := map[uint16]string{9999: "bob.pilot.internal:8080", 50051: "bob.pilot.internal:50052"}[port]
	return host, ok
}

func TestRewriteCard(t *testing.T) {
	for _, c := range []struct{ name, in, want, note string }{
		{"0.3", `{"url":"http://localhost:9999/","name":"x","additionalInterfaces":[{"url":"http://0.0.0.0:9999/a","transport":"JSONRPC"},{"url":"localhost:50051","transport":"GRPC"}]}`,
			`{"additionalInterfaces":[{"transport":"JSONRPC","url":"http://bob.pilot.internal:8080/a"},{"transport":"GRPC","url":"bob.pilot.internal:50052"}],"name":"x","url":"http://bob.pilot.internal:8080/"}`, ""},
		{"1.0", `{"supportedInterfaces":[{"url":"http://127.0.0.1:9999/a2a/v1","protocolBinding":"HTTP+JSON"},{"url":"https://[::1]:9999?x=1"}],"version":1.0}`,
			`{"supportedInterfaces":[{"protocolBinding":"HTTP+JSON","url":"http://bob.pilot.internal:8080/a2a/v1"},{"url":"http://bob.pilot.internal:8080?x=1"}],"version":1.0}`, ""},
		{"signed", `{"url":"http://localhost:9999/","signatures":[{"protected":"x"}]}`, "", "signed"},
		{"signatures of a strange form", `{"url":"http://localhost:9999/","signatures":"x"}`, "", "signed"},
		{"empty signatures", `{"url":"http://localhost:9999/","signatures":[]}`, `{"signatures":[],"url":"http://bob.pilot.internal:8080/"}`, ""},
		{"elsewhere", `{"url":"https://agents.example/a"}`, "", "not at this agent's overlay address"},
		{"another program", `{"url":"http://localhost:1234/"}`, "", "not published"},
		{"nothing local", `{"url":"",  "x":1}`, "", ""},
		{"no card", `[1,2]`, "", "no JSON object"},
		{"no JSON", `<html>`, "", "no JSON object"},
		{"null", `null`, "", "no JSON object"},
		{"odd members", `{"url":7,"additionalInterfaces":{"url":"http://localhost:9999"},"supportedInterfaces":[null]}`, "", ""},
	} {
		got, notes := rewriteCard([]byte(c.in), places)
		want := c.want
		if want == "" {
			want = c.in
		}
		if string(got) != want {
			t.Errorf("%s:\n%s\nwant\n%s", c.name, got, want)
		}
		if note := strings.Join(notes, "; "); (note == "") != (c.note == "") || !strings.Contains(note, c.note) {
			t.Errorf("%s: notes %q", c.name, note)
		}
	}
}

// Whatever a program says, what becomes of it is JSON if it was, and a second pass
// changes nothing more.
func FuzzRewriteCard(f *testing.F) {
	f.Add([]byte(`{"url":"http://localhost:9999/","x":"<&>\u2028","additionalInterfaces":[{"url":"localhost:50051"}]}`))
	f.Add([]byte(`{"url":"http://localhost:9999/","signatures":[1]}`))
	f.Add([]byte(`{"url":"//localhost:9999"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		once, _ := rewriteCard(b, places)
		if json.Valid(b) != json.Valid(once) {
			t.Fatalf("%q became %q", b, once)
		}
		if twice, _ := rewriteCard(once, places); !bytes.Equal(once, twice) {
			t.Fatalf("%q became %q and then %q", b, once, twice)
		}
	})
}

func TestCardOverHTTP(t *testing.T) {
	d := newDesk(t)
	var card func(self string) string
	port := program(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("If-None-Match") != "" || r.Header.Get("Accept-Encoding") != "" {
			http.Error(w, "asked for less than the card", http.StatusBadRequest)
			return
		}
		w.Header().Set("Etag", `"1"`)
		io.WriteString(w, card(r.Host))
	}))
	d.publish(Rule{Kind: A2A, Port: 8080, Target: itoa(port)})
	fetch := func(base, path string) (int, string) {
		t.Helper()
		r, err := get(t, d.client("alice"), base+path, "If-None-Match: \"1\"", "Accept-Encoding: gzip")
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Fatal(err)
		}
		if r.StatusCode == http.StatusOK && r.Header.Get("Etag") != "" {
			t.Error("the program's tag stands for our bytes")
		}
		return r.StatusCode, string(b)
	}
	card = func(self string) string { return `{"url":"http://` + self + `/"}` }
	for _, base := range []string{bobURL, "http://[" + own.ULA().String() + "]:8080/"} {
		for _, path := range []string{".well-known/agent-card.json", ".well-known/agent.json"} {
			if status, got := fetch(base, path); status != http.StatusOK || got != `{"url":"`+base+`"}` {
				t.Errorf("%s: %d %s", base+path, status, got)
			}
		}
	}
	card = func(self string) string { return `{"url":"http://` + self + `/","signatures":[{}]}` }
	if status, got := fetch(bobURL, ".well-known/agent-card.json"); status != http.StatusOK || got != card("localhost:"+itoa(port)) {
		t.Errorf("signed: %d %s", status, got)
	}
	if s := d.List(); !strings.Contains(s[0].Warning, "signed") {
		t.Errorf("no warning: %+v", s)
	}
	card = func(string) string { return `{"description":"` + strings.Repeat("x", 1<<20) + `"}` }
	if status, got := fetch(bobURL, ".well-known/agent-card.json"); status != http.StatusBadGateway || !strings.Contains(got, "larger than") {
		t.Errorf("large: %d %.100s", status, got)
	}
	card = func(self string) string { return `{"url":"http://` + self + `/"}` }
	if fetch(bobURL, ".well-known/agent-card.json"); d.List()[0].Warning != "" {
		t.Error("the warning stays")
	}
}
