package exchange

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/pilotnet/pilot/overlay/services"
)

// An Entry describes a file, or a message, that is complete.
type Entry struct {
	Kind        string    `json:"kind,omitempty"` // "file" or "message", in an inbox
	From        string    `json:"from,omitempty"` // petname, in an inbox
	Fingerprint string    `json:"fingerprint,omitempty"`
	To          string    `json:"to,omitempty"` // "all" or a petname, in share
	Name        string    `json:"name"`
	Size        int64     `json:"size"`
	SHA256      string    `json:"sha256,omitempty"`
	Type        string    `json:"content_type,omitempty"`
	Time        time.Time `json:"time"` // received, or last changed
	ETag        string    `json:"etag,omitempty"`
}

// A shelf is a directory of complete files under clean names.
type shelf struct {
	x    *Exchange
	dir  string      // below the root of x
	meta string      // directory of what is known of each; "": nothing is kept
	lock *sync.Mutex // held while a name is looked at and then taken
}

// metadata is what is kept of a received file. It holds for a file of that size
// and time only; after a crash between the two renames it is void.
type metadata struct {
	SHA256  string    `json:"sha256"`
	Type    string    `json:"content_type,omitempty"`
	Size    int64     `json:"size"`
	Changed time.Time `json:"changed"`
}

// open returns a complete file. Only regular files count, which nobody has to
// wait for.
func (s shelf) open(name string) (*os.File, fs.FileInfo, error) {
	path := s.dir + "/" + name
	info, err := s.x.root.Lstat(path)
	if err != nil || !info.Mode().IsRegular() {
		return nil, nil, notFound(name)
	}
	f, err := s.x.root.Open(path)
	if err != nil {
		return nil, nil, notFound(name)
	}
	if info, err = f.Stat(); err != nil || !info.Mode().IsRegular() {
		f.Close()
		return nil, nil, notFound(name)
	}
	return f, info, nil
}

// entry describes a file, false if there is none.
func (s shelf) entry(name string) (Entry, bool) {
	info, err := s.x.root.Lstat(s.dir + "/" + name)
	if err != nil || !info.Mode().IsRegular() {
		return Entry{}, false
	}
	return s.describe(info), true
}

func (s shelf) describe(info fs.FileInfo) Entry {
	e := Entry{Name: info.Name(), Size: info.Size(), Time: info.ModTime().UTC(), ETag: etagOf(info)}
	if sum, ok := s.x.digests.get(s.dir+"/"+e.Name, info); ok {
		e.SHA256 = sum
	}
	if s.meta == "" {
		return e
	}
	m := metadata{}
	if text, err := s.x.root.ReadFile(s.meta + "/" + e.Name); err == nil && json.Unmarshal(text, &m) == nil &&
		m.Size == e.Size && m.Changed.Equal(e.Time) {
		e.SHA256, e.Type = m.SHA256, m.Type
	}
	return e
}

// list gives the files in the order of their names. What has no clean name is
// not shown: nobody could ask for it.
func (s shelf) list() []Entry {
	found, err := fs.ReadDir(s.x.root.FS(), s.dir)
	if err != nil {
		return nil
	}
	var list []Entry
	for _, d := range found {
		if clean, err := CleanName(d.Name()); err != nil || clean != d.Name() || !d.Type().IsRegular() {
			continue
		}
		if info, err := d.Info(); err == nil {
			list = append(list, s.describe(info))
		}
	}
	return list
}

// put takes the file temp, whose digest is sum, into the shelf. The file must be
// synced. If the condition does not hold any more, temp stays where it is. booked is
// called under the lock with the change in bytes and items.
func (s shelf) put(temp, name, contentType string, sum [sha256.Size]byte, cond condition, booked func(bytes int64, items int)) (Entry, error) {
	info, err := s.x.root.Lstat(temp)
	if err != nil {
		return Entry{}, err
	}
	s.lock.Lock()
	defer s.lock.Unlock()
	if err := cond.check(s, name); err != nil {
		return Entry{}, err
	}
	old, replaces := s.entry(name)
	m := metadata{SHA256: hex.EncodeToString(sum[:]), Type: contentType, Size: info.Size(), Changed: info.ModTime().UTC()}
	if s.meta != "" {
		if err := s.x.writeFile(s.meta+"/"+name, m); err != nil {
			return Entry{}, err
		}
	}
	if err := s.x.root.Rename(temp, s.dir+"/"+name); err != nil {
		return Entry{}, err
	}
	if replaces {
		booked(info.Size()-old.Size, 0)
	} else {
		booked(info.Size(), 1)
	}
	if err := s.x.syncDir(s.dir); err != nil {
		return Entry{}, err
	}
	s.x.digests.set(s.dir+"/"+name, info, m.SHA256)
	e, _ := s.entry(name)
	e.SHA256 = m.SHA256
	return e, nil
}

// remove drops a file.
func (s shelf) remove(name string) error {
	s.lock.Lock()
	defer s.lock.Unlock()
	if _, ok := s.entry(name); !ok {
		return notFound(name)
	}
	if err := s.x.root.Remove(s.dir + "/" + name); err != nil {
		return err
	}
	if s.meta != "" {
		s.x.root.Remove(s.meta + "/" + name)
	}
	return s.x.syncDir(s.dir)
}

