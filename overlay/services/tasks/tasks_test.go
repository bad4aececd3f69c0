package tasks

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/a2aproject/a2a-go/v2/a2a"

	"github.com/pilotnet/pilot/overlay/services"
	"github.com/pilotnet/pilot/overlay/services/servicetest"
)

func TestNoHandlerRejects(t *testing.T) {
	r := newRig(t, "alice")
	c := r.client("alice")
	e := r.send(c, "hello", "rejected")
	if e.Reason != textNoHandler {
		t.Errorf("%+v", e)
	}
	if list, err := c.List(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("a rejected task was kept: %v, %v", list, err)
	}
}

func TestCommand(t *testing.T) {
	r := newRig(t, "alice")
	r.handler(`cat; echo " from $PILOT_PEER_NAME"; echo for the owner >&2`)
	c := r.client("alice")
	var told []string
	e, err := c.Send(t.Context(), Sending{Text: "hello", Progress: func(_ Entry, text string) { told = append(told, text) }})
	if err != nil || e.State != "completed" || e.Text != "hello from alice\n" || strings.Join(told, "") != e.Text {
		t.Fatalf("%+v, %v, told %q", e, err, told)
	}
	got, err := c.Get(t.Context(), e.ID)
	if err != nil || got.Text != e.Text || got.State != "completed" || got.Request != "hello" || got.Log != "" {
		t.Errorf("%+v, %v", got, err)
	}
	if rec, _, err := r.tasks().any(a2a.TaskID(e.ID)); err != nil || rec.Log != "for the owner\n" || rec.Name != "alice" {
		t.Errorf("%+v, %v", rec, err)
	}
	if _, err := c.Cancel(t.Context(), e.ID); err == nil || err.(*services.Error).Code != services.CodeConflict {
		t.Errorf("canceled a task that has ended: %v", err)
	}
	r.handler(`exit 3`)
	if e := r.send(c, "x", "failed"); !strings.Contains(e.Reason, "exit status 3") {
		t.Errorf("%+v", e)
	}
	if list, err := c.List(t.Context()); err != nil || len(list) != 2 || list[0].State != "failed" || list[1].ID != e.ID {
		t.Errorf("%+v, %v", list, err)
	}
}

func TestStreamComesWhileItIsWritten(t *testing.T) {
	r := newRig(t, "alice")
	r.handler(fmt.Sprintf(`echo first; while ! test -e %s; do sleep 0.02; done; echo second`, r.file("go")))
	first := false
	e, err := r.client("alice").Send(t.Context(), Sending{Text: "x", Progress: func(e Entry, text string) {
		if text == "first\n" && !e.Ended {
			first = true
			os.WriteFile(r.file("go"), nil, 0o600)
		}
	}})
	if err != nil || !first || e.Text != "first\nsecond\n" {
		t.Errorf("%+v, %v, the first line came early: %v", e, err, first)
	}
}

func TestJSONFormat(t *testing.T) {
	r := newRig(t, "alice")
	r.handler(`cat`, func(h *Handler) { h.Format = FormatJSON })
	e := r.send(r.client("alice"), "hello", "completed")
	if len(e.Data) != 1 {
		t.Fatalf("%+v", e)
	}
	in := e.Data[0].(map[string]any)
	if in["task_id"] != e.ID || in["peer"].(map[string]any)["name"] != "alice" || in["message"].(map[string]any)["parts"].([]any)[0].(map[string]any)["text"] != "hello" {
		t.Errorf("%v", in)
	}
	r.handler(`echo no json`, func(h *Handler) { h.Format = FormatJSON })
	if e := r.send(r.client("alice"), "hello", "failed"); e.Reason != errNotJSON.Error() {
		t.Errorf("%+v", e)
	}
}

