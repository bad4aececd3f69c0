package tasks

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/a2aproject/a2a-go/v2/a2a"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/overlay/services"
)

// OwnerPath is where Owner expects to be served.
const OwnerPath = "/v1/tasks/"

const (
	maxOrder  = 128 << 10
	orderTime = 30 * time.Second
)

// A Caller says which user asks, as the kernel tells. False: it does not.
type Caller func(context.Context) (uid, gid uint32, ok bool)

// Owner answers programs of this machine, below OwnerPath. Who may reach it may
// have a command of its own run with its own rights, at the wish of peers.
func (t *Tasks) Owner(caller Caller) http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, f func(*http.Request) (any, error)) {
		method, path, _ := strings.Cut(pattern, " ")
		mux.HandleFunc(method+" "+OwnerPath+path, func(w http.ResponseWriter, r *http.Request) {
			rc := http.NewResponseController(w)
			rc.SetReadDeadline(time.Now().Add(orderTime))
			rc.SetWriteDeadline(time.Now().Add(orderTime))
			v, err := f(r)
			if err != nil {
				asError(err).Answer(w)
				return
			}
			services.WriteJSON(w, http.StatusOK, v)
		})
	}
	handle("GET handler", func(*http.Request) (any, error) { return handlerBody{t.Handler()}, nil })
	handle("DELETE handler", func(*http.Request) (any, error) { return handlerBody{}, t.SetHandler(nil) })
	handle("PUT handler", func(r *http.Request) (any, error) { return t.orderHandler(r, caller) })
	handle("GET list", t.orderList)
	handle("GET task/{id}", func(r *http.Request) (any, error) {
		rec, _, err := t.any(a2a.TaskID(r.PathValue("id")))
		return rec.entry(), err
	})
	handle("POST task/{id}/cancel", func(r *http.Request) (any, error) {
		rec, at, err := t.any(a2a.TaskID(r.PathValue("id")))
		if err != nil {
			return nil, err
		}
		if at == nil {
			return nil, services.Refuse(http.StatusConflict, services.CodeConflict, "the task has ended already: %s", word(rec.Task.Status.State))
		}
		if _, err := t.cancelTask(r.Context(), at); err != nil {
			return nil, err
		}
		return at.record().entry(), nil
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		services.Refuse(http.StatusNotFound, services.CodeNotFound, "no such call: %s %.100q", r.Method, r.URL.Path).Answer(w)
	})
	return mux
}

type handlerBody struct {
	Handler *Handler `json:"handler"`
}

// orderHandler sets the handler in the name of the caller.
func (t *Tasks) orderHandler(r *http.Request, caller Caller) (any, error) {
	text, err := io.ReadAll(io.LimitReader(r.Body, maxOrder+1))
	if err != nil || len(text) > maxOrder {
		return nil, services.Refuse(http.StatusBadRequest, services.CodeInvalid, "the handler is not readable, or larger than %d bytes", maxOrder)
	}
	h := new(Handler)
	d := json.NewDecoder(strings.NewReader(string(text)))
	d.DisallowUnknownFields()
	if err := d.Decode(h); err != nil {
		return nil, services.Refuse(http.StatusBadRequest, services.CodeInvalid, "the handler is not what this call expects: %.200v", err)
	}
	if err := h.check(); err != nil {
		return nil, err
	}
	h.Set, h.UID, h.GID = time.Now().UTC(), 0, 0
	if len(h.Exec) > 0 {
		if h.UID, h.GID, err = setter(r.Context(), caller); err != nil {
			return nil, err
		}
		if _, _, _, err := h.identity(); err != nil {
			return nil, services.Refuse(http.StatusForbidden, services.CodeDenied, "%v", err).WithHint("set it as user %d", os.Geteuid())
		}
	}
	if err := t.SetHandler(h); err != nil {
		return nil, err
	}
	t.logger.Info("handler of tasks set", "command", len(h.Exec) > 0, "uid", h.UID)
	return handlerBody{h}, nil
}

// setter is the user who asks. Where the kernel does not tell, it can only be the
// agent's own user, unless that is root.
func setter(ctx context.Context, caller Caller) (uid, gid uint32, err error) {
	if caller != nil {
		if uid, gid, ok := caller(ctx); ok {
			return uid, gid, nil
		}
	}
	if os.Geteuid() == 0 {
		return 0, 0, services.Refuse(http.StatusForbidden, services.CodeDenied, "this system does not tell which user asks, and a command is not run as root unasked").
			WithHint("set a URL: pilotctl task handler set --url http://127.0.0.1:PORT/")
	}
	return uint32(os.Geteuid()), uint32(os.Getegid()), nil
}

// any finds a task of any peer, at work or kept.
func (t *Tasks) any(id a2a.TaskID) (Record, *run, error) {
	t.mu.Lock()
	r := t.runs[id]
	t.mu.Unlock()
	if r != nil {
		return r.record(), r, nil
	}
	rec, err := t.book.find(id)
	if errors.Is(err, errNoTask) {
		err = services.Refuse(http.StatusNotFound, services.CodeNotFound, "there is no task %.80q", id).WithHint("pilotctl task list shows those that came; for one at a peer: pilotctl task get PEER ID")
	}
	return rec, nil, err
}

// orderList lists the tasks of all peers, or of one, the latest first.
func (t *Tasks) orderList(r *http.Request) (any, error) {
	most := usualPage
	if text := r.URL.Query().Get("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > maxKept {
			return nil, services.Refuse(http.StatusBadRequest, services.CodeInvalid, "limit lies between 1 and %d", maxKept)
		}
		most = n
	}
	peers, err := t.book.peers()
	if err != nil {
		return nil, err
	}
	if text := r.URL.Query().Get("peer"); text != "" {
		fp, err := crypto.ParseFingerprint(text)
		if err != nil {
			return nil, services.Refuse(http.StatusBadRequest, services.CodeInvalid, "peer is not a fingerprint")
		}
		peers = []crypto.Fingerprint{fp}
	}
	list := []Entry{}
	for _, fp := range peers {
		n := 0
		err := t.book.latest(fp, "", func(rec Record) bool {
			list = append(list, t.live(rec).entry().brief())
			n++
			return n < most
		})
		if err != nil {
			return nil, err
		}
	}
	slices.SortStableFunc(list, func(a, b Entry) int { return b.Created.Compare(a.Created) })
	return list[:min(most, len(list))], nil
}
