package main

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/pilotnet/pilot/ipam"
	"github.com/pilotnet/pilot/overlay"
	"github.com/pilotnet/pilot/overlay/api"
	"github.com/pilotnet/pilot/overlay/services"
	"github.com/pilotnet/pilot/overlay/services/exchange"
	"github.com/pilotnet/pilot/trust"
)

func (p *program) fileCommand() *cli.Command {
	return &cli.Command{
		Name:  "file",
		Usage: "send files to peers, fetch what they offer, look into the inbox",
		Description: `A file at a peer is PEER:NAME. What came from peers is inbox:PEER/NAME, what this
agent offers is share:NAME (to all peers) or share:PEER/NAME (to one), what waits
for peers that are offline is queue:ID. Files of the inbox can be fetched and
removed like others; a peer cannot take back or read what it has sent.`,
		Subcommands: []*cli.Command{p.fileCopyCommand(), p.fileGetCommand(), p.fileListCommand(), p.fileInboxCommand(), p.fileRemoveCommand()},
	}
}

// The places of files that are no peers.
const (
	placeInbox = "inbox"
	placeShare = "share"
	placeQueue = "queue"
)

const wantsPlace = "write PEER:NAME, inbox:PEER/NAME, share:NAME, share:PEER/NAME or queue:ID"

// A filePlace is PLACE:PATH of a command line.
type filePlace struct {
	where string // one of the places above, or a peer
	path  string
}

// parsePlace splits at the last colon, since names of files have none and
// addresses of peers do.
func parsePlace(arg string) (filePlace, error) {
	if ref, err := ipam.ParseRef(strings.Trim(arg, "[]")); err == nil && ref.Kind != ipam.RefName {
		return filePlace{where: arg}, nil
	}
	i := strings.LastIndexByte(arg, ':')
	if i <= 0 {
		return filePlace{}, usagef("%.60q is not a place of files", arg).WithHint(wantsPlace)
	}
	return filePlace{where: strings.Trim(arg[:i], "[]"), path: arg[i+1:]}, nil
}

// owned says that the place is this agent's.
func (f filePlace) owned() bool {
	return f.where == placeInbox || f.where == placeShare || f.where == placeQueue
}

// split parts PEER/NAME; without a slash there is no peer.
func (f filePlace) split() (peer, name string) {
	if i := strings.LastIndexByte(f.path, '/'); i >= 0 {
		return f.path[:i], f.path[i+1:]
	}
	return "", f.path
}

// A desk of files is what the commands work with: the daemon, the agent's own
// exchange, and those of peers.
type fileDesk struct {
	*program
	client *api.Client
	own    *exchange.OwnerClient
}

func (p *program) fileDesk(c *cli.Context) (*fileDesk, error) {
	at, err := p.places(c)
	if err != nil {
		return nil, err
	}
	return &fileDesk{program: p, client: api.NewClient(at.socket), own: exchange.NewOwnerClient(at.socket)}, nil
}

// ready says why the agent's own exchange cannot be asked.
func (d *fileDesk) ready(ctx context.Context) error {
	_, err := d.client.ID(ctx)
	return err
}

// peer finds a trusted peer.
func (d *fileDesk) peer(ctx context.Context, name string) (overlay.Peer, error) {
	ref, err := ipam.ParseRef(name)
	if err != nil {
		return overlay.Peer{}, badInput(err, wantsPlace)
	}
	peers, err := d.client.Peers(ctx)
	if err != nil {
		return overlay.Peer{}, err
	}
	for _, peer := range peers {
		if means(ref, peer.Name, peer.Address, peer.Fingerprint) {
			return peer, nil
		}
	}
	return overlay.Peer{}, overlay.Errorf(overlay.CodeNotFound, "no peer has the %s %s", ref.Kind, ref).WithHint("pilotctl peers lists them")
}