func TestPeersSeeOnlyTheirOwn(t *testing.T) {
	r := newRig(t, "alice", "mallory")
	r.handler(`cat`)
	alice, mallory := r.client("alice"), r.client("mallory")
	e := r.send(alice, "secret", "completed")
	wantNotFound := func(what string, err error) {
		t.Helper()
		if bad := new(services.Error); !errors.As(err, &bad) || bad.Code != services.CodeNotFound {
			t.Errorf("%s: %v", what, err)
		}
	}
	_, err := mallory.Get(t.Context(), e.ID)
	wantNotFound("get", err)
	_, err = mallory.Cancel(t.Context(), e.ID)
	wantNotFound("cancel", err)
	_, err = mallory.Watch(t.Context(), e.ID, nil)
	wantNotFound("watch", err)
	if list, err := mallory.List(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("%v, %v", list, err)
	}
	r.handler(`sleep 60`)
	e, err = alice.Send(t.Context(), Sending{Text: "x", NoWait: true})
	if err != nil || e.State != "working" {
		t.Fatalf("%+v, %v", e, err)
	}
	for method, params := range map[string]string{
		"GetTask": `{"id":%q}`, "CancelTask": `{"id":%q}`, "SubscribeToTask": `{"id":%q}`, "tasks/get": `{"id":%q}`, "tasks/cancel": `{"id":%q}`, "tasks/resubscribe": `{"id":%q}`,
		"SendMessage": `{"message":{"messageId":"m","role":"ROLE_USER","taskId":%q,"parts":[{"text":"x"}]}}`,
	} {
		text := r.rpc("mallory", method, fmt.Sprintf(params, e.ID))
		if !strings.Contains(text, "-32001") {
			t.Errorf("%s of another's task at work: %s", method, text)
		}
	}
	if e, err := alice.Cancel(t.Context(), e.ID); err != nil || e.State != "canceled" {
		t.Errorf("%+v, %v", e, err)
	}
}

// rpc is a call by hand.
func (r *rig) rpc(from, method, params string) string {
	r.Helper()
	body := fmt.Sprintf(`{"jsonrpc":"2.0","id":1,"method":%q,"params":%s}`, method, params)
	answer, err := r.web(from).Post("http://127.0.0.1:1003/", "application/json", strings.NewReader(body))
	if err != nil {
		r.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		r.Fatal(err)
	}
	return string(text)
}

func TestBothVersions(t *testing.T) {
	r := newRig(t, "alice")
	r.handler(`cat`)
	for method, want := range map[string]string{
		"SendMessage":          `"state":"TASK_STATE_COMPLETED"`,
		"SendStreamingMessage": `"artifactUpdate"`,
		"message/send":         `"state":"completed"`,
		"message/stream":       `"kind":"artifact-update"`,
	} {
		params := `{"message":{"messageId":"m","role":"ROLE_USER","parts":[{"text":"hi"}]}}`
		if strings.Contains(method, "/") {
			params = `{"message":{"kind":"message","messageId":"m","role":"user","parts":[{"kind":"text","text":"hi"}]}}`
		}
		if text := r.rpc("alice", method, params); !strings.Contains(text, want) || !strings.Contains(text, `"text":"hi"`) {
			t.Errorf("%s: %s", method, text)
		}
	}
	for _, path := range []string{"agent-card.json", "agent.json"} {
		answer, err := r.web("alice").Get("http://127.0.0.1:1003/.well-known/" + path)
		if err != nil {
			t.Fatal(err)
		}
		var card struct {
			Name, URL, ProtocolVersion, PreferredTransport string
			SupportedInterfaces                            []a2a.AgentInterface
		}
		if err := json.NewDecoder(answer.Body).Decode(&card); err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if card.Name != "self" || card.URL != "http://127.0.0.1:1003/" || !strings.HasPrefix(card.ProtocolVersion, "0.3") || len(card.SupportedInterfaces) != 2 {
			t.Errorf("%s: %+v", path, card)
		}
	}
}

