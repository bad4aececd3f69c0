package exchange

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/ipam"
	"github.com/pilotnet/pilot/overlay/services"
	"github.com/pilotnet/pilot/overlay/services/disk"
)

func TestMain(m *testing.M) {
	if mode := os.Getenv(helperMode); mode != "" {
		os.Exit(help(mode))
	}
	goleak.VerifyTestMain(m,
		// These stay for a second after a request.
		goleak.IgnoreTopFunction("github.com/tus/tusd/v2/pkg/handler.newDelayedContext.func1"))
}

var (
	bob   = testPeer("bob", 2)
	carol = testPeer("carol", 3)
)

func testPeer(name string, n byte) services.Peer {
	return services.Peer{Name: name, Addr: ipam.Addr{Node: 0x100 + uint32(n)}, Fingerprint: crypto.Fingerprint{n}}
}

func trusted(fp crypto.Fingerprint) (services.Peer, bool) {
	for _, p := range []services.Peer{bob, carol} {
		if p.Fingerprint == fp {
			return p, true
		}
	}
	return services.Peer{}, false
}

// A rig is an exchange as bob, carol and its owner see it.
type rig struct {
	*testing.T
	x                 *Exchange
	dir               string
	bob, carol, owner string // base URLs
}

func newRig(t *testing.T, c Config) *rig {
	t.Helper()
	if c.Dir == "" {
		c.Dir = filepath.Join(t.TempDir(), "exchange")
	}
	if c.Peer == nil {
		c.Peer = trusted
	}
	x, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{T: t, x: x, dir: c.Dir}
	t.Cleanup(func() {
		http.DefaultTransport.(*http.Transport).CloseIdleConnections()
		x.Close()
	})
	r.bob, r.carol = r.serve(bob), r.serve(carol)
	owner := httptest.NewServer(x.Owner())
	t.Cleanup(owner.Close)
	r.owner = owner.URL
	return r
}

// serve answers everybody who connects as if it were that peer.
func (r *rig) serve(p services.Peer) string {
	r.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		r.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- r.x.Serve(ctx, l, func(netip.Addr) (services.Peer, bool) { return p, true })
	}()
	r.Cleanup(func() {
		http.DefaultTransport.(*http.Transport).CloseIdleConnections()
		cancel()
		if err := <-done; err != nil {
			r.Error(err)
		}
	})
	return "http://" + l.Addr().String()
}

// ask sends a request as curl would, with headers as "Name: value".
func (r *rig) ask(method, url string, body io.Reader, headers ...string) (int, http.Header, string) {
	r.Helper()
	q, err := http.NewRequestWithContext(r.Context(), method, url, body)
	if err != nil {
		r.Fatal(err)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		if name == "Host" {
			q.Host = value
		}
		q.Header.Set(name, value)
	}
	a, err := http.DefaultTransport.RoundTrip(q)
	if err != nil {
		r.Fatal(err)
	}
	defer a.Body.Close()
	text, err := io.ReadAll(a.Body)
	if err != nil {
		r.Fatal(err)
	}
	return a.StatusCode, a.Header, string(text)
}

// want is ask with a status that must come.
func (r *rig) want(status int, method, url string, body io.Reader, headers ...string) (http.Header, string) {
	r.Helper()
	got, h, text := r.ask(method, url, body, headers...)
	if got != status {
		r.Fatalf("%s %s: %d %s, want %d", method, url, got, text, status)
	}
	return h, text
}

func (r *rig) fault(text string) services.Error {
	r.Helper()
	var e services.Error
	if err := json.Unmarshal([]byte(text), &e); err != nil || e.Code == "" || e.Message == "" {
		r.Fatalf("no error in %q", text)
	}
	return e
}

// tree lists all files below the directory.
func (r *rig) tree() []string {
	var list []string
	filepath.WalkDir(r.dir, func(path string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(r.dir, path)
		if err == nil && !d.IsDir() && rel != disk.SchemaFile {
			list = append(list, rel)
		}
		return err
	})
	return list
}

func noise(n int, seed uint64) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(seed)}).Read(b)
	return b
}

func sumOf(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

func digestOf(b []byte) string {
	s := sha256.Sum256(b)
	return "sha-256=:" + base64.StdEncoding.EncodeToString(s[:]) + ":"
}
