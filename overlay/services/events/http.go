package events

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/pilotnet/pilot/overlay/services"
)

const (
	headerTime  = 10 * time.Second
	bodyTime    = time.Minute
	idleTime    = 2 * time.Minute
	beatTime    = 15 * time.Second // between two signs of life of a stream
	maxHeader   = 16 << 10
	topicsPath  = "/topics"
	maxContent  = 256 // bytes of a Content-Type
	streamRetry = 1000
)

type peerKey struct{}

// httpServer answers HTTP on connections whose context says who the peer is.
func (b *Broker) httpServer(ctx context.Context) *http.Server {
	pages := http.NewCrossOriginProtection() // a browser's page from elsewhere must not speak as this machine
	pages.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		refusal(packets.ErrNotAuthorized, http.StatusForbidden, "pages of other origins may not use the events of this agent").answer(w)
	}))
	return &http.Server{
		Handler:           pages.Handler(http.HandlerFunc(b.serveHTTP)),
		ReadHeaderTimeout: headerTime, IdleTimeout: idleTime, MaxHeaderBytes: maxHeader,
		ErrorLog:    slog.NewLogLogger(b.Logger.Handler(), slog.LevelDebug),
		BaseContext: func(net.Listener) context.Context { return ctx },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if q, ok := c.(*queuedConn); ok {
				return context.WithValue(ctx, peerKey{}, q.peer)
			}
			return ctx
		},
	}
}

func (b *Broker) serveHTTP(w http.ResponseWriter, r *http.Request) {
	whois, _ := r.Context().Value(peerKey{}).(func() (services.Peer, bool))
	if whois == nil {
		panic(http.ErrAbortHandler)
	}
	p, ok := whois()
	if !ok {
		panic(http.ErrAbortHandler)
	}
	if err := b.route(w, r, p, whois); err != nil {
		asRefusal(err).answer(w)
	}
}

func (b *Broker) route(w http.ResponseWriter, r *http.Request, p services.Peer, whois func() (services.Peer, bool)) error {
	if !services.OwnHost(r.Host) {
		return refusal(packets.ErrNotAuthorized, http.StatusMisdirectedRequest, "this agent has no name %.60q", r.Host)
	}
	rest, ok := strings.CutPrefix(r.URL.EscapedPath(), topicsPath)
	switch {
	case !ok && r.URL.Path == "/" && (r.Method == http.MethodGet || r.Method == http.MethodHead):
		b.hello(w, p)
		return nil
	case !ok || rest != "" && rest[0] != '/':
		return refusal(packets.ErrTopicNameInvalid, http.StatusNotFound, "there is nothing here; topics are below %s/", topicsPath)
	}
	topic, err := url.PathUnescape(strings.TrimPrefix(rest, "/"))
	if err != nil {
		return refusal(packets.ErrTopicNameInvalid, http.StatusBadRequest, "the path is not properly escaped")
	}
	switch r.Method {
	case http.MethodPost, http.MethodPut, http.MethodDelete:
		return b.post(w, r, p, topic)
	case http.MethodGet, http.MethodHead:
		filters := r.URL.Query()["filter"]
		if topic != "" {
			filters = append(filters, topic)
		}
		if err := b.mayRead(p, filters); err != nil {
			return err
		}
		if r.Method == http.MethodGet && wantsStream(r) {
			return b.stream(w, r, p, filters, whois)
		}
		return b.current(w, r, p, filters)
	}
	w.Header().Set("Allow", "GET, HEAD, POST, PUT, DELETE")
	return refusal(packets.ErrProtocolViolation, http.StatusMethodNotAllowed, "POST publishes, PUT publishes and retains, DELETE ends that, GET subscribes")
}

func (r *Refusal) answer(w http.ResponseWriter) {
	code := map[int]string{400: "invalid_argument", 403: "denied", 404: "not_found", 413: "quota", 421: "denied", 507: "quota"}[r.Status]
	if code == "" {
		code = "internal"
	}
	services.WriteJSON(w, r.Status, map[string]any{"code": code, "message": r.Reason, "retryable": r.Status == http.StatusInsufficientStorage || r.Status == http.StatusInternalServerError})
}

// A Greeting tells a caller what it may do.
type Greeting struct {
	Name      string   `json:"name"` // of the caller
	Publish   string   `json:"publish"`
	Subscribe []string `json:"subscribe"`
	Most      int      `json:"max_payload"`
}

