package events

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
	"go.uber.org/goleak"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/overlay/services"
	"github.com/pilotnet/pilot/overlay/services/servicetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 20 * time.Second // on a busy machine

// A rig is a broker with its network; the peers alice and bob are trusted.
type rig struct {
	testing.TB
	lab    *servicetest.Lab
	dir    string
	quota  int64
	broker *Broker
	stop   func()
}

func newRig(t testing.TB, quota int64) *rig {
	t.Helper()
	r := &rig{TB: t, lab: servicetest.New(t, "alice", "bob"), dir: t.TempDir(), quota: quota}
	r.start()
	t.Cleanup(func() { r.stop() })
	return r
}

func trusted(fp crypto.Fingerprint) (services.Peer, bool) {
	for _, name := range []string{"alice", "bob"} {
		if p := servicetest.Agent(name); p.Fingerprint == fp {
			return p, true
		}
	}
	return services.Peer{}, false
}

// start runs a broker on what is in the directory.
func (r *rig) start() {
	r.Helper()
	b, err := New(Config{Dir: r.dir, Peer: trusted, Quota: r.quota, Logger: r.lab.Env().Logger})
	if err != nil {
		r.Fatal(err)
	}
	l, err := r.lab.Env().Listen(context.Background(), Port, nil)
	if err != nil {
		r.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- b.Serve(ctx, l) }()
	r.broker = b
	r.stop = func() {
		cancel()
		if err := errors.Join(<-ended, b.Close()); err != nil {
			r.Error(err)
		}
		r.stop = func() {}
	}
}

func (r *rig) restart() {
	r.Helper()
	r.stop()
	r.start()
}

func (r *rig) allow(peer, filter string) {
	r.Helper()
	if peer != Everybody {
		peer = servicetest.Agent(peer).Fingerprint.String()
	}
	if err := r.broker.Allow(r.Context(), []Change{{Peer: peer, Filter: filter, Allow: true}}); err != nil {
		r.Fatal(err)
	}
}

// A testClient fails the test instead of returning errors.
type testClient struct {
	*Client
	t testing.TB
}

func (r *rig) client(who string, c ClientConfig) *testClient {
	r.Helper()
	cl, err := Connect(r.Context(), r.lab.MustDial(who, "tcp", Port), c)
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { cl.Close() })
	return &testClient{cl, r}
}

func (c *testClient) subscribe(filters ...string) {
	c.t.Helper()
	if err := c.Subscribe(c.t.Context(), 1, filters...); err != nil {
		c.t.Fatal(err)
	}
}

// publish returns when the event is stored.
func (c *testClient) publish(m *Message) error {
	answer := make(chan error, 1)
	c.Publish(m, false, func(err error) { answer <- err })
	return <-answer
}

func (c *testClient) want(topic, payload string) Incoming {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	in, err := c.Receive(ctx)
	if err != nil || in.Topic != topic || string(in.Payload) != payload {
		c.t.Fatalf("received %q %q, %v; want %q %q", in.Topic, in.Payload, err, topic, payload)
	}
	return in
}

// quiet checks that nothing came: a marker that comes at once is the first.
func (c *testClient) quiet(r *rig) {
	c.t.Helper()
	owner := r.client("self", ClientConfig{})
	owner.publish(&Message{Topic: "public/marker", Payload: []byte("m"), QoS: 1})
	in := c.want("public/marker", "m")
	c.Acknowledge(in)
}

func (c *testClient) refused(err error, code packets.Code) {
	c.t.Helper()
	if r := new(Refusal); !errors.As(err, &r) || r.Code != code.Code {
		c.t.Errorf("%v, want reason code 0x%02x", err, code.Code)
	}
}

// web is an HTTP client that calls as an agent.
func (r *rig) web(who string) *http.Client {
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return r.lab.Dial(ctx, who, "tcp", Port) }}
	r.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

func (r *rig) ask(who, method, path, body string, headers ...string) (int, string) {
	r.Helper()
	q, err := http.NewRequestWithContext(r.Context(), method, "http://bob.pilot.internal:1002"+path, strings.NewReader(body))
	if err != nil {
		r.Fatal(err)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		if name == "Host" {
			q.Host = value
		}
		q.Header.Set(name, value)
	}
	a, err := r.web(who).Do(q)
	if err != nil {
		r.Fatal(err)
	}
	defer a.Body.Close()
	text, _ := io.ReadAll(a.Body)
	return a.StatusCode, string(text)
}

// within waits for a condition.
func (r *rig) within(what string, ok func() bool) {
	r.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	late := time.After(patience)
	for !ok() {
		select {
		case <-tick.C:
		case <-late:
			r.Fatal("not yet: " + what)
		}
	}
}

func (r *rig) state() State {
	w := httptest.NewRecorder()
	r.broker.Owner().ServeHTTP(w, httptest.NewRequest("GET", OwnerPath, nil))
	return r.broker.state()
}

func numbered(i int) []byte { return fmt.Appendf(nil, "%d", i) }
