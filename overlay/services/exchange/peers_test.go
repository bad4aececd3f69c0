package exchange

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pilotnet/pilot/overlay/services"
)

func TestPutAndFetch(t *testing.T) {
	t.Parallel()
	r := newRig(t, Config{})
	at := r.bob + "/v1/files/report.txt"
	h, text := r.want(201, "PUT", at, strings.NewReader("hello"), "Content-Type: text/plain")
	var e Entry
	if err := json.Unmarshal([]byte(text), &e); err != nil || e.Name != "report.txt" || e.Size != 5 || e.SHA256 != sumOf([]byte("hello")) {
		t.Fatalf("%v %s", err, text)
	}
	if h.Get("Location") != "/v1/files/report.txt" || h.Get("Etag") != e.ETag || h.Get("Repr-Digest") != digestOf([]byte("hello")) {
		t.Errorf("%v", h)
	}
	if got, err := os.ReadFile(filepath.Join(r.dir, bob.Fingerprint.String(), "files", "report.txt")); err != nil || string(got) != "hello" {
		t.Errorf("%q %v", got, err)
	}
	// It is the owner's now: nobody reads it by GET, and only bob sees that it is
	// there.
	r.want(404, "GET", at, nil)
	r.want(405, "GET", r.bob+"/v1/sent/report.txt", nil)
	h, _ = r.want(200, "HEAD", r.bob+"/v1/sent/report.txt", nil)
	if h.Get("Content-Length") != "5" || h.Get("Repr-Digest") != digestOf([]byte("hello")) {
		t.Errorf("%v", h)
	}
	r.want(404, "HEAD", r.carol+"/v1/sent/report.txt", nil)
	if _, text := r.want(200, "GET", r.carol+"/v1/sent/", nil); text != "[]\n" {
		t.Errorf("%s", text)
	}
	r.want(405, "DELETE", at, nil)
	if _, text := r.want(200, "GET", r.bob+"/v1/", nil); !strings.Contains(text, `"used":5,"items":1`) {
		t.Errorf("%s", text)
	}
}

func TestNothingIsOverwrittenSilently(t *testing.T) {
	t.Parallel()
	r := newRig(t, Config{})
	at := r.bob + "/v1/files/a"
	body := func(s string) io.Reader { return strings.NewReader(s) }
	r.want(412, "PUT", at, body("1"), "If-Match: *")
	h, _ := r.want(201, "PUT", at, body("one"), "If-None-Match: *")
	first := h.Get("Etag")
	_, text := r.want(409, "PUT", at, body("2"))
	if e := r.fault(text); e.Code != services.CodeConflict || !strings.Contains(e.Hint, first) {
		t.Errorf("%+v", e)
	}
	r.want(412, "PUT", at, body("2"), "If-None-Match: *")
	r.want(412, "PUT", at, body("2"), `If-Match: "other"`)
	h, _ = r.want(200, "PUT", at, body("second"), "If-Match: "+first)
	if h.Get("Etag") == first {
		t.Error("a new file has the old tag")
	}
	r.want(412, "PUT", at, body("3"), "If-Match: "+first)
	r.want(200, "PUT", at, body("third"), "If-Match: *")
	if _, text := r.want(200, "GET", r.bob+"/v1/", nil); !strings.Contains(text, `"used":5,"items":1`) {
		t.Errorf("%s", text)
	}
	r.want(201, "PUT", r.carol+"/v1/files/a", body("carol's"))
}

func TestOfManyUploadsOfOneNameOneWins(t *testing.T) {
	t.Parallel()
	r := newRig(t, Config{})
	var mu sync.Mutex
	status := map[int]int{}
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			got, _, _ := r.ask("PUT", r.bob+"/v1/files/same", bytes.NewReader(noise(300_000, uint64(i))))
			mu.Lock()
			defer mu.Unlock()
			status[got]++
		})
	}
	all.Wait()
	if status[201] != 1 || status[409] != 19 {
		t.Errorf("%v", status)
	}
	if used, items := mustBox(t, r).usage(); used != 300_000 || items != 1 {
		t.Errorf("%d bytes in %d items", used, items)
	}
	if left := slices.DeleteFunc(r.tree(), func(s string) bool { return !strings.HasPrefix(s, "temp") }); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
}

