package e2e_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/modelcontextprotocol/go-sdk/mcp"
)

// actAs is the first argument of the test's binary where it is to be another
// program.
const actAs = "act-as"

// act is the program that the arguments name.
func act(args []string) int {
	var err error
	switch args[0] {
	case "mcp":
		err = callTool(args[1])
	case "web":
		err = serveShort(args[1:])
	default:
		err = fmt.Errorf("no program %q", args[0])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// serveShort answers every request with 200 bytes, at each of the addresses.
func serveShort(addresses []string) error {
	body := []byte(strings.Repeat("x", 200))
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write(body) })}
	failed := make(chan error)
	for _, address := range addresses {
		l, err := net.Listen("tcp", address)
		if err != nil {
			return err
		}
		go func() { failed <- s.Serve(l) }()
	}
	fmt.Println("ready")
	return <-failed
}

type terms struct {
	A int `json:"a"`
	B int `json:"b"`
}

// callTool is what mcp.mjs is, with the SDK for Go.
func callTool(url string) error {
	ctx, stop := context.WithTimeout(context.Background(), 20*time.Second)
	defer stop()
	session, err := mcp.NewClient(&mcp.Implementation{Name: "alice", Version: "1.0.0"}, nil).Connect(ctx, &mcp.StreamableClientTransport{Endpoint: url, MaxRetries: -1}, nil)
	if err != nil {
		return err
	}
	defer session.Close()
	tools, err := session.ListTools(ctx, nil)
	if err != nil {
		return err
	}
	result, err := session.CallTool(ctx, &mcp.CallToolParams{Name: "add", Arguments: terms{A: 17, B: 25}})
	if err != nil {
		return err
	}
	text, ok := result.Content[0].(*mcp.TextContent)
	if !ok {
		return fmt.Errorf("the tool answers with %T", result.Content[0])
	}
	fmt.Println(tools.Tools[0].Name, "says", text.Text)
	return nil
}

// goServers are bob's programs in Go: what curl and the browser ask for on 3000,
// an MCP server on 3003, and TLS on 3443 with a certificate for bob's name, whose
// authority is in ca.pem.
func (l *lab) goServers(t *testing.T, host, file string) {
	t.Helper()
	web := &http.Server{Handler: webOf(file)}
	tools := mcp.NewServer(&mcp.Implementation{Name: "sums", Version: "1.0.0"}, nil)
	mcp.AddTool(tools, &mcp.Tool{Name: "add", Description: "adds two numbers"},
		func(_ context.Context, _ *mcp.CallToolRequest, in terms) (*mcp.CallToolResult, any, error) {
			return &mcp.CallToolResult{Content: []mcp.Content{&mcp.TextContent{Text: fmt.Sprintf("%d + %d = %d", in.A, in.B, in.A+in.B)}}}, nil, nil
		})
	sums := &http.Server{Handler: mcp.NewStreamableHTTPHandler(func(*http.Request) *mcp.Server { return tools }, nil)}
	secure := &http.Server{Handler: webOf(file), TLSConfig: &tls.Config{Certificates: []tls.Certificate{l.certificate(t)}}}
	go web.Serve(l.listen(t, host, "127.0.0.1:3000"))
	go sums.Serve(l.listen(t, host, "127.0.0.1:3003"))
	go secure.ServeTLS(l.listen(t, host, "127.0.0.1:3443"), "", "")
	t.Cleanup(func() { web.Close(); sums.Close(); secure.Close() })
}

// webOf serves the page, the file under /upload, digests of what is put to /sum,
// two events of which the second comes after a request for /next, and a page
// whose script talks to a WebSocket.
func webOf(file string) http.Handler {
	next, seen := make(chan struct{}, 1), make(chan struct{}, 1)
	mux := http.NewServeMux()
	mux.HandleFunc("/page", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, page) })
	mux.HandleFunc("/upload", func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, file) })
	mux.HandleFunc("PUT /sum", func(w http.ResponseWriter, r *http.Request) {
		h := sha256.New()
		if _, err := io.Copy(h, r.Body); err == nil {
			io.WriteString(w, hex.EncodeToString(h.Sum(nil)))
		}
	})
	mux.HandleFunc("/events", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		io.WriteString(w, "data: first\n\n")
		w.(http.Flusher).Flush()
		select {
		case <-next:
			io.WriteString(w, "data: second\n\n")
		case <-r.Context().Done():
		}
	})
	mux.HandleFunc("POST /next", func(http.ResponseWriter, *http.Request) { next <- struct{}{} })
	mux.HandleFunc("/browser", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		io.WriteString(w, `<!doctype html><p id=said>nothing</p><script>
const socket = new WebSocket('ws://' + location.host + '/ws')
socket.onopen = () => socket.send('hello from ' + 'a browser')
socket.onmessage = (m) => { said.textContent = 'the socket says ' + m.data; socket.send('seen') }
</script><img src="/until-seen">`) // without which the page is not complete
	})
	mux.HandleFunc("/until-seen", func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-seen:
		case <-r.Context().Done():
		}
	})
	mux.HandleFunc("/ws", func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, nil) // refuses an Origin that is not its Host
		if err != nil {
			return
		}
		defer c.CloseNow()
		for {
			kind, b, err := c.Read(r.Context())
			if err == nil && string(b) == "seen" {
				seen <- struct{}{}
				return
			}
			if err != nil || c.Write(r.Context(), kind, b) != nil {
				return
			}
		}
	})
	return mux
}

// certificate is for bob's name, and signed by itself.
func (l *lab) certificate(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	form := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bob"}, DNSNames: []string{"bob.pilot.internal"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, form, form, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if err := os.WriteFile(filepath.Join(l.dir, "ca.pem"), text, 0o644); err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
