package exchange

import (
	"encoding/hex"
	"errors"
	"io"
	"mime"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path"
	"strings"
	"time"

	"github.com/pilotnet/pilot/overlay/services"
)

const (
	headerTime = 10 * time.Second
	idleTime   = 2 * time.Minute
	bodyTime   = time.Minute // within which a body must bring paceBytes
	paceBytes  = 16 << 10
	readerTime = 2 * time.Minute // within which a reader must take something
	maxHeader  = 16 << 10
)

// A call is a request of a peer.
type call struct {
	*box
	w    http.ResponseWriter
	r    *http.Request
	peer services.Peer
	rest string // of the path, decoded
}

// Handler answers peers. A request from an address that whois does not know is
// cut off without an answer.
func (x *Exchange) Handler(whois Whois) http.Handler {
	inner := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		from, err := netip.ParseAddrPort(r.RemoteAddr)
		peer, ok := whois(from.Addr().Unmap().WithZone(""))
		if err != nil || !ok {
			panic(http.ErrAbortHandler)
		}
		x.answer(w, r, peer)
	})
	// A browser's page from elsewhere must not speak as this machine.
	pages := http.NewCrossOriginProtection()
	pages.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		services.Refuse(http.StatusForbidden, services.CodeDenied, "pages of other origins may not use the data exchange").Answer(w)
	}))
	return pages.Handler(inner)
}

func (x *Exchange) answer(w http.ResponseWriter, r *http.Request, peer services.Peer) {
	w, finish := paced(w, r)
	defer finish()
	if !services.OwnHost(r.Host) {
		services.Refuse(http.StatusMisdirectedRequest, services.CodeDenied, "this agent has no name %.60q", r.Host).Answer(w)
		return
	}
	b, err := x.box(peer.Fingerprint)
	if err != nil {
		x.Logger.Error("cannot open the files of a peer", "peer", peer.Name, "err", err)
		asError(err).Answer(w)
		return
	}
	select {
	case b.work <- struct{}{}:
		defer func() { <-b.work }()
	default:
		services.Refuse(http.StatusTooManyRequests, services.CodeQuota, "more than %d requests at once", maxAtWork).Retry().Answer(w)
		return
	}
	x.courier.kick(peer.Fingerprint) // it is there
	c := &call{box: b, w: w, r: r, peer: peer}
	if err := c.route(); err != nil {
		e := asError(err)
		if e.Status == http.StatusInternalServerError {
			x.Logger.Warn("a request failed", "peer", peer.Name, "method", r.Method, "err", err)
		}
		e.Answer(w)
	}
}

// route does not use http.ServeMux, which would redirect a path with dots in it
// instead of refusing it.
func (c *call) route() error {
	p := c.r.URL.EscapedPath()
	for _, to := range []struct {
		prefix  string
		methods map[string]func() error
	}{
		{"/v1/messages", map[string]func() error{"POST": c.postMessage}},
		{"/v1/files/", map[string]func() error{"PUT": c.putFile, "GET": c.getFile, "HEAD": c.getFile}},
		{"/v1/sent/", map[string]func() error{"GET": c.sent, "HEAD": c.sent}},
		{"/v1/uploads", map[string]func() error{"POST": c.upload, "GET": c.listUploads, "HEAD": c.upload, "PATCH": c.upload, "DELETE": c.upload, "OPTIONS": c.upload}},
		{"/v1/", map[string]func() error{"GET": c.hello, "HEAD": c.hello}},
	} {
		rest, ok := strings.CutPrefix(p, to.prefix)
		if !ok {
			continue
		}
		var err error
		if c.rest, err = url.PathUnescape(rest); err != nil {
			return services.Refuse(http.StatusBadRequest, services.CodeInvalid, "the path is not properly escaped")
		}
		do := to.methods[c.r.Method]
		if do == nil {
			allow(c.w, to.methods)
			return services.Refuse(http.StatusMethodNotAllowed, services.CodeInvalid, "%s is not for %s", c.r.Method, to.prefix)
		}
		return do()
	}
	return services.Refuse(http.StatusNotFound, services.CodeNotFound, "there is nothing at %.80q", c.r.URL.Path).WithHint("GET /v1/ tells more")
}

