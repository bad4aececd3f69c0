package publish

import (
	"net/http"
	"strconv"
)

// A flusher leaves out the flushes that would cost a system call and tell a
// client nothing. The proxy flushes the headers, and after each piece of the
// body. Where the length is known, headers go with the first piece of the body,
// and the last piece goes at the end of the request, which is there by then.
// Everything else, streams above all, is flushed as it comes.
type flusher struct {
	http.ResponseWriter
	length  int64 // of the body; -1: not known
	written int64
}

// WriteHeader looks at the length.
func (f *flusher) WriteHeader(status int) {
	f.length = -1
	h := f.Header()
	if n, err := strconv.ParseInt(h.Get("Content-Length"), 10, 64); err == nil && status >= 200 && len(h["Trailer"]) == 0 {
		f.length = n
	}
	f.ResponseWriter.WriteHeader(status)
}

// Write counts.
func (f *flusher) Write(b []byte) (int, error) {
	n, err := f.ResponseWriter.Write(b)
	f.written += int64(n)
	return n, err
}

// FlushError implements what http.ResponseController looks for.
func (f *flusher) FlushError() error {
	if f.length >= 0 && (f.written == 0 || f.written == f.length) {
		return nil
	}
	return http.NewResponseController(f.ResponseWriter).Flush()
}

// Unwrap lets http.ResponseController find the rest.
func (f *flusher) Unwrap() http.ResponseWriter { return f.ResponseWriter }
