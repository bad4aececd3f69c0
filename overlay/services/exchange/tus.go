package exchange

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/tus/tusd/v2/pkg/filestore"
	tusd "github.com/tus/tusd/v2/pkg/handler"
	"github.com/tus/tusd/v2/pkg/memorylocker"
	"golang.org/x/exp/slog"

	"github.com/pilotnet/pilot/overlay/services"
)

const uploadsPath = "/v1/uploads/"

// An Upload is one that is not finished.
type Upload struct {
	ID     string    `json:"id"`
	URL    string    `json:"url"` // path
	Name   string    `json:"name"`
	Size   int64     `json:"size"`
	Offset int64     `json:"offset"`
	SHA256 string    `json:"sha256,omitempty"`
	Time   time.Time `json:"time"` // of the last progress
}

// openUploads makes the tus handler of the box, and completes uploads that had
// arrived when an earlier process was killed.
func (b *box) openUploads() (http.Handler, error) {
	store := filestore.FileStore{Path: filepath.Join(b.x.Dir, b.path("uploads")), DirModePerm: 0o700, FileModePerm: 0o600}
	composer := tusd.NewStoreComposer()
	composer.UseCore(store)
	composer.UseTerminater(store)
	composer.UseLocker(memorylocker.New())
	h, err := tusd.NewHandler(tusd.Config{
		StoreComposer:             composer,
		BasePath:                  uploadsPath,
		MaxSize:                   b.x.Quota,
		DisableDownload:           true,
		DisableConcatenation:      true,
		Cors:                      &tusd.CorsConfig{Disable: true},
		Logger:                    slog.New(slog.NewTextHandler(io.Discard, nil)),
		PreUploadCreateCallback:   b.beforeUpload,
		PreFinishResponseCallback: b.afterUpload,
		AcquireLockTimeout:        headerTime,
		NetworkTimeout:            bodyTime,
		// It keeps a goroutine for that long after each request.
		GracefulRequestCompletionTimeout: time.Second,
	})
	if err != nil {
		return nil, err
	}
	for _, u := range b.uploads() {
		if u.Offset != u.Size {
			continue
		}
		if _, err := b.finish(u.ID); err != nil {
			b.x.Logger.Warn("an upload could not be completed", "peer", b.x.nameOf(b.fp), "name", u.Name, "err", err)
		}
	}
	return http.StripPrefix(uploadsPath, h), nil
}

// uploads lists the unfinished ones.
func (b *box) uploads() []Upload {
	found, err := fs.ReadDir(b.x.root.FS(), b.path("uploads"))
	if err != nil {
		return nil
	}
	list := []Upload{}
	for _, d := range found {
		id, ok := strings.CutSuffix(d.Name(), ".info")
		if !ok || !validID(id) {
			continue
		}
		if u, err := b.readUpload(id); err == nil {
			list = append(list, u)
		}
	}
	return list
}

func (b *box) readUpload(id string) (Upload, error) {
	info, err := b.readInfo(id)
	if err != nil {
		return Upload{}, err
	}
	data, err := b.x.root.Lstat(b.path("uploads/" + id))
	if err != nil {
		return Upload{}, err
	}
	return Upload{ID: id, URL: uploadsPath + id, Name: info.MetaData["filename"], Size: info.Size, Offset: data.Size(),
		SHA256: info.MetaData["sha256"], Time: data.ModTime().UTC()}, nil
}

func (b *box) readInfo(id string) (info tusd.FileInfo, err error) {
	text, err := b.x.root.ReadFile(b.path("uploads/" + id + ".info"))
	if err != nil {
		return info, err
	}
	return info, json.Unmarshal(text, &info)
}

func (c *call) listUploads() error {
	if strings.Trim(c.rest, "/") != "" {
		return services.Refuse(http.StatusMethodNotAllowed, services.CodeInvalid, "an upload cannot be read").WithHint("HEAD tells how far it is")
	}
	services.WriteJSON(c.w, http.StatusOK, c.uploads())
	return nil
}

// upload hands a request to tusd, after a look at what tusd does not look at.
func (c *call) upload() error {
	id := strings.Trim(c.rest, "/")
	if c.rest == "" {
		c.r.URL.Path = uploadsPath
	}
	c.r.Header.Del("X-HTTP-Method-Override")
	switch {
	case c.r.Method == http.MethodPost:
		return c.createUpload()
	case c.r.Method == http.MethodOptions:
		c.tus.ServeHTTP(c.w, c.r)
		return nil
	case !validID(id) || c.rest != "/"+id:
		return notFound(id)
	}
	c.tus.ServeHTTP(c.w, c.r)
	if c.r.Method == http.MethodDelete {
		c.count()
	}
	return nil
}