func TestHostileRequests(t *testing.T) {
	r := newRig(t, "alice")
	r.handler(`cat`)
	post := func(header http.Header, host, body string) (int, string) {
		t.Helper()
		req, _ := http.NewRequest(http.MethodPost, "http://127.0.0.1:1003/", strings.NewReader(body))
		req.Header = header
		req.Host = host
		answer, err := r.web("alice").Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		text, _ := io.ReadAll(answer.Body)
		return answer.StatusCode, string(text)
	}
	if code, text := post(http.Header{}, "", `{"jsonrpc":"2.0","id":1,"method":"SendMessage","params":"`+strings.Repeat("x", maxMessage)+`"}`); code != 413 || !strings.Contains(text, "larger than") {
		t.Errorf("%d %s", code, text)
	}
	if code, _ := post(http.Header{}, "evil.example", `{}`); code != 421 {
		t.Errorf("a foreign name: %d", code)
	}
	if code, _ := post(http.Header{"Origin": {"http://evil.example"}}, "", `{}`); code != 403 {
		t.Errorf("a foreign page: %d", code)
	}
	for _, body := range []string{``, `{`, `[]`, `null`, `{"jsonrpc":"2.0","id":1,"method":"SendMessage","params":{"message":{"parts":[null]}}}`, strings.Repeat(`[`, 100_000)} {
		if code, text := post(http.Header{}, "", body); code != 200 || !strings.Contains(text, `"error"`) {
			t.Errorf("%.40q: %d %s", body, code, text)
		}
	}
	for _, message := range []string{
		`{"messageId":"m","role":"ROLE_USER","parts":[null]}`,
		`{"messageId":"m","role":"ROLE_AGENT","parts":[{"text":"x"}]}`,
		`{"messageId":"m","role":"ROLE_USER","parts":[]}`,
		`{"messageId":"m","role":"ROLE_USER","contextId":"a\u0000b","parts":[{"text":"x"}]}`,
		`{"messageId":"m","role":"ROLE_USER","contextId":"$(reboot)","parts":[{"text":"x"}]}`,
		`{"messageId":"m","role":"ROLE_USER","parts":[{"raw":"AAAA"}]}`,
	} {
		for _, method := range []string{"SendMessage", "SendStreamingMessage"} {
			if text := r.rpc("alice", method, `{"message":`+message+`}`); !strings.Contains(text, `"error"`) {
				t.Errorf("%s %s: %s", method, message, text)
			}
		}
	}
	if text := r.rpc("alice", "SendMessage", `{"message":{"messageId":"m","role":"ROLE_USER","parts":[{"text":"x"}]},"configuration":{"taskPushNotificationConfig":{"url":"http://127.0.0.1:1/"}}}`); !strings.Contains(text, "-32003") {
		t.Errorf("push: %s", text)
	}
	if _, err := r.lab.Answer("stranger", Port, 1); err == nil {
		t.Error("a stranger was answered")
	}
}

func TestManyHalfOpenConnections(t *testing.T) {
	r := newRig(t, "alice", "bob")
	r.handler(`cat`)
	for range 1000 {
		c, err := r.lab.Dial(t.Context(), "alice", "tcp", Port)
		if err != nil {
			continue // reset: above the limit of a peer
		}
		t.Cleanup(func() { c.Close() })
		_, _ = c.Write([]byte("POST / HT")) // may be reset, too
	}
	if e := r.send(r.client("bob"), "still there", "completed"); e.Text != "still there" {
		t.Errorf("%+v", e)
	}
}

func TestTooManyTasks(t *testing.T) {
	r := newRig(t, "alice", "bob")
	r.handler(`sleep 60`)
	c := r.client("alice")
	for range maxPeerAtWork {
		if e, err := c.Send(t.Context(), Sending{Text: "x", NoWait: true}); err != nil || e.State != "working" {
			t.Fatalf("%+v, %v", e, err)
		}
	}
	_, err := c.Send(t.Context(), Sending{Text: "x"})
	if bad := new(services.Error); !errors.As(err, &bad) || bad.Code != services.CodeQuota || !bad.Retryable || !strings.Contains(bad.Message, "limit") {
		t.Errorf("%v", err)
	}
	if e, err := r.client("bob").Send(t.Context(), Sending{Text: "x", NoWait: true}); err != nil || e.State != "working" {
		t.Errorf("another peer is kept out: %+v, %v", e, err)
	}
}

