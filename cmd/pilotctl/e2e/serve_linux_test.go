package e2e_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/pilotnet/pilot/overlay"
)

// TestServe: programs that listen on 127.0.0.1 only are reached by name, and
// nobody gets further than the grant allows.
func TestServe(t *testing.T) {
	t.Parallel()
	l := newLab(t, "port", "linux")
	s := l.server(t)
	alice, bob, carol := l.agent(t, "a1", "alice"), l.agent(t, "b1", "bob"), l.agent(t, "a2", "carol")
	for _, a := range []*agent{alice, bob, carol} {
		a.up(t, s)
	}
	trust(t, alice, bob, "7,8080-8082")
	trust(t, carol, bob, "7")
	l.python(t, bob)
	next := make(chan struct{})
	l.events(t, "b1", "127.0.0.1:3000", next)

	bob.pilot(t, "serve", "http", "3000", "--port", "8081")
	out := bob.pilot(t, "serve", "http", "8000", "--port", "8080")
	t.Logf("%s", out)
	if got := answer[[]overlay.Served](t, bob, "serve", "list"); len(got) != 2 || fmt.Sprint(got[0].Peers, got[1].Peers) != "[alice] [alice]" {
		t.Errorf("who may reach it: %+v", got)
	}

	t.Run("python", func(t *testing.T) { wantPage(t, alice, "8080") })
	t.Run("by itself", func(t *testing.T) {
		l.output(t, "b1", "sysctl", "-qw", "net.ipv6.conf.lo.disable_ipv6=0") // the lab's machines have IPv6 in tunnels only
		wantPage(t, bob, "8080")
	})
	t.Run("first event", func(t *testing.T) { testFirstEvent(t, alice, next) })
	t.Run("websocket", func(t *testing.T) { testWebSocket(t, l, alice, bob) })
	t.Run("identity", func(t *testing.T) { testIdentity(t, alice) })
	t.Run("echo", func(t *testing.T) { testEcho(t, alice) })
	t.Run("outside the scope", func(t *testing.T) { testServeScope(t, alice, bob, carol) })
	t.Run("forged source", func(t *testing.T) { testForgedSource(t, l, alice, bob) })
	t.Run("taken port", func(t *testing.T) {
		l.website(t, "b1", "[::]:8082")
		bob.refused(t, 7, []string{"port 8082 is taken: ", " listens on [::]:8082", "--port 8083 is free"}, "serve", "http", "8000", "--port", "8082")
	})
	t.Run("after a crash", func(t *testing.T) {
		bob.kill(t)
		bob.up(t, s)
		if got := answer[[]overlay.Served](t, bob, "serve", "list"); len(got) != 2 || got[0].State != "listening" {
			t.Errorf("%+v", got)
		}
		within(t, 20*time.Second, "bob serves again", func() bool {
			o := alice.run(t, "curl", "-sS", "-m", "2", "http://bob.pilot.internal:8080/page")
			return o.status == 0 && o.stdout == page
		})
	})
	t.Run("removed", func(t *testing.T) {
		bob.pilot(t, "serve", "rm", "8080")
		if o := alice.run(t, "curl", "-sS", "-m", "10", "http://bob.pilot.internal:8080/page"); o.status != 7 {
			t.Errorf("curl: exit status %d: %s", o.status, o)
		}
	})
}

// python starts http.server on 127.0.0.1:8000 of an agent's machine, with the page
// in a file.
func (l *lab) python(t *testing.T, a *agent) {
	t.Helper()
	dir := filepath.Join(l.dir, "site")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "page"), []byte(page), 0o644); err != nil {
		t.Fatal(err)
	}
	c := a.command(t.Context(), "python3", "-m", "http.server", "8000", "--bind", "127.0.0.1", "--directory", dir)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Process.Kill(); c.Wait() })
	within(t, 10*time.Second, "python listens", func() bool {
		return a.run(t, "curl", "-s", "-o", "/dev/null", "http://127.0.0.1:8000/").status == 0
	})
}

