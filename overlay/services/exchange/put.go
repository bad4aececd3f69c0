package exchange

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"mime"
	"net/http"
	"net/url"

	"github.com/pilotnet/pilot/overlay/services"
)

const copyBuffer = 128 << 10

// putFile takes a file in one request.
func (c *call) putFile() error {
	name, err := c.name()
	if err != nil {
		return err
	}
	claim, err := c.claim(max(c.r.ContentLength, 0))
	if err != nil {
		return err
	}
	defer claim.release()
	e, err := c.x.receive(c.w, c.r, c.files, name, claim)
	if err != nil {
		return err
	}
	c.x.Logger.Info("a file arrived", "peer", c.peer.Name, "name", e.Name, "bytes", e.Size)
	c.x.arrived.raise()
	return nil
}

// receive stores the body of a PUT on a shelf and answers. claim is nil where no
// quota holds.
func (x *Exchange) receive(w http.ResponseWriter, r *http.Request, s shelf, name string, claim *claim) (Entry, error) {
	cond := conditionOf(r.Header)
	if err := cond.check(s, name); err != nil {
		return Entry{}, err
	}
	if r.Header.Get("Content-Range") != "" {
		return Entry{}, services.Refuse(http.StatusBadRequest, services.CodeInvalid, "a PUT of a part is not understood").WithHint("POST /v1/uploads/ begins a resumable upload")
	}
	_, existed := s.entry(name)
	booked := func(int64, int) {}
	if claim != nil {
		booked = claim.settle
	}
	temp, sum, err := x.fill(w, r, claim)
	if err != nil {
		return Entry{}, err
	}
	e, err := s.put(temp, name, typeOf(r.Header.Get("Content-Type")), sum, cond, booked)
	if err != nil {
		x.root.Remove(temp)
		return Entry{}, err
	}
	status := http.StatusCreated
	if existed {
		status = http.StatusOK
	}
	w.Header().Set("Location", (&url.URL{Path: r.URL.Path[:len(r.URL.Path)-len(lastPart(r.URL.Path))] + e.Name}).EscapedPath())
	w.Header().Set("Etag", e.ETag)
	w.Header().Set("Repr-Digest", digestField(e.SHA256))
	services.WriteJSON(w, status, e)
	return e, nil
}

func lastPart(path string) string {
	for i := len(path) - 1; i >= 0; i-- {
		if path[i] == '/' {
			return path[i+1:]
		}
	}
	return path
}

// fill writes the body of a request into a temporary file, synced and checked
// against the digest that the request names.
func (x *Exchange) fill(w http.ResponseWriter, r *http.Request, claim *claim) (temp string, sum [sha256.Size]byte, err error) {
	want, err := digestIn(r.Header)
	if err != nil {
		return "", sum, err
	}
	if claim == nil {
		if err := x.room(max(r.ContentLength, 0)); err != nil {
			return "", sum, err
		}
	}
	f, temp, err := x.temp()
	if err != nil {
		return "", sum, err
	}
	h := sha256.New()
	_, err = io.CopyBuffer(io.MultiWriter(f, h), onlyReader{newBodyReader(w, r, claim)}, make([]byte, copyBuffer))
	h.Sum(sum[:0])
	if err != nil {
		err = bodyError(err)
	} else if want == nil {
		want, err = digestIn(r.Trailer)
	}
	if err == nil && want != nil && !bytes.Equal(want, sum[:]) {
		err = wrongDigest()
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		x.root.Remove(temp)
	}
	return temp, sum, err
}

// onlyReader hides other ways to read, so that the buffer is used.
type onlyReader struct{ io.Reader }

// bodyError tells a body that ended early from what happened here.
func bodyError(err error) error {
	e := new(services.Error)
	if errors.As(err, &e) || !errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	return services.Refuse(http.StatusBadRequest, services.CodeInvalid, "the body ended early").Retry()
}

const maxType = 255

// typeOf is a media type that may be kept and given to others; "" if it is none.
func typeOf(header string) string {
	if len(header) > maxType {
		return ""
	}
	t, params, err := mime.ParseMediaType(header)
	if err != nil {
		return ""
	}
	return mime.FormatMediaType(t, params)
}
