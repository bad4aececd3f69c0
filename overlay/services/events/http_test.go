package events

import (
	"bufio"
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"
)

// A stream is what an EventSource sees.
type stream struct {
	t    testing.TB
	in   *bufio.Scanner
	stop func()
	last string // ID of the latest event
}

func (r *rig) stream(who, path, last string) *stream {
	r.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	q, err := http.NewRequestWithContext(ctx, "GET", "http://[::1]:1002"+path, nil)
	if err != nil {
		r.Fatal(err)
	}
	q.Header.Set("Accept", "text/event-stream")
	if last != "" {
		q.Header.Set("Last-Event-ID", last)
	}
	a, err := r.web(who).Do(q)
	if err != nil || a.StatusCode != 200 || a.Header.Get("Content-Type") != "text/event-stream" {
		r.Fatal(a, err)
	}
	late := time.AfterFunc(patience, cancel)
	s := &stream{t: r, in: bufio.NewScanner(a.Body)}
	s.stop = func() {
		late.Stop()
		cancel()
		a.Body.Close()
	}
	r.Cleanup(s.stop)
	return s
}

// next is the data of the next event, and its kind.
func (s *stream) next() (e Event, kind string) {
	s.t.Helper()
	for s.in.Scan() {
		name, value, _ := strings.Cut(s.in.Text(), ": ")
		switch name {
		case "id":
			s.last = value
		case "event":
			kind = value
		case "data":
			if err := json.Unmarshal([]byte(value), &e); err != nil {
				s.t.Fatal(err)
			}
			return e, kind
		}
	}
	s.t.Fatal("the stream ends: ", s.in.Err())
	return
}

func (s *stream) want(topic, payload string) {
	s.t.Helper()
	e, kind := s.next()
	if e.Topic != topic || e.Payload == nil || *e.Payload != payload || kind != "" {
		s.t.Fatalf("%+v %q, want %s %s", e, kind, topic, payload)
	}
}

func TestWeb(t *testing.T) {
	r := newRig(t, 0)
	owner := r.client("self", ClientConfig{})
	owner.subscribe("#")
	for _, c := range []struct {
		who, method, path, body string
		status                  int
		headers                 []string
	}{
		{"alice", "GET", "/", "", 200, nil},
		{"alice", "POST", "/topics/peer/alice/log", "hello", 200, nil},
		{"alice", "PUT", "/topics/peer/alice/state", `{"n":1}`, 200, []string{"Content-Type: application/json"}},
		{"alice", "PUT", "/topics/peer/alice/state", "", 400, nil},
		{"alice", "POST", "/topics/public/log", "hello", 403, nil},
		{"alice", "POST", "/topics/peer/bob/log", "hello", 403, nil},
		{"alice", "POST", "/topics/peer/alice/../bob/log", "hello", 200, nil}, // a level called .., no path
		{"alice", "POST", "/topics/peer/alice/%00", "hello", 400, nil},
		{"alice", "POST", "/topics/peer/alice/%23", "hello", 400, nil},
		{"alice", "POST", "/topics/$SYS/x", "hello", 400, nil},
		{"alice", "POST", "/topics/peer/alice/x", strings.Repeat("x", MaxPayload+1), 413, nil},
		{"alice", "POST", "/topics/peer/alice/x", "x", 400, []string{"Content-Type: a/b/c"}},
		{"alice", "POST", "/elsewhere", "x", 404, nil},
		{"alice", "PATCH", "/topics/x", "x", 405, nil},
		{"alice", "POST", "/topics/peer/alice/x", "x", 421, []string{"Host: evil.example"}},
		{"alice", "POST", "/topics/peer/alice/x", "x", 403, []string{"Sec-Fetch-Site: cross-site"}},
		{"alice", "POST", "/topics/peer/alice/x", "x", 403, []string{"Origin: http://evil.example"}},
		{"alice", "GET", "/topics/peer/alice/state", "", 403, nil},
		{"alice", "GET", "/topics/%23", "", 403, []string{"Accept: text/event-stream"}},
		{"alice", "GET", "/topics", "", 400, []string{"Accept: text/event-stream"}},
		{"self", "GET", "/topics/peer/alice/state", "", 200, nil},
		{"self", "GET", "/topics/peer/alice/none", "", 404, nil},
		{"self", "GET", "/topics?filter=peer/%23", "", 200, nil},
	} {
		status, body := r.ask(c.who, c.method, c.path, c.body, c.headers...)
		if status != c.status {
			t.Errorf("%s %s %s: %d %s, want %d", c.who, c.method, c.path, status, body, c.status)
		}
		if c.path == "/topics?filter=peer/%23" && !strings.Contains(body, `"data":{"n":1}`) {
			t.Errorf("%s", body)
		}
	}
	owner.want("peer/alice/log", "hello")
	if in := owner.want("peer/alice/state", `{"n":1}`); in.ContentType != "application/json" {
		t.Errorf("%+v", in)
	}
	owner.want("peer/alice/../bob/log", "hello")
	if status, body := r.ask("alice", "DELETE", "/topics/peer/alice/state", ""); status != 200 {
		t.Errorf("%d %s", status, body)
	}
	if status, _ := r.ask("self", "GET", "/topics/peer/alice/state", ""); status != 404 {
		t.Errorf("it is still retained: %d", status)
	}
}

func TestStream(t *testing.T) {
	r := newRig(t, 0)
	post := func(topic, payload string) {
		t.Helper()
		if status, body := r.ask("self", "POST", "/topics/"+topic, payload); status != 200 {
			t.Fatalf("%d %s", status, body)
		}
	}
	r.ask("self", "PUT", "/topics/public/state", "on")
	s := r.stream("alice", "/topics/public/%23", "")
	s.want("public/state", "on")
	post("secret/x", "no")
	post("public/x", "1")
	s.want("public/x", "1")
	s.stop()
	last := s.last
	post("public/x", "2")
	post("secret/x", "no")
	post("public/y", "3")
	s = r.stream("alice", "/topics?filter=public/x&filter=public/y", last)
	s.want("public/x", "2")
	s.want("public/y", "3")
	post("public/x", "4")
	s.want("public/x", "4")
	r.restart()
	s = r.stream("alice", "/topics/public/%23", last)
	if _, kind := s.next(); kind != "gap" {
		t.Errorf("after a restart: %q", kind)
	}
	post("public/x", "5")
	s.want("public/x", "5")
	s.stop()
	r.within("the session is gone", func() bool { return len(r.state().Sessions) == 0 })
}

// TestSlowStream: a stream that nobody reads is ended, now or when it has not taken the
// rest in time, and the publisher goes on.
func TestSlowStream(t *testing.T) {
	r := newRig(t, 0)
	c := r.raw("alice", []byte("GET /topics/public/%23 HTTP/1.1\r\nHost: bob\r\nAccept: text/event-stream\r\n\r\n"))
	r.within("it subscribes", func() bool { return len(r.state().Sessions) == 1 })
	owner := r.client("self", ClientConfig{})
	for range 300 {
		if err := owner.publish(&Message{Topic: "public/n", Payload: []byte(strings.Repeat("x", 100_000)), QoS: 1}); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range r.state().Sessions {
		if len(s.Filters) == 1 && s.Dropped == 0 {
			t.Errorf("it takes everything: %+v", s)
		}
	}
	c.Close()
}