// events serves, on a host: two events, the second when next gets a value; a
// WebSocket that echoes; and what it sees of a request.
func (l *lab) events(t *testing.T, host, address string, next chan struct{}) {
	mux := http.NewServeMux()
	mux.HandleFunc("/events", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		io.WriteString(w, "data: first\n\n")
		w.(http.Flusher).Flush()
		select {
		case <-next:
			io.WriteString(w, "data: second\n\n")
		case <-r.Context().Done():
		}
	})
	mux.HandleFunc("/ws", func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, nil) // refuses an Origin that is not its Host
		if err != nil {
			return
		}
		defer c.CloseNow()
		for {
			kind, b, err := c.Read(r.Context())
			if err != nil || c.Write(r.Context(), kind, b) != nil {
				return
			}
		}
	})
	mux.HandleFunc("/whoami", func(w http.ResponseWriter, r *http.Request) {
		json.NewEncoder(w).Encode([]string{r.Host, r.Header.Get("Pilot-Peer-Name"), r.Header.Get("Pilot-Peer-Fingerprint"), r.Header.Get("X-Forwarded-For")})
	})
	s := &http.Server{Handler: mux}
	go s.Serve(l.listen(t, host, address))
	t.Cleanup(func() { s.Close() })
}

func wantPage(t *testing.T, a *agent, port string) {
	t.Helper()
	if o := a.run(t, "curl", "-sS", "--fail", "-m", "10", "http://bob.pilot.internal:"+port+"/page"); o.stdout != page {
		t.Errorf("%s: curl: exit status %d: %s", a.name, o.status, o)
	}
}

func testFirstEvent(t *testing.T, alice *agent, next chan struct{}) {
	ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
	defer stop()
	c := alice.command(ctx, "curl", "-sSN", "http://bob.pilot.internal:8081/events")
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer c.Wait()
	lines := bufio.NewScanner(out)
	if !lines.Scan() || lines.Text() != "data: first" {
		t.Fatalf("%q, %v", lines.Text(), lines.Err())
	}
	next <- struct{}{}
	if lines.Scan(); !lines.Scan() || lines.Text() != "data: second" {
		t.Errorf("%q, %v", lines.Text(), lines.Err())
	}
}

