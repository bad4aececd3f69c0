package demo

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/pilotnet/pilot/overlay"
)

// GetTimeout is the patience of Get, and what curl is told in its place.
const GetTimeout = 5 * time.Second

// Get fetches a page, for machines without curl.
func Get(ctx context.Context, url string, w io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, GetTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return overlay.Errorf(overlay.CodeInvalidArgument, "%v", err)
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}} // no proxy
	resp, err := client.Do(req)
	if err != nil {
		return overlay.Errorf(overlay.CodePeerOffline, "%v", err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(w, resp.Body); err != nil {
		return fmt.Errorf("demo: get %s: %w", url, err)
	}
	return nil
}
