package exchange

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/pilotnet/pilot/overlay/services"
)

// An answer to HEAD has no words of its own; the user gets some all the same.
func TestHeadIsRefused(t *testing.T) {
	for _, c := range []struct {
		status     int
		code, says string
	}{
		{http.StatusInsufficientStorage, services.CodeQuota, "no room"},
		{http.StatusInternalServerError, services.CodeInternal, "500 Internal Server Error"},
	} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(c.status) }))
		client := NewClient(s.URL, nil)
		_, err := client.Sent(t.Context(), "a")
		e, ok := err.(*services.Error)
		if !ok || e.Code != c.code || !strings.Contains(e.Message, c.says) || strings.Contains(e.Message, `""`) || !e.Retryable && c.status == 500 {
			t.Errorf("%d: %#v", c.status, err)
		}
		client.Close()
		s.Close()
	}
}
