// Package apitest holds an agent made of fixed answers, for tests of the local
// interface and of the programs that use it. It opens no tunnel and keeps no
// state but the list of what it was asked.
package apitest

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/pilotnet/pilot/overlay"
)

// An Agent answers as alice, who trusts bob and has a request of carol waiting.
// Fields may be changed before it is served.
type Agent struct {
	Me       overlay.Status
	Sent     []overlay.Request
	Offered  []overlay.Served
	Made     []overlay.Invite
	Answers  map[string]error // by method name in lower case: that call fails so
	Granted  bool             // Wait returns at once
	DirectAt int              // from this ping on the path is direct
	SilentAt int              // from this ping on there is no answer

	mu    sync.Mutex
	calls []string
}

// The identities that appear in the answers.
const (
	AliceFingerprint = "aaaaaaaaaaaaaaaaaaaaaaaaaa"
	BobFingerprint   = "bbbbbbbbbbbbbbbbbbbbbbbbba"
	CarolFingerprint = "ccccccccccccccccccccccccca"
)

// Start is when the agent says that it began.
func Start() time.Time { return time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC) }

// New returns an agent that is registered with one server.
func New() *Agent {
	start := Start()
	expires, seen := start.Add(30*24*time.Hour), start.Add(time.Minute)
	carol := overlay.Request{
		Fingerprint: CarolFingerprint, Address: "0:0000.0000.0300", Name: "carol",
		Ports: "80,8080/tcp", Offer: "7", Reason: "weekly report; see \"plan\"", Direction: "in",
		Untrusted: []string{"name", "reason"}, Received: start.Add(2 * time.Minute), Expires: &expires,
	}
	return &Agent{
		Me: overlay.Status{
			ID: overlay.ID{
				Name: "alice", Address: "0:0000.0000.0100", ULA: "fd50:494c:4f54::100",
				Fingerprint: AliceFingerprint, Claimed: true,
				Contact: "0:0000.0000.0100#" + AliceFingerprint + "@rdv.example",
			},
			Version: "test", Started: start, State: "ready",
			Requests: []overlay.Request{carol},
			Servers: []overlay.ServerStatus{{
				Server: "rdv.example#" + strings.Repeat("a", 52), State: "registered",
				Observed: "198.51.100.7:40001", RTTMillis: 12.5, Claimed: true,
			}},
			Device:   overlay.DeviceStatus{Name: "pilot0", MTU: 1408, Offload: "tso", DNS: "hosts"},
			Socket:   overlay.SocketStatus{Port: 40001, Offload: "gso gro"},
			Lifetime: overlay.LifetimeStatus{State: "known", AtLeast: 57, Below: 115, Beat: 39.9},
			Peers: []overlay.Peer{{
				Name: "bob", Address: "0:0000.0000.0200", ULA: "fd50:494c:4f54::200", Fingerprint: BobFingerprint,
				Trust: "active", In: "7", Out: "80,8080/tcp", Expires: &expires,
				Path: "relay", Endpoint: "203.0.113.9:3478", RTTMillis: 41.3, Budget: 1200,
				RxBytes: 123_456_789, TxBytes: 2048, LastSeen: &seen, WhyNot: "both NATs map per destination", Reason: "both-hard",
				Loss: 0.02, Changed: &seen, GapMillis: 120,
			}},
			Drops:    map[string]uint64{"unknown_tag": 3},
			Services: []overlay.ServiceStatus{{Name: "echo", Port: 7, State: "running"}},
		},
		Sent: []overlay.Request{{
			Fingerprint: BobFingerprint, Address: "0:0000.0000.0200", Name: "bob", Ports: "8080", Offer: "7",
			Reason: "weekly report", Direction: "out", Received: start,
		}},
		Offered: []overlay.Served{
			{Kind: "http", Target: "localhost:3000", Port: 80, URL: "http://alice.pilot.internal/", State: "listening",
				Allow: []string{}, Peers: []string{"bob"}, NoGrant: []string{}},
			{Kind: "tcp", Target: "localhost:5432", Port: 5432, URL: "alice.pilot.internal:5432", State: "waiting",
				Error: "port 5432 is taken: postgres (process 99) listens on [::]:5432", Allow: []string{"bob"}, Peers: []string{}, NoGrant: []string{"bob"}},
			{Kind: "a2a", Target: "localhost:9999", Port: 9999, URL: "http://alice.pilot.internal:9999/", State: "listening",
				Warning: "the agent card is signed and is served as it is: let the program itself put the overlay URL into it",
				Allow:   []string{}, Peers: []string{}, NoGrant: []string{}},
		},
		Made: []overlay.Invite{{
			ID: "0123456789", State: "open", Ports: "80", Name: "worker", Made: &start, Expires: start.Add(time.Hour), Uses: 50,
			Used: []overlay.InviteUse{{Fingerprint: BobFingerprint, At: start, Trusted: true, Name: "worker-1"}},
		}},
		Answers: map[string]error{},
	}
}

