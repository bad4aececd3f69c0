package publish

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/pilotnet/pilot/ipam"
	"github.com/pilotnet/pilot/overlay/services/servicetest"
)

var own = ipam.Addr{Node: 0x12345678}

// A desk is a Publisher at work, with peers alice and bob.
type desk struct {
	*servicetest.Lab
	*Publisher
	t     testing.TB
	mu    sync.Mutex
	saved []Rule
	fail  error // of saving
}

func newDesk(t testing.TB, rules ...Rule) *desk {
	d := &desk{Lab: servicetest.New(t, "alice", "bob"), t: t}
	d.Publisher = New(Config{Own: own, Rules: rules, Save: d.save})
	d.Start(d.Publisher)
	<-d.ready
	return d
}

func (d *desk) save(r []Rule) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fail == nil {
		d.saved = r
	}
	return d.fail
}

func (d *desk) publish(r Rule) State {
	d.t.Helper()
	s, err := d.Add(d.t.Context(), r)
	if err != nil {
		d.t.Fatal(err)
	}
	return s
}

// client is an HTTP client of an agent's; the ports of its URLs are those of the
// lab's.
func (d *desk) client(who string, protocols ...func(*http.Protocols, bool)) *http.Client {
	tr := &http.Transport{DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
		_, port, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, err
		}
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			return nil, err
		}
		return d.Dial(ctx, who, "tcp", uint16(n))
	}}
	if len(protocols) > 0 {
		tr.Protocols = new(http.Protocols)
		for _, set := range protocols {
			set(tr.Protocols, true)
		}
	}
	d.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// program is a server on 127.0.0.1, and its port.
func program(t testing.TB, h http.Handler) uint16 {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetHTTP1(true)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	t.Cleanup(s.Close)
	return serverPort(t, s)
}

func serverPort(t testing.TB, s *httptest.Server) uint16 {
	t.Helper()
	u, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	return portOf(u)
}

func itoa(n uint16) string { return strconv.Itoa(int(n)) }

// get fetches with headers given as "Name: value".
func get(t testing.TB, c *http.Client, to string, headers ...string) (*http.Response, error) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, to, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		if name == "Host" {
			r.Host = value
			continue
		}
		r.Header[name] = append(r.Header[name], value) // in this spelling
	}
	return c.Do(r)
}
