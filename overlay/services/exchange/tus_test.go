package exchange

import (
	"bytes"
	"encoding/base64"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pilotnet/pilot/overlay/services"
)

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

// begin creates an upload as tus-js-client does.
func (r *rig) begin(base, name string, size int, more string) (at string) {
	r.Helper()
	h, _ := r.want(201, "POST", base+uploadsPath, nil, "Tus-Resumable: 1.0.0", "Upload-Length: "+strconv.Itoa(size),
		"Upload-Metadata: filename "+b64(name)+",filetype "+b64("text/plain")+more)
	return h.Get("Location")
}

// patch brings a part.
func (r *rig) patch(want int, at string, offset int, part []byte) string {
	r.Helper()
	_, text := r.want(want, "PATCH", at, bytes.NewReader(part), "Tus-Resumable: 1.0.0",
		"Content-Type: application/offset+octet-stream", "Upload-Offset: "+strconv.Itoa(offset))
	return text
}

func TestResumableUpload(t *testing.T) {
	t.Parallel()
	r := newRig(t, Config{Quota: 1 << 20})
	data := noise(500_000, 1)
	h, _ := r.want(200, "OPTIONS", r.bob+uploadsPath, nil)
	if h.Get("Tus-Version") != "1.0.0" || h.Get("Tus-Max-Size") != "1048576" || h.Get("Tus-Extension") != "creation,creation-with-upload,termination" {
		t.Errorf("%v", h)
	}
	at := r.begin(r.bob, "big.bin", len(data), ",sha256 "+b64(sumOf(data)))
	if !strings.HasPrefix(at, r.bob+uploadsPath) {
		t.Fatal(at)
	}
	if used, _ := mustBox(t, r).usage(); used != 500_000 {
		t.Errorf("%d bytes are held", used)
	}
	r.patch(204, at, 0, data[:200_000])
	r.patch(409, at, 100, data[:1])
	h, _ = r.want(200, "HEAD", at, nil, "Tus-Resumable: 1.0.0")
	if h.Get("Upload-Offset") != "200000" {
		t.Errorf("%v", h)
	}
	// It is bob's alone, and cannot be read.
	theirs := strings.Replace(at, r.bob, r.carol, 1)
	r.want(404, "HEAD", theirs, nil, "Tus-Resumable: 1.0.0")
	r.want(405, "GET", at, nil)
	if _, text := r.want(200, "GET", r.carol+uploadsPath, nil); text != "[]\n" {
		t.Error(text)
	}
	if _, text := r.want(200, "GET", r.bob+uploadsPath, nil); !strings.Contains(text, `"name":"big.bin","size":500000,"offset":200000`) {
		t.Error(text)
	}
	r.want(404, "HEAD", r.bob+"/v1/sent/big.bin", nil)
	r.patch(204, at, 200_000, data[200_000:])
	r.want(404, "HEAD", at, nil, "Tus-Resumable: 1.0.0")
	h, _ = r.want(200, "HEAD", r.bob+"/v1/sent/big.bin", nil)
	if h.Get("Repr-Digest") != digestOf(data) || h.Get("Content-Type") != "text/plain" {
		t.Errorf("%v", h)
	}
	if used, items := mustBox(t, r).usage(); used != 500_000 || items != 1 {
		t.Errorf("%d bytes in %d items", used, items)
	}
	if left, _ := os.ReadDir(filepath.Join(r.dir, bob.Fingerprint.String(), "uploads")); len(left) != 0 {
		t.Errorf("left over: %v", left)
	}
}