// Calls lists what was asked so far, one line a call.
func (a *Agent) Calls() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]string(nil), a.calls...)
}

func (a *Agent) asked(method, format string, args ...any) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.calls = append(a.calls, strings.TrimSpace(method+" "+fmt.Sprintf(format, args...)))
	return a.Answers[method]
}

// find returns the peer or the waiting request that is meant.
func (a *Agent) find(who string) (overlay.TrustResult, error) {
	for _, p := range a.Me.Peers {
		if who == p.Name || who == p.Address || who == p.ULA || who == p.Fingerprint {
			return overlay.TrustResult{State: "granted", Name: p.Name, Fingerprint: p.Fingerprint, Address: p.Address, ULA: p.ULA, Ports: p.Out}, nil
		}
	}
	for _, r := range a.Me.Requests {
		if who == r.Name || who == r.Fingerprint || who == r.Address {
			return overlay.TrustResult{State: "granted", Name: r.Name, Fingerprint: r.Fingerprint, Address: r.Address, ULA: "fd50:494c:4f54::300", Ports: r.Ports}, nil
		}
	}
	return overlay.TrustResult{}, overlay.Errorf(overlay.CodeNotFound, "no peer or request is called %q", who).
		WithHint("pilotctl peers; pilotctl trust pending")
}

// ID implements api.Agent.
func (a *Agent) ID() overlay.ID { return a.Me.ID }

// Status implements api.Agent.
func (a *Agent) Status() overlay.Status { return a.Me }

// Peers implements api.Agent.
func (a *Agent) Peers() []overlay.Peer { return a.Me.Peers }

// Pending implements api.Agent.
func (a *Agent) Pending() []overlay.Request { return a.Me.Requests }

// Outgoing implements api.Agent.
func (a *Agent) Outgoing() []overlay.Request { return a.Sent }

// Request implements api.Agent.
func (a *Agent) Request(_ context.Context, o overlay.RequestOptions) (overlay.TrustResult, error) {
	err := a.asked("request", "%s reason=%q as=%q ports=%q offer=%q ttl=%v", o.Contact, o.Reason, o.As, o.Ports, o.Offer, o.TTL)
	r := overlay.TrustResult{State: "pending", Name: "bob", Fingerprint: BobFingerprint, Address: "0:0000.0000.0200", ULA: "fd50:494c:4f54::200", Ports: "8080"}
	if o.Offer == "all" {
		r.Listening = []string{"tcp [::]:22 sshd", "tcp [::]:8080 python3"}
	}
	return r, err
}

// Wait implements api.Agent.
func (a *Agent) Wait(ctx context.Context, fingerprint string) (overlay.TrustResult, error) {
	if err := a.asked("wait", "%s", fingerprint); err != nil {
		return overlay.TrustResult{}, err
	}
	if !a.Granted {
		<-ctx.Done()
		return overlay.TrustResult{}, ctx.Err()
	}
	return a.find(fingerprint)
}

// Accept implements api.Agent.
func (a *Agent) Accept(_ context.Context, token, as, offer string) (overlay.TrustResult, error) {
	if err := a.asked("accept", "%s as=%q offer=%q", token, as, offer); err != nil {
		return overlay.TrustResult{}, err
	}
	r, err := a.find("bob")
	r.State = "pending"
	return r, err
}

// Revoke implements api.Agent.
func (a *Agent) Revoke(_ context.Context, peer string) error { return a.onPeer("revoke", peer) }

// Reject implements api.Agent.
func (a *Agent) Reject(_ context.Context, peer string) error { return a.onPeer("reject", peer) }

// Block implements api.Agent.
func (a *Agent) Block(_ context.Context, peer string) error { return a.onPeer("block", peer) }

// Confirm implements api.Agent.
func (a *Agent) Confirm(context.Context) ([]overlay.Peer, error) {
	if err := a.asked("confirm", ""); err != nil {
		return nil, err
	}
	if a.Me.Suspended == nil {
		return nil, overlay.Errorf(overlay.CodeNotFound, "trust: resume: no trust is suspended").
			WithHint("there is nothing to confirm; `pilotctl status` shows the state")
	}
	a.Me.Suspended, a.Me.State = nil, "ready"
	for i := range a.Me.Peers {
		a.Me.Peers[i].Trust = "active"
	}
	return a.Me.Peers, nil
}

func (a *Agent) onPeer(method, peer string) error {
	if err := a.asked(method, "%s", peer); err != nil {
		return err
	}
	_, err := a.find(peer)
	return err
}

// Approve implements api.Agent.
func (a *Agent) Approve(_ context.Context, o overlay.ApproveOptions) (overlay.TrustResult, error) {
	ports, ttl := "as asked", "as asked"
	if o.Ports != nil {
		ports = *o.Ports
	}
	if o.TTL != nil {
		ttl = o.TTL.String()
	}
	if err := a.asked("approve", "%s as=%q ports=%s ttl=%s", o.Peer, o.As, ports, ttl); err != nil {
		return overlay.TrustResult{}, err
	}
	r, err := a.find(o.Peer)
	if o.As != "" {
		r.Name = o.As
	}
	if o.Ports != nil {
		r.Ports = *o.Ports
	}
	if r.Ports == "all" {
		r.Listening = []string{"tcp [::]:22 sshd", "tcp [::]:8080 python3"}
	}
	return r, err
}

