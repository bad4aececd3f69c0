package e2e_test

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

// A client is a program that knows nothing of Pilot: alice's reaches something of
// bob's by name, carol's, to whom bob grants no more than echo, gets nothing.
type client struct {
	name  string
	needs string   // programs beyond those that every test needs; with @ an npm package
	args  []string // the command; a script *.mjs lies in testdata/clients
	want  string   // what it prints among other things
	quiet bool     // it exits with 0 also if it got nothing
}

const (
	bobs    = "http://bob.pilot.internal:"
	granted = "7,1001-1003,8080-8085,8443,9998-9999"
)

// clients lists them. To add a client is to add an entry, and its program to
// .ci/run or its package to testdata/clients/package.json.
func clients(l *lab, sum string) []client {
	curl := func(args ...string) []string {
		return append([]string{"curl", "-sS", "--fail", "-m", "60", "--connect-timeout", "5"}, args...)
	}
	file := filepath.Join(l.dir, "upload")
	version := "\n%{http_version}"
	return []client{
		{name: "curl HTTP 1.1", args: curl("--http1.1", "-w", version, bobs+"8080/page"), want: page + "\n1.1"},
		{name: "curl h2c", args: curl("--http2-prior-knowledge", "-w", version, bobs+"8081/page"), want: page + "\n2"},
		{name: "curl TLS", args: curl("--cacert", filepath.Join(l.dir, "ca.pem"), "https://bob.pilot.internal:8443/page"), want: page},
		{name: "curl SSE", args: shell(strings.Join(curl("-N", bobs+"8081/events"), " ") +
			` | while read -r line; do echo "$line"; [ "$line" != "data: first" ] || curl -sS -d '' ` + bobs + `8081/next; done`), want: "data: second", quiet: true},
		{name: "curl 100 MiB down", args: shell(strings.Join(curl(bobs+"8081/upload"), " ") + " | sha256sum"), want: sum, quiet: true},
		{name: "curl 100 MiB up", args: curl("-T", file, bobs+"8081/sum"), want: sum},
		{name: "curl http.server", args: curl(bobs + "8080/"), want: `<a href="page">`},
		{name: "curl uvicorn", needs: "uvicorn", args: curl("--data-binary", "@"+file, bobs+"8082/"), want: `"host": "localhost:8001", "peer": "alice"`},
		{name: "Python urllib", args: []string{"python3", "-c", "import urllib.request as r; print(r.urlopen('" + bobs + "8080/page', timeout=10).read().decode())"}, want: page},
		{name: "Node fetch", needs: "node", args: node("-e", "fetch('"+bobs+"8081/page').then(r => r.text()).then(console.log)"), want: page},
		{name: "ws", needs: "@ws", args: node("ws.mjs", "ws://bob.pilot.internal:8083/"), want: "echoed and closed with 1000"},
		{name: "MCP TypeScript to TypeScript", needs: "@modelcontextprotocol/sdk", args: node("mcp.mjs", bobs+"8084/mcp"), want: "add says 17 + 25 = 42"},
		{name: "MCP TypeScript to Go", needs: "@modelcontextprotocol/sdk", args: node("mcp.mjs", bobs+"8085"), want: "add says 17 + 25 = 42"},
		{name: "MCP Go to TypeScript", needs: "@modelcontextprotocol/sdk", args: goProgram("mcp", bobs+"8084/mcp"), want: "add says 17 + 25 = 42"},
		{name: "MCP Go to Go", args: goProgram("mcp", bobs+"8085"), want: "add says 17 + 25 = 42"},
		{name: "LangChain.js", needs: "@langchain/mcp-adapters", args: node("langchain.mjs", bobs+"8084/mcp"), want: "1 tool says 17 + 25 = 42"},
		{name: "A2A JS over JSON-RPC", needs: "@a2a-js/sdk", args: node("a2a.mjs", bobs+"9999", "JSONRPC", "hello bob"), want: "shouter says HELLO BOB"},
		{name: "A2A JS over REST", needs: "@a2a-js/sdk", args: node("a2a.mjs", bobs+"9999", "HTTP+JSON", "hello bob"), want: "shouter says HELLO BOB"},
		{name: "A2A JS to tasks 1003", needs: "@a2a-js/sdk", args: node("a2a.mjs", bobs+"1003", "JSONRPC", "hello bob"), want: "bob says HELLO BOB"},
		{name: "A2A JS 0.3 to tasks 1003", needs: "@a2a-sdk-0.3", args: node("a2a-0.3.mjs", bobs+"1003", "hello bob"), want: "bob says HELLO BOB"},
		{name: "A2A JS 0.3", needs: "@a2a-sdk-0.3", args: node("a2a-0.3.mjs", bobs+"9998", "hello bob"), want: "old shouter says HELLO BOB"},
		{name: "tus-js-client", needs: "@tus-js-client", args: node("tus.mjs", bobs+"1001/v1/uploads/", "resumed.bin"), want: "resumed and complete: 25165824 bytes"},
		{name: "mosquitto_sub", needs: "mosquitto_sub", args: mosquitto("mosquitto_sub", "-t", "public/#", "-C", "1", "-W", "10"), want: "retained by bob"},
		{name: "mosquitto_pub", needs: "mosquitto_pub", args: mosquitto("mosquitto_pub", "-d", "-t", "peer/alice/said", "-m", "published by alice"), want: "received PUBACK (Mid: 1, RC:0)"},
		{name: "Chromium", needs: "chromium", args: chromium(l, bobs+"8081/browser"), want: "the socket says hello from a browser", quiet: true},
	}
}