func allow(w http.ResponseWriter, methods map[string]func() error) {
	var list []string
	for _, m := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"} {
		if methods[m] != nil {
			list = append(list, m)
		}
	}
	w.Header().Set("Allow", strings.Join(list, ", "))
}

// A Hello is what GET /v1/ answers.
type Hello struct {
	Service    string `json:"service"` // "exchange"
	You        string `json:"you"`     // the caller's fingerprint
	Quota      int64  `json:"quota"`
	Used       int64  `json:"used"`
	Items      int    `json:"items"`
	MaxMessage int64  `json:"max_message"`
	Tus        string `json:"tus"`
}

func (c *call) hello() error {
	if c.rest != "" {
		return services.Refuse(http.StatusNotFound, services.CodeNotFound, "there is nothing at %.80q", c.r.URL.Path).WithHint("GET /v1/ tells more")
	}
	used, items := c.usage()
	services.WriteJSON(c.w, http.StatusOK, Hello{Service: "exchange", You: c.fp.String(), Quota: c.x.Quota, Used: used, Items: items,
		MaxMessage: c.x.MaxMessage, Tus: "1.0.0"})
	return nil
}

// name is the rest of the path as the name of a file.
func (c *call) name() (string, error) {
	name, err := CleanName(c.rest)
	if err != nil {
		return "", badName(err)
	}
	return name, nil
}

// offered are the shelves that the peer may read, its own first.
func (c *call) offered() []shelf {
	return []shelf{c.x.shelfFor(c.fp.String()), c.x.shelfFor("all")}
}

func (x *Exchange) shelfFor(whom string) shelf {
	return shelf{x: x, dir: "share/" + whom, lock: &x.share}
}

func (c *call) getFile() error {
	if c.rest == "" {
		services.WriteJSON(c.w, http.StatusOK, merge(c.offered()))
		return nil
	}
	name, err := c.name()
	if err != nil {
		return err
	}
	for _, s := range c.offered() {
		if f, info, err := s.open(name); err == nil {
			defer f.Close()
			return serveFile(c.w, c.r, s, f, info)
		}
	}
	return notFound(name)
}

// merge lists what is on the shelves; the first that has a name wins.
func merge(shelves []shelf) []Entry {
	list, seen := []Entry{}, map[string]bool{}
	for _, s := range shelves {
		for _, e := range s.list() {
			if !seen[e.Name] {
				seen[e.Name] = true
				list = append(list, e)
			}
		}
	}
	return list
}

// serveFile answers a GET or HEAD.
func serveFile(w http.ResponseWriter, r *http.Request, s shelf, f *os.File, info os.FileInfo) error {
	h := w.Header()
	e := s.describe(info)
	if strings.Contains(strings.Join(r.Header.Values("Want-Repr-Digest"), ","), "sha-256") {
		sum, err := s.digest(f, info.Name(), info)
		if err != nil {
			return err
		}
		e.SHA256 = sum
	}
	if e.SHA256 != "" {
		h.Set("Repr-Digest", digestField(e.SHA256))
	}
	h.Set("Etag", e.ETag)
	h.Set("Content-Type", contentType(e))
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Security-Policy", "sandbox")
	h.Set("Content-Disposition", mime.FormatMediaType("attachment", map[string]string{"filename": e.Name}))
	http.ServeContent(w, r, "", info.ModTime(), f)
	return nil
}

func contentType(e Entry) string {
	if e.Type != "" {
		return e.Type
	}
	if t := mime.TypeByExtension(path.Ext(e.Name)); t != "" {
		return t
	}
	return "application/octet-stream"
}