func mustBox(t *testing.T, r *rig) *box {
	t.Helper()
	b, err := r.x.box(bob.Fingerprint)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestDigestIsChecked(t *testing.T) {
	t.Parallel()
	r := newRig(t, Config{})
	data := []byte("the right bytes")
	r.want(201, "PUT", r.bob+"/v1/files/a", bytes.NewReader(data), "Content-Digest: "+digestOf(data))
	r.want(201, "PUT", r.bob+"/v1/files/b", bytes.NewReader(data), "Repr-Digest: md5=:AAAA:, "+digestOf(data))
	r.want(422, "PUT", r.bob+"/v1/files/c", bytes.NewReader(data), "Content-Digest: "+digestOf([]byte("others")))
	r.want(400, "PUT", r.bob+"/v1/files/c", bytes.NewReader(data), "Content-Digest: sha-256=:short:")
	for _, c := range []struct {
		of   []byte
		want int
	}{{[]byte("others"), 422}, {data, 201}} {
		q, _ := http.NewRequestWithContext(t.Context(), "PUT", r.bob+"/v1/files/c", io.NopCloser(bytes.NewReader(data)))
		q.Trailer = http.Header{"Content-Digest": {digestOf(c.of)}}
		a, err := http.DefaultTransport.RoundTrip(q)
		if err != nil {
			t.Fatal(err)
		}
		a.Body.Close()
		if a.StatusCode != c.want {
			t.Errorf("%d, want %d", a.StatusCode, c.want)
		}
	}
	r.want(422, "POST", r.bob+"/v1/messages", bytes.NewReader(data), "Content-Digest: "+digestOf([]byte("others")))
	if got := mustBox(t, r).files.list(); len(got) != 3 {
		t.Errorf("%v", got)
	}
}

func TestQuota(t *testing.T) {
	t.Parallel()
	r := newRig(t, Config{Quota: 10_000})
	files := r.bob + "/v1/files/"
	_, text := r.want(413, "PUT", files+"a", bytes.NewReader(make([]byte, 10_001)))
	if e := r.fault(text); e.Code != services.CodeQuota || e.Quota != 10_000 || e.Used != 0 || !strings.Contains(e.Message, "10000") {
		t.Errorf("%+v", e)
	}
	// Refused before the body: 1 TiB is announced and one byte is sent.
	c, err := net.Dial("tcp", strings.TrimPrefix(r.bob, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(c, "PUT /v1/files/big HTTP/1.1\r\nHost: bob\r\nContent-Length: %d\r\n\r\nx", int64(1)<<40)
	buf := make([]byte, 12)
	if _, err := io.ReadFull(c, buf); err != nil || string(buf) != "HTTP/1.1 413" {
		t.Errorf("%q %v", buf, err)
	}
	c.Close()

	r.want(201, "PUT", files+"a", bytes.NewReader(make([]byte, 6000)))
	_, text = r.want(507, "PUT", files+"b", bytes.NewReader(make([]byte, 4001)))
	if e := r.fault(text); e.Code != services.CodeQuota || e.Used != 6000 {
		t.Errorf("%+v", e)
	}
	unknown := func(n int) io.Reader { return io.NopCloser(bytes.NewReader(make([]byte, n))) }
	r.want(507, "PUT", files+"b", unknown(4001))
	r.want(201, "PUT", files+"b", unknown(4000))
	r.want(507, "PUT", files+"c", unknown(1))
	r.want(201, "PUT", files+"empty", unknown(0))
	r.want(507, "POST", r.bob+"/v1/messages", strings.NewReader("x"))
	r.want(507, "POST", r.bob+"/v1/uploads/", nil, "Tus-Resumable: 1.0.0", "Upload-Length: 1", "Upload-Metadata: filename "+b64("c"))
	r.want(201, "PUT", r.carol+"/v1/files/a", bytes.NewReader(make([]byte, 10_000)))

	// Room comes back when the owner takes something out.
	r.want(204, "DELETE", r.owner+OwnerPath+"inbox/"+bob.Fingerprint.String()+"/files/a", nil)
	r.want(507, "PUT", files+"c", unknown(10_001))
	r.want(201, "PUT", files+"c", unknown(6000))
	if used, items := mustBox(t, r).usage(); used != 10_000 || items != 3 {
		t.Errorf("%d bytes in %d items", used, items)
	}
}

func TestOnlyWhatIsOfferedCanBeFetched(t *testing.T) {
	t.Parallel()
	r := newRig(t, Config{})
	put := func(path, text string) {
		t.Helper()
		path = filepath.Join(r.dir, path)
		os.MkdirAll(filepath.Dir(path), 0o700)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	toBob := "share/" + bob.Fingerprint.String() + "/"
	put("share/all/everyone.txt", "for all")
	put("share/all/both", "for all")
	put(toBob+"both", "for bob")
	put(toBob+"secret", "0123456789")
	put("share/all/.hidden", "x")
	put("share/outside", "x")
	outside := filepath.Join(t.TempDir(), "outside")
	os.WriteFile(outside, []byte("x"), 0o600)
	if err := os.Symlink(outside, filepath.Join(r.dir, "share/all/link")); err != nil {
		t.Fatal(err)
	}
	r.want(201, "PUT", r.carol+"/v1/files/private", strings.NewReader("x"))

	for base, want := range map[string]string{r.bob: "both secret everyone.txt", r.carol: "both everyone.txt"} {
		_, text := r.want(200, "GET", base+"/v1/files/", nil)
		var list []Entry
		if err := json.Unmarshal([]byte(text), &list); err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, e := range list {
			names = append(names, e.Name)
		}
		if got := strings.Join(names, " "); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	for _, name := range []string{"link", "private", "outside", "nothing", "secret"} {
		r.want(404, "GET", r.carol+"/v1/files/"+name, nil)
	}
	if _, text := r.want(200, "GET", r.bob+"/v1/files/both", nil); text != "for bob" {
		t.Error(text)
	}
	if _, text := r.want(200, "GET", r.carol+"/v1/files/both", nil); text != "for all" {
		t.Error(text)
	}

	at := r.bob + "/v1/files/secret"
	h, text := r.want(206, "GET", at, nil, "Range: bytes=3-5")
	if text != "345" || h.Get("Content-Range") != "bytes 3-5/10" {
		t.Errorf("%q %v", text, h)
	}
	tag := h.Get("Etag")
	r.want(304, "GET", at, nil, "If-None-Match: "+tag)
	r.want(206, "GET", at, nil, "Range: bytes=-2", "If-Range: "+tag)
	if _, text := r.want(200, "GET", at, nil, "Range: bytes=-2", `If-Range: "x"`); text != "0123456789" {
		t.Error(text)
	}
	r.want(412, "GET", at, nil, `If-Match: "x"`)
	r.want(416, "GET", at, nil, "Range: bytes=10-")
	h, text = r.want(200, "HEAD", at, nil, "Want-Repr-Digest: sha-256=3, sha-512=1")
	if text != "" || h.Get("Repr-Digest") != digestOf([]byte("0123456789")) || h.Get("Content-Length") != "10" || h.Get("Content-Security-Policy") != "sandbox" {
		t.Errorf("%q %v", text, h)
	}
	put(toBob+"secret", "changed")
	if h, _ = r.want(200, "HEAD", at, nil, "Want-Repr-Digest: sha-256=1"); h.Get("Repr-Digest") != digestOf([]byte("changed")) {
		t.Error("the digest is that of the file before")
	}
}

func TestMessages(t *testing.T) {
	t.Parallel()
	r := newRig(t, Config{MaxMessage: 100})
	at := r.bob + "/v1/messages"
	_, text := r.want(201, "POST", at, strings.NewReader(`{"n":1}`), "Content-Type: application/json; charset=utf-8")
	var made struct{ ID string }
	if err := json.Unmarshal([]byte(text), &made); err != nil || !validID(made.ID) {
		t.Fatalf("%s %v", text, err)
	}
	r.want(201, "POST", at, strings.NewReader(""))
	_, text = r.want(413, "POST", at, bytes.NewReader(make([]byte, 101)))
	if e := r.fault(text); !strings.Contains(e.Message, "100") {
		t.Errorf("%+v", e)
	}
	r.want(413, "POST", at, io.NopCloser(bytes.NewReader(make([]byte, 101))))
	r.want(415, "POST", at, strings.NewReader("x"), "Content-Type: ;;")
	r.want(415, "POST", at, strings.NewReader("x"), "Content-Type: text/plain; a="+strings.Repeat("b", 300))
	r.want(404, "POST", at+"/x", strings.NewReader("x"))
	r.want(405, "GET", at, nil)

	_, text = r.want(200, "GET", r.owner+OwnerPath+"inbox", nil)
	var list []Entry
	if err := json.Unmarshal([]byte(text), &list); err != nil || len(list) != 2 {
		t.Fatalf("%s %v", text, err)
	}
	first := list[0]
	if first.Name != made.ID || first.Kind != "message" || first.From != "bob" || first.Type != "application/json; charset=utf-8" || list[1].Type != "application/octet-stream" {
		t.Errorf("%+v", list)
	}
	message := r.owner + OwnerPath + "inbox/" + first.Fingerprint + "/messages/" + first.Name
	h, text := r.want(200, "GET", message, nil)
	if text != `{"n":1}` || h.Get("Content-Type") != first.Type || h.Get("Repr-Digest") != digestOf([]byte(text)) {
		t.Errorf("%q %v", text, h)
	}
	r.want(206, "GET", message, nil, "Range: bytes=1-")
	r.want(204, "DELETE", message, nil)
	r.want(404, "GET", message, nil)
}

func TestHostileRequests(t *testing.T) {
	t.Parallel()
	r := newRig(t, Config{})
	for _, path := range []string{
		"../x", "..", "%2e%2e/x", "..%2fx", "a/b", "a%2fb", "a%5cb", "%00", "a%0ab", ".ssh", "nul.txt", "com1", "-rf",
		"%ff%fe", "a%e2%80%aegnp.exe", "%ef%bc%8fetc", strings.Repeat("n", 256), "p%d0%b0ypal", "a%3ab", "x.",
	} {
		for _, method := range []string{"PUT", "GET"} {
			status, _, text := r.ask(method, r.bob+"/v1/files/"+path, strings.NewReader("x"))
			if status != 400 && !(status == 404 && strings.HasPrefix(path, "..")) {
				t.Errorf("%s %s: %d %s", method, path, status, text)
			}
		}
	}
	r.want(400, "PUT", r.bob+"/v1/files/a", strings.NewReader("x"), "Content-Range: bytes 0-0/2")
	r.want(421, "GET", r.bob+"/v1/files/", nil, "Host: evil.example")
	r.want(421, "GET", r.bob+"/v1/files/", nil, "Host: evil.example:1001")
	for _, host := range []string{"bob.pilot.internal:1001", "bob", "[fd50:494c:4f54::1]:1001", "127.0.0.1"} {
		r.want(200, "GET", r.bob+"/v1/files/", nil, "Host: "+host)
	}
	r.want(403, "POST", r.bob+"/v1/messages", strings.NewReader("x"), "Origin: http://evil.example")
	r.want(403, "POST", r.bob+"/v1/messages", strings.NewReader("x"), "Sec-Fetch-Site: cross-site")
	r.want(404, "GET", r.bob+"/v2/", nil)
	r.want(404, "GET", r.bob+"/v1/nothing", nil)
	if got := r.tree(); len(got) != 0 {
		t.Errorf("left over: %v", got)
	}
}

func TestNamesAreNormalised(t *testing.T) {
	t.Parallel()
	r := newRig(t, Config{})
	h, _ := r.want(201, "PUT", r.bob+"/v1/files/"+url.PathEscape("cafe\u0301.txt"), strings.NewReader("x"))
	if h.Get("Location") != "/v1/files/caf%C3%A9.txt" {
		t.Error(h.Get("Location"))
	}
	r.want(409, "PUT", r.bob+"/v1/files/"+url.PathEscape("café.txt"), strings.NewReader("x"))
}

func TestStrangersAreCutOff(t *testing.T) {
	t.Parallel()
	r := newRig(t, Config{})
	h := r.x.Handler(func(netip.Addr) (services.Peer, bool) { return services.Peer{}, false })
	defer func() {
		if recover() != http.ErrAbortHandler {
			t.Error("a stranger got an answer")
		}
	}()
	q, _ := http.NewRequest("GET", "/v1/", nil)
	q.RemoteAddr = "[fd50:494c:4f54::9]:1234"
	h.ServeHTTP(nil, q)
}

// A pipeListener gives the other ends of pipes.
type pipeListener struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}
func (l *pipeListener) Close() error   { l.once.Do(func() { close(l.done) }); return nil }
func (l *pipeListener) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv6loopback, Port: Port} }

// addressed is a pipe that has a source address.
type addressed struct{ net.Conn }

func (addressed) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv6loopback, Port: 4000} }