func (b *Broker) hello(w http.ResponseWriter, p services.Peer) {
	b.mu.Lock()
	g := Greeting{Name: p.Name, Publish: ownPrefix(p.Name) + "#", Most: MaxPayload}
	g.Subscribe = append(append([]string{}, b.access[Everybody]...), b.access[p.Fingerprint.String()]...)
	b.mu.Unlock()
	if p.Self {
		g.Publish, g.Subscribe = "#", []string{"#"}
	}
	services.WriteJSON(w, http.StatusOK, g)
}

func (b *Broker) mayRead(p services.Peer, filters []string) error {
	if len(filters) == 0 || len(filters) > maxSubs {
		return refusal(packets.ErrTopicFilterInvalid, http.StatusBadRequest, "want one to %d filters: %s/FILTER or %s?filter=FILTER&filter=FILTER", maxSubs, topicsPath, topicsPath)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, f := range filters {
		if err := CheckFilter(f); err != nil {
			return refusal(packets.ErrTopicFilterInvalid, http.StatusBadRequest, "%s", short(err))
		}
		if !b.access.Reads(p, f) {
			return refusal(packets.ErrNotAuthorized, http.StatusForbidden, "%q is not for you; GET / says what is", f)
		}
	}
	return nil
}

// post publishes an event, and answers when it is stored.
func (b *Broker) post(w http.ResponseWriter, r *http.Request, p services.Peer, topic string) error {
	http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTime))
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, MaxPayload))
	if tooLong := new(http.MaxBytesError); errors.As(err, &tooLong) {
		return refusal(packets.ErrPacketTooLarge, http.StatusRequestEntityTooLarge, "an event has at most %d bytes", MaxPayload)
	} else if err != nil {
		return refusal(packets.ErrUnspecifiedError, http.StatusBadRequest, "the body did not come to its end")
	}
	m := &Message{Topic: topic, Payload: body, QoS: 1, Created: time.Now().Unix(), From: p.Fingerprint, ContentType: r.Header.Get("Content-Type")}
	m.Retain = r.Method != http.MethodPost
	if r.Method == http.MethodDelete {
		m.Payload = nil
	}
	if m.ContentType == "application/x-www-form-urlencoded" { // what curl -d says of anything
		m.ContentType = ""
	}
	if _, _, err := mime.ParseMediaType(m.ContentType); m.ContentType != "" && (err != nil || len(m.ContentType) > maxContent) {
		return refusal(packets.ErrPayloadFormatInvalid, http.StatusBadRequest, "the Content-Type is not one")
	}
	if r.Method == http.MethodPut && len(body) == 0 {
		return refusal(packets.ErrPayloadFormatInvalid, http.StatusBadRequest, "nothing can be retained without a body; DELETE ends what is")
	}
	if err := mayPublish(p, m); err != nil {
		return err
	}
	matched, err := b.publishAndWait(r.Context(), p, "", m)
	if err != nil {
		return err
	}
	services.WriteJSON(w, http.StatusOK, map[string]any{"topic": topic, "subscribers": matched})
	return nil
}

// publishAndWait returns when an event is stored.
func (b *Broker) publishAndWait(ctx context.Context, p services.Peer, origin string, m *Message) (int, error) {
	gate, n := b.gate(p.Fingerprint), m.size()
	if err := gate.Acquire(ctx, n); err != nil {
		return 0, err
	}
	type result struct {
		matched int
		err     error
	}
	answer := make(chan result, 1)
	if !b.publish(ctx, p, origin, m, func(matched int, err error) {
		gate.Release(n)
		answer <- result{matched, err}
	}) {
		gate.Release(n)
		return 0, errEnds
	}
	select {
	case a := <-answer:
		return a.matched, a.err
	case <-b.ended:
	case <-ctx.Done():
	}
	return 0, errEnds
}

func wantsStream(r *http.Request) bool {
	for _, accept := range r.Header.Values("Accept") {
		for part := range strings.SplitSeq(accept, ",") {
			if t, _, err := mime.ParseMediaType(strings.TrimSpace(part)); err == nil && t == "text/event-stream" {
				return true
			}
		}
	}
	return false
}

