package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/pilotnet/pilot/overlay"
	"github.com/pilotnet/pilot/overlay/api"
	"github.com/pilotnet/pilot/overlay/services/publish"
)

func (p *program) serveCommand() *cli.Command {
	return &cli.Command{
		Name:  "serve",
		Usage: "publish a local program to peers",
		Description: `Most servers listen on 127.0.0.1, or refuse a Host that is not localhost. serve
listens on this agent's overlay address and forwards to them, now and after
restarts. Only peers whose grant includes the port get there; serving grants
nothing.`,
		Subcommands: []*cli.Command{
			p.serveKind("http", "a web server, an API: streams, WebSocket and gRPC too"),
			p.serveKind("mcp", "an MCP server over HTTP"),
			p.serveKind("a2a", "an A2A agent; the URLs in its agent card are adapted"),
			p.serveKind("tcp", "anything else over TCP, byte for byte"),
			p.serveListCommand(), p.serveRemoveCommand(),
		},
	}
}

func (p *program) serveKind(kind, usage string) *cli.Command {
	description := `TARGET is the program's port on this machine, as 8080, 127.0.0.1:8080 or
[::1]:8080. `
	if kind == "tcp" {
		description += `The program sees connections from 127.0.0.1 and cannot tell
peers from local users.`
	} else {
		description += `The program sees the Host localhost:PORT, and who calls in the
headers Pilot-Peer-Address, Pilot-Peer-Name and Pilot-Peer-Fingerprint.`
	}
	return &cli.Command{
		Name:        kind,
		Usage:       usage,
		ArgsUsage:   "TARGET",
		Description: description,
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "port", Usage: "on the overlay address; default: the target's"},
			&cli.StringSliceFlag{Name: "allow", Usage: "only for this peer; repeatable; default: all whose grant has the port"},
		},
		Action: func(c *cli.Context) error { return p.serveProgram(c, kind) },
	}
}

func (p *program) serveProgram(c *cli.Context, kind string) error {
	args, err := arguments(c, "a target")
	if err != nil {
		return err
	}
	port, err := tcpPort(c.Int("port"), c.IsSet("port"))
	if err != nil {
		return err
	}
	// What is wrong at any time is said first, not that the agent is down.
	if _, err := (publish.Rule{Kind: publish.Kind(kind), Target: args[0], Port: port}).Check(); err != nil {
		return badInput(err, "for example: pilotctl serve http 8080")
	}
	client, err := p.client(c)
	if err != nil {
		return err
	}
	s, err := client.Serve(c.Context, overlay.ServeOptions{Kind: kind, Target: args[0], Port: port, Allow: c.StringSlice("allow")})
	if err != nil {
		return err
	}
	return p.result(s, func(w io.Writer) {
		fmt.Fprintf(w, "%s is published\n", s.Target)
		facts(w, "url", s.URL, "for", reachText(s), "warning", s.Warning, "undo", fmt.Sprintf("pilotctl serve rm %d", s.Port))
		if len(s.Peers) == 0 {
			fmt.Fprintf(w, "serving grants nothing: pilotctl trust approve PEER --ports PORTS with %d in it lets a peer in\n", s.Port)
		}
		if kind == "tcp" {
			fmt.Fprintln(w, "the program sees connections from 127.0.0.1: what it lets local users do, these peers can do")
		}
	})
}

func tcpPort(n int, given bool) (uint16, error) {
	if !given {
		return 0, nil
	}
	if n < 1 || n > 65535 {
		return 0, usagef("--port %d: want 1 to 65535", n)
	}
	return uint16(n), nil
}

// reachText says which peers may reach a published program.
func reachText(s overlay.Served) string {
	text := "no peer yet"
	if len(s.Peers) > 0 {
		text = strings.Join(s.Peers, ", ")
	}
	if len(s.NoGrant) > 0 {
		text += fmt.Sprintf("; not for %s: no grant for port %d", strings.Join(s.NoGrant, ", "), s.Port)
	}
	return text
}

func (p *program) serveListCommand() *cli.Command {
	return &cli.Command{
		Name:   "list",
		Usage:  "list what is published, and which peers may reach it",
		Action: shows(p, (*api.Client).Served, servedText),
	}
}

func servedText(w io.Writer, list []overlay.Served) {
	if len(list) == 0 {
		fmt.Fprintln(w, "nothing is published: pilotctl serve http TARGET")
		return
	}
	t := newTable(w)
	t.row("PORT", "KIND", "TARGET", "STATE", "FOR")
	for _, s := range list {
		t.row(strconv.Itoa(int(s.Port)), s.Kind, s.Target, s.State, reachText(s))
	}
	t.close()
	for _, s := range list {
		if s.Error != "" {
			fmt.Fprintf(w, "port %d waits: %s\n", s.Port, s.Error)
		}
		if s.Warning != "" {
			fmt.Fprintf(w, "port %d: %s\n", s.Port, s.Warning)
		}
	}
}

func (p *program) serveRemoveCommand() *cli.Command {
	return &cli.Command{
		Name:      "rm",
		Usage:     "end a publication, and the connections through it",
		ArgsUsage: "PORT",
		Action: func(c *cli.Context) error {
			args, err := arguments(c, "a port")
			if err != nil {
				return err
			}
			n, err := strconv.Atoi(args[0])
			if err != nil {
				return usagef("%.40q is no port", args[0]).WithHint("pilotctl serve list shows the ports")
			}
			port, err := tcpPort(n, true)
			if err != nil {
				return err
			}
			client, err := p.client(c)
			if err != nil {
				return err
			}
			if err := client.Unserve(c.Context, port); err != nil {
				return err
			}
			return p.result(map[string]int{"port": n}, func(w io.Writer) { fmt.Fprintf(w, "port %d is not published any more\n", n) })
		},
	}
}