// sent tells the peer what it left here.
func (c *call) sent() error {
	if c.rest == "" {
		list := c.files.list()
		if list == nil {
			list = []Entry{}
		}
		services.WriteJSON(c.w, http.StatusOK, list)
		return nil
	}
	name, err := c.name()
	if err != nil {
		return err
	}
	if c.r.Method != http.MethodHead {
		return services.Refuse(http.StatusMethodNotAllowed, services.CodeDenied, "what was left here is not given back").WithHint("HEAD tells its size and digest")
	}
	f, info, err := c.files.open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	c.r.Header.Set("Want-Repr-Digest", "sha-256=1")
	return serveFile(c.w, c.r, c.files, f, info)
}

// bodyReader reads a body that must keep its pace. The quota grows with it.
type bodyReader struct {
	r     io.Reader
	rc    *http.ResponseController
	since int
	claim *claim
	left  int64 // of what is claimed; not used when the length is known
	known bool
}

func newBodyReader(w http.ResponseWriter, r *http.Request, c *claim) *bodyReader {
	return &bodyReader{r: r.Body, rc: http.NewResponseController(w), claim: c, known: r.ContentLength >= 0 || c == nil}
}

const claimStep = 1 << 20

func (b *bodyReader) Read(p []byte) (int, error) {
	if !b.known {
		if b.left == 0 {
			if err := b.grow(); err != nil {
				return 0, err
			}
		}
		p = p[:min(int64(len(p)), max(b.left, 1))]
	}
	n, err := b.r.Read(p)
	if b.left -= int64(n); b.left < 0 && !b.known {
		if err := b.claim.more(-b.left); err != nil {
			return 0, err
		}
		b.left = 0
	}
	if b.since += n; b.since >= paceBytes {
		b.since = 0
		b.rc.SetReadDeadline(time.Now().Add(bodyTime))
	}
	if err == io.EOF {
		b.rc.SetReadDeadline(time.Time{}) // what comes now takes the time it takes
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = services.Refuse(http.StatusRequestTimeout, services.CodeTimeout, "the body came too slowly").Retry()
	}
	return n, err
}

// grow claims the next bytes of a body of unknown length: a step, or what is left
// of the quota. With nothing left the next byte decides.
func (b *bodyReader) grow() error {
	step := int64(claimStep)
	if used, _ := b.claim.b.usage(); b.claim.b.x.Quota-used < step {
		step = max(b.claim.b.x.Quota-used, 0)
	}
	if step == 0 {
		return nil
	}
	b.left += step
	return b.claim.more(step)
}

// pacedWriter gives a reader time anew whenever it took something.
type pacedWriter struct {
	http.ResponseWriter
	rc *http.ResponseController
}

// paced sets the deadlines of a request, which bodyReader and pacedWriter move on.
func paced(w http.ResponseWriter, r *http.Request) (_ http.ResponseWriter, finish func()) {
	p := pacedWriter{w, http.NewResponseController(w)}
	if r.ContentLength != 0 {
		p.rc.SetReadDeadline(time.Now().Add(bodyTime))
	} else {
		p.rc.SetReadDeadline(time.Time{})
	}
	return p, func() { p.rc.SetWriteDeadline(time.Now().Add(readerTime)) }
}

func (w pacedWriter) Write(p []byte) (int, error) {
	w.rc.SetWriteDeadline(time.Now().Add(readerTime))
	return w.ResponseWriter.Write(p)
}

func (w pacedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// hexDigest parses the text of a SHA-256; "" is none.
func hexDigest(s string) ([]byte, error) {
	if s == "" {
		return nil, nil
	}
	sum, err := hex.DecodeString(s)
	if err != nil || len(sum) != 32 {
		return nil, services.Refuse(http.StatusBadRequest, services.CodeInvalid, "sha256 is not 64 hexadecimal digits")
	}
	return sum, nil
}
