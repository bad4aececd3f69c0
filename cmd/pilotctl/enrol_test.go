package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/overlay"
	"github.com/pilotnet/pilot/overlay/api"
	"github.com/pilotnet/pilot/overlay/api/apitest"
	"github.com/pilotnet/pilot/trust"
)

func TestHealthAddress(t *testing.T) {
	for text, want := range map[string]string{
		"8086": "127.0.0.1:8086", ":8086": "127.0.0.1:8086", "0.0.0.0:80": "0.0.0.0:80", "[::1]:80": "[::1]:80", "0": "127.0.0.1:0",
		"": "", "localhost:80": "", "70000": "", ":": "", "1.2.3.4": "",
	} {
		if text == "" {
			continue
		}
		at, err := healthAddress(text)
		if got := at.String(); (err == nil) != (want != "") || err == nil && got != want {
			t.Errorf("%q is %s, %v; want %q", text, got, err, want)
		}
	}
}

func TestHealth(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	status := make(chan overlay.Status, 1)
	go func() {
		ended <- serveHealth(ctx, l, func() overlay.Status { return <-status }, slog.New(slog.DiscardHandler))
	}()
	up := apitest.New().Me
	connecting, hung := up, up
	connecting.State, connecting.Servers = "no_server", []overlay.ServerStatus{{State: "connecting", Error: "connection refused"}}
	hung.State, hung.Servers = "starting", nil
	for _, c := range []struct {
		path string
		s    overlay.Status
		want int
		why  string
	}{
		{"/healthz", up, 200, ""}, {"/readyz", up, 200, ""},
		{"/healthz", connecting, 200, ""}, {"/readyz", connecting, 503, "connection refused"},
		{"/healthz", hung, 503, "does not answer"}, {"/readyz", hung, 503, ""},
	} {
		status <- c.s
		r, err := http.Get("http://" + l.Addr().String() + c.path)
		if err != nil {
			t.Fatal(err)
		}
		var a healthAnswer
		if err := json.NewDecoder(r.Body).Decode(&a); err != nil || r.StatusCode != c.want || a.OK != (c.want == 200) || !strings.Contains(a.Reason, c.why) {
			t.Errorf("%s in state %s: %d %+v, %v", c.path, c.s.State, r.StatusCode, a, err)
		}
		r.Body.Close()
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestStandingInvite(t *testing.T) {
	dir := t.TempDir()
	good := makeToken(t, filepath.Join(dir, "state"))
	file := filepath.Join(dir, "token")
	if err := os.WriteFile(file, []byte(good+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	empty := filepath.Join(dir, "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		flag, token, file, want string
		ok                      bool
	}{
		{"", "", "", "", true}, {"", good, "", good, true}, {"", " " + good + "\n", "", good, true}, {"", "", file, good, true},
		{"", good, file, "", false}, {"", good[:len(good)-2], "", "", false}, {"", "", empty, "", false}, {"", "", file + "x", "", false},
		{good, "", "", good, true}, {good, "damaged", empty, good, true}, {"file:" + file, "", "", good, true},
		{"damaged", good, "", "", false}, {"file:" + file + "x", good, "", "", false},
	} {
		p := &program{getenv: func(name string) string {
			return map[string]string{"PILOT_INVITE": c.token, "PILOT_INVITE_FILE": c.file}[name]
		}}
		flags := flag.NewFlagSet("", flag.ContinueOnError)
		flags.String("invite", c.flag, "")
		got, err := p.standingInvite(cli.NewContext(nil, flags, nil))
		if (err == nil) != c.ok || c.ok && got != c.want {
			t.Errorf("%+v: %q, %v", c, got, err)
		}
	}
}

func TestUseInviteOnce(t *testing.T) {
	a := apitest.New()
	quiet := slog.New(slog.DiscardHandler)
	// Bob's contact is that of a peer, so the token was used before.
	s := openTrust(t, t.TempDir())
	token, err := s.Invite(trust.InviteOptions{Contact: bobContact, Ports: trust.DefaultAsk, TTL: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	if who, err := useInvite(t.Context(), a, token, quiet); err != nil || who != a.Me.Peers[0].Fingerprint || len(a.Calls()) > 0 {
		t.Errorf("%s, %v, %v", who, err, a.Calls())
	}
	a.Me.Peers, a.Sent = nil, nil
	a.Answers["accept"] = overlay.Errorf(overlay.CodeNotTrusted, "expired")
	if _, err := useInvite(t.Context(), a, token, quiet); api.AsError(err).Code != overlay.CodeNotTrusted || len(a.Calls()) != 1 {
		t.Errorf("%v, %v", err, a.Calls())
	}
	a.Answers["accept"] = overlay.Errorf(overlay.CodeTimeout, "no network").Retry()
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if _, err := useInvite(ctx, a, token, quiet); !errors.Is(err, context.Canceled) || len(a.Calls()) != 2 {
		t.Errorf("%v, %v", err, a.Calls())
	}
}

func TestMemory(t *testing.T) {
	dir := t.TempDir()
	at := places{state: filepath.Join(dir, "m"), config: filepath.Join(dir, "m", "config.toml")}
	usual := filepath.Join(dir, "usual.toml")
	if err := makeMemory(at, usual); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(at.state, identityFile), []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(usual, []byte("name = \"x\"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := makeMemory(at, usual); err != nil {
		t.Fatal(err)
	}
	names, err := os.ReadDir(at.state)
	if err != nil || len(names) != 1 || names[0].Name() != "config.toml" {
		t.Errorf("%v, %v", names, err)
	}
	s := openTrust(t, at.state) // an agent runs there
	if err := makeMemory(at, usual); err == nil {
		t.Error("took the place of an agent that runs")
	}
	s.Close()
	if err := os.Chmod(at.state, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := removeMemory(at); err == nil {
		t.Error("removed a directory that is open to others")
	}
}

func openTrust(t *testing.T, dir string) *trust.Store {
	t.Helper()
	s, err := trust.Open(trust.Config{
		Dir: dir, Key: crypto.NewPrivateKey([32]byte{1}), Now: time.Now, NoSync: true,
		CheckCard: func(crypto.Card) ([6]byte, error) { return [6]byte{}, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func makeToken(t *testing.T, dir string) string {
	t.Helper()
	token, err := openTrust(t, dir).Invite(trust.InviteOptions{Contact: bobContact, Ports: trust.DefaultAsk, TTL: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	return token
}
