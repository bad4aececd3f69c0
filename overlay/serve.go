package overlay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/ipam"
	"github.com/pilotnet/pilot/overlay/services"
	"github.com/pilotnet/pilot/overlay/services/publish"
	"github.com/pilotnet/pilot/trust"
)

// ServeOptions publishes a program of this machine on the agent's address.
type ServeOptions struct {
	Kind   string   `json:"kind"`           // "http", "tcp", "mcp" or "a2a"
	Target string   `json:"target"`         // a port, or ADDRESS:PORT of the loopback
	Port   uint16   `json:"port,omitempty"` // on the overlay; default: the target's
	Allow  []string `json:"allow,omitempty"`
}

// Served is one published program. Publishing does not widen trust: Peers are
// those whose grants include the port.
type Served struct {
	Kind    string   `json:"kind"`
	Target  string   `json:"target"`
	Port    uint16   `json:"port"`
	URL     string   `json:"url"`   // for peers who call this agent by its own name; HOST:PORT for tcp
	Allow   []string `json:"allow"` // names, or fingerprints of those who are no peers now; empty: whoever has a grant
	State   string   `json:"state"` // "listening", "waiting"
	Error   string   `json:"error,omitempty"`
	Warning string   `json:"warning,omitempty"`
	Peers   []string `json:"peers"`    // who may reach it now
	NoGrant []string `json:"no_grant"` // named in Allow, but their grant does not include the port
}

// ServiceStatus is one of the services at a well-known port.
type ServiceStatus struct {
	Name  string `json:"name"`
	Port  uint16 `json:"port"`
	State string `json:"state"` // "starting", "running", "failed"
	Error string `json:"error,omitempty"`
}

// serving is what the agent offers on its own address.
type serving struct {
	group     *services.Group
	publisher *publish.Publisher
	env       services.Env
}

// serveMeta is where the trust store keeps the publications. They lie there, and
// not in a file of their own, because a change is then one durable transaction
// under the lock and the checks that the agent's state has anyway.
const serveMeta = "serve"

func (n *Node) newServing() *serving {
	s := &serving{env: services.Env{Network: n.network(), Whois: n.caller, Peer: n.trusted, Dial: n.dialPeer, StateDir: n.cfg.StateDir, Logger: n.log}}
	var rules []publish.Rule
	if b, ok := n.store.GetMeta(serveMeta); ok {
		if err := json.Unmarshal(b, &rules); err != nil {
			n.log.Error("the list of publications cannot be read", "err", err)
		}
	}
	c := publish.Config{Own: n.cfg.Identity.Addr(), Rules: rules, Save: n.saveServed}
	if d, ok := n.cfg.Network.(services.Dialer); ok {
		c.Dial = d.DialContext
	}
	s.publisher = publish.New(c)
	s.group = services.NewGroup(s.env, append(slices.Clone(n.cfg.Services), s.publisher)...)
	return s
}

func (n *Node) saveServed(rules []publish.Rule) error {
	b, err := json.Marshal(rules)
	if err != nil {
		return err
	}
	return n.store.PutMeta(serveMeta, b)
}

// caller says whose a source address is, for services.
func (n *Node) caller(ip netip.Addr) (services.Peer, bool) {
	a, ok := ipam.FromULA(ip)
	if !ok {
		return services.Peer{}, false
	}
	if id := n.cfg.Identity; a == id.Addr() {
		return services.Peer{Name: n.cfg.Name, Addr: a, Fingerprint: id.Key.Public().Fingerprint(), Self: true}, true
	}
	p := n.plane.snapshot.Load().peers[a.Node]
	if p == nil {
		return services.Peer{}, false
	}
	b, ok := n.store.Peer(p.key)
	if !ok || b.State != trust.Active {
		return services.Peer{}, false
	}
	return services.Peer{Name: b.Name, Addr: a, Fingerprint: b.Key.Fingerprint()}, true
}

// trusted says which active peer has a fingerprint, for services.
func (n *Node) trusted(fp crypto.Fingerprint) (services.Peer, bool) {
	b, ok := n.store.Lookup(fp)
	if !ok || b.State != trust.Active {
		return services.Peer{}, false
	}
	return services.Peer{Name: b.Name, Addr: ipam.AddrFromBytes(b.Addr), Fingerprint: fp}, true
}

func (n *Node) serviceStatus() []ServiceStatus {
	list := []ServiceStatus{}
	for _, s := range n.serving.group.Status() {
		if s.Port == 0 {
			continue
		}
		v := ServiceStatus{Name: s.Name, Port: s.Port, State: s.State}
		if s.Err != nil {
			v.Error = s.Err.Error()
		}
		list = append(list, v)
	}
	return list
}