// current answers with what is retained: one topic as it is, a filter as a list.
func (b *Broker) current(w http.ResponseWriter, r *http.Request, p services.Peer, filters []string) error {
	b.mu.Lock()
	var list []*Message
	for _, f := range filters {
		list = append(list, b.retainedFor(p, f)...)
	}
	b.mu.Unlock()
	if len(filters) == 1 && CheckTopic(filters[0]) == nil {
		if len(list) == 0 {
			return refusal(packets.ErrTopicNameInvalid, http.StatusNotFound, "nothing is retained under %q; subscribe with Accept: text/event-stream", filters[0])
		}
		m := list[0]
		h := w.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Content-Security-Policy", "sandbox") // another agent's words
		h.Set("Content-Type", m.ContentType)
		if m.ContentType == "" {
			h.Set("Content-Type", "application/octet-stream")
		}
		http.ServeContent(w, r, "", time.Unix(m.Created, 0), strings.NewReader(string(m.Payload)))
		return nil
	}
	found := []Event{}
	for _, m := range list {
		found = append(found, newEvent(m, true))
	}
	services.WriteJSON(w, http.StatusOK, found)
	return nil
}

// stream sends events as they come (text/event-stream), first what is retained or,
// after Last-Event-ID, what came since then.
func (b *Broker) stream(w http.ResponseWriter, r *http.Request, p services.Peer, filters []string, whois func() (services.Peer, bool)) error {
	s, o, gap, err := b.openStream(p, filters, r.Header.Get("Last-Event-ID"))
	if err != nil {
		return err
	}
	defer func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		s.out = nil
		b.removeSession(s)
	}()
	rc := http.NewResponseController(w)
	rc.SetReadDeadline(time.Time{})
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no")
	head := fmt.Sprintf("retry: %d\n\n", streamRetry)
	if gap {
		head += "event: gap\ndata: {\"reason\":\"events after Last-Event-ID are not all here any more\"}\n\n"
	}
	send := func(text string) bool {
		rc.SetWriteDeadline(time.Now().Add(writeTime))
		_, err := io.WriteString(w, text)
		return err == nil && rc.Flush() == nil
	}
	if !send(head) {
		return nil
	}
	beat := time.NewTicker(beatTime)
	defer beat.Stop()
	for {
		list := b.take(s, o, 0)
		if text := b.streamText(list); text != "" && !send(text) {
			return nil
		}
		b.mu.Lock()
		lagged := s.lagged && len(s.loose) == 0
		b.mu.Unlock()
		if lagged { // it reads too slowly; a client comes again with Last-Event-ID
			return nil
		}
		if len(list) > 0 {
			continue
		}
		select {
		case <-o.wake:
		case <-beat.C:
			if _, ok := whois(); !ok || !send(":\n\n") {
				return nil
			}
		case <-r.Context().Done():
			return nil
		}
	}
}

func (b *Broker) streamText(list []delivery) string {
	var text strings.Builder
	now := time.Now().Unix()
	for _, d := range list {
		if d.msg.expired(now) {
			continue
		}
		data, err := json.Marshal(newEvent(d.msg, d.retain))
		if err != nil {
			continue
		}
		if d.seq > 0 {
			fmt.Fprintf(&text, "id: %s-%d\n", b.boot, d.seq)
		}
		fmt.Fprintf(&text, "data: %s\n\n", data)
	}
	return text.String()
}

// openStream makes a session of a stream. gap tells that events after last may
// have been missed.
func (b *Broker) openStream(p services.Peer, filters []string, last string) (s *session, o *outlet, gap bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n := b.account(p.Fingerprint).sessions; n >= maxSessions {
		return nil, nil, false, refusal(packets.ErrQuotaExceeded, http.StatusInsufficientStorage, "quota: you have %d sessions here already", n)
	}
	b.streams++
	s, o = newSession("stream/"+strconv.FormatUint(b.streams, 10), p), newOutlet()
	s.out = o
	b.addSession(s)
	for _, f := range filters {
		sub := packets.Subscription{Filter: f}
		s.subs[f] = sub
		b.server.Topics.Subscribe(s.id, sub)
	}
	if last == "" {
		for _, f := range filters {
			for _, m := range b.retainedFor(p, f) {
				s.loose = append(s.loose, delivery{msg: m, retain: true})
				s.weight += m.size()
			}
		}
		return s, o, false, nil
	}
	boot, text, _ := strings.Cut(last, "-")
	seq, err := strconv.ParseUint(text, 10, 64)
	if err != nil || boot != b.boot {
		return s, o, true, nil
	}
	for i, e := range b.history.list {
		gap = gap || i == 0 && e.seq > seq+1
		if e.seq <= seq {
			continue
		}
		for _, f := range filters {
			if Matches(f, e.msg.Topic) && b.access.Reads(p, e.msg.Topic) {
				s.loose = append(s.loose, delivery{msg: e.msg, seq: e.seq})
				s.weight += e.msg.size()
				break
			}
		}
	}
	return s, o, gap, nil
}