func shell(script string) []string { return []string{"sh", "-c", script} }

func node(args ...string) []string { return append([]string{"node"}, args...) }

// mosquitto is a command of mosquitto-clients at bob's event service.
func mosquitto(program string, args ...string) []string {
	return append([]string{program, "-V", "5", "-h", "bob.pilot.internal", "-p", "1002", "-q", "1"}, args...)
}

// chromium prints the page as it is when all of it has come. Each run is the first
// of its profile.
func chromium(l *lab, url string) []string {
	return shell("exec timeout 45 chromium --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking" +
		" --disable-component-update --disable-sync --disable-dev-shm-usage --user-data-dir=$(mktemp -d -p " + l.dir + ") --dump-dom " + url)
}

// TestClients: unmodified programs and libraries of others reach what unmodified
// programs of others offer on 127.0.0.1, and bob's services, by name.
func TestClients(t *testing.T) {
	t.Parallel()
	l := wire(t, "a1", "b1", "a2")
	s := l.server(t)
	alice, bob, carol := l.agent(t, "a1", "alice"), l.agent(t, "b1", "bob"), l.agent(t, "a2", "carol")
	for _, a := range []*agent{alice, bob, carol} {
		a.up(t, s)
	}
	trust(t, alice, bob, granted)
	trust(t, carol, bob, "7")
	sum := l.publishAll(t, bob)
	arrived := func() string { return "" }
	if lookup("mosquitto_sub") != "" {
		arrived = bob.background(t, l.dir, "retained by bob", mosquitto("mosquitto_sub", "-t", "#")...)
	}
	for _, c := range clients(l, sum) {
		t.Run(c.name, func(t *testing.T) {
			l.needTools(t, c.needs)
			o := l.runClient(t, alice, c)
			if o.status != 0 || !strings.Contains(o.stdout, c.want) {
				t.Errorf("exit status %d, and it does not say %q: %s", o.status, c.want, o)
			}
			outside := l.runClient(t, carol, c)
			if outside.status == 0 && !c.quiet || strings.Contains(outside.stdout, c.want) {
				t.Errorf("outside the scope: exit status %d: %s", outside.status, outside)
			}
			t.Logf("%v, outside the scope %v: %s", o.took.Round(time.Millisecond), outside.took.Round(time.Millisecond), lastLine(outside))
		})
	}
	t.Run("outside the scope", func(t *testing.T) { testScopeOfAll(t, l, carol, bob) })
	t.Run("bob's subscription", func(t *testing.T) {
		l.needTools(t, "mosquitto_sub mosquitto_pub")
		within(t, 5*time.Second, "what alice published has arrived once", func() bool { return strings.Count(arrived(), "published by alice") == 1 })
	})
}

// runClient runs the client's command as an agent's machine would.
func (l *lab) runClient(t *testing.T, a *agent, c client) outcome {
	t.Helper()
	cmd := a.command(t.Context(), c.args...)
	cmd.Dir = filepath.Join(l.dir, "clients")
	return finish(t, cmd)
}

