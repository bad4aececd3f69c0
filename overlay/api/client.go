package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"

	"github.com/pilotnet/pilot/overlay"
)

const (
	maxAnswer   = 64 << 20
	quickAnswer = 10 * time.Second // of calls that only read
	keptOpen    = 8                // connections for calls to come

	// The hosts of the requests stand for the two sockets.
	useHost, governHost = "pilot", "govern"
)

// A Client calls a daemon on this machine. Its methods are those of Agent; each
// error is an *overlay.Error: CodeNotRunning when nobody listens, CodeDenied when
// the socket is not open to this user, CodeTimeout when ctx ended.
//
// A Client keeps connections open for the next call for some seconds, so whoever
// calls often keeps one Client. It may be used from many goroutines.
type Client struct {
	socket    string
	transport *http.Transport
}

// NewClient returns a client for the daemon whose use socket lies at socket. It
// connects with the first call.
func NewClient(socket string) *Client {
	return &Client{socket: socket, transport: &http.Transport{
		MaxIdleConnsPerHost: keptOpen,
		IdleConnTimeout:     readTimeout / 2, // before the server ends it
		DisableCompression:  true,
		DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			path := socket
			if strings.HasPrefix(address, governHost+":") {
				path = GovernPath(socket)
			}
			return new(net.Dialer).DialContext(ctx, "unix", path)
		},
	}}
}

// Close ends the connections that are kept open. The Client can be used on.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

// ID says who the agent is.
func (c *Client) ID(ctx context.Context) (v overlay.ID, err error) {
	return v, c.get(ctx, "/v1/id", &v)
}

// Status gives the whole state.
func (c *Client) Status(ctx context.Context) (v overlay.Status, err error) {
	return v, c.get(ctx, "/v1/status", &v)
}

// Peers lists the trusted peers.
func (c *Client) Peers(ctx context.Context) (v []overlay.Peer, err error) {
	return v, c.get(ctx, "/v1/peers", &v)
}

// Pending lists the requests that wait for a decision here.
func (c *Client) Pending(ctx context.Context) (v []overlay.Request, err error) {
	return v, c.get(ctx, "/v1/pending", &v)
}

// Outgoing lists our requests that wait for a decision elsewhere.
func (c *Client) Outgoing(ctx context.Context) (v []overlay.Request, err error) {
	return v, c.get(ctx, "/v1/outgoing", &v)
}

// Netcheck finds out how the daemon's host is connected.
func (c *Client) Netcheck(ctx context.Context) (v overlay.Netcheck, err error) {
	return v, c.get(ctx, "/v1/netcheck", &v)
}

// Whois asks which peer a source address belongs to.
func (c *Client) Whois(ctx context.Context, addr string) (v overlay.Whois, err error) {
	return v, c.get(ctx, "/v1/whois?addr="+url.QueryEscape(addr), &v)
}

// Request asks another agent for trust.
func (c *Client) Request(ctx context.Context, o overlay.RequestOptions) (v overlay.TrustResult, err error) {
	return v, c.post(ctx, useHost, "/v1/request", o, &v)
}

// Wait waits until a request is granted. CodeTrustPending: not within that time.
func (c *Client) Wait(ctx context.Context, fingerprint string, timeout time.Duration) (v overlay.TrustResult, err error) {
	return v, c.post(ctx, useHost, "/v1/wait", waitBody{Fingerprint: fingerprint, Timeout: timeout}, &v)
}

// Accept uses an invitation.
func (c *Client) Accept(ctx context.Context, token, as, offer string) (v overlay.TrustResult, err error) {
	return v, c.post(ctx, useHost, "/v1/accept", acceptBody{Token: token, As: as, Offer: offer}, &v)
}

// Revoke ends the trust with a peer.
func (c *Client) Revoke(ctx context.Context, peer string) error {
	return c.post(ctx, useHost, "/v1/revoke", peerBody{Peer: peer}, nil)
}

// Ping sends one ping through the tunnel.
func (c *Client) Ping(ctx context.Context, peer string, seq int, timeout time.Duration) (v overlay.Pong, err error) {
	return v, c.post(ctx, useHost, "/v1/ping", pingBody{Peer: peer, Seq: seq, Timeout: timeout}, &v)
}

// Serve publishes a program of this machine on the agent's address, or changes
// whom it is for.
func (c *Client) Serve(ctx context.Context, o overlay.ServeOptions) (v overlay.Served, err error) {
	return v, c.post(ctx, useHost, "/v1/serve", o, &v)
}

// Unserve ends a publication.
func (c *Client) Unserve(ctx context.Context, port uint16) error {
	return c.post(ctx, useHost, "/v1/unserve", unserveBody{Port: port}, nil)
}

// Served lists what is published.
func (c *Client) Served(ctx context.Context) (v []overlay.Served, err error) {
	return v, c.get(ctx, "/v1/served", &v)
}

// Approve grants a request. Like the calls below it needs the govern socket.
func (c *Client) Approve(ctx context.Context, o overlay.ApproveOptions) (v overlay.TrustResult, err error) {
	return v, c.post(ctx, governHost, "/v1/approve", o, &v)
}

