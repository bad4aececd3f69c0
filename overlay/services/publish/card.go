package publish

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

const maxCard = 256 << 10

// isCard reports whether a path is that of an agent card, of A2A 1.0 and 0.3 or of
// those before.
func isCard(path string) bool {
	return strings.HasSuffix(path, "/.well-known/agent-card.json") || strings.HasSuffix(path, "/.well-known/agent.json")
}

// A cardError is a card that cannot be served.
type cardError struct{ text string }

func (e *cardError) Error() string { return e.text }

// respondCard replaces the card in r by one whose URLs lead to where the client
// found it.
func (x *proxy) respondCard(r *http.Response, host string) error {
	b, err := io.ReadAll(io.LimitReader(r.Body, maxCard+1))
	r.Body.Close()
	if err != nil {
		return err
	}
	if len(b) > maxCard {
		return &cardError{fmt.Sprintf("the agent card is larger than %d KiB", maxCard>>10)}
	}
	card, notes := rewriteCard(b, func(port uint16) (string, bool) {
		if port == x.target.port {
			return host, true
		}
		as, ok := x.published(port)
		return withPort(host, as), ok
	})
	x.warn(strings.Join(notes, "; "))
	for _, name := range []string{"Etag", "Last-Modified", "Content-Md5", "Digest", "Content-Digest", "Repr-Digest"} {
		r.Header.Del(name)
	}
	r.Body = io.NopCloser(bytes.NewReader(card))
	r.ContentLength = int64(len(card))
	r.TransferEncoding = nil
	r.Trailer = nil
	r.Header.Set("Content-Length", strconv.Itoa(len(card)))
	return nil
}

// rewriteCard gives the URLs of an agent card the host that place names for the
// port of a local program. It returns the card as it was where nothing changes or
// nothing may change, with notes on what clients will stumble over.
func rewriteCard(b []byte, place func(port uint16) (host string, ok bool)) (card []byte, notes []string) {
	var members map[string]json.RawMessage
	if json.Unmarshal(b, &members) != nil || members == nil {
		return b, []string{"the agent card is no JSON object; it is served as it is"}
	}
	var signatures []json.RawMessage
	if raw, ok := members["signatures"]; ok && (json.Unmarshal(raw, &signatures) != nil || len(signatures) > 0) {
		return b, []string{"the agent card is signed and is served as it is: let the program itself put the overlay URL into it"}
	}
	changed := false
	fix := func(m map[string]json.RawMessage) {
		var text string
		if json.Unmarshal(m["url"], &text) != nil || text == "" {
			return
		}
		now, note := rewriteURL(text, place)
		if note != "" {
			notes = append(notes, note)
		}
		if now != text {
			m["url"], changed = quote(now), true
		}
	}
	fix(members)
	for _, list := range []string{"additionalInterfaces", "supportedInterfaces"} {
		var interfaces []map[string]json.RawMessage
		if json.Unmarshal(members[list], &interfaces) != nil {
			continue
		}
		was := changed
		changed = false
		for _, m := range interfaces {
			if m != nil {
				fix(m)
			}
		}
		if changed {
			members[list] = encode(interfaces)
		}
		changed = changed || was
	}
	if !changed {
		return b, notes
	}
	return encode(members), notes
}

func quote(s string) json.RawMessage { return encode(s) }

// encode cannot fail: its values came out of a decoder, or are strings.
func encode(v any) json.RawMessage {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		panic("publish: " + err.Error())
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

// rewriteURL changes one URL, or HOST:PORT as cards write a gRPC endpoint.
func rewriteURL(text string, place func(port uint16) (string, bool)) (now, note string) {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" {
		host, port, err := net.SplitHostPort(text)
		if err != nil {
			return text, ""
		}
		u = &url.URL{Host: net.JoinHostPort(host, port)}
	}
	if !isLocal(u.Hostname()) {
		if u.Scheme != "" {
			return text, fmt.Sprintf("the agent card says %.200s, which is not at this agent's overlay address", text)
		}
		return text, ""
	}
	host, ok := place(portOf(u))
	if !ok {
		return text, fmt.Sprintf("the agent card says %.200s, and that port is not published: pilotctl serve tcp %d", text, portOf(u))
	}
	if u.Scheme == "" { // a gRPC endpoint names its port always
		return authority(host), ""
	}
	u.Host = host
	if u.Scheme == "https" { // what the client reached was not
		u.Scheme = "http"
	}
	return u.String(), ""
}
