package main

import (
	"context"
	"flag"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/overlay"
	"github.com/pilotnet/pilot/overlay/api"
)

// A program is one call of pilotctl and all that it touches of its process.
type program struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	getenv         func(string) string
	now            func() time.Time
	newKey         func() (crypto.PrivateKey, error)
	newNode        func(overlay.Config) (node, error)
	lookup         func(ctx context.Context, server netip.AddrPort, name string) ([]string, error) // zero server: the system's

	examine func(context.Context, subject) machineFacts // looks at this machine, for doctor

	dial func(ctx context.Context, network, address string) (net.Conn, error) // to services of peers; nil: the host's network

	json bool // set by run
}

// A helpFlag is --help without a state of its own: the library has one for all
// calls of a process, and a language model may make several at once.
type helpFlag struct{ *cli.BoolFlag }

func (f helpFlag) Apply(set *flag.FlagSet) error {
	own := *f.BoolFlag
	return own.Apply(set)
}

// shareHelp makes --help fit for calls at the same time.
var shareHelp = sync.OnceFunc(func() {
	if f, ok := cli.HelpFlag.(*cli.BoolFlag); ok {
		cli.HelpFlag = helpFlag{f}
	}
})

// run carries out args, of which the first is the program's name, and returns
// the exit status.
func (p *program) run(ctx context.Context, args []string) int {
	shareHelp()
	app := p.app()
	argv, err := normalise(app, args)
	p.json = wantsJSON(args, p.getenv)
	if err == nil {
		err = app.RunContext(ctx, argv)
	}
	return p.finish(ctx, err)
}

// app is the tree of commands, in the order in which one meets them.
func (p *program) app() *cli.App {
	app := &cli.App{
		Name:      "pilotctl",
		HelpName:  "pilotctl",
		Usage:     "a permanent, private address for every agent",
		UsageText: "pilotctl COMMAND [FLAGS] [ARGUMENTS]",
		Writer:    p.stdout,
		ErrWriter: p.stderr,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "json", Usage: "print one JSON object instead of text (PILOT_JSON=1)"},
			&cli.StringFlag{Name: "state-dir", Usage: "the agent's secrets and trust (PILOT_STATE_DIR)"},
			&cli.StringFlag{Name: "socket", Usage: "where the daemon listens (PILOT_SOCKET)"},
			&cli.StringFlag{Name: "config", Usage: "configuration file (PILOT_CONFIG)"},
			&cli.BoolFlag{Name: "verbose", Usage: "log more on stderr"},
			&cli.BoolFlag{Name: "version", Usage: "same as the command version"},
		},
		Commands: []*cli.Command{
			p.initCommand(), p.upCommand(), p.downCommand(), p.waitCommand(), p.joinCommand(), p.resetCommand(),
			p.statusCommand(), p.idCommand(), p.peersCommand(), p.trustCommand(),
			p.serveCommand(), p.fileCommand(), p.pubCommand(), p.subCommand(), p.eventsCommand(), p.taskCommand(), p.mcpCommand(), p.pingCommand(), p.benchCommand(), p.netcheckCommand(), p.doctorCommand(), p.bugreportCommand(), p.whoisCommand(), p.resolveCommand(), p.dnsCommand(), p.proxyCommand(),
			p.runCommand(), p.runInsideCommand(), p.configCommand(), p.daemonCommand(), p.serviceCommand(), p.serverCommand(), p.demoCommand(), p.completionCommand(), p.manCommand(), p.versionCommand(), p.completeCommand(),
		},
		HideVersion:               true,
		HideHelpCommand:           true,
		DisableSliceFlagSeparator: true,
		CustomAppHelpTemplate:     appHelp,
		ExitErrHandler:            func(*cli.Context, error) {},
		Action: func(c *cli.Context) error {
			if c.Bool("version") {
				return p.version(c)
			}
			return cli.ShowAppHelp(c)
		},
	}
	app.Commands = append(app.Commands, p.aliases()...)
	polish(app.Commands, "")
	quiet(app.Flags)
	app.OnUsageError = onUsageError
	return app
}

