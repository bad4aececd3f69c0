package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/pilotnet/pilot/overlay"
	"github.com/pilotnet/pilot/overlay/api"
	"github.com/pilotnet/pilot/tun/resolv"
)

const pollInterval = 50 * time.Millisecond

func (p *program) upCommand() *cli.Command {
	return &cli.Command{
		Name:  "up",
		Usage: "start the agent in the background; make it first if there is none",
		Description: `Returns when a home server knows the agent, or, where none is configured, when
the daemon answers. If that did not happen within --wait the daemon stays up and
goes on trying; the exit status is 6.

Without the right to make a network device, or without a driver for it, the agent
runs in userspace mode, and says so: peers reach what it serves as before, and
programs here reach peers through its proxy ("pilotctl proxy env").`,
		Flags: upFlags(),
		Action: func(c *cli.Context) error {
			if _, err := arguments(c); err != nil {
				return err
			}
			r, err := p.up(c)
			if err != nil {
				return err
			}
			return p.result(r, func(w io.Writer) { r.text(w) })
		},
	}
}

func upFlags() []cli.Flag {
	return slices.Concat(nodeFlags(), runFlags(), enrolFlags(), []cli.Flag{
		&cli.DurationFlag{Name: "wait", Value: 30 * time.Second, Usage: "wait so long for a server"},
		&cli.StringFlag{Name: "adopt", Usage: "first move the agent in this state directory here"},
	})
}

// An upResult is an agent that runs.
type upResult struct {
	overlay.ID
	State   string                 `json:"state"`
	Servers []overlay.ServerStatus `json:"servers"`
	Device  overlay.DeviceStatus   `json:"device"`
	Already bool                   `json:"already_up"`
	Log     string                 `json:"log"`
}

func (r upResult) text(w io.Writer) {
	if r.Already {
		fmt.Fprintf(w, "%s was up already\n", r.Name)
	} else {
		fmt.Fprintf(w, "%s is up\n", r.Name)
	}
	facts(w, "address", r.Address, "ula", r.ULA, "fingerprint", r.Fingerprint, "contact", r.Contact)
	for _, s := range r.Servers {
		facts(w, "server", serverText(s))
	}
	if r.Device.Userspace {
		facts(w, "device", deviceText(r.Device), "proxy", proxyText(r.Device))
		if r.Device.Proxy != "" {
			fmt.Fprintln(w, `programs reach peers through the proxy: eval "$(pilotctl proxy env)", or curl -x socks5h://`+r.Device.Proxy)
		}
	}
	if len(r.Servers) == 0 {
		fmt.Fprintln(w, "no home server: others cannot find this agent; pilotctl down, then up --server HOST#KEY")
		return
	}
	fmt.Fprintln(w, "next: give the contact to another agent, which asks with: pilotctl trust request CONTACT --reason TEXT")
}

// up makes sure that a daemon runs at the places of c and that a server knows it.
func (p *program) up(c *cli.Context) (upResult, error) {
	at, err := p.places(c)
	if err != nil {
		return upResult{}, err
	}
	given, err := p.given(c)
	if err != nil {
		return upResult{}, err
	}
	usual := at.config
	if p.ephemeral(c) {
		if c.String("adopt") != "" {
			return upResult{}, usagef("--adopt and --ephemeral exclude each other")
		}
		if at, err = p.memoryPlaces(at); err != nil {
			return upResult{}, err
		}
	}
	w := startup{program: p, at: at, client: api.NewClient(at.socket), wait: c.Duration("wait")}
	running, err := w.client.Status(c.Context)
	switch {
	case err == nil:
		if err := sameNode(given, running); err != nil {
			return upResult{}, err
		}
		w.already = true
	case api.AsError(err).Code != overlay.CodeNotRunning:
		return upResult{}, err
	default:
		if p.ephemeral(c) {
			if err := makeMemory(at, usual); err != nil {
				return upResult{}, err
			}
		}
		if err := p.prepare(c, at, given); err != nil {
			return upResult{}, err
		}
		if w.child, err = startDaemon(at, append(daemonArguments(c, at), p.enrolArguments(c)...)); err != nil {
			return upResult{}, err
		}
		defer w.child.release()
	}
	return w.await(c.Context)
}

// prepare makes the agent if there is none, and keeps the flags that its
// configuration does not have yet.
func (p *program) prepare(c *cli.Context, at places, given rawSettings) error {
	_, err := readIdentity(at)
	if errors.Is(err, errNoIdentity) {
		made, err := p.makeAgent(c, at)
		if err == nil {
			p.tell("made %s, %s, in %s", made.Name, made.Address, made.StateDir)
		}
		return err
	}
	if err != nil {
		return err
	}
	if from := c.String("adopt"); from != "" {
		return identityExists(at)
	}
	if _, err := p.settings(c, at); err != nil {
		return err
	}
	differs, err := saveConfig(at.config, rawSettings{Name: given.Name, Servers: given.Servers})
	p.noteDiffering(at, differs)
	return err
}

