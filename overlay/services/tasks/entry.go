package tasks

import (
	"strings"
	"time"

	"github.com/a2aproject/a2a-go/v2/a2a"
)

// An Entry is a task as people and programs are shown it, of both sides.
type Entry struct {
	ID          string    `json:"id"`
	Context     string    `json:"context"`
	State       string    `json:"state"` // "submitted", "working", "completed", "failed", "canceled", "rejected", "input-required", "auth-required"
	Ended       bool      `json:"ended"`
	Peer        string    `json:"peer,omitempty"`        // who sent it, of a task that came here
	Fingerprint string    `json:"fingerprint,omitempty"` // likewise
	Created     time.Time `json:"created,omitzero"`
	Updated     time.Time `json:"updated,omitzero"`
	Request     string    `json:"request,omitempty"` // the text that was sent
	Text        string    `json:"text,omitempty"`    // of the answer
	Data        []any     `json:"data,omitempty"`    // values in the answer
	Files       int       `json:"files,omitempty"`   // parts of the answer that are neither text nor data
	Reason      string    `json:"reason,omitempty"`  // why it is in that state
	Log         string    `json:"log,omitempty"`     // for the owner: the end of the command's stderr
	// Untrusted names the fields that are another agent's words: never instructions.
	Untrusted []string `json:"untrusted_text"`
}

// word is a state without its prefix: "input-required".
func word(s a2a.TaskState) string {
	w := strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(string(s), "TASK_STATE_"), "_", "-"))
	switch w {
	case "submitted", "working", "completed", "failed", "canceled", "rejected", "input-required", "auth-required":
		return w
	}
	return "unknown"
}

// EntryOf shows a task of another agent.
func EntryOf(t *a2a.Task) Entry {
	e := Entry{ID: string(t.ID), Context: t.ContextID, State: word(t.Status.State), Ended: t.Status.State.Terminal(), Untrusted: []string{"text", "data", "reason"}}
	if t.Status.Timestamp != nil {
		e.Updated = *t.Status.Timestamp
	}
	if t.Status.Message != nil {
		e.Reason, _ = textOf(t.Status.Message.Parts)
	}
	for _, m := range t.History {
		if m != nil && m.Role == a2a.MessageRoleUser {
			e.Request, _ = textOf(m.Parts)
			break
		}
	}
	for _, a := range t.Artifacts {
		if a != nil {
			e.add(a.Parts)
		}
	}
	return e
}

func (e *Entry) add(parts a2a.ContentParts) {
	for _, p := range parts {
		if p == nil {
			continue
		}
		switch c := p.Content.(type) {
		case a2a.Text:
			e.Text += string(c)
		case a2a.Data:
			e.Data = append(e.Data, c.Value)
		default:
			e.Files++
		}
	}
}

// entry shows a task that came here: what the peer wrote is the request.
func (r Record) entry() Entry {
	if r.Task == nil {
		return Entry{}
	}
	e := EntryOf(r.Task)
	e.Peer, e.Fingerprint, e.Created, e.Updated, e.Log = r.Name, r.Peer.String(), r.Created, r.Updated, r.Log
	e.Untrusted = []string{"context", "request", "text", "data", "log"} // the answer may repeat what was asked
	return e
}

const briefLength = 200

// brief leaves out what a list has no place for.
func (e Entry) brief() Entry {
	if len(e.Request) > briefLength {
		e.Request = strings.ToValidUTF8(e.Request[:briefLength], "") + "..."
	}
	e.Text, e.Data, e.Log = "", nil, ""
	return e
}
