package api

import (
	"context"
	"time"

	"github.com/pilotnet/pilot/overlay"
)

// An Agent is what the server serves: the running node. Methods are called from
// many goroutines; each error is an *overlay.Error or the context's.
type Agent interface {
	ID() overlay.ID
	Status() overlay.Status
	Peers() []overlay.Peer
	Pending() []overlay.Request
	Outgoing() []overlay.Request

	// Request returns once the request is durable and on its way.
	Request(ctx context.Context, o overlay.RequestOptions) (overlay.TrustResult, error)
	// Wait returns when the request to that fingerprint is granted, or ctx ends.
	Wait(ctx context.Context, fingerprint string) (overlay.TrustResult, error)
	Accept(ctx context.Context, token, as, offer string) (overlay.TrustResult, error)
	Revoke(ctx context.Context, peer string) error

	Approve(ctx context.Context, o overlay.ApproveOptions) (overlay.TrustResult, error)
	Reject(ctx context.Context, peer string) error
	Block(ctx context.Context, peer string) error
	// Confirm takes a state that was restored from a backup as it is, and returns the peers.
	Confirm(ctx context.Context) ([]overlay.Peer, error)
	Invite(ctx context.Context, o overlay.InviteOptions) (token string, err error)
	Invites() []overlay.Invite
	EndInvite(ctx context.Context, o overlay.EndInviteOptions) (overlay.Invite, error)
	// Withdraw takes the agent's claims back from its servers, before it ends.
	Withdraw(ctx context.Context) ([]overlay.Withdrawal, error)

	// Ping sends one ping through the tunnel and waits for its answer.
	Ping(ctx context.Context, peer string, seq int) (overlay.Pong, error)
	// Netcheck finds out how this host is connected; it takes half a second.
	Netcheck(ctx context.Context) (overlay.Netcheck, error)
	// Whois says which peer a source address, with or without a port, belongs to.
	Whois(addr string) (overlay.Whois, error)

	// Serve publishes a program of this machine, Unserve ends that.
	Serve(ctx context.Context, o overlay.ServeOptions) (overlay.Served, error)
	Unserve(ctx context.Context, port uint16) error
	Served() []overlay.Served
}

// The bodies of calls that have no options type in package overlay.
type (
	peerBody struct {
		Peer string `json:"peer"`
	}
	waitBody struct {
		Fingerprint string        `json:"fingerprint"`
		Timeout     time.Duration `json:"timeout"` // at most an hour, which is also the default
	}
	acceptBody struct {
		Token string `json:"token"`
		As    string `json:"as,omitempty"`
		Offer string `json:"offer,omitempty"`
	}
	pingBody struct {
		Peer    string        `json:"peer"`
		Seq     int           `json:"seq"`
		Timeout time.Duration `json:"timeout"` // at most a minute; default 5 s
	}
	unserveBody struct {
		Port uint16 `json:"port"`
	}
	inviteAnswer struct {
		Token string `json:"token"`
	}
	downAnswer struct {
		PID int `json:"pid"`
	}
)