// aliases are the words of the published Pilot texts.
func (p *program) aliases() []*cli.Command {
	called := func(name string, c *cli.Command) *cli.Command {
		c.Name, c.Hidden = name, true
		return c
	}
	return []*cli.Command{
		called("info", p.statusCommand()),
		called("handshake", p.requestCommand()),
		called("pending", p.pendingCommand()),
		called("approve", p.approveCommand()),
		called("untrust", p.revokeCommand()),
		called("send-file", p.sendFileCommand()),
		called("publish", p.pubCommand()),
		called("subscribe", p.subCommand()),
	}
}

// polish gives every command what all have in common. The library itself puts the
// program's name before that of the outermost commands.
func polish(commands []*cli.Command, parent string) {
	for _, c := range commands {
		if parent != "" {
			c.HelpName = "pilotctl " + parent + " " + c.Name
		}
		c.HideHelpCommand = true
		c.OnUsageError = onUsageError
		c.CustomHelpTemplate = commandHelp
		quiet(c.Flags)
		if len(c.Subcommands) == 0 {
			continue
		}
		c.CustomHelpTemplate = groupHelp
		if c.Action == nil {
			c.Action = func(*cli.Context) error {
				return usagef("pilotctl %s needs a command: %s", c.Name, names(c.Subcommands)).
					WithHint("pilotctl %s --help", c.Name)
			}
		}
		polish(c.Subcommands, strings.TrimSpace(parent+" "+c.Name))
	}
}

// quiet leaves defaults that say nothing out of the help.
func quiet(flags []cli.Flag) {
	for _, f := range flags {
		if b, ok := f.(*cli.BoolFlag); ok {
			b.DisableDefaultText = true
		}
	}
}

func onUsageError(c *cli.Context, err error, _ bool) error { return usagef("%v", err) }

// shows is the action of commands that ask the daemon one thing, which takes no
// arguments, and show the answer.
func shows[T any](p *program, ask func(*api.Client, context.Context) (T, error), text func(io.Writer, T)) cli.ActionFunc {
	return func(c *cli.Context) error {
		client, _, err := p.asked(c)
		if err != nil {
			return err
		}
		v, err := ask(client, c.Context)
		if err != nil {
			return err
		}
		return p.result(v, func(w io.Writer) { text(w, v) })
	}
}

// asked reads the arguments of a command that the daemon carries out.
func (p *program) asked(c *cli.Context, names ...string) (*api.Client, []string, error) {
	args, err := arguments(c, names...)
	if err != nil {
		return nil, nil, err
	}
	client, err := p.client(c)
	return client, args, err
}

// client returns a client for the daemon of the places that c names.
func (p *program) client(c *cli.Context) (*api.Client, error) {
	at, err := p.places(c)
	if err != nil {
		return nil, err
	}
	return api.NewClient(at.socket), nil
}

const appHelp = `{{.HelpName}} - {{.Usage}}

usage: {{.UsageText}}

{{range .VisibleCommands}}  {{printf "%-10s" .Name}} {{.Usage}}
{{end}}
flags of every command, anywhere on the line:
{{range .VisibleFlags}}  {{.}}
{{end}}
PEER is a name, an address, a ULA, a fingerprint or a contact.
pilotctl COMMAND --help tells more.
`

const groupHelp = `{{.HelpName}} - {{.Usage}}

usage: {{if .UsageText}}{{.UsageText}}{{else}}{{.HelpName}} COMMAND [FLAGS] [ARGUMENTS]{{end}}
{{if .Description}}
{{.Description}}
{{end}}
{{range .VisibleCommands}}  {{printf "%-9s" .Name}} {{.Usage}}
{{end}}
{{range .VisibleFlags}}  {{.}}
{{end}}`

const commandHelp = `{{.HelpName}} - {{.Usage}}

usage: {{.HelpName}}{{if .VisibleFlags}} [FLAGS]{{end}}{{if .ArgsUsage}} {{.ArgsUsage}}{{end}}
{{if .Description}}
{{.Description}}
{{end}}{{if .VisibleFlags}}
{{range .VisibleFlags}}  {{.}}
{{end}}{{end}}
also: --json --state-dir --socket --config (pilotctl --help)
`