func lastLine(o outcome) string {
	lines := strings.Split(strings.TrimSpace(o.String()), "\n")
	return lines[len(lines)-1]
}

// testScopeOfAll: not even a connection.
func testScopeOfAll(t *testing.T, l *lab, carol, bob *agent) {
	testEcho(t, carol)
	ula := bob.id(t).ULA
	var all errgroup.Group
	for _, port := range []string{"1001", "1002", "1003", "8080", "8081", "8082", "8083", "8084", "8085", "8443", "9998", "9999"} {
		all.Go(func() error {
			return l.enter(carol.host, func() error {
				c, err := net.DialTimeout("tcp", net.JoinHostPort(ula, port), 2*time.Second)
				if err == nil {
					c.Close()
					return fmt.Errorf("port %s: carol connected", port)
				}
				return nil
			})
		})
	}
	if err := all.Wait(); err != nil {
		t.Error(err)
	}
}

// modules is where npm packages of testdata/clients are installed; "" if nowhere.
func modules() string {
	dir := filepath.Join(os.Getenv("PILOT_CLIENTS"), "node_modules")
	if os.Getenv("PILOT_CLIENTS") == "" || lookup("node") == "" {
		return ""
	}
	if _, err := os.Stat(dir); err != nil {
		return ""
	}
	return dir
}

// needTools skips a test whose programs are not there.
func (l *lab) needTools(t *testing.T, names string) {
	t.Helper()
	var lack []string
	for _, name := range strings.Fields(names) {
		pkg, isPackage := strings.CutPrefix(name, "@")
		if isPackage && strings.Contains(pkg, "/") {
			pkg = name
		}
		switch {
		case !isPackage && lookup(name) == "":
			lack = append(lack, name)
		case isPackage && modules() == "":
			lack = append(lack, "the npm package "+pkg+" (npm ci in testdata/clients, and PILOT_CLIENTS names the directory)")
		}
	}
	switch {
	case len(lack) == 0:
	case os.Getenv("PILOT_REQUIRE_TOOLS") == "1":
		t.Fatalf("needs %s, and PILOT_REQUIRE_TOOLS=1 forbids to skip", strings.Join(lack, ", "))
	default:
		t.Skipf("needs %s", strings.Join(lack, ", "))
	}
}

// publishAll starts everything of bob's and returns the digest of the large file
// that goes both ways.
func (l *lab) publishAll(t *testing.T, bob *agent) (sum string) {
	t.Helper()
	dir := filepath.Join(l.dir, "clients")
	if err := os.CopyFS(dir, os.DirFS("testdata/clients")); err != nil {
		t.Fatal(err)
	}
	file := l.noise(t, "upload", 100<<20)
	sum = digest(t, file)
	l.python(t, bob)
	l.goServers(t, bob.host, file)
	if lookup("uvicorn") != "" {
		bob.background(t, dir, "running on", "uvicorn", "--host", "127.0.0.1", "--port", "8001", "app:app")
	}
	if m := modules(); m != "" {
		if err := os.Symlink(m, filepath.Join(dir, "node_modules")); err != nil {
			t.Fatal(err)
		}
		bob.background(t, dir, "ready", "node", "servers.mjs")
	}
	for _, s := range []string{"http 8000 8080", "http 3000 8081", "http 8001 8082", "http 3002 8083", "mcp 3001 8084", "mcp 3003 8085", "tcp 3443 8443", "a2a 9999 9999", "a2a 9998 9998"} {
		f := strings.Fields(s)
		bob.pilot(t, "serve", f[0], f[1], "--port", f[2])
	}
	bob.pilot(t, "task", "handler", "set", "--exec", "--", "/usr/bin/tr", "a-z", "A-Z")
	if o := bob.run(t, "curl", "-sS", "-m", "10", "--fail", "-X", "PUT", "-d", "retained by bob", bobs+"1002/topics/public/greeting"); o.status != 0 {
		t.Fatal(o)
	}
	return sum
}

func digest(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := f.WriteTo(h); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// goProgram is a command of this test's own binary; see TestMain.
func goProgram(args ...string) []string {
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return slices.Concat([]string{self, actAs}, args)
}
