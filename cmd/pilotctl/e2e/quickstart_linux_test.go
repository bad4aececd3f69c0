package e2e_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

const mebibyte = 1 << 20

// A website serves a page, and endless data of which SHA-256 sums are known.
type website struct{ sums map[int]string }

const page = "bob's page\n"

// website serves on a host; sizes are the files, in MiB.
func (l *lab) website(t *testing.T, host, address string, sizes ...int) *website {
	t.Helper()
	w := &website{sums: map[int]string{}}
	for _, n := range sizes {
		h := sha256.New()
		io.CopyN(h, noise(), int64(n)*mebibyte)
		w.sums[n] = hex.EncodeToString(h.Sum(nil))
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/{$}", func(rw http.ResponseWriter, _ *http.Request) { io.WriteString(rw, page) })
	mux.HandleFunc("/{mebibytes}", func(rw http.ResponseWriter, r *http.Request) {
		var n int
		fmt.Sscan(r.PathValue("mebibytes"), &n)
		rw.Header().Set("Content-Length", itoa(n*mebibyte))
		io.CopyN(rw, noise(), int64(n)*mebibyte)
	})
	s := &http.Server{Handler: mux}
	go s.Serve(l.listen(t, host, address))
	t.Cleanup(func() { s.Close() })
	return w
}

// noise is the same random bytes each time.
func noise() io.Reader { return rand.NewChaCha8([32]byte{'p', 'i', 'l', 'o', 't'}) }

// download fetches n MiB with curl and checks every byte.
func (w *website) download(t *testing.T, a *agent, url string, n int) {
	t.Helper()
	begin := time.Now()
	c := a.command(t.Context(), "curl", "-sS", "--fail", "-m", "60", fmt.Sprintf("%s%d", url, n))
	h := sha256.New()
	var errs strings.Builder
	c.Stdout, c.Stderr = h, &errs
	if err := c.Run(); err != nil {
		t.Fatalf("curl: %v: %s", err, &errs)
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != w.sums[n] {
		t.Fatalf("SHA-256 of %d MiB: %s, sent was %s", n, got, w.sums[n])
	}
	t.Logf("%d MiB in %v", n, time.Since(begin).Round(time.Millisecond))
}

// A paste is one block of the README's quickstart.
type paste struct{ who, text string }

func quickstart(t *testing.T) []paste {
	t.Helper()
	readme, err := os.ReadFile(filepath.Join(root, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	var list []paste
	for _, m := range regexp.MustCompile("(?s)<!-- quickstart: (\\w+) -->\n```sh\n(.*?)```").FindAllStringSubmatch(string(readme), -1) {
		list = append(list, paste{m[1], m[2]})
	}
	if len(list) < 5 {
		t.Fatalf("README.md has %d quickstart blocks", len(list))
	}
	return list
}

const bobURL = "http://bob.pilot.internal:8080/"

// TestQuickstart follows the README with two machines and a server, each as new,
// and goes on with what the README promises.
func TestQuickstart(t *testing.T) {
	t.Parallel()
	l := newLab(t, "port", "linux")
	site := l.website(t, "b1", "[::]:8080", 100, 20)
	alice, bob := l.machine(t, "a1", "alice"), l.machine(t, "b1", "bob")
	pasteAll(t, l, alice, bob)

	t.Run("direct", func(t *testing.T) { direct(t, alice, bob) })
	t.Run("status", func(t *testing.T) { testStatusFields(t, alice) })
	t.Run("download", func(t *testing.T) { site.download(t, alice, bobURL, 100) })
	t.Run("ping", func(t *testing.T) {
		if o := alice.run(t, "ping", "-c", "3", "-i", "0.2", "bob.pilot.internal"); o.status != 0 || !strings.Contains(o.stdout, " 0% packet loss") {
			t.Error(o)
		}
	})
	t.Run("outside the scope", func(t *testing.T) { testOutsideScope(t, l, alice) })
	trust(t, alice, bob, "22,5000/udp,8080")
	t.Run("ssh", func(t *testing.T) { testSSH(t, alice, bob) })
	t.Run("udp", func(t *testing.T) { testUDP(t, l, alice) })
	t.Run("without server", func(t *testing.T) {
		l.do(t, "cut", "rdv")
		site.download(t, alice, bobURL, 20)
		l.do(t, "uncut", "rdv")
	})
	t.Run("revoke", func(t *testing.T) { testRevoke(t, l, alice, bob) })
}

// pasteAll runs the README's blocks in their order. What a human waits for before
// going to the other machine is waited for.
func pasteAll(t *testing.T, l *lab, alice, bob *agent) {
	t.Helper()
	rdv := l.machine(t, "rdv", "rdv")
	var server, contact string
	for i, p := range quickstart(t) {
		p.text = strings.NewReplacer("HOST#KEY", server, "CONTACT", contact).Replace(p.text)
		if p.who == "server" {
			server = l.ready(t, rdv.command(t.Context(), "sh", "-c", "exec "+p.text))
			continue
		}
		who := map[string]*agent{"alice": alice, "bob": bob}[p.who]
		if who == nil {
			t.Fatalf("block %d is for %q", i, p.who)
		}
		if strings.Contains(p.text, "trust approve") {
			within(t, 10*time.Second, "the request is there", func() bool { return len(bob.status(t).Requests) > 0 })
		}
		if strings.Contains(p.text, "curl") {
			within(t, 10*time.Second, "the grant is there", func() bool { return alice.peer(t, "bob").Out == "8080" })
		}
		o := who.run(t, "sh", "-ec", p.text)
		t.Logf("%s:\n%s%s", p.who, p.text, o)
		if o.status != 0 {
			t.Fatalf("block %d: exit status %d", i, o.status)
		}
		if strings.Contains(p.text, "curl") && !strings.Contains(o.stdout, page) {
			t.Errorf("curl did not get the page")
		}
		if strings.Contains(p.text, "pilotctl id") {
			// "The last line of id is bob's contact."
			lines := strings.Split(strings.TrimSpace(o.stdout), "\n")
			words := strings.Fields(lines[len(lines)-1])
			if contact = words[len(words)-1]; contact != bob.id(t).Contact {
				t.Fatalf("the last line of id ends %q, the contact is %q", contact, bob.id(t).Contact)
			}
		}
	}
}

// testStatusFields: what other programs read from status --json.
func testStatusFields(t *testing.T, a *agent) {
	type peer struct {
		Name     *string  `json:"name"`
		Address  *string  `json:"address"`
		ULA      *string  `json:"ula"`
		Path     *string  `json:"path"`
		Endpoint *string  `json:"endpoint"`
		RTT      *float64 `json:"rtt_ms"`
		Rx       *uint64  `json:"rx_bytes"`
		Tx       *uint64  `json:"tx_bytes"`
		LastSeen *string  `json:"last_seen"`
	}
	var got struct {
		Schema int
		OK     bool
		Data   struct{ Peers []peer }
	}
	text := a.pilot(t, "status", "--json")
	if err := json.Unmarshal([]byte(text), &got); err != nil {
		t.Fatal(err)
	}
	if got.Schema != 1 || !got.OK || len(got.Data.Peers) != 1 {
		t.Fatal(text)
	}
	p := got.Data.Peers[0]
	switch {
	case p.Name == nil || p.Address == nil || p.ULA == nil || p.Path == nil || p.Endpoint == nil ||
		p.RTT == nil || p.Rx == nil || p.Tx == nil || p.LastSeen == nil:
		t.Errorf("a field is missing: %s", text)
	case *p.Name != "bob" || *p.Path != "direct" || !strings.HasPrefix(*p.Endpoint, "203.0.113.34:") || *p.RTT <= 0 || *p.Rx == 0 || *p.Tx == 0:
		t.Error(text)
	}
}

// testOutsideScope: a port that was not granted is closed, at once, though
// somebody listens there.
func testOutsideScope(t *testing.T, l *lab, alice *agent) {
	l.website(t, "b1", "[::]:8081")
	o := alice.run(t, "curl", "-sS", "-m", "10", "http://bob.pilot.internal:8081/")
	if o.status != 7 || o.took > 5*time.Second { // 7: failed to connect; one that waits takes 10 s
		t.Errorf("curl: exit status %d after %v: %s", o.status, o.took, o)
	}
}

// testSSH logs in with keys that exist for this test only. The daemon's files lie
// over the machine's in a mount namespace of its own.
func testSSH(t *testing.T, alice, bob *agent) {
	dir := filepath.Join(alice.lab.dir, "ssh")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"host", "user"} {
		if out, err := exec.Command(lookup("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, key)).CombinedOutput(); err != nil {
			t.Fatalf("ssh-keygen: %v: %s", err, out)
		}
	}
	shadow := filepath.Join(dir, "shadow") // root may be locked here
	if err := os.WriteFile(shadow, []byte("root:*:1::::::\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	mounts := "mount -t tmpfs none /run && mkdir /run/sshd && mount --bind " + shadow + " /etc/shadow || exit 125;"
	sshd := bob.prepared(t.Context(), mounts, lookup("sshd"), "-D", "-e", "-f", "/dev/null", "-h", filepath.Join(dir, "host"),
		"-o", "AuthorizedKeysFile="+filepath.Join(dir, "user.pub"), "-o", "StrictModes=no", "-o", "UsePAM=no", "-o", "PidFile=none")
	var log strings.Builder
	sshd.Stderr = &log
	if err := sshd.Start(); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
	defer stop()
	var o outcome
	if !poll(ctx, 10*time.Second, func() bool { // until it listens
		o = finish(t, alice.command(ctx, "ssh", "-F", "none", "-i", filepath.Join(dir, "user"), "-o", "BatchMode=yes",
			"-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "root@bob.pilot.internal", "echo", "ok"))
		return o.status == 0
	}) {
		sshd.Process.Kill()
		sshd.Wait()
		t.Fatalf("ssh: %s; sshd: %s", o, &log)
	}
	if o.stdout != "ok\n" {
		t.Error(o)
	}
	sshd.Process.Kill()
	sshd.Wait()
}

// testUDP sends a line with netcat and gets it back.
func testUDP(t *testing.T, l *lab, alice *agent) {
	echo(l.listenUDP(t, "b1", "[::]:5000"))
	c := alice.command(t.Context(), "nc", "-u", "-w", "5", "-W", "1", "bob.pilot.internal", "5000")
	c.Stdin = strings.NewReader("over and out\n")
	if o := finish(t, c); o.stdout != "over and out\n" {
		t.Error(o)
	}
}

// echo sends back what comes, until the socket is closed.
func echo(c net.PacketConn) {
	go func() {
		buf := make([]byte, 1<<16)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			c.WriteTo(buf[:n], from)
		}
	}()
}