// Serve publishes a program of this machine, now and after restarts. The same
// call again changes whom it is for. When it returns, peers can connect.
func (n *Node) Serve(ctx context.Context, o ServeOptions) (Served, error) {
	r := publish.Rule{Kind: publish.Kind(o.Kind), Target: o.Target, Port: o.Port}
	for _, who := range o.Allow {
		key, err := n.resolvePeer(who)
		if err != nil {
			return Served{}, err
		}
		r.Allow = append(r.Allow, key.Fingerprint())
	}
	r, err := r.Check()
	if err != nil {
		return Served{}, Errorf(CodeInvalidArgument, "%v", err).WithHint("for example: pilotctl serve http 8080")
	}
	for _, s := range n.serving.group.Status() {
		if s.Port == r.Port && s.Err == nil {
			return Served{}, Errorf(CodeConflict, "port %d is that of the service %s", s.Port, s.Name).
				WithHint("choose another one with --port, or start the agent with --services that leaves %s out", s.Name)
		}
	}
	s, err := n.serving.publisher.Add(ctx, r)
	if err != nil {
		return Served{}, serveError(err, r.Port)
	}
	n.loop.nudgeNames()
	n.log.Info("published", "kind", r.Kind, "target", r.Target, "port", r.Port, "allow", len(r.Allow))
	return n.served(s, n.store.Peers()), nil
}

// Unserve ends a publication, with the connections through it.
func (n *Node) Unserve(ctx context.Context, port uint16) error {
	r, err := n.serving.publisher.Remove(ctx, port)
	if err != nil {
		return serveError(err, port)
	}
	n.loop.nudgeNames()
	n.log.Info("not published any more", "kind", r.Kind, "target", r.Target, "port", r.Port)
	return nil
}

// Served lists the published programs by port.
func (n *Node) Served() []Served {
	list, peers := []Served{}, n.store.Peers()
	for _, s := range n.serving.publisher.List() {
		list = append(list, n.served(s, peers))
	}
	return list
}

func (n *Node) served(s publish.State, peers []trust.Peer) Served {
	v := Served{
		Kind: string(s.Kind), Target: s.Target, Port: s.Port, URL: n.servedURL(s.Rule),
		State: "listening", Warning: s.Warning, Allow: []string{}, Peers: []string{}, NoGrant: []string{},
	}
	if s.Err != nil {
		v.State, v.Error = "waiting", s.Err.Error()
	}
	names := map[crypto.Fingerprint]string{}
	for _, p := range peers {
		fp := p.Key.Fingerprint()
		names[fp] = p.Name
		named := slices.Contains(s.Allow, fp)
		switch {
		case len(s.Allow) > 0 && !named:
		case p.State == trust.Active && p.In.Allows(trust.ProtoTCP, s.Port):
			v.Peers = append(v.Peers, p.Name)
		case named:
			v.NoGrant = append(v.NoGrant, p.Name)
		}
	}
	for _, fp := range s.Allow {
		name, ok := names[fp]
		if !ok {
			name = fp.String()
			v.NoGrant = append(v.NoGrant, name)
		}
		v.Allow = append(v.Allow, name)
	}
	return v
}

// servedURL is where peers find it, if they call this agent what it calls itself.
func (n *Node) servedURL(r publish.Rule) string {
	host := n.cfg.Name + "." + ipam.Suffix
	if n.cfg.Name == "" {
		host = n.plane.own.String()
	}
	at := net.JoinHostPort(host, strconv.Itoa(int(r.Port)))
	switch {
	case r.Kind == publish.TCP:
		return at
	case r.Port == 80:
		at = strings.TrimSuffix(at, ":80")
	}
	return "http://" + at + "/"
}

func serveError(err error, port uint16) *Error {
	taken := new(publish.TakenError)
	switch {
	case errors.As(err, &taken):
		hint := "bind that program to 127.0.0.1, or publish on another port with --port"
		if taken.Free != 0 {
			hint = fmt.Sprintf("publish on another port: --port %d is free; or bind that program to 127.0.0.1", taken.Free)
		}
		return Errorf(CodeConflict, "%v", taken).WithHint("%s", hint)
	case errors.Is(err, publish.ErrConflict):
		return Errorf(CodeConflict, "%v", err).WithHint("pilotctl serve rm %d ends that; or choose another port with --port", port)
	case errors.Is(err, publish.ErrNotFound):
		return Errorf(CodeNotFound, "nothing is published on port %d", port).WithHint("pilotctl serve list")
	case errors.Is(err, publish.ErrTooMany):
		return Errorf(CodeQuota, "%v", err).WithHint("pilotctl serve rm PORT makes room")
	case errors.Is(err, publish.ErrStopped):
		return Errorf(CodeNotRunning, "the node is shutting down")
	}
	return publicError(err)
}