func TestTaskThatCannotBeKept(t *testing.T) {
	r := newRig(t, "alice")
	r.handler(`cat`)
	c := r.client("alice")
	if err := r.tasks().book.close(); err != nil {
		t.Fatal(err)
	}
	_, err := c.Send(t.Context(), Sending{Text: "x"})
	bad := new(services.Error)
	if !errors.As(err, &bad) || !bad.Retryable || !strings.Contains(bad.Message, "the agent cannot keep a task now") || strings.Contains(bad.Message, "tasks:") {
		t.Errorf("%#v", err)
	}
}

func TestInterruptedTasksAreMarked(t *testing.T) {
	dir := t.TempDir()
	ts, err := New(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	alice := servicetest.Agent("alice")
	m := a2a.NewMessage(a2a.MessageRoleUser, a2a.NewTextPart("x"))
	task := &a2a.Task{ID: a2a.NewTaskID(), ContextID: "c", History: []*a2a.Message{m}, Status: a2a.TaskStatus{State: a2a.TaskStateWorking}}
	if err := errors.Join(ts.book.put(Record{Peer: alice.Fingerprint, Name: "alice", Task: task}), ts.SetHandler(&Handler{URL: "http://127.0.0.1:1/"}), ts.Close()); err != nil {
		t.Fatal(err)
	}
	if ts, err = New(Config{Dir: dir}); err != nil {
		t.Fatal(err)
	}
	defer ts.Close()
	got, _, err := ts.look(alice.Fingerprint, task.ID)
	if err != nil || got.Status.State != a2a.TaskStateFailed || EntryOf(got).Reason != textInterrupted || ts.Handler() == nil {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestStopMarksTasks(t *testing.T) {
	dir := t.TempDir()
	ts, err := New(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	h := &Handler{Exec: []string{"/bin/sh", "-c", "sleep 60"}, UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())}
	if err := errors.Join(h.check(), ts.SetHandler(h)); err != nil {
		t.Fatal(err)
	}
	alice := servicetest.Agent("alice")
	r, err := ts.start(alice, a2a.NewMessage(a2a.MessageRoleUser, a2a.NewTextPart("x")))
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if err := ts.Close(); err != nil || time.Since(begin) > 20*time.Second {
		t.Fatalf("%v after %v", err, time.Since(begin))
	}
	if e := EntryOf(r.task()); e.State != "failed" || e.Reason != textInterrupted {
		t.Errorf("%+v", e)
	}
}

func TestOldTasksAreForgotten(t *testing.T) {
	ts, err := New(Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer ts.Close()
	alice := servicetest.Agent("alice").Fingerprint
	ts.book.keepBytes = 64 << 10
	big := strings.Repeat("x", 2<<10)
	for i := range 40 {
		state := a2a.TaskStateCompleted
		if i == 0 {
			state = a2a.TaskStateWorking
		}
		task := &a2a.Task{ID: a2a.TaskID(fmt.Sprintf("%04d", i)), ContextID: "c", Status: a2a.TaskStatus{State: state}, History: []*a2a.Message{a2a.NewMessage(a2a.MessageRoleUser, a2a.NewTextPart(big))}}
		if err := ts.book.put(Record{Peer: alice, Task: task}); err != nil {
			t.Fatal(err)
		}
	}
	var kept []string
	ts.book.latest(alice, "", func(r Record) bool { kept = append(kept, string(r.Task.ID)); return true })
	if n := len(kept); n < 20 || n > 33 || kept[0] != "0039" || kept[n-1] != "0000" {
		t.Errorf("kept %v", kept)
	}
}

func TestDamagedBook(t *testing.T) {
	dir := t.TempDir()
	ts, err := New(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	alice := servicetest.Agent("alice").Fingerprint
	for i := range 50 {
		task := &a2a.Task{ID: a2a.TaskID(fmt.Sprintf("%04d", i)), ContextID: "c", Status: a2a.TaskStatus{State: a2a.TaskStateCompleted}}
		if err := ts.book.put(Record{Peer: alice, Task: task}); err != nil {
			t.Fatal(err)
		}
	}
	if err := ts.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "tasks.db")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, damage := range []func([]byte) []byte{
		func(b []byte) []byte { return b[:5*os.Getpagesize()] },
		func(b []byte) []byte { return b[:100] },
		func(b []byte) []byte { return bytes.Replace(b, []byte(`{"peer"`), []byte(`["peer"`), -1) },
		func(b []byte) []byte { return append(make([]byte, 8192), b[8192:]...) },
	} {
		if err := os.WriteFile(path, damage(bytes.Clone(whole)), 0o600); err != nil {
			t.Fatal(err)
		}
		if ts, err := New(Config{Dir: dir}); err == nil {
			ts.Close()
			t.Error("opened a damaged file")
		} else if !strings.Contains(err.Error(), "move it away") {
			t.Error(err)
		}
	}
}

func TestOwner(t *testing.T) {
	r := newRig(t, "alice")
	caller := func(context.Context) (uint32, uint32, bool) { return uint32(os.Geteuid()), uint32(os.Getegid()), true }
	owner := r.tasks().Owner(caller)
	ask := func(method, path, body string) (int, string) {
		req, _ := http.NewRequest(method, "http://pilot"+OwnerPath+path, strings.NewReader(body))
		w := &recorder{header: http.Header{}}
		owner.ServeHTTP(w, req)
		return w.code, w.body.String()
	}
	for _, c := range []struct {
		method, path, body string
		code               int
		text               string
	}{
		{"GET", "handler", "", 200, `{"handler":null}`},
		{"PUT", "handler", `{"exec":["cat"]}`, 400, "not absolute"},
		{"PUT", "handler", `{}`, 400, "either a command or a URL"},
		{"PUT", "handler", `{"url":"file:///etc/passwd"}`, 400, "no URL"},
		{"PUT", "handler", `{"url":"http://127.0.0.1/","shell":true}`, 400, "unknown field"},
		{"PUT", "handler", `{"exec":["/bin/cat"],"time_limit":1}`, 400, "time limit"},
		{"PUT", "handler", `{"exec":["/bin/cat"],"uid":4242}`, 200, fmt.Sprintf(`"uid":%d`, os.Geteuid())},
		{"GET", "task/none", "", 404, "there is no task"},
		{"POST", "task/none/cancel", "", 404, "there is no task"},
		{"GET", "list", "", 200, "[]"},
		{"GET", "list?peer=x", "", 400, "not a fingerprint"},
		{"GET", "nothing", "", 404, "no such call"},
	} {
		if code, text := ask(c.method, c.path, c.body); code != c.code || !strings.Contains(text, c.text) {
			t.Errorf("%s %s %s: %d %s", c.method, c.path, c.body, code, text)
		}
	}
	e := r.send(r.client("alice"), "hello", "completed")
	if code, text := ask("GET", "list", ""); code != 200 || !strings.Contains(text, e.ID) || !strings.Contains(text, `"peer":"alice"`) {
		t.Errorf("%d %s", code, text)
	}
	if code, text := ask("GET", "task/"+e.ID, ""); code != 200 || !strings.Contains(text, `"text":"hello"`) {
		t.Errorf("%d %s", code, text)
	}
	if code, text := ask("POST", "task/"+e.ID+"/cancel", ""); code != 409 {
		t.Errorf("%d %s", code, text)
	}
	if code, _ := ask("DELETE", "handler", ""); code != 200 || r.tasks().Handler() != nil {
		t.Error("the handler is still there")
	}
}

type recorder struct {
	header http.Header
	code   int
	body   bytes.Buffer
}

func (r *recorder) Header() http.Header         { return r.header }
func (r *recorder) WriteHeader(code int)        { r.code = code }
func (r *recorder) Write(p []byte) (int, error) { return r.body.Write(p) }
