package rendezvous

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/natt/relay"
	"github.com/pilotnet/pilot/natt/stun"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(scaleServer); dir != "" {
		if err := serveScale(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

func wantErr(t *testing.T, err, target error) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Fatalf("error %v, want %v", err, target)
	}
}

func TestClaimAndCard(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	r := start(t, Config{StateDir: t.TempDir()})
	alice := newAgent(t, "alice", r.addr)
	_, err := relay.FetchCard(ctx, relay.DialConfig{Server: r.addr}, alice.fingerprint())
	wantErr(t, err, relay.ErrNotFound)

	c := alice.control()
	_, err = c.Mail(ctx)
	wantErr(t, err, relay.ErrNotFound)
	if err := c.Claim(ctx, alice.claim, alice.card); err != nil {
		t.Fatal(err)
	}
	card, err := relay.FetchCard(ctx, relay.DialConfig{Server: r.addr}, alice.fingerprint())
	if err != nil || !bytes.Equal(card, alice.card) {
		t.Fatalf("card %d bytes, %v", len(card), err)
	}
	if w := c.TLSWarning(); !strings.Contains(w, "self-signed") {
		t.Errorf("TLS warning %q", w)
	}
	if d := time.Until(c.Time()).Abs(); d > time.Second {
		t.Errorf("server's time is off by %v", d)
	}
	before := r.count.claims.Load()
	if err := c.Claim(ctx, alice.claim, alice.card); err != nil || r.count.claims.Load() != before {
		t.Errorf("known claim shown again: %v, %d stored", err, r.count.claims.Load()-before)
	}
	old := *alice
	alice.sign(5)
	if err := c.Claim(ctx, alice.claim, alice.card); err != nil {
		t.Errorf("newer claim: %v", err)
	}
	wantErr(t, c.Claim(ctx, old.claim, old.card), relay.ErrStale)
}

func TestClaimRefused(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	r := start(t, Config{StateDir: t.TempDir()})
	alice, bob := newAgent(t, "alice", r.addr), newAgent(t, "bob", r.addr)
	c := alice.control()
	wantErr(t, c.Claim(ctx, bob.claim, bob.card), relay.ErrRefused)   // not of the channel
	wantErr(t, c.Claim(ctx, alice.claim, bob.card), relay.ErrRefused) // mixed
	wantErr(t, c.Claim(ctx, alice.claim[1:], alice.card), relay.ErrRefused)
	forged := bytes.Clone(alice.claim)
	forged[len(forged)-1] ^= 1
	wantErr(t, c.Claim(ctx, forged, alice.card), relay.ErrRefused)

	lie := *alice // signed well, but the address does not follow from the key
	lie.id.Node++
	lie.sign(1)
	wantErr(t, c.Claim(ctx, lie.claim, lie.card), relay.ErrRefused)

	taken := Agent{Key: crypto.PublicKey{9}, Addr: alice.id.Addr().Bytes()}
	if err := r.store.Register(taken); err != nil {
		t.Fatal(err)
	}
	wantErr(t, c.Claim(ctx, alice.claim, alice.card), relay.ErrAddressTaken)

	v := dial(t, relay.DialConfig{Server: r.addr})
	wantErr(t, v.Claim(ctx, bob.claim, bob.card), relay.ErrRefused)
	_, err := v.Mail(ctx)
	wantErr(t, err, relay.ErrRefused)
}

func TestWrongServerKey(t *testing.T) {
	t.Parallel()
	r := start(t, Config{StateDir: t.TempDir()})
	other, err := crypto.GenerateDH()
	if err != nil {
		t.Fatal(err)
	}
	wrong := r.addr
	wrong.Key = other.Public()
	_, err = relay.Dial(context.Background(), relay.DialConfig{Server: wrong})
	wantErr(t, err, relay.ErrServerKey)
	if want := "server key does not match: expected " + wrong.Key.String(); !strings.Contains(err.Error(), want) {
		t.Errorf("error %q does not say %q", err, want)
	}
}

