package overlay_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/natt"
	"github.com/pilotnet/pilot/natt/rendezvous"
	"github.com/pilotnet/pilot/overlay"
	"github.com/pilotnet/pilot/overlay/services"
)

// loopbackServer is a rendezvous server on a free port of this machine.
func loopbackServer(t *testing.T) crypto.Server {
	t.Helper()
	key, err := crypto.GenerateDH()
	if err != nil {
		t.Fatal(err)
	}
	conn, tcp := loopbackPort(t)
	at := conn.LocalAddr()
	ready := make(chan struct{})
	s, err := rendezvous.New(rendezvous.Config{
		StateDir: t.TempDir(), Key: key, Store: rendezvous.NewMemoryStore(), Public: at.String(),
		UDP: []natt.PacketConn{conn}, TCP: []net.Listener{tcp}, Ready: func(string) { close(ready) },
		Limits: rendezvous.Limits{ClaimBits: 8, MailBits: 8},
		Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	runUntilEnd(t, s.Run)
	<-ready
	return crypto.Server{Host: at.Addr().String(), Port: at.Port(), Key: key.Public()}
}

// loopbackPort takes one port for UDP and TCP.
func loopbackPort(t *testing.T) (natt.PacketConn, net.Listener) {
	t.Helper()
	var failed error
	for range 20 {
		tcp, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		at := tcp.Addr().(*net.TCPAddr).AddrPort()
		conn, err := natt.Listen(natt.ListenConfig{Addr: netip.AddrPortFrom(at.Addr(), at.Port())})
		if err == nil {
			return conn, tcp
		}
		failed = errors.Join(failed, err, tcp.Close())
	}
	t.Fatal(failed)
	return nil, nil
}

// runUntilEnd runs something until the test ends.
func runUntilEnd(t *testing.T, run func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := run(ctx); err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("run: %v", err)
		}
	})
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
}

// newAgent is the agent of the examples, with an identity of ipam/testdata.
func newAgent(t *testing.T, name string, s crypto.Server) *overlay.Node {
	t.Helper()
	dir := t.TempDir()
	text, err := os.ReadFile("../ipam/testdata/" + name + ".identity")
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "identity"), text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	n, err := agent(t.Context(), dir, name, s)
	if err != nil {
		t.Fatal(err)
	}
	runUntilEnd(t, n.Run)
	return n
}

// The examples do what they show: two programs are agents by themselves, one
// invites the other, calls its tool and reads its pages; a stranger gets nothing.
func TestLibrary(t *testing.T) {
	t.Parallel()
	s := loopbackServer(t)
	alice, bob := newAgent(t, "alice", s), newAgent(t, "bob", s)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if d := bob.Status().Device; !d.Userspace || d.Name != "userspace" || d.Proxy != "" {
		t.Errorf("%+v", d)
	}
	runUntilEnd(t, func(ctx context.Context) error { return serveMCP(ctx, bob) })
	l, err := bob.Listen(ctx, 8080)
	if err != nil {
		t.Fatal(err)
	}
	pages := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.Write([]byte("the page")) })
	runUntilEnd(t, func(ctx context.Context) error { return services.ServeHTTP(ctx, l, &http.Server{Handler: pages}) })

	const url = "http://bob.pilot.internal:8080/"
	if _, err := get(ctx, alice, url); err == nil || !strings.Contains(err.Error(), "no peer") {
		t.Errorf("before trust: %v", err)
	}
	for _, n := range []*overlay.Node{alice, bob} {
		await(ctx, t, "a server knows the agents", func() bool { return n.Status().State == "ready" && n.ID().Claimed })
	}
	befriend(ctx, t, alice, bob)
	if page, err := get(ctx, alice, url); err != nil || page != "the page" {
		t.Fatalf("%q, %v", page, err)
	}
	if page, err := get(ctx, bob, url); err != nil || page != "the page" {
		t.Errorf("by itself: %q, %v", page, err)
	}
	if _, err := get(ctx, alice, "http://bob.pilot.internal:8081/"); err == nil || !strings.Contains(err.Error(), "bob does not let this agent reach its port 8081") {
		t.Errorf("a port outside the grant: %v", err)
	}
	client := mcp.NewClient(&mcp.Implementation{Name: "test", Version: "1"}, nil)
	session, err := client.Connect(ctx, &mcp.StreamableClientTransport{
		Endpoint: "http://bob.pilot.internal/", HTTPClient: &http.Client{Transport: &http.Transport{DialContext: alice.Dial}},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	answer, err := session.CallTool(ctx, &mcp.CallToolParams{Name: "hello", Arguments: hello{To: "world"}})
	if err != nil {
		t.Fatal(err)
	}
	if text := answer.Content[0].(*mcp.TextContent).Text; text != "hello world, says the agent that alice asked" {
		t.Errorf("%q", text)
	}
}

// await waits until something is so.
func await(ctx context.Context, t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatalf("not yet: %s", what)
		case <-tick.C:
		}
	}
}

// befriend lets alice reach ports 80 and 8080 of bob, who has invited her.
func befriend(ctx context.Context, t *testing.T, alice, bob *overlay.Node) {
	t.Helper()
	token, err := bob.Invite(ctx, overlay.InviteOptions{Ports: "80,8080", TTL: time.Hour, Name: "alice"})
	if err != nil {
		t.Fatal(err)
	}
	r, err := alice.Accept(ctx, token, "bob", "")
	if err != nil {
		t.Fatal(err)
	}
	if r.State == "granted" {
		return
	}
	if _, err := alice.Wait(ctx, r.Fingerprint); err != nil {
		t.Fatal(err)
	}
}
