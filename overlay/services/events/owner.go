package events

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/overlay/services"
)

// OwnerPath is where Owner expects to be served.
const OwnerPath = "/v1/events/"

// A State is what the owner sees of a broker.
type State struct {
	Access   []Allowed `json:"access"`
	Sessions []Session `json:"sessions"`
	Stored   int       `json:"stored"`   // events that wait for subscribers
	Bytes    int64     `json:"bytes"`    // of those
	Retained int       `json:"retained"` // events
}

// An Allowed is what one peer, or everybody, may subscribe to.
type Allowed struct {
	Peer        string   `json:"peer"` // petname, or Everybody
	Fingerprint string   `json:"fingerprint,omitempty"`
	Filters     []string `json:"filters"`
}

// A Session is what a subscriber has here.
type Session struct {
	Peer       string     `json:"peer"`
	Client     string     `json:"client"`
	Connected  bool       `json:"connected"`
	Persistent bool       `json:"persistent"`
	Filters    []string   `json:"filters"`
	Waiting    int        `json:"waiting"` // events
	Bytes      int64      `json:"bytes"`   // of those
	Dropped    uint64     `json:"dropped"` // of QoS 0, because it is slow
	Since      *time.Time `json:"since,omitempty"`
}

// A Change is one filter allowed to somebody, or forbidden.
type Change struct {
	Peer   string `json:"peer"` // Everybody or a fingerprint
	Filter string `json:"filter"`
	Allow  bool   `json:"allow"`
}

// Owner answers programs of this machine, below OwnerPath: GET shows a State, PATCH
// with a list of Change says who may subscribe to what, and POST connect with
// Upgrade: mqtt becomes an MQTT connection.
func (b *Broker) Owner() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var err error
		switch rest := strings.TrimPrefix(r.URL.Path, OwnerPath); {
		case rest == "" && r.Method == http.MethodGet:
		case rest == "" && r.Method == http.MethodPatch:
			err = b.patch(w, r)
		case rest == connectPath && r.Method == http.MethodPost:
			if err = b.upgrade(w, r); err == nil {
				return
			}
		default:
			err = refusal(packets.ErrTopicNameInvalid, http.StatusNotFound, "no such call: %s %.100q", r.Method, r.URL.Path)
		}
		if err != nil {
			asRefusal(err).answer(w)
			return
		}
		services.WriteJSON(w, http.StatusOK, b.state())
	})
}

func (b *Broker) patch(w http.ResponseWriter, r *http.Request) error {
	var changes []Change
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<20)).Decode(&changes); err != nil {
		return refusal(packets.ErrUnspecifiedError, http.StatusBadRequest, "want a JSON list of peer, filter and allow")
	}
	return b.Allow(r.Context(), changes)
}

// Allow changes who may subscribe to what, for subscriptions that exist too.
func (b *Broker) Allow(ctx context.Context, changes []Change) error {
	var wrong error
	err := b.wait(ctx, func(j *job) {
		next := b.access
		for _, c := range changes {
			if next, wrong = next.with(c.Peer, c.Filter, c.Allow); wrong != nil {
				return
			}
		}
		b.access = next
		j.write = putAccess(next)
	})
	if wrong != nil {
		return refusal(packets.ErrTopicFilterInvalid, http.StatusBadRequest, "%s", short(wrong))
	}
	return err
}

func (b *Broker) state() State {
	b.mu.Lock()
	defer b.mu.Unlock()
	st := State{Access: []Allowed{}, Sessions: []Session{}, Stored: len(b.stored), Retained: len(b.retained)}
	for _, s := range b.stored {
		st.Bytes += s.size
	}
	for _, who := range slices.Sorted(maps.Keys(b.access)) {
		a := Allowed{Peer: who, Filters: b.access[who]}
		if fp, err := crypto.ParseFingerprint(who); err == nil {
			a.Peer, a.Fingerprint = b.nameOf(fp), who
		}
		st.Access = append(st.Access, a)
	}
	for _, id := range slices.Sorted(maps.Keys(b.sessions)) {
		s := b.sessions[id]
		v := Session{Peer: b.nameOf(s.peer), Client: s.client(), Connected: s.out != nil, Persistent: s.keep, Dropped: s.dropped,
			Filters: slices.Sorted(maps.Keys(s.subs)), Bytes: s.bytes}
		if s.self {
			v.Peer = "self"
		}
		for _, e := range s.queue {
			if !e.done {
				v.Waiting++
			}
		}
		if s.out == nil {
			since := s.since.UTC().Truncate(time.Second)
			v.Since = &since
		}
		st.Sessions = append(st.Sessions, v)
	}
	return st
}

func (b *Broker) nameOf(fp crypto.Fingerprint) string {
	if p, ok := b.Peer(fp); ok && p.Name != "" {
		return p.Name
	}
	return fp.String()
}

// An OwnerClient speaks to the broker of this machine's own agent, over the use
// socket of the local API.
type OwnerClient struct{ c http.Client }

// NewOwnerClient returns a client for the agent whose use socket lies at socket.
func NewOwnerClient(socket string) *OwnerClient {
	return &OwnerClient{http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		}}}}
}

// State asks for the state.
func (o *OwnerClient) State(ctx context.Context) (State, error) {
	return o.ask(ctx, http.MethodGet, "")
}

// Allow changes who may subscribe to what, and returns the state after it.
func (o *OwnerClient) Allow(ctx context.Context, changes []Change) (State, error) {
	text, err := json.Marshal(changes)
	if err != nil {
		return State{}, err
	}
	return o.ask(ctx, http.MethodPatch, string(text))
}

func (o *OwnerClient) ask(ctx context.Context, method, body string) (st State, err error) {
	r, err := http.NewRequestWithContext(ctx, method, "http://pilot"+OwnerPath, strings.NewReader(body))
	if err != nil {
		return st, err
	}
	a, err := o.c.Do(r)
	if err != nil {
		return st, err
	}
	defer a.Body.Close()
	text, err := io.ReadAll(io.LimitReader(a.Body, 16<<20))
	if err != nil {
		return st, err
	}
	if a.StatusCode == http.StatusOK {
		return st, json.Unmarshal(text, &st)
	}
	var e struct{ Message string }
	if json.Unmarshal(text, &e) != nil || e.Message == "" {
		e.Message = fmt.Sprintf("the agent answered %s", a.Status)
	}
	return st, &Refusal{Status: a.StatusCode, Reason: e.Message}
}