func TestMailbox(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	r := start(t, Config{StateDir: t.TempDir()})
	bob := newAgent(t, "bob", r.addr).claimed()
	bob.until(relay.Registered)
	bob.step(10 * time.Millisecond)

	v := dial(t, relay.DialConfig{Server: r.addr})
	wantErr(t, v.Put(ctx, crypto.Fingerprint{1}, []byte("x")), relay.ErrNotFound)
	wantErr(t, v.Put(ctx, bob.fingerprint(), make([]byte, relay.MaxObject+1)), relay.ErrRefused)
	wantErr(t, bob.control().Put(ctx, bob.fingerprint(), []byte("x")), relay.ErrVisitorOnly)
	body := func(i int) []byte { return append(make([]byte, relay.MaxObject-1), byte(i)) }
	for i := range 10 {
		if err := v.Put(ctx, bob.fingerprint(), body(i)); err != nil {
			t.Fatal(err)
		}
	}
	bob.until(relay.MailWaiting)
	c := bob.control()
	items, err := c.Mail(ctx)
	if err != nil || len(items) != 10 {
		t.Fatalf("%d items, %v", len(items), err)
	}
	var ids []uint64
	for i, it := range items {
		if !bytes.Equal(it.Body, body(i)) {
			t.Errorf("item %d is not what was put", i)
		}
		ids = append(ids, it.ID)
	}
	if err := c.Ack(ctx, ids[1:]...); err != nil {
		t.Fatal(err)
	}
	if items, err = c.Mail(ctx); err != nil || len(items) != 1 || items[0].ID != ids[0] {
		t.Fatalf("after Ack: %d items, %v", len(items), err)
	}
}

func TestStampRequired(t *testing.T) {
	t.Parallel()
	r := start(t, Config{StateDir: t.TempDir()})
	bob := newAgent(t, "bob", r.addr).claimed()
	status, _ := r.put(netip.MustParseAddr("192.0.2.1"), relay.Request{Op: relay.OpPut, To: bob.fingerprint(), Body: []byte("x")})
	if status != relay.StatusStamp {
		t.Errorf("mail without a stamp: status %d", status)
	}
}

func TestHello(t *testing.T) {
	t.Parallel()
	for name, cookie := range map[string]bool{"idle": false, "loaded": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := start(t, Config{StateDir: t.TempDir()})
			r.alwaysCookie.Store(cookie)
			alice := newAgent(t, "alice", r.addr)
			alice.until(relay.Unknown)
			alice.claimed()
			alice.home.Kick(time.Now())
			e := alice.until(relay.Registered)
			if e.Addr != alice.udpAddr() || alice.home.Observed() != e.Addr || !alice.home.Registered() {
				t.Errorf("event %+v, own address %v", e, alice.udpAddr())
			}
			if alice.home.RTT() <= 0 {
				t.Error("no round-trip time")
			}
			if (r.count.cookies.Load() > 0) != cookie {
				t.Errorf("%d cookies", r.count.cookies.Load())
			}
			alice.send(alice.home.Bye(time.Now()))
			wait(t, func() bool { return r.table.home(alice.fingerprint()) == nil })
		})
	}
}

func wait(t *testing.T, done func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); !done(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatal("it does not happen")
		}
	}
}

// A record from another source moves the session; the old address is forgotten.
func TestRoaming(t *testing.T) {
	t.Parallel()
	r := start(t, Config{StateDir: t.TempDir()})
	alice := newAgent(t, "alice", r.addr).claimed()
	alice.until(relay.Registered)
	alice.conn = dialUDP(t)
	alice.home.Probe(time.Now())
	if e := alice.until(relay.Observed); e.Addr != alice.udpAddr() {
		t.Errorf("observed %v, own address %v", e.Addr, alice.udpAddr())
	}
	if got := r.table.home(alice.fingerprint()).bind.Load().addr; got != alice.udpAddr() {
		t.Errorf("server sends to %v", got)
	}
}

func TestSuperseded(t *testing.T) {
	t.Parallel()
	r := start(t, Config{StateDir: t.TempDir()})
	old := newAgent(t, "alice", r.addr).claimed()
	old.until(relay.Registered)
	young := *old
	young.conn, young.events = dialUDP(t), nil
	young.newHome(2)
	young.until(relay.Registered)
	old.until(relay.Superseded)
	if old.home.Registered() || !old.home.Next().IsZero() {
		t.Error("the superseded instance goes on")
	}
	old.home.Kick(time.Now()) // it asks again, and is told again once the other has shown that it lives
	for deadline := time.Now().Add(patience); len(old.events) == 0 && time.Now().Before(deadline); {
		old.step(10 * time.Millisecond)
		young.step(10 * time.Millisecond)
	}
	old.until(relay.Superseded)

	old.home = relay.NewHome(relay.HomeConfig{Server: r.addr.Key, Static: old.reg, Key: old.id.Key.Public(), Instance: 3, Takeover: true})
	old.home.Advance(time.Now().Add(-time.Hour)) // by its clock it started long ago
	old.until(relay.Registered)
	young.until(relay.Superseded)
}

