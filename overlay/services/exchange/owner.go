package exchange

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/overlay/services"
)

// OwnerPath is where Owner expects to be served.
const OwnerPath = "/v1/exchange/"

const maxInboxWait = time.Hour

// An order is a request of the owner.
type order struct {
	*Exchange
	w http.ResponseWriter
	r *http.Request
}

// Owner answers programs of this machine, below OwnerPath. Who may reach it may
// read what peers sent, send in the agent's name and offer files.
func (x *Exchange) Owner() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w, finish := paced(w, r)
		defer finish()
		o := &order{Exchange: x, w: w, r: r}
		rest, _ := strings.CutPrefix(r.URL.EscapedPath(), OwnerPath)
		var parts []string
		for part := range strings.SplitSeq(strings.TrimSuffix(rest, "/"), "/") {
			p, err := url.PathUnescape(part)
			if err != nil {
				services.Refuse(http.StatusBadRequest, services.CodeInvalid, "the path is not properly escaped").Answer(w)
				return
			}
			parts = append(parts, p)
		}
		if err := o.route(parts); err != nil {
			e := asError(err)
			if e.Status == http.StatusInternalServerError {
				e.Message = err.Error()
			}
			e.Answer(w)
		}
	})
}

func (o *order) route(parts []string) error {
	n, method := len(parts), o.r.Method
	read := method == http.MethodGet || method == http.MethodHead
	switch {
	case parts[0] == "inbox" && n == 1 && read:
		return o.inbox()
	case parts[0] == "inbox" && n == 4 && (read || method == http.MethodDelete):
		return o.received(parts[1], parts[2], parts[3])
	case parts[0] == "share" && n == 1 && read:
		return o.shared()
	case parts[0] == "share" && n == 3 && (read || method == http.MethodPut || method == http.MethodDelete):
		return o.offer(parts[1], parts[2])
	case parts[0] == "queue" && n == 1 && read:
		services.WriteJSON(o.w, http.StatusOK, o.waiting())
		return nil
	case parts[0] == "queue" && n == 1 && method == http.MethodPost:
		return o.enqueue()
	case parts[0] == "queue" && n == 2 && method == http.MethodDelete:
		if err := o.queue.Drop(parts[1]); errors.Is(err, ErrNoItem) {
			return notFound(parts[1])
		} else if err != nil {
			return err
		}
		o.w.WriteHeader(http.StatusNoContent)
		return nil
	}
	return services.Refuse(http.StatusNotFound, services.CodeNotFound, "no such call: %s %.100q", method, o.r.URL.Path)
}

// inbox lists everything that came in, newest last.
func (o *order) inbox() error {
	wait, err := time.ParseDuration(o.r.URL.Query().Get("wait"))
	if err != nil && o.r.URL.Query().Get("wait") != "" {
		return services.Refuse(http.StatusBadRequest, services.CodeInvalid, "wait is not a duration like 30s")
	}
	ctx, cancel := context.WithTimeout(o.r.Context(), min(max(wait, 0), maxInboxWait))
	defer cancel()
	for {
		arrived := o.arrived.next()
		list := o.everything()
		if len(list) > 0 || ctx.Err() != nil {
			services.WriteJSON(o.w, http.StatusOK, list)
			return nil
		}
		select {
		case <-arrived:
		case <-ctx.Done():
		}
	}
}

func (o *order) everything() []Entry {
	list := []Entry{}
	for _, fp := range o.known() {
		b, err := o.box(fp)
		if err != nil {
			o.Logger.Error("cannot open the files of a peer", "fingerprint", fp, "err", err)
			continue
		}
		from := o.nameOf(fp)
		add := func(kind string, entries []Entry) {
			for _, e := range entries {
				e.Kind, e.From, e.Fingerprint = kind, from, fp.String()
				list = append(list, e)
			}
		}
		add("file", b.files.list())
		add("message", b.messages())
	}
	slices.SortStableFunc(list, func(a, b Entry) int { return a.Time.Compare(b.Time) })
	return list
}

