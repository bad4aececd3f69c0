package publish

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/pilotnet/pilot/overlay/services/servicetest"
)

const bobURL = "http://bob.pilot.internal:8080/"

// show answers with what the program saw of a request.
func show(w http.ResponseWriter, r *http.Request) {
	fmt.Fprintf(w, "%s %s %s\n", r.Method, r.RequestURI, r.Host)
	r.Header.Write(w)
}

func TestRequestAsTheProgramSeesIt(t *testing.T) {
	d := newDesk(t)
	port := program(t, http.HandlerFunc(show))
	d.publish(Rule{Kind: MCP, Target: itoa(port), Port: 8080})
	alice := servicetest.Agent("alice")
	r, err := get(t, d.client("alice"), bobURL+"a%2Fb//c;d?x=1;y&%zz", "Origin: http://BOB.pilot.internal:8080",
		"Forwarded: for=evil", "X-Forwarded-For: ::1", "X-Forwarded-Prefix: /evil", "X-Real-Ip: ::1",
		"Pilot-Peer-Name: root", "pilot_peer_name: root", "Pilot_Peer-Fingerprint: evil", "X_FORWARDED_FOR: ::1", "PILOT-PEER-OTHER: evil",
		"Connection: Pilot-Peer-Address", "Upgrade: h2c", "Cookie: a=b", "User-Agent: test")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("GET /a%%2Fb//c;d?x=1;y&%%zz localhost:%d\n", port) + strings.Join([]string{
		"Accept-Encoding: gzip", "Cookie: a=b", fmt.Sprintf("Origin: http://localhost:%d", port), "Pilot-Peer-Address: " + alice.Addr.String(),
		"Pilot-Peer-Fingerprint: " + alice.Fingerprint.String(), "Pilot-Peer-Name: alice", "User-Agent: test",
		"X-Forwarded-For: " + alice.Addr.ULA().String(), "X-Forwarded-Host: bob.pilot.internal:8080", "X-Forwarded-Proto: http", "",
	}, "\r\n")
	if string(b) != want {
		t.Errorf("got\n%s\nwant\n%s", b, want)
	}
}

func TestForeignOriginIsLeftToTheProgram(t *testing.T) {
	d := newDesk(t)
	d.publish(Rule{Kind: HTTP, Target: itoa(program(t, http.HandlerFunc(show))), Port: 8080})
	for _, origin := range []string{
		"http://evil.example", "http://carol.pilot.internal:8080", "http://bob.pilot.internal", "https://bob.pilot.internal:8080",
		"null", "http://bob.pilot.internal:8081", "http://bob.pilot.internal:8080.evil.example",
	} {
		r, err := get(t, d.client("alice"), bobURL, "Origin: "+origin)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(r.Body)
		r.Body.Close()
		if !strings.Contains(string(b), "\nOrigin: "+origin+"\r\n") {
			t.Errorf("%s became %s", origin, b)
		}
	}
}

func TestHosts(t *testing.T) {
	ula := own.ULA().String()
	for host, want := range map[string]bool{
		"bob.pilot.internal": true, "bob.pilot.internal:8080": true, "Bob.Pilot.Internal.": true, "bob": true, "bob:80": true, "any-name": true,
		ula: true, "[" + ula + "]": true, "[" + ula + "]:8080": true, own.String(): true, own.String() + ":8080": true,
		"": false, "localhost": false, "localhost:8080": false, "127.0.0.1": false, "[::1]:8080": false, "[fd50:494c:4f54::1]": false,
		"evil.example": false, "bob.evil.example": false, "bob.pilot.internal.evil.example": false, "x.bob.pilot.internal": false,
		"pilot.internal": false, "0:0000.0000.0100": false, "bob:http": false, "bob..pilot.internal": false, "bob@evil": false, "2130706433": false,
	} {
		if got := ownHost(host, own); got != want {
			t.Errorf("%q: %v, want %v", host, got, want)
		}
	}
}