// An instance that seems older because its clock is wrong has the place when the
// other is gone, and not before.
func TestContest(t *testing.T) {
	t.Parallel()
	r := start(t, Config{StateDir: t.TempDir()})
	gone := newAgent(t, "alice", r.addr).claimed()
	gone.until(relay.Registered)
	heir := *gone
	heir.conn, heir.events = dialUDP(t), nil
	heir.newHome(2)
	heir.home.Advance(time.UnixMilli(1)) // its clock says 1970
	began := time.Now()
	heir.until(relay.Registered)
	if took := time.Since(began); took < contestTime {
		t.Errorf("registered after %v", took)
	}
	if s := r.table.home(gone.fingerprint()); s == nil || s.instance != 2 {
		t.Errorf("session %+v", s)
	}
}

// A restarted server calls its agents back: an idle one is registered again long
// before its next keepalive, a visitor's channel on its next frame.
func TestRestart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	r := start(t, Config{StateDir: dir})
	bob := newAgent(t, "bob", r.addr).claimed()
	bob.until(relay.Registered)
	guest := newAgent(t, "alice", r.addr)
	v := relay.NewVisitor(relay.VisitorConfig{Server: r.addr.Key, Target: bob.fingerprint()})
	open(t, guest, v, "\x04init")
	f := bob.receive()
	for range 5 {
		bob.step(20 * time.Millisecond) // the last PONGs are in
	}
	r.stop()

	began := time.Now()
	again := start(t, Config{StateDir: dir, Listen: []netip.AddrPort{serverAddr(r.addr)}})
	if again.addr != r.addr {
		t.Fatalf("came back as %v, was %v", again.addr, r.addr)
	}
	bob.events = nil
	bob.until(relay.Registered)
	took := time.Since(began)
	t.Logf("back after %v", took)
	if took > 5*time.Second {
		t.Error("that is too long")
	}
	guest.frame(v.Channel(), "\x06data-that-is-lost")
	var b [100]byte
	guest.conn.SetReadDeadline(time.Now().Add(patience))
	n, _, err := guest.conn.ReadFromUDPAddrPort(b[:])
	if err != nil || n != relay.HintSize {
		t.Fatalf("%d bytes, %v", n, err)
	}
	if err := v.Receive(time.Now(), b[:n]); err != nil || !v.Stale() {
		t.Fatalf("hint: %v, stale %v", err, v.Stale())
	}
	bob.frame(f.channel, "\x06from-the-target")
	if e := bob.until(relay.ChannelLost); e.Channel != f.channel {
		t.Errorf("lost channel %x, was %x", e.Channel, f.channel)
	}
	open(t, guest, v, "\x04init")
	if got := bob.receive(); got.inner != "\x04init" {
		t.Errorf("target got %q", got.inner)
	}
}

func TestSTUN(t *testing.T) {
	t.Parallel()
	r := start(t, Config{StateDir: t.TempDir()})
	a := newAgent(t, "alice", r.addr)
	id := stun.TransactionID{1, 2, 3}
	a.send(stun.Request(id))
	var b [100]byte
	a.conn.SetReadDeadline(time.Now().Add(patience))
	n, _, err := a.conn.ReadFromUDPAddrPort(b[:])
	if err != nil {
		t.Fatal(err)
	}
	got, addr, err := stun.ParseResponse(b[:n])
	if err != nil || got != id || addr != a.udpAddr() {
		t.Errorf("%v, %v, %v", got, addr, err)
	}
}

// An answer goes to another port of the sender's address if it asks for that, and
// nowhere if that is a well-known one.
func TestSTUNResponsePort(t *testing.T) {
	t.Parallel()
	r := start(t, Config{StateDir: t.TempDir()})
	sleeper, caller := newAgent(t, "alice", r.addr), newAgent(t, "bob", r.addr)
	read := func(a *agent) (stun.Reply, int, error) {
		var b [100]byte
		a.conn.SetReadDeadline(time.Now().Add(patience))
		n, _, err := a.conn.ReadFromUDPAddrPort(b[:])
		if err != nil {
			t.Fatal(err)
		}
		reply, err := stun.ParseReply(b[:n])
		return reply, n, err
	}
	q := stun.Query{ID: stun.TransactionID{1}, ResponsePort: sleeper.udpAddr().Port()}
	caller.send(stun.AppendQuery(nil, q))
	if got, n, err := read(sleeper); err != nil || got.ID != q.ID || got.Mapped != caller.udpAddr() || n > stun.QuerySize {
		t.Errorf("%+v, %d bytes, %v", got, n, err)
	}
	q = stun.Query{ID: stun.TransactionID{2}, ResponsePort: 53}
	caller.send(stun.AppendQuery(nil, q))
	if got, _, err := read(caller); err == nil || got.ID != q.ID {
		t.Errorf("port 53: %+v, %v", got, err)
	}
}