// Invite implements api.Agent.
func (a *Agent) Invite(_ context.Context, o overlay.InviteOptions) (string, error) {
	return "pilot-invite1.abcdefgh", a.asked("invite", "ports=%q ttl=%v for=%q name=%q uses=%d trust=%v", o.Ports, o.TTL, o.For, o.Name, o.Uses, o.Trust)
}

// Invites implements api.Agent.
func (a *Agent) Invites() []overlay.Invite { return a.Made }

// EndInvite implements api.Agent.
func (a *Agent) EndInvite(_ context.Context, o overlay.EndInviteOptions) (overlay.Invite, error) {
	if err := a.asked("endinvite", "%s keep=%t", o.ID, o.Keep); err != nil {
		return overlay.Invite{}, err
	}
	for _, i := range a.Made {
		if strings.HasPrefix(i.ID, o.ID) {
			i.State = "ended"
			return i, nil
		}
	}
	return overlay.Invite{}, overlay.Errorf(overlay.CodeNotFound, "no invitation %q", o.ID)
}

// Withdraw implements api.Agent.
func (a *Agent) Withdraw(context.Context) ([]overlay.Withdrawal, error) {
	var list []overlay.Withdrawal
	for _, s := range a.Me.Servers {
		list = append(list, overlay.Withdrawal{Server: s.Server, Gone: s.Claimed, Error: s.Error})
	}
	return list, a.asked("withdraw", "")
}

// Ping implements api.Agent.
func (a *Agent) Ping(_ context.Context, peer string, seq int) (overlay.Pong, error) {
	if err := a.asked("ping", "%s %d", peer, seq); err != nil {
		return overlay.Pong{}, err
	}
	if _, err := a.find(peer); err != nil {
		return overlay.Pong{}, err
	}
	if a.SilentAt > 0 && seq >= a.SilentAt {
		return overlay.Pong{}, overlay.Errorf(overlay.CodeTimeout, "no answer").Retry()
	}
	if a.DirectAt > 0 && seq >= a.DirectAt {
		return overlay.Pong{Seq: seq, RTTMillis: 8.25, Path: "direct", Endpoint: "203.0.113.77:41641"}, nil
	}
	return overlay.Pong{Seq: seq, RTTMillis: 41.3, Path: "relay", Endpoint: "203.0.113.9:3478"}, nil
}

// Netcheck implements api.Agent.
func (a *Agent) Netcheck(context.Context) (overlay.Netcheck, error) {
	return overlay.Netcheck{
		Mapping: "endpoint-independent", Filtering: "address-and-port", Mapped: "203.0.113.5:4242",
		UDP: []uint16{443, 3478}, UDPBlocked: []uint16{}, Servers: a.Status().Servers,
		Lifetime: a.Status().Lifetime, PortMappings: []string{"203.0.113.5:4242"}, STUN: []string{},
	}, nil
}

// Whois implements api.Agent.
func (a *Agent) Whois(addr string) (overlay.Whois, error) {
	if err := a.asked("whois", "%s", addr); err != nil {
		return overlay.Whois{}, err
	}
	for _, p := range a.Me.Peers {
		if strings.Contains(addr, p.ULA) {
			return overlay.Whois{Name: p.Name, Address: p.Address, ULA: p.ULA, Fingerprint: p.Fingerprint, In: p.In, Out: p.Out, Expires: p.Expires}, nil
		}
	}
	return overlay.Whois{}, overlay.Errorf(overlay.CodeNotFound, "%s is no peer of this agent", addr)
}

// Serve implements api.Agent: it answers with what Offered has of that kind.
func (a *Agent) Serve(_ context.Context, o overlay.ServeOptions) (overlay.Served, error) {
	if err := a.asked("serve", "%s %s port=%d allow=%q", o.Kind, o.Target, o.Port, o.Allow); err != nil {
		return overlay.Served{}, err
	}
	for _, s := range a.Offered {
		if s.Kind == o.Kind {
			return s, nil
		}
	}
	return overlay.Served{}, overlay.Errorf(overlay.CodeInvalidArgument, "kind %q: want http, tcp, mcp or a2a", o.Kind)
}

// Unserve implements api.Agent.
func (a *Agent) Unserve(_ context.Context, port uint16) error {
	if err := a.asked("unserve", "%d", port); err != nil {
		return err
	}
	for _, s := range a.Offered {
		if s.Port == port {
			return nil
		}
	}
	return overlay.Errorf(overlay.CodeNotFound, "nothing is published on port %d", port).WithHint("pilotctl serve list")
}

// Served implements api.Agent.
func (a *Agent) Served() []overlay.Served { return a.Offered }