// createUpload holds the announced size against the quota while tusd makes the
// upload; then it counts among what lies here.
func (c *call) createUpload() error {
	if c.r.Header.Get("Upload-Defer-Length") != "" {
		return services.Refuse(http.StatusBadRequest, services.CodeInvalid, "the length of an upload must be known").WithHint("send Upload-Length")
	}
	size, err := strconv.ParseInt(c.r.Header.Get("Upload-Length"), 10, 64)
	if err != nil || size < 0 {
		size = 0 // tusd refuses it
	}
	claim, err := c.claim(size)
	if err != nil {
		return err
	}
	c.tus.ServeHTTP(c.w, c.r)
	c.count()
	claim.release()
	return nil
}

// beforeUpload checks what an upload announces.
func (b *box) beforeUpload(hook tusd.HookEvent) (tusd.HTTPResponse, tusd.FileInfoChanges, error) {
	none := tusd.HTTPResponse{}
	meta := hook.Upload.MetaData
	name := meta["filename"]
	if name == "" {
		name = meta["name"]
	}
	name, err := CleanName(name)
	if err != nil {
		return none, tusd.FileInfoChanges{}, tusError(badName(err).WithHint("Upload-Metadata must have a filename, in Base64"))
	}
	sum := strings.ToLower(meta["sha256"])
	if _, err := hexDigest(sum); err != nil {
		return none, tusd.FileInfoChanges{}, tusError(err)
	}
	cond := conditionOf(hook.HTTPRequest.Header)
	if err := cond.check(b.files, name); err != nil {
		return none, tusd.FileInfoChanges{}, tusError(err)
	}
	keep := tusd.MetaData{"filename": name, "sha256": sum, "type": typeOf(meta["filetype"]), "if-match": cond.match}
	return none, tusd.FileInfoChanges{ID: randomID(), MetaData: keep}, nil
}

// afterUpload puts a file that has arrived as a whole into its place.
func (b *box) afterUpload(hook tusd.HookEvent) (tusd.HTTPResponse, error) {
	e, err := b.finish(hook.Upload.ID)
	if err != nil {
		b.x.Logger.Info("an upload was refused at its end", "peer", b.x.nameOf(b.fp), "err", err)
		return tusd.HTTPResponse{}, tusError(err)
	}
	b.x.Logger.Info("a file arrived", "peer", b.x.nameOf(b.fp), "name", e.Name, "bytes", e.Size)
	b.x.arrived.raise()
	return tusd.HTTPResponse{Header: tusd.HTTPHeader{"ETag": e.ETag, "Repr-Digest": digestField(e.SHA256)}}, nil
}

// finish checks an upload and makes a file of it. An upload that cannot become one
// is dropped.
func (b *box) finish(id string) (Entry, error) {
	e, err := b.promote(id)
	if fault := new(services.Error); errors.As(err, &fault) {
		b.dropUpload(id)
	}
	b.count()
	return e, err
}

func (b *box) promote(id string) (Entry, error) {
	info, err := b.readInfo(id)
	if err != nil {
		return Entry{}, err
	}
	path := b.path("uploads/" + id)
	f, err := b.x.root.Open(path)
	if err != nil {
		return Entry{}, err
	}
	defer f.Close()
	sum, err := hashFile(f)
	if err != nil {
		return Entry{}, err
	}
	want, err := hexDigest(info.MetaData["sha256"])
	if err != nil {
		return Entry{}, err
	}
	if want != nil && !bytes.Equal(want, sum[:sha256.Size]) {
		return Entry{}, wrongDigest()
	}
	if err := f.Sync(); err != nil { // a second one would succeed, with what is lost
		b.x.Logger.Error("an upload could not be stored", "peer", b.x.nameOf(b.fp), "name", info.MetaData["filename"], "err", err)
		return Entry{}, asError(err)
	}
	e, err := b.files.put(path, info.MetaData["filename"], info.MetaData["type"], sum, condition{match: info.MetaData["if-match"]}, func(int64, int) {})
	if err != nil {
		return Entry{}, err
	}
	return e, ignoreMissing(b.x.root.Remove(path + ".info"))
}

// tusError is err as tusd sends it.
func tusError(err error) error {
	e := asError(err)
	body, _ := json.Marshal(e)
	return tusd.Error{ErrorCode: e.Code, Message: e.Message, HTTPResponse: tusd.HTTPResponse{
		StatusCode: e.Status, Body: string(body) + "\n", Header: tusd.HTTPHeader{"Content-Type": "application/json"},
	}}
}