// exchange gives a client for the data exchange of a peer.
func (d *fileDesk) exchange(peer overlay.Peer) (*exchange.Client, error) {
	const tcp = 6
	if scope, err := trust.ParseScope(peer.Out); err != nil || !scope.Allows(tcp, exchange.Port) {
		return nil, overlay.Errorf(overlay.CodeNotTrusted, "%s does not let this agent reach its data exchange, port %d (but %s)", peer.Name, exchange.Port, portsText(peer.Out)).
			WithHint("ask for it: pilotctl trust request CONTACT --ports %d --reason TEXT", exchange.Port)
	}
	ula, err := netip.ParseAddr(peer.ULA)
	if err != nil {
		return nil, overlay.Errorf(overlay.CodeInternal, "the daemon gave no address for %s", peer.Name)
	}
	return exchange.NewClient("http://"+netip.AddrPortFrom(ula, exchange.Port).String(), d.toPeers(d.client)), nil
}

// fileError is an error of an exchange in the terms of this program.
func fileError(err error) error {
	e := new(services.Error)
	if !errors.As(err, &e) {
		return err
	}
	return &overlay.Error{Code: overlay.Code(e.Code), Message: strings.TrimPrefix(e.Message, "exchange: "), Hint: e.Hint, Retryable: e.Retryable}
}

// ownError is that of this agent's own exchange.
func ownError(err error) error {
	e := new(services.Error)
	if errors.As(err, &e) && e.Status == http.StatusNotFound && strings.HasPrefix(e.Message, "the peer answered") {
		return overlay.Errorf(overlay.CodeNotFound, "the data exchange of this agent is switched off").
			WithHint("start the agent with the service exchange: pilotctl up --services all")
	}
	return fileError(err)
}

// inboxEntry finds inbox:PEER/NAME.
func (d *fileDesk) inboxEntry(ctx context.Context, place filePlace) (exchange.Entry, error) {
	if err := d.ready(ctx); err != nil {
		return exchange.Entry{}, err
	}
	list, err := d.own.Inbox(ctx, 0)
	if err != nil {
		return exchange.Entry{}, ownError(err)
	}
	from, name := place.split()
	found := []exchange.Entry{}
	for _, e := range list {
		if e.Name == name && (from == "" || from == e.From || from == e.Fingerprint) {
			found = append(found, e)
		}
	}
	switch len(found) {
	case 0:
		return exchange.Entry{}, overlay.Errorf(overlay.CodeNotFound, "there is no %.80q in the inbox", place.path).WithHint("pilotctl file inbox lists what is")
	case 1:
		return found[0], nil
	}
	return exchange.Entry{}, overlay.Errorf(overlay.CodeConflict, "%d peers sent a %q", len(found), name).WithHint("write inbox:PEER/%s", name)
}

// shareTarget is whom a file in share is for: "all" or a fingerprint.
func (d *fileDesk) shareTarget(ctx context.Context, name string) (string, error) {
	if name == "" || name == "all" {
		return "all", d.ready(ctx)
	}
	peer, err := d.peer(ctx, name)
	return peer.Fingerprint, err
}

// shownName shows another agent's name of a file.
func shownName(name string) string {
	if clean, err := exchange.CleanName(name); err == nil && clean == name {
		return name
	}
	return quoted(name)
}

// A fileMoved is the result of cp and get.
type fileMoved struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
	State  string `json:"state"` // "sent", "present" (was there already), "queued", "offered", "fetched"
	From   string `json:"from,omitempty"`
	To     string `json:"to"` // a place, or a local path
}

// cleanFileName is a name that a file may have elsewhere.
func cleanFileName(name string) (string, error) {
	name, err := exchange.CleanName(name)
	if err != nil {
		return "", badFileName(err, "give it another name: PEER:NAME")
	}
	return name, nil
}

func badFileName(err error, hint string) error {
	return usagef("%s", strings.TrimPrefix(err.Error(), "exchange: ")).WithHint("%s", hint)
}

const (
	firstPause = time.Second
	lastPause  = 5 * time.Second
)

// patiently repeats a transfer that was cut off, until it makes no progress for
// that long. each tells whether there was progress.
func patiently(ctx context.Context, patience time.Duration, each func() (progress bool, err error)) error {
	pause, since := firstPause, time.Now()
	for {
		progress, err := each()
		e := new(services.Error)
		if err == nil || ctx.Err() != nil || !errors.As(err, &e) || !e.Retryable || e.Code == services.CodeQuota {
			return err
		}
		if progress {
			pause, since = firstPause, time.Now()
		}
		if time.Since(since)+pause > patience {
			return err
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
		pause = min(2*pause, lastPause)
	}
}