func TestMisdirected(t *testing.T) {
	d := newDesk(t)
	d.publish(Rule{Kind: HTTP, Target: itoa(program(t, http.HandlerFunc(show))), Port: 8080})
	for _, host := range []string{"evil.example", "localhost:8080", "127.0.0.1"} {
		r, err := get(t, d.client("alice"), bobURL, "Host: "+host)
		if err != nil {
			t.Fatal(err)
		}
		r.Body.Close()
		if r.StatusCode != http.StatusMisdirectedRequest {
			t.Errorf("%s: %s", host, r.Status)
		}
	}
	c := d.MustDial("alice", "tcp", 8080)
	fmt.Fprintf(c, "CONNECT bob.pilot.internal:25 HTTP/1.1\r\nHost: bob.pilot.internal:25\r\n\r\n")
	line, _ := bufio.NewReader(c).ReadString('\n')
	if !strings.Contains(line, "405") {
		t.Errorf("CONNECT: %q", line)
	}
}

// The first event arrives while the program has not written the second.
func TestFirstEventArrivesAlone(t *testing.T) {
	for name, protocols := range map[string][]func(*http.Protocols, bool){"HTTP/1": nil, "h2c": {(*http.Protocols).SetUnencryptedHTTP2}} {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t)
			second := make(chan struct{})
			d.publish(Rule{Kind: HTTP, Port: 8080, Target: itoa(program(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", "text/event-stream")
				io.WriteString(w, "data: 1\n\n")
				w.(http.Flusher).Flush()
				select {
				case <-second:
				case <-r.Context().Done():
				}
				io.WriteString(w, "data: 2\n\n")
			})))})
			r, err := get(t, d.client("alice", protocols...), bobURL)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Body.Close()
			b := make([]byte, 9)
			if _, err := io.ReadFull(r.Body, b); err != nil || string(b) != "data: 1\n\n" {
				t.Fatalf("%q, %v", b, err)
			}
			close(second)
			if rest, err := io.ReadAll(r.Body); err != nil || string(rest) != "data: 2\n\n" {
				t.Errorf("%q, %v", rest, err)
			}
		})
	}
}

// A body of known length that comes in pieces is not held back either.
func TestPiecesOfKnownLength(t *testing.T) {
	d := newDesk(t)
	next := make(chan struct{})
	d.publish(Rule{Kind: HTTP, Port: 8080, Target: itoa(program(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "6")
		for range 3 {
			io.WriteString(w, "ab")
			w.(http.Flusher).Flush()
			select {
			case <-next:
			case <-r.Context().Done():
			}
		}
	})))})
	r, err := get(t, d.client("alice"), bobURL)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	for range 3 {
		if _, err := io.ReadFull(r.Body, make([]byte, 2)); err != nil {
			t.Fatal(err)
		}
		next <- struct{}{}
	}
}

func TestGRPC(t *testing.T) {
	d := newDesk(t)
	d.publish(Rule{Kind: HTTP, Port: 8080, Target: itoa(program(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 2 || r.Header.Get("Te") != "trailers" {
			http.Error(w, "want HTTP/2 and trailers", http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Trailer", "Grpc-Status")
		b := make([]byte, 4)
		for { // a stream both ways
			if _, err := io.ReadFull(r.Body, b); err != nil {
				break
			}
			w.Write(b)
			w.(http.Flusher).Flush()
		}
		w.Header().Set("Grpc-Status", "0")
		w.Header().Set(http.TrailerPrefix+"Grpc-Message", "fine")
	})))})
	in, out := io.Pipe()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, bobURL+"pkg.Service/Method", in)
	if err != nil {
		t.Fatal(err)
	}
	r.Header = http.Header{"Content-Type": {"application/grpc+proto"}, "Te": {"trailers"}}
	go out.Write([]byte("ping"))
	answer, err := d.client("alice", (*http.Protocols).SetUnencryptedHTTP2).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	b := make([]byte, 4)
	for _, word := range []string{"ping", "pong", "done"} {
		if word != "ping" {
			out.Write([]byte(word))
		}
		if _, err := io.ReadFull(answer.Body, b); err != nil || string(b) != word {
			t.Fatalf("%q, %v", b, err)
		}
	}
	out.Close()
	io.Copy(io.Discard, answer.Body)
	if answer.Trailer.Get("Grpc-Status") != "0" || answer.Trailer.Get("Grpc-Message") != "fine" {
		t.Errorf("trailers: %v", answer.Trailer)
	}
}