func TestUploadsThatAreRefused(t *testing.T) {
	t.Parallel()
	r := newRig(t, Config{Quota: 100_000})
	create := func(want int, headers ...string) string {
		t.Helper()
		_, text := r.want(want, "POST", r.bob+uploadsPath, nil, append(headers, "Tus-Resumable: 1.0.0")...)
		return text
	}
	name := "Upload-Metadata: filename " + b64("a")
	if e := r.fault(create(413, "Upload-Length: 100001", name)); e.Code != services.CodeQuota || e.Quota != 100_000 {
		t.Errorf("%+v", e)
	}
	if e := r.fault(create(400, "Upload-Length: 5", "Upload-Metadata: filename "+b64("../a"))); e.Code != services.CodeInvalid {
		t.Errorf("%+v", e)
	}
	create(400, "Upload-Length: 5")
	create(400, name)
	create(400, "Upload-Length: -5", name)
	create(400, "Upload-Defer-Length: 1", name)
	create(400, "Upload-Length: 5", name+",sha256 "+b64("xyz"))
	for _, id := range []string{"..", "../files/x", "%2e%2e", strings.Repeat("a", 32), strings.Repeat("a", 32) + ".info", "x/" + strings.Repeat("a", 32)} {
		r.want(404, "HEAD", r.bob+uploadsPath+id, nil, "Tus-Resumable: 1.0.0")
		r.want(404, "DELETE", r.bob+uploadsPath+id, nil, "Tus-Resumable: 1.0.0")
	}

	// A wrong digest leaves nothing, and gives the quota back.
	at := r.begin(r.bob, "a", 5, ",sha256 "+b64(sumOf([]byte("other"))))
	if e := r.fault(r.patch(422, at, 0, []byte("hello"))); e.Code != services.CodeInvalid {
		t.Errorf("%+v", e)
	}
	r.want(404, "HEAD", at, nil, "Tus-Resumable: 1.0.0")

	// Giving up does too.
	at = r.begin(r.bob, "a", 100_000, "")
	create(507, "Upload-Length: 1", "Upload-Metadata: filename "+b64("b"))
	r.want(204, "DELETE", at, nil, "Tus-Resumable: 1.0.0")
	if used, items := mustBox(t, r).usage(); used != 0 || items != 0 {
		t.Errorf("%d bytes in %d items", used, items)
	}

	// The name is looked at in the beginning and in the end.
	one, two := r.begin(r.bob, "a", 3, ""), r.begin(r.bob, "a", 3, "")
	r.patch(204, one, 0, []byte("one"))
	r.patch(409, two, 0, []byte("two"))
	create(409, "Upload-Length: 5", name)
	h, _ := r.want(200, "HEAD", r.bob+"/v1/sent/a", nil)
	create(412, "Upload-Length: 5", name, `If-Match: "other"`)
	h, _ = r.want(201, "POST", r.bob+uploadsPath, nil, "Tus-Resumable: 1.0.0", "Upload-Length: 3", name, "If-Match: "+h.Get("Etag"))
	r.patch(204, h.Get("Location"), 0, []byte("new"))
	if h, _ = r.want(200, "HEAD", r.bob+"/v1/sent/a", nil); h.Get("Repr-Digest") != digestOf([]byte("new")) {
		t.Error("the file was not replaced")
	}
}

// What had arrived when the process was killed becomes a file at the next start;
// what rests too long goes.
func TestUploadsAfterARestart(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "exchange")
	first, err := New(Config{Dir: dir, Peer: trusted})
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{T: t, x: first, dir: dir}
	r.bob = r.serve(bob)
	r.begin(r.bob, "half", 10, "")
	whole, damaged := r.begin(r.bob, "whole", 5, ""), r.begin(r.bob, "damaged", 5, ",sha256 "+b64(sumOf([]byte("x"))))
	first.Close()
	for _, at := range []string{whole, damaged} {
		if err := os.WriteFile(filepath.Join(dir, bob.Fingerprint.String(), "uploads", lastPart(at)), []byte("hello"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	os.WriteFile(filepath.Join(dir, "temp", "rest"), []byte("x"), 0o600)

	second := newRig(t, Config{Dir: dir})
	b := mustBox(t, second)
	if list := b.files.list(); len(list) != 1 || list[0].Name != "whole" {
		t.Errorf("%+v", list)
	}
	if used, items := b.usage(); used != 15 || items != 2 {
		t.Errorf("%d bytes in %d items", used, items)
	}
	second.x.sweep(time.Now().Add(uploadAge + time.Hour))
	if used, items := b.usage(); used != 5 || items != 1 {
		t.Errorf("%d bytes in %d items", used, items)
	}
	if got := second.tree(); len(got) != 2 {
		t.Errorf("%v", got)
	}
}