// TestSlowClients lets 1000 connections send half a header, and others half a
// body; in virtual time, since the limits are long.
func TestSlowClients(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		x, err := New(Config{Dir: dir, Peer: trusted})
		if err != nil {
			t.Fatal(err)
		}
		l := &pipeListener{conns: make(chan net.Conn), done: make(chan struct{})}
		served := make(chan error)
		go func() {
			served <- x.Serve(t.Context(), l, func(netip.Addr) (services.Peer, bool) { return bob, true })
		}()
		var closed sync.WaitGroup
		for i := range 1000 {
			ours, theirs := net.Pipe()
			l.conns <- addressed{theirs}
			closed.Go(func() {
				text := "GET /v1/files/ HT"
				if i%100 == 0 {
					text = "PUT /v1/files/slow HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nhalf"
				}
				begin := time.Now()
				ours.Write([]byte(text))
				io.Copy(io.Discard, ours)
				if took := time.Since(begin); took < headerTime || took > bodyTime+headerTime {
					t.Errorf("closed after %v", took)
				}
				ours.Close()
			})
		}
		closed.Wait()
		if used, _ := x.boxes[bob.Fingerprint].usage(); used != 0 {
			t.Errorf("%d bytes are still claimed", used)
		}
		l.Close()
		<-served
		x.Close()
	})
}