// The program checks the origin of a browser, as coder/websocket does by default.
func TestWebSocket(t *testing.T) {
	d := newDesk(t)
	d.publish(Rule{Kind: HTTP, Port: 8080, Target: itoa(program(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer c.CloseNow()
		for {
			kind, b, err := c.Read(r.Context())
			if err != nil {
				return
			}
			c.Write(r.Context(), kind, append([]byte(r.Header.Get("Pilot-Peer-Name")+": "), b...))
		}
	})))})
	dial := func(origin string) (*websocket.Conn, error) {
		c, _, err := websocket.Dial(t.Context(), bobURL, &websocket.DialOptions{HTTPClient: d.client("alice"), HTTPHeader: http.Header{"Origin": {origin}}})
		return c, err
	}
	if _, err := dial("http://evil.example"); err == nil {
		t.Error("a page of another site is let in")
	}
	c, err := dial("http://bob.pilot.internal:8080")
	if err != nil {
		t.Fatal(err)
	}
	defer c.CloseNow()
	for range 3 {
		if err := c.Write(t.Context(), websocket.MessageText, []byte("hello")); err != nil {
			t.Fatal(err)
		}
		if _, b, err := c.Read(t.Context()); err != nil || string(b) != "alice: hello" {
			t.Fatalf("%q, %v", b, err)
		}
	}
	// It ends with the publication.
	if _, err := d.Remove(t.Context(), 8080); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithTimeout(t.Context(), 5*time.Second)
	defer stop()
	if _, _, err := c.Read(ctx); err == nil || ctx.Err() != nil {
		t.Errorf("still open: %v", err)
	}
}

func TestLocation(t *testing.T) {
	d := newDesk(t)
	port := program(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Location", strings.ReplaceAll(r.URL.Query().Get("to"), "SELF", r.Host))
		w.WriteHeader(http.StatusTemporaryRedirect)
	}))
	d.publish(Rule{Kind: HTTP, Port: 8080, Target: itoa(port)})
	for to, want := range map[string]string{
		"http://SELF/mcp/": bobURL + "mcp/", "http://127.0.0.1:" + itoa(port) + "/x?y=z": bobURL + "x?y=z", "/mcp/": "/mcp/",
		"http://localhost:1/": "http://localhost:1/", "https://idp.example/": "https://idp.example/",
	} {
		r, err := get(t, d.client("alice"), bobURL+"?to="+to)
		if err != nil {
			t.Fatal(err)
		}
		r.Body.Close()
		if got := r.Header.Get("Location"); got != want {
			t.Errorf("%s: %s, want %s", to, got, want)
		}
	}
}

func TestLostTrustEndsAnOpenConnection(t *testing.T) {
	d := newDesk(t)
	d.publish(Rule{Kind: HTTP, Port: 8080, Target: itoa(program(t, http.HandlerFunc(show)))})
	c := d.client("alice")
	r, err := get(t, c, bobURL)
	if err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, r.Body)
	r.Body.Close()
	d.Revoke("alice")
	if r, err := get(t, c, bobURL); err == nil {
		r.Body.Close()
		t.Errorf("%s", r.Status)
	}
}

func TestDeadProgram(t *testing.T) {
	d := newDesk(t)
	d.publish(Rule{Kind: HTTP, Port: 8080, Target: itoa(closedPort(t))})
	r, err := get(t, d.client("alice"), bobURL)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	if b, _ := io.ReadAll(r.Body); r.StatusCode != http.StatusBadGateway || !strings.Contains(string(b), "does not answer") {
		t.Errorf("%s: %s", r.Status, b)
	}
}
