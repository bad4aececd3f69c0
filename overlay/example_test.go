package overlay_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/ipam"
	"github.com/pilotnet/pilot/overlay"
	"github.com/pilotnet/pilot/overlay/services"
)

// agent opens the agent whose files are in dir, or makes one there. The key is the
// agent: keep the file, and let nobody read it.
func agent(ctx context.Context, dir, name string, servers ...crypto.Server) (*overlay.Node, error) {
	path := filepath.Join(dir, "identity")
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		key, err := crypto.GenerateKey()
		if err != nil {
			return nil, err
		}
		id, err := ipam.NewIdentity(ctx, key, nil) // a second or two, once
		if err != nil {
			return nil, err
		}
		if text, err = id.MarshalText(); err != nil {
			return nil, err
		}
		if err := os.WriteFile(path, text, 0o600); err != nil {
			return nil, err
		}
	} else if err != nil {
		return nil, err
	}
	id, err := ipam.ParseIdentity(text)
	if err != nil {
		return nil, err
	}
	return overlay.New(overlay.Config{
		StateDir: dir, Name: name, Identity: id, Servers: servers,
		Userspace: overlay.UserspaceAlways, // no device, no root
	})
}

// hello is what the tool below takes.
type hello struct {
	To string `json:"to" jsonschema:"whom to greet"`
}

// serveMCP offers an MCP server with one tool to peers, at port 80 of the agent's
// address. Who calls is known: no token, no login.
func serveMCP(ctx context.Context, n *overlay.Node) error {
	l, err := n.Listen(ctx, 80)
	if err != nil {
		return err
	}
	type callerKey struct{}
	handler := mcp.NewStreamableHTTPHandler(func(r *http.Request) *mcp.Server {
		caller := r.Context().Value(callerKey{}).(services.Peer)
		s := mcp.NewServer(&mcp.Implementation{Name: "greeter", Version: "1"}, nil)
		mcp.AddTool(s, &mcp.Tool{Name: "hello", Description: "greets"}, func(_ context.Context, _ *mcp.CallToolRequest, in hello) (*mcp.CallToolResult, any, error) {
			text := fmt.Sprintf("hello %s, says the agent that %s asked", in.To, caller.Name)
			return &mcp.CallToolResult{Content: []mcp.Content{&mcp.TextContent{Text: text}}}, nil, nil
		})
		return s
	}, nil)
	return services.ServeHTTP(ctx, l, &http.Server{
		Handler: handler,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, callerKey{}, c.(*services.Conn).Peer)
		},
	})
}

// An MCP server that peers reach as http://greeter.pilot.internal/, on a machine
// where the program may do nothing but open sockets. Whom to trust is decided with
// Node.Pending and Node.Approve, or beforehand with Node.Invite.
func Example_mcpServer() {
	ctx := context.Background()
	server, err := crypto.ParseServer(os.Getenv("PILOT_SERVER")) // HOST#KEY, as pilotctl server run prints it
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	n, err := agent(ctx, "/var/lib/greeter", "greeter", server)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	go serveMCP(ctx, n)
	if err := n.Run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}

// get fetches a page of a peer by its name.
func get(ctx context.Context, n *overlay.Node, url string) (string, error) {
	client := &http.Client{Transport: &http.Transport{DialContext: n.Dial}}
	defer client.CloseIdleConnections()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	answer, err := client.Do(r)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	page, err := io.ReadAll(answer.Body)
	return string(page), err
}

// An http.Client whose requests go to peers.
func ExampleNode_Dial() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	n, err := agent(ctx, "/var/lib/reader", "reader")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	go n.Run(ctx)
	page, err := get(ctx, n, "http://bob.pilot.internal:8080/")
	fmt.Println(page, err)
}

// A listener that tells each peer who it is.
func ExampleNode_Listen() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	n, err := agent(ctx, "/var/lib/mirror", "mirror")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	go n.Run(ctx)
	l, err := n.Listen(ctx, 13)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		fmt.Fprintf(c, "you are %s\n", c.(*services.Conn).Peer.Name)
		c.Close()
	}
}