// Nothing but what is asked for is answered, and nothing by more than was sent.
func TestNoAnswer(t *testing.T) {
	t.Parallel()
	r := start(t, Config{StateDir: t.TempDir()})
	a := newAgent(t, "alice", r.addr)
	for typ := range 256 {
		for _, size := range []int{1, 12, 13, 15, relay.RecordSize - 1, relay.HelloSize, relay.VisitSize, 1200} {
			if typ == relay.TypeFrame && size >= relay.HintSize || typ == relay.TypeRecord && size == relay.RecordSize {
				continue // these draw a hint
			}
			b := make([]byte, size)
			b[0] = byte(typ)
			if size > 1 {
				b[1] = 1
			}
			a.send(b)
		}
	}
	id := stun.TransactionID{7}
	a.send(stun.Request(id)) // the end
	var b [2048]byte
	a.conn.SetReadDeadline(time.Now().Add(patience))
	n, _, err := a.conn.ReadFromUDPAddrPort(b[:])
	if err != nil {
		t.Fatal(err)
	}
	if got, _, err := stun.ParseResponse(b[:n]); err != nil || got != id {
		t.Errorf("answer of %d bytes: % x", n, b[:n])
	}
}

func TestSlowClient(t *testing.T) {
	t.Parallel()
	limits := testLimits()
	limits.NetConnections = 3
	r := start(t, Config{StateDir: t.TempDir(), Limits: limits})
	var conns []net.Conn
	for range 5 { // three are taken, the others closed at once
		c, err := net.Dial("tcp", r.addr.HostPort())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		conns = append(conns, c)
	}
	closed := 0
	for _, c := range conns {
		c.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		if _, err := c.Read(make([]byte, 1)); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			closed++
		}
	}
	if closed != 2 {
		t.Errorf("%d connections closed, want 2", closed)
	}
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	_, err := New(Config{StateDir: t.TempDir(), Metrics: netip.MustParseAddrPort("192.0.2.1:1")})
	if err == nil {
		t.Error("metrics on a public address are allowed")
	}
	r := start(t, Config{StateDir: t.TempDir()})
	newAgent(t, "alice", r.addr).claimed()
	for path, want := range map[string]string{"/metrics": "pilot_server_claims_total 1", "/health": `"agents":1`} {
		w := &recorder{header: http.Header{}}
		req, err := http.NewRequest(http.MethodGet, path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Handler().ServeHTTP(w, req)
		if !strings.Contains(w.body.String(), want) {
			t.Errorf("%s: %s", path, w.body.String())
		}
	}
}

type recorder struct {
	header http.Header
	body   bytes.Buffer
}

func (r *recorder) Header() http.Header         { return r.header }
func (r *recorder) Write(b []byte) (int, error) { return r.body.Write(b) }
func (r *recorder) WriteHeader(int)             {}

func TestKeyFile(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "made")
	key, err := LoadKey(dir)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := LoadKey(dir); err != nil || again != key {
		t.Errorf("second load: %v", err)
	}
	path := filepath.Join(dir, keyFile)
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if err := os.WriteFile(path, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadKey(dir); err == nil {
		t.Error("a damaged key file is accepted")
	}
}

func TestReadyLine(t *testing.T) {
	t.Parallel()
	for public, want := range map[string]string{
		"":                  "--server 127.0.0.1:%d#%s",
		"rdv.example":       "--server rdv.example:%d#%s",
		"rdv.example:7000":  "--server rdv.example:7000#%[2]s",
		"2001:db8::1":       "--server [2001:db8::1]:%d#%s",
		"[2001:db8::1]:700": "--server [2001:db8::1]:700#%[2]s",
	} {
		r := start(t, Config{StateDir: t.TempDir(), Public: public})
		port := r.sockets[0].port
		line, err := r.line()
		if w := fmt.Sprintf(want, port, r.public); err != nil || line != w {
			t.Errorf("public %q: %q, %v; want %q", public, line, err, w)
		}
		r.stop()
	}
}

// A server that goes down does not wait for its clients.
func TestStopWithClients(t *testing.T) {
	t.Parallel()
	r := start(t, Config{StateDir: t.TempDir()})
	alice := newAgent(t, "alice", r.addr).claimed()
	c := alice.control()
	idle, err := net.Dial("tcp", r.addr.HostPort())
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	began := time.Now()
	r.stop()
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("stopping took %v", took)
	}
	if _, err := c.Ping(context.Background()); err == nil {
		t.Error("the channel still answers")
	}
}