// received reads or removes one thing that came in.
func (o *order) received(from, kind, name string) error {
	fp, err := crypto.ParseFingerprint(from)
	if err != nil || !slices.Contains(o.known(), fp) {
		return notFound(from)
	}
	b, err := o.box(fp)
	if err != nil {
		return err
	}
	switch {
	case kind == "messages" && o.r.Method == http.MethodDelete:
		if !validID(name) {
			return notFound(name)
		}
		if err := o.root.Remove(b.path("messages/" + name)); err != nil {
			return notFound(name)
		}
	case kind == "messages":
		return o.readMessage(b, name)
	case kind != "files":
		return notFound(kind)
	case o.r.Method == http.MethodDelete:
		if name, err = CleanName(name); err != nil {
			return badName(err)
		}
		if err := b.files.remove(name); err != nil {
			return err
		}
	default:
		return o.read(b.files, name)
	}
	b.count()
	o.w.WriteHeader(http.StatusNoContent)
	return nil
}

func (o *order) read(s shelf, name string) error {
	name, err := CleanName(name)
	if err != nil {
		return badName(err)
	}
	f, info, err := s.open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	return serveFile(o.w, o.r, s, f, info)
}

func (o *order) readMessage(b *box, id string) error {
	f, e, begin, err := b.openMessage(id)
	if err != nil {
		return err
	}
	defer f.Close()
	h := o.w.Header()
	h.Set("Etag", `"`+e.SHA256+`"`)
	h.Set("Repr-Digest", digestField(e.SHA256))
	h.Set("Content-Type", e.Type)
	h.Set("X-Content-Type-Options", "nosniff")
	http.ServeContent(o.w, o.r, "", e.Time, io.NewSectionReader(f, begin, e.Size))
	return nil
}

// shared lists what is offered, to whom.
func (o *order) shared() error {
	list := []Entry{}
	for _, e := range o.shelfFor("all").list() {
		e.To = "all"
		list = append(list, e)
	}
	dirs, err := o.root.Open("share")
	if err != nil {
		return err
	}
	defer dirs.Close()
	names, err := dirs.Readdirnames(0)
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, name := range names {
		fp, err := crypto.ParseFingerprint(name)
		if err != nil || fp.String() != name {
			continue
		}
		for _, e := range o.shelfFor(name).list() {
			e.To, e.Fingerprint = o.nameOf(fp), name
			list = append(list, e)
		}
	}
	services.WriteJSON(o.w, http.StatusOK, list)
	return nil
}

// offer puts, reads or removes a file that peers may fetch.
func (o *order) offer(to, name string) error {
	if to != "all" {
		fp, err := crypto.ParseFingerprint(to)
		if err != nil {
			return services.Refuse(http.StatusBadRequest, services.CodeInvalid, "files are offered to all or to a fingerprint")
		}
		to = fp.String()
	}
	name, err := CleanName(name)
	if err != nil {
		return badName(err)
	}
	s := o.shelfFor(to)
	switch o.r.Method {
	case http.MethodPut:
		if err := o.root.MkdirAll(s.dir, 0o700); err != nil {
			return err
		}
		_, err := o.receive(o.w, o.r, s, name, nil)
		return err
	case http.MethodDelete:
		if err := s.remove(name); err != nil {
			return err
		}
		o.w.WriteHeader(http.StatusNoContent)
		return nil
	}
	return o.read(s, name)
}

// A Waiting is an item of the queue with the name of its peer.
type Waiting struct {
	Item
	Peer string `json:"peer"`
}

func (o *order) waiting() []Waiting {
	list := []Waiting{}
	for _, it := range o.queue.List() {
		list = append(list, Waiting{it, o.nameOf(it.To)})
	}
	return list
}

func (o *order) enqueue() error {
	q := o.r.URL.Query()
	to, err := crypto.ParseFingerprint(q.Get("to"))
	if err != nil {
		return services.Refuse(http.StatusBadRequest, services.CodeInvalid, "to is not a fingerprint")
	}
	if _, ok := o.Peer(to); !ok {
		return services.Refuse(http.StatusNotFound, services.CodeNotFound, "no trusted peer has that fingerprint")
	}
	if err := o.room(max(o.r.ContentLength, 0)); err != nil {
		return err
	}
	it, err := o.queue.Put(to, q.Get("name"), newBodyReader(o.w, o.r, nil))
	if err != nil {
		return bodyError(err)
	}
	services.WriteJSON(o.w, http.StatusCreated, Waiting{it, o.nameOf(to)})
	return nil
}
