package tasks

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestCommandEnvironment(t *testing.T) {
	t.Setenv("PILOT_SECRET", "not for handlers")
	r := newRig(t, "alice")
	r.handler(`env`)
	e := r.send(r.client("alice"), "$(touch /tmp/x)", "completed")
	var names []string
	for line := range strings.Lines(e.Text) {
		name, _, _ := strings.Cut(line, "=")
		names = append(names, name)
	}
	slices.Sort(names)
	want := []string{"HOME", "LANG", "LOGNAME", "PATH", "PILOT_CONTEXT_ID", "PILOT_PEER_ADDRESS", "PILOT_PEER_FINGERPRINT", "PILOT_PEER_NAME", "PILOT_PEER_ULA", "PILOT_TASK_ID", "USER"}
	names = slices.DeleteFunc(names, func(n string) bool { return n == "PWD" || n == "_" || n == "SHLVL" || n == "OLDPWD" }) // the shell's own
	if !slices.Equal(names, want) {
		t.Errorf("%v", names)
	}
}

func TestTimeLimitEndsTheGroup(t *testing.T) {
	r := newRig(t, "alice")
	// The leader ignores SIGTERM and has a child that does so too.
	r.handler(fmt.Sprintf(`trap "" TERM; (while :; do touch %s; sleep 0.02; done) & wait; sleep 60`, r.file("alive")), func(h *Handler) { h.TimeLimit = time.Second })
	e := r.send(r.client("alice"), "x", "failed")
	if !strings.Contains(e.Reason, "time limit of 1s") {
		t.Errorf("%+v", e)
	}
	os.Remove(r.file("alive"))
	<-time.After(200 * time.Millisecond)
	if alive(r.file("alive")) {
		t.Error("a process of the group lives on")
	}
}

func TestNothingOfTheGroupIsLeft(t *testing.T) {
	r := newRig(t, "alice")
	r.handler(fmt.Sprintf(`(trap "" TERM HUP; while :; do touch %s; sleep 0.02; done) >/dev/null 2>&1 & echo done`, r.file("alive")))
	if e := r.send(r.client("alice"), "x", "completed"); e.Text != "done\n" {
		t.Errorf("%+v", e)
	}
	os.Remove(r.file("alive"))
	<-time.After(200 * time.Millisecond)
	if alive(r.file("alive")) {
		t.Error("a process of the group lives on")
	}
}

func TestOutputLimit(t *testing.T) {
	r := newRig(t, "alice")
	r.handler(`yes`, func(h *Handler) { h.MaxOutput = 100_000 })
	e := r.send(r.client("alice"), "x", "failed")
	if !strings.Contains(e.Reason, "100000 bytes") || len(e.Text) > 100_000 {
		t.Errorf("%s, %d bytes", e.Reason, len(e.Text))
	}
}

func TestCancelStopsTheCommand(t *testing.T) {
	r := newRig(t, "alice")
	r.handler(fmt.Sprintf(`trap "touch %s; exit" TERM; touch %s; while :; do sleep 0.02; done`, r.file("termed"), r.file("alive")))
	c := r.client("alice")
	e, err := c.Send(t.Context(), Sending{Text: "x", NoWait: true})
	if err != nil {
		t.Fatal(err)
	}
	within(t, "the handler runs", func() bool { return alive(r.file("alive")) })
	watched := make(chan Entry, 1)
	go func() {
		e, _ := c.Watch(context.Background(), e.ID, nil)
		watched <- e
	}()
	got, err := c.Cancel(t.Context(), e.ID)
	if err != nil || got.State != "canceled" || !alive(r.file("termed")) {
		t.Errorf("%+v, %v", got, err)
	}
	if e := <-watched; e.State != "canceled" {
		t.Errorf("%+v", e)
	}
}

func TestCommandRunsAsItsOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("PILOT_REQUIRE_ROOT") == "1" {
			t.Fatal("needs root, and PILOT_REQUIRE_ROOT=1 forbids to skip")
		}
		t.Skip("needs root, to run a command as another user")
	}
	r := newRig(t, "alice")
	r.handler(`id -u; id -g; id -G; grep NoNewPrivs /proc/self/status; grep CapEff /proc/self/status`, func(h *Handler) { h.UID, h.GID = 65534, 65533 })
	e := r.send(r.client("alice"), "x", "completed")
	fields := strings.Fields(e.Text)
	if len(fields) < 4 || fields[0] != "65534" || fields[1] != "65533" || slices.Contains(fields[2:], "0") && !strings.Contains(e.Text, "NoNewPrivs") {
		t.Errorf("%q", e.Text)
	}
	if !strings.Contains(e.Text, "NoNewPrivs:\t1") || !strings.Contains(e.Text, "CapEff:\t0000000000000000") {
		t.Errorf("%q", e.Text)
	}
}

func TestCommandThatIsNotThere(t *testing.T) {
	r := newRig(t, "alice")
	r.handler("", func(h *Handler) { h.Exec = []string{"/no/such/program"} })
	e := r.send(r.client("alice"), "x", "failed")
	if strings.Contains(e.Reason, "/no/such") {
		t.Errorf("a peer is told a path: %s", e.Reason)
	}
}

func TestURL(t *testing.T) {
	answer := func(w http.ResponseWriter, r *http.Request) {
		text, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s says %s", r.Header.Get("Pilot-Peer-Name"), text)
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { answer(w, r) }))
	defer s.Close()
	r := newRig(t, "alice")
	r.handler("", func(h *Handler) { h.Exec, h.URL, h.MaxOutput = nil, s.URL, 100_000 })
	c := r.client("alice")
	if e := r.send(c, "hello", "completed"); e.Text != "alice says hello" {
		t.Errorf("%+v", e)
	}
	answer = func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://127.0.0.1:1/", http.StatusFound)
	}
	if e := r.send(c, "hello", "failed"); !strings.Contains(e.Reason, "302") {
		t.Errorf("%+v", e)
	}
	answer = func(w http.ResponseWriter, r *http.Request) {
		for {
			if _, err := w.Write([]byte(strings.Repeat("x", 32<<10))); err != nil {
				return
			}
		}
	}
	if e := r.send(c, "hello", "failed"); !strings.Contains(e.Reason, "limit") {
		t.Errorf("%+v", e)
	}
}

// TestHostileCards: what a client makes of other agents' cards.
func TestHostileCards(t *testing.T) {
	var card string
	asked := ""
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			io.WriteString(w, card)
			return
		}
		asked = r.URL.Path
		io.WriteString(w, `{"jsonrpc":"2.0","id":"x","result":{"message":{"messageId":"m","role":"ROLE_AGENT","parts":[{"text":"here"}]}}}`)
	}))
	defer s.Close()
	const plain = `{"name":"x","description":%q,"version":"1","capabilities":{},"skills":[],"defaultInputModes":[],"defaultOutputModes":[],"supportedInterfaces":[{"url":%q,"protocolBinding":"JSONRPC","protocolVersion":"1.0"}]}`
	for _, c := range []struct{ card, want string }{
		{fmt.Sprintf(plain, strings.Repeat("x", 1<<20), s.URL), "larger than 64 KiB"},
		{`{`, "damaged"},
		{`[]`, "damaged"},
		{`{}`, "nothing that can be used"},
		{fmt.Sprintf(plain, "d", "http://[::1"), "damaged URL"},
	} {
		card = c.card
		if _, err := Dial(t.Context(), s.URL, nil); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.60s: %v, want %s", c.card, err, c.want)
		}
	}
	card = fmt.Sprintf(plain, "d", "http://169.254.169.254/a2a")
	c, err := Dial(t.Context(), s.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	e, err := c.Send(t.Context(), Sending{Text: "x"})
	if err != nil || e.Text != "here" || asked != "/a2a" {
		t.Errorf("%+v, %v, asked %s", e, err, asked)
	}
}
