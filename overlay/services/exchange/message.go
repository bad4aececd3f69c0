package exchange

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"time"

	"github.com/pilotnet/pilot/overlay/services"
)

// messageHead is the first line of a message's file.
type messageHead struct {
	Type     string    `json:"content_type"`
	Size     int64     `json:"size"`
	SHA256   string    `json:"sha256"`
	Received time.Time `json:"received"`
}

const maxHead = 4 << 10

// postMessage leaves a message.
func (c *call) postMessage() error {
	if c.rest != "" && c.rest != "/" {
		return services.Refuse(http.StatusNotFound, services.CodeNotFound, "there is nothing at %.80q", c.r.URL.Path)
	}
	given := c.r.Header.Get("Content-Type")
	kind := typeOf(given)
	switch {
	case given != "" && kind == "":
		return services.Refuse(http.StatusUnsupportedMediaType, services.CodeInvalid, "the Content-Type is not a media type, or longer than %d bytes", maxType)
	case given == "":
		kind = "application/octet-stream"
	}
	tooLong := services.Refuse(http.StatusRequestEntityTooLarge, services.CodeInvalid, "a message has at most %d bytes", c.x.MaxMessage).WithHint("send it as a file: PUT /v1/files/NAME")
	if c.r.ContentLength > c.x.MaxMessage {
		return tooLong
	}
	want, err := digestIn(c.r.Header)
	if err != nil {
		return err
	}
	body, err := io.ReadAll(io.LimitReader(newBodyReader(c.w, c.r, nil), c.x.MaxMessage+1))
	if err != nil {
		return bodyError(err)
	}
	if int64(len(body)) > c.x.MaxMessage {
		return tooLong
	}
	sum := sha256.Sum256(body)
	if want != nil && !bytes.Equal(want, sum[:]) {
		return wrongDigest()
	}
	head := messageHead{Type: kind, Size: int64(len(body)), SHA256: hex.EncodeToString(sum[:]), Received: time.Now().UTC()}
	id, err := c.keepMessage(head, body)
	if err != nil {
		return err
	}
	c.x.Logger.Info("a message arrived", "peer", c.peer.Name, "id", id, "bytes", len(body))
	c.x.arrived.raise()
	services.WriteJSON(c.w, http.StatusCreated, map[string]any{"id": id, "size": head.Size, "sha256": head.SHA256})
	return nil
}

// keepMessage makes a message durable.
func (b *box) keepMessage(head messageHead, body []byte) (id string, err error) {
	text, err := json.Marshal(head)
	if err != nil {
		return "", err
	}
	text = append(append(text, '\n'), body...)
	claim, err := b.claim(int64(len(text)))
	if err != nil {
		return "", err
	}
	defer claim.release()
	f, temp, err := b.x.temp()
	if err != nil {
		return "", err
	}
	_, err = f.Write(text)
	err = errors.Join(err, f.Sync(), f.Close())
	// Names in the order of arrival.
	id = fmt.Sprintf("%012x%s", head.Received.UnixMilli(), randomID()[:20])
	if err == nil {
		b.commit.Lock()
		defer b.commit.Unlock()
		err = b.x.root.Rename(temp, b.path("messages/"+id))
	}
	if err != nil {
		b.x.root.Remove(temp)
		return "", err
	}
	if err := b.x.syncDir(b.path("messages")); err != nil {
		return "", err
	}
	claim.settle(int64(len(text)), 1)
	return id, nil
}

// messages lists what is kept.
func (b *box) messages() []Entry {
	found, err := fs.ReadDir(b.x.root.FS(), b.path("messages"))
	if err != nil {
		return nil
	}
	var list []Entry
	for _, d := range found {
		f, e, _, err := b.openMessage(d.Name())
		if err != nil {
			continue
		}
		f.Close()
		list = append(list, e)
	}
	return list
}

// openMessage gives the file of a message, and where in it the message begins.
func (b *box) openMessage(id string) (*os.File, Entry, int64, error) {
	if !validID(id) {
		return nil, Entry{}, 0, notFound(id)
	}
	f, err := b.x.root.Open(b.path("messages/" + id))
	if err != nil {
		return nil, Entry{}, 0, notFound(id)
	}
	line, err := bufio.NewReader(io.LimitReader(f, maxHead)).ReadBytes('\n')
	head := messageHead{}
	if err == nil {
		err = json.Unmarshal(line, &head)
	}
	if err != nil {
		f.Close()
		return nil, Entry{}, 0, fmt.Errorf("exchange: message %s: %w", id, err)
	}
	return f, Entry{Name: id, Size: head.Size, SHA256: head.SHA256, Type: head.Type, Time: head.Received}, int64(len(line)), nil
}
