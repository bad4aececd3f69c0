package events

import (
	"encoding/json"
	"mime"
	"strings"
	"time"
	"unicode/utf8"
)

// An Event is a Message as JSON shows it. The payload is Data if it is JSON and
// was declared as such, Payload if it is text, and Base64 otherwise.
type Event struct {
	Topic    string          `json:"topic"`
	Data     json.RawMessage `json:"data,omitempty"`
	Payload  *string         `json:"payload,omitempty"`
	Base64   []byte          `json:"payload_base64,omitempty"`
	Type     string          `json:"content_type,omitempty"`
	ReplyTo  string          `json:"reply_to,omitempty"`
	Retained bool            `json:"retained,omitempty"` // it was there before the subscription
	Time     *time.Time      `json:"time,omitempty"`
}

// newEvent shows m.
func newEvent(m *Message, retained bool) Event {
	e := Event{Topic: m.Topic, Type: m.ContentType, ReplyTo: m.ReplyTo, Retained: retained}
	if m.Created > 0 {
		t := time.Unix(m.Created, 0).UTC()
		e.Time = &t
	}
	switch {
	case isJSON(m.ContentType) && json.Valid(m.Payload):
		e.Data = m.Payload
	case utf8.Valid(m.Payload):
		text := string(m.Payload)
		e.Payload = &text
	default:
		e.Base64 = m.Payload
	}
	return e
}

func isJSON(contentType string) bool {
	t, _, err := mime.ParseMediaType(contentType)
	return err == nil && (t == "application/json" || strings.HasSuffix(t, "+json"))
}