// writeFile writes v as JSON, so that after a crash it is there as a whole or not
// at all.
func (x *Exchange) writeFile(to string, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	f, temp, err := x.temp()
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = x.root.Rename(temp, to)
	}
	if err != nil {
		x.root.Remove(temp)
		return err
	}
	return x.syncDir(path.Dir(to))
}

// digest computes the SHA-256 of an open file, or takes it from what is known.
func (s shelf) digest(f *os.File, name string, info fs.FileInfo) (string, error) {
	if e := s.describe(info); e.SHA256 != "" {
		return e.SHA256, nil
	}
	s.x.digests.one.Lock() // one at a time: it costs a whole core
	defer s.x.digests.one.Unlock()
	path := s.dir + "/" + name
	if sum, ok := s.x.digests.get(path, info); ok {
		return sum, nil
	}
	sum, err := hashFile(io.NewSectionReader(f, 0, info.Size()))
	if err != nil {
		return "", err
	}
	text := hex.EncodeToString(sum[:])
	s.x.digests.set(path, info, text)
	return text, nil
}

func hashFile(r io.Reader) (sum [sha256.Size]byte, err error) {
	h := sha256.New()
	_, err = io.Copy(h, r)
	h.Sum(sum[:0])
	return sum, err
}

// etagOf is a strong validator as long as who changes a file changes its time.
func etagOf(info fs.FileInfo) string {
	return fmt.Sprintf(`"%x-%x"`, info.Size(), info.ModTime().UnixNano())
}

// digests remembers the digests of files that did not change since.
type digests struct {
	one   sync.Mutex
	mu    sync.Mutex
	known map[string]known
}

type known struct{ etag, sum string }

const maxKnown = 4096

func (d *digests) get(path string, info fs.FileInfo) (string, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	k, ok := d.known[path]
	return k.sum, ok && k.etag == etagOf(info)
}

func (d *digests) set(path string, info fs.FileInfo, sum string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.known == nil || len(d.known) >= maxKnown {
		d.known = map[string]known{}
	}
	d.known[path] = known{etagOf(info), sum}
}

// A condition says what a name must stand for when it is taken (RFC 9110, 13.1).
type condition struct {
	none  string // If-None-Match
	match string // If-Match
}

func conditionOf(h http.Header) condition {
	return condition{none: strings.Join(h.Values("If-None-Match"), ","), match: strings.Join(h.Values("If-Match"), ",")}
}

func (c condition) check(s shelf, name string) error {
	e, there := s.entry(name)
	failed := services.Refuse(http.StatusPreconditionFailed, services.CodeConflict, "%q is not what the request says that it is", name)
	if there {
		failed.WithHint("its entity tag is %s", e.ETag)
	}
	switch {
	case c.match != "" && (!there || !hasTag(c.match, e.ETag)):
		return failed
	case there && c.none != "" && hasTag(c.none, e.ETag):
		return failed
	case there && c.match == "" && (c.none == "" || c.none == "*"):
		return services.Refuse(http.StatusConflict, services.CodeConflict, "there is a file %q already", name).
			WithHint("send it under another name, or replace the one that is there with If-Match: %s", e.ETag)
	}
	return nil
}

// hasTag looks for a strong entity tag in the list of a header.
func hasTag(list, tag string) bool {
	for t := range strings.SplitSeq(list, ",") {
		if t = strings.TrimSpace(t); t == "*" || t == tag {
			return true
		}
	}
	return false
}

// digestIn finds a SHA-256 in Content-Digest or Repr-Digest (RFC 9530); nil when
// there is none.
func digestIn(h http.Header) ([]byte, error) {
	for _, field := range []string{"Content-Digest", "Repr-Digest"} {
		for _, line := range h.Values(field) {
			for item := range strings.SplitSeq(line, ",") {
				name, value, _ := strings.Cut(strings.TrimSpace(item), "=")
				if !strings.EqualFold(name, "sha-256") {
					continue
				}
				value, _, _ = strings.Cut(value, ";")
				sum, err := base64.StdEncoding.Strict().DecodeString(strings.Trim(value, ":"))
				if err != nil || len(sum) != sha256.Size || !strings.HasPrefix(value, ":") || !strings.HasSuffix(value, ":") {
					return nil, services.Refuse(http.StatusBadRequest, services.CodeInvalid, "%s is not like sha-256=:BASE64:", field)
				}
				return sum, nil
			}
		}
	}
	return nil, nil
}

// digestField is the value of such a header.
func digestField(hexSum string) string {
	sum, err := hex.DecodeString(hexSum)
	if err != nil {
		return ""
	}
	return "sha-256=:" + base64.StdEncoding.EncodeToString(sum) + ":"
}

func wrongDigest() *services.Error {
	return services.Refuse(http.StatusUnprocessableEntity, services.CodeInvalid, "what arrived does not have the SHA-256 that the sender announced").
		WithHint("did the file change while it was sent? send it again").Retry()
}