// Reject drops a request.
func (c *Client) Reject(ctx context.Context, peer string) error {
	return c.post(ctx, governHost, "/v1/reject", peerBody{Peer: peer}, nil)
}

// Confirm ends the suspension of a state that was restored from a backup, and
// returns the peers whose trust is in force again.
func (c *Client) Confirm(ctx context.Context) (v []overlay.Peer, err error) {
	return v, c.post(ctx, governHost, "/v1/confirm", struct{}{}, &v)
}

// Block drops a request or a peer, and all requests of that key to come.
func (c *Client) Block(ctx context.Context, peer string) error {
	return c.post(ctx, governHost, "/v1/block", peerBody{Peer: peer}, nil)
}

// Invites lists the invitations that were made here.
func (c *Client) Invites(ctx context.Context) (v []overlay.Invite, err error) {
	return v, c.get(ctx, "/v1/invites", &v)
}

// Invite makes a token.
func (c *Client) Invite(ctx context.Context, o overlay.InviteOptions) (token string, err error) {
	var v inviteAnswer
	err = c.post(ctx, governHost, "/v1/invite", o, &v)
	return v.Token, err
}

// EndInvite ends an invitation, and the trust of all who used it.
func (c *Client) EndInvite(ctx context.Context, o overlay.EndInviteOptions) (v overlay.Invite, err error) {
	return v, c.post(ctx, governHost, "/v1/invites/end", o, &v)
}

// Withdraw takes the agent's claims back from its servers. What is to follow is Down.
func (c *Client) Withdraw(ctx context.Context) (v []overlay.Withdrawal, err error) {
	return v, c.post(ctx, governHost, "/v1/withdraw", struct{}{}, &v)
}

// Down asks the daemon to end and returns its process number. The process is
// still there when Down returns.
func (c *Client) Down(ctx context.Context) (pid int, err error) {
	var v downAnswer
	err = c.post(ctx, governHost, "/v1/down", struct{}{}, &v)
	return v.PID, err
}

func (c *Client) get(ctx context.Context, path string, out any) error {
	ctx, cancel := context.WithTimeout(ctx, quickAnswer)
	defer cancel()
	return c.call(ctx, useHost, http.MethodGet, path, nil, out)
}

func (c *Client) post(ctx context.Context, host, path string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return overlay.Errorf(overlay.CodeInternal, "%v", err)
	}
	return c.call(ctx, host, http.MethodPost, path, body, out)
}

func (c *Client) call(ctx context.Context, host, method, path string, body []byte, out any) error {
	socket := c.socket
	if host == governHost {
		socket = GovernPath(socket)
	}
	r, err := http.NewRequestWithContext(ctx, method, "http://"+host+path, bytes.NewReader(body))
	if err != nil {
		return overlay.Errorf(overlay.CodeInternal, "%v", err)
	}
	answer, err := c.transport.RoundTrip(r)
	if err != nil {
		return callError(ctx, socket, err)
	}
	defer answer.Body.Close()
	var data json.RawMessage
	e := Envelope{Data: &data}
	raw, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer))
	if err != nil {
		return callError(ctx, socket, err)
	}
	if err := json.Unmarshal(raw, &e); err != nil || e.Schema != Schema {
		return overlay.Errorf(overlay.CodeInternal, "%s does not speak this version of the interface", socket).
			WithHint("is the daemon older or newer than this pilotctl? restart it: pilotctl down, pilotctl up")
	}
	if !e.OK {
		if e.Error == nil {
			return overlay.Errorf(overlay.CodeInternal, "the daemon gave an error without saying which")
		}
		return e.Error
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(data, out); err != nil {
		return overlay.Errorf(overlay.CodeInternal, "the daemon's answer is damaged: %v", err)
	}
	return nil
}

// callError says why no answer came.
func callError(ctx context.Context, socket string, err error) error {
	switch {
	case ctx.Err() != nil:
		return overlay.Errorf(overlay.CodeTimeout, "the daemon did not answer in time").
			WithHint("its log tells more; or call again with more time").Retry()
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ENOTSOCK):
		return overlay.Errorf(overlay.CodeNotRunning, "the daemon is not running (nobody listens on %s)", socket).
			WithHint("pilotctl up").Retry()
	case errors.Is(err, fs.ErrPermission):
		return overlay.Errorf(overlay.CodeDenied, "no right to use %s", socket).WithHint("%s", deniedHint(socket))
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE),
		strings.Contains(err.Error(), "server closed idle connection"): // net/http has no value for it
		return overlay.Errorf(overlay.CodeNotRunning, "the daemon ended during the call").WithHint("pilotctl up").Retry()
	}
	return overlay.Errorf(overlay.CodeInternal, "call the daemon: %v", err)
}

func deniedHint(socket string) string {
	if strings.HasSuffix(socket, "govern.sock") {
		return "call it as root or as the daemon's user (sudo pilotctl ...)"
	}
	return "join the group pilot, or call it with sudo"
}