// sameNode refuses flags that a running daemon was not started with.
func sameNode(given rawSettings, running overlay.Status) error {
	s, err := given.check()
	if err != nil {
		return err
	}
	if s.name != "" && s.name != running.Name {
		return overlay.Errorf(overlay.CodeConflict, "an agent called %s is up already", running.Name).
			WithHint("pilotctl down, then up; or run a second agent with --state-dir DIR")
	}
	if err := sameDevice(given.TUN, running.Device); err != nil {
		return err
	}
	for _, server := range s.servers {
		if !slices.ContainsFunc(running.Servers, func(r overlay.ServerStatus) bool { return r.Server == server.String() }) {
			return overlay.Errorf(overlay.CodeConflict, "%s is up already, without the server %s", running.Name, server.HostPort()).
				WithHint("pilotctl down, then up --server ...")
		}
	}
	return nil
}

// sameDevice refuses a device that a running daemon does not have.
func sameDevice(want string, has overlay.DeviceStatus) error {
	if want == "" || want == autoDevice || want == has.Name {
		return nil
	}
	return overlay.Errorf(overlay.CodeConflict, "the agent is up already, with the device %s", has.Name).
		WithHint("pilotctl down, then up --tun %s", want)
}

// A startup is one wait for a daemon to be of use.
type startup struct {
	*program
	at      places
	client  *api.Client
	wait    time.Duration
	child   *child // nil when it ran already
	already bool
}

// A patience waits for names: whoever calls curl after up expects them. A service
// of the system that is slow to take them does not hold up the rest for long.
type patience struct{ since time.Time }

const namesPatience = 3 * time.Second

func (p *patience) names(s overlay.Status) bool {
	if p.since.IsZero() {
		p.since = time.Now()
	}
	return s.Device.DNS != string(resolv.Starting) || time.Since(p.since) > namesPatience
}

// await polls the daemon until a server knows it and the system knows the names
// of peers, it dies, or time is up.
func (w *startup) await(ctx context.Context) (upResult, error) {
	var dead <-chan struct{}
	if w.child != nil {
		dead = w.child.dead
	}
	late := time.NewTimer(w.wait)
	defer late.Stop()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	told := false
	var known patience
	for {
		s, err := w.client.Status(ctx)
		if err == nil && (ready(s) || len(s.Servers) == 0) && known.names(s) {
			return upResult{ID: s.ID, State: s.State, Servers: s.Servers, Device: s.Device, Already: w.already, Log: w.log()}, nil
		}
		if err == nil && !told {
			w.tell("the daemon is up; waiting for a server ...")
			told = true
		}
		select {
		case <-ctx.Done():
			return upResult{}, ctx.Err()
		case <-dead:
			return upResult{}, w.child.failure(w.log())
		case <-late.C:
			return upResult{}, w.late(s, err)
		case <-tick.C:
		}
	}
}

func (w *startup) log() string { return filepath.Join(w.at.state, logFile) }

// late says what is missing; the daemon goes on.
func (w *startup) late(s overlay.Status, err error) error {
	if err != nil {
		return overlay.Errorf(overlay.CodeTimeout, "the daemon does not answer after %v: %v", w.wait, err).
			WithHint("its log: %s", w.log()).Retry()
	}
	var reasons []string
	for _, server := range s.Servers {
		reasons = append(reasons, "\n  "+serverText(server))
	}
	return overlay.Errorf(overlay.CodeTimeout, "%s is up, but no server knows it after %v:%s", s.Name, w.wait, strings.Join(reasons, "")).
		WithHint("it goes on trying: pilotctl status --watch; its log: %s", w.log()).Retry()
}

// daemonArguments is the command line of the background daemon: the places, and
// the flags that up was given.
func daemonArguments(c *cli.Context, at places) []string {
	args := []string{"daemon", "run", "--state-dir", at.state, "--socket", at.socket, "--config", at.config}
	if c.Bool("verbose") {
		args = append(args, "--verbose")
	}
	for _, server := range c.StringSlice("server") {
		args = append(args, "--server", server)
	}
	for _, server := range c.StringSlice("stun") {
		args = append(args, "--stun", server)
	}
	for _, name := range []string{"name", "tun", "proxy", "dns", "services", "hosts-file"} {
		if c.IsSet(name) {
			args = append(args, "--"+name, c.String(name))
		}
	}
	if path := c.String("ca-file"); path != "" { // the daemon has another working directory
		if abs, err := filepath.Abs(path); err == nil {
			path = abs
		}
		args = append(args, "--ca-file", path)
	}
	if c.IsSet("port") {
		args = append(args, "--port", fmt.Sprint(c.Int("port")))
	}
	if c.Bool("dns-search") {
		args = append(args, "--dns-search")
	}
	if c.Bool("takeover") {
		args = append(args, "--takeover")
	}
	return args
}