// testWebSocket connects from alice's machine with the headers of a page that bob
// serves.
func testWebSocket(t *testing.T, l *lab, alice, bob *agent) {
	at := bob.reach(t, "8081")
	client := &http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		return l.dial(t, alice.host, "tcp", at), nil
	}}}
	c, _, err := websocket.Dial(t.Context(), "http://bob.pilot.internal:8081/ws", &websocket.DialOptions{
		HTTPClient: client, HTTPHeader: http.Header{"Origin": {"http://bob.pilot.internal:8081"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.CloseNow()
	for _, text := range []string{"hello", strings.Repeat("x", 20000)} {
		if err := c.Write(t.Context(), websocket.MessageText, []byte(text)); err != nil {
			t.Fatal(err)
		}
		if _, b, err := c.Read(t.Context()); err != nil || string(b) != text {
			t.Fatalf("%d bytes, %v", len(b), err)
		}
	}
}

func testIdentity(t *testing.T, alice *agent) {
	o := alice.run(t, "curl", "-sS", "-m", "10", "-H", "Pilot-Peer-Name: root", "-H", "X-Forwarded-For: ::1", "http://bob.pilot.internal:8081/whoami")
	id := alice.id(t)
	want, err := json.Marshal([]string{"localhost:3000", "alice", id.Fingerprint, id.ULA})
	if err != nil || strings.TrimSpace(o.stdout) != string(want) {
		t.Errorf("%s, want %s, %v", o, want, err)
	}
	if o := alice.run(t, "curl", "-sS", "-m", "10", "-o", "/dev/null", "-w", "%{http_code}", "-H", "Host: evil.example", "http://bob.pilot.internal:8081/whoami"); o.stdout != "421" {
		t.Errorf("another Host: %s", o)
	}
}

func testEcho(t *testing.T, alice *agent) {
	for _, args := range [][]string{{"nc", "-N", "-w", "5"}, {"nc", "-u", "-w", "5", "-W", "1"}} {
		c := alice.command(t.Context(), append(args, "bob.pilot.internal", "7")...)
		c.Stdin = strings.NewReader("there and back\n")
		if o := finish(t, c); o.stdout != "there and back\n" {
			t.Errorf("%v: %s", args, o)
		}
	}
}

// testServeScope: a peer whose grant lacks the port gets nothing, nor one that is
// not among those for whom it is.
func testServeScope(t *testing.T, alice, bob, carol *agent) {
	testEcho(t, carol) // bob does hear carol
	get := func(a *agent) outcome {
		return a.run(t, "curl", "-sS", "-m", "10", "http://bob.pilot.internal:8080/page")
	}
	if o := get(carol); o.status == 0 || o.stdout != "" {
		t.Errorf("outside the grant: %s", o)
	}
	bob.pilot(t, "serve", "http", "8000", "--port", "8080", "--allow", "carol")
	if o := get(carol); o.status == 0 || o.stdout != "" {
		t.Errorf("--allow widened the grant: %s", o)
	}
	if o := get(alice); o.status == 0 || o.stdout != "" {
		t.Errorf("not among the allowed: %s", o)
	}
	if got := answer[[]overlay.Served](t, bob, "serve", "list"); len(got[0].Peers) != 0 || fmt.Sprint(got[0].NoGrant) != "[carol]" {
		t.Errorf("%+v", got[0])
	}
	bob.pilot(t, "serve", "http", "8000", "--port", "8080")
	wantPage(t, alice, "8080")
}

// testForgedSource: a neighbour in bob's LAN who sends with alice's overlay address
// as the source is not heard, by bob's services or by a program that listens on all
// addresses; what he sent has come, which the counter of bob's fence shows.
func testForgedSource(t *testing.T, l *lab, alice, bob *agent) {
	device := strings.Fields(l.output(t, "b1", "sh", "-c", "ip -o route get 203.0.113.1 | sed 's/.* dev //'"))[0]
	mac := strings.TrimSpace(l.output(t, "b1", "cat", "/sys/class/net/"+device+"/address"))
	from, to := alice.id(t).ULA, bob.id(t).ULA
	l.output(t, "b2", "sh", "-ec", fmt.Sprintf(`
dev=$(ip -o route get 203.0.113.1 | sed 's/.* dev //' | cut -d' ' -f1)
sysctl -qw net.ipv6.conf.$dev.disable_ipv6=0
ip -6 addr add %s/128 dev $dev nodad
ip -6 route add %s/128 dev $dev src %s
ip -6 neigh replace %s lladdr %s dev $dev nud permanent`, from, to, from, to, mac))
	l.output(t, "b1", "sysctl", "-qw", "net.ipv6.conf."+device+".disable_ipv6=0")
	heard := func() (n int) {
		for line := range strings.Lines(l.output(t, "b1", "cat", "/proc/net/snmp6")) {
			if f := strings.Fields(line); f[0] == "Udp6InDatagrams" || f[0] == "Udp6NoPorts" {
				var k int
				fmt.Sscan(f[1], &k)
				n += k
			}
		}
		return n
	}
	refused := func() (n int) {
		for line := range strings.Lines(l.output(t, "b1", "nft", "list", "table", "ip6", "pilot-pilot0")) {
			if _, counter, ok := strings.Cut(line, "counter packets "); ok {
				var k int
				fmt.Sscan(counter, &k)
				n += k
			}
		}
		return n
	}
	l.listenUDP(t, "b1", "[::]:5353")
	l.listen(t, "b1", "[::]:5353")
	before, dropped := heard(), refused()
	const sent = 20
	for _, port := range []string{"7", "5353"} {
		c := l.dial(t, "b2", "udp", net.JoinHostPort(to, port))
		for range sent {
			c.Write([]byte("forged"))
		}
	}
	within(t, 5*time.Second, "the forged datagrams came", func() bool { return refused() >= dropped+2*sent })
	if n := heard(); n != before {
		t.Errorf("bob's kernel took %d of them", n-before)
	}
	for _, port := range []string{"7", "8080", "5353"} {
		tcp := make(chan error, 1)
		l.inside(t, "b2", func() error {
			c, err := net.DialTimeout("tcp", net.JoinHostPort(to, port), time.Second)
			if err == nil {
				c.Close()
			}
			tcp <- err
			return nil
		})
		if <-tcp == nil {
			t.Errorf("a forged source connected to port %s", port)
		}
	}
}
