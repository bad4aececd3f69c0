package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/pilotnet/pilot/cmd/pilotctl/mcp"
	"github.com/pilotnet/pilot/trust"
)

const defaultGrant = "30d"

func (p *program) mcpCommand() *cli.Command {
	return &cli.Command{
		Name:  "mcp",
		Usage: "serve the agent's tools to a language model (MCP on stdin and stdout)",
		Description: `For the configuration of an MCP client, as the command pilotctl with the argument
mcp. The daemon need not run; tools say so then. Without --govern no tool approves
a trust request. Files are read and written below --files only.`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "read-only", Usage: "offer only tools that change nothing"},
			&cli.StringFlag{Name: "allow", Usage: "offer only these tools: TOOL,..."},
			&cli.StringFlag{Name: "files", Usage: "directory for files; default: the current one"},
			&cli.BoolFlag{Name: "govern", Usage: "offer trust_approve; needs the govern socket"},
			&cli.StringFlag{Name: "max-ports", Value: trust.DefaultAsk.String(), Usage: "with --govern: the most that may be granted"},
			&cli.StringFlag{Name: "max-ttl", Value: defaultGrant, Usage: "with --govern: for how long at most"},
		},
		Action: p.mcp,
	}
}

func (p *program) mcp(c *cli.Context) error {
	if _, err := arguments(c); err != nil {
		return err
	}
	at, err := p.places(c)
	if err != nil {
		return err
	}
	config := mcp.Config{Version: release, ReadOnly: c.Bool("read-only"), Govern: c.Bool("govern")}
	if c.Bool("verbose") {
		config.Logger = p.logger(true)
	}
	for name := range strings.SplitSeq(c.String("allow"), ",") {
		if name = strings.TrimSpace(name); name != "" {
			config.Allow = append(config.Allow, name)
		}
	}
	if c.IsSet("allow") && len(config.Allow) == 0 {
		return usagef("--allow names no tool")
	}
	if config.Ports, err = trust.ParseScope(c.String("max-ports")); err != nil {
		return usagef("--max-ports: %v", err)
	}
	if config.Ports.All() {
		return usagef("--max-ports is a list of ports, not all").WithHint("grant all ports by hand: pilotctl trust approve PEER --ports all")
	}
	if config.TTL, err = parseDuration(c.String("max-ttl")); err != nil {
		return err
	}
	if config.Files, err = filepath.Abs(either(c.String("files"), ".")); err != nil {
		return err
	}
	if info, err := os.Stat(config.Files); err != nil || !info.IsDir() {
		return usagef("--files %s is no directory", config.Files)
	}
	config.Run = func(ctx context.Context, stdin string, args ...string) []byte {
		return p.inside(ctx, at, stdin, args...)
	}
	server, err := mcp.New(config)
	if err != nil {
		return err
	}
	return mcp.Serve(c.Context, server, p.stdin, p.stdout)
}

// inside calls another command of this program for the same agent, and returns
// what it prints as JSON.
func (p *program) inside(ctx context.Context, at places, stdin string, args ...string) []byte {
	var out bytes.Buffer
	inner := *p
	inner.stdin, inner.stdout, inner.stderr = strings.NewReader(stdin), &out, io.Discard
	inner.run(ctx, append([]string{"pilotctl", "--json", "--state-dir", at.state, "--socket", at.socket, "--config", at.config}, args...))
	return out.Bytes()
}
