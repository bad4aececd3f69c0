package relay

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/coder/websocket"

	"github.com/pilotnet/pilot/crypto"
)

// What a server may refuse, and why a caller would care.
var (
	ErrServerKey    = errors.New("server key does not match")
	ErrAddressTaken = errors.New("another key holds this address here")
	ErrRefused      = errors.New("refused")
	ErrBusy         = errors.New("server is busy")
	ErrNotFound     = errors.New("no such agent here")
	ErrWrongCard    = errors.New("the server sent the card of another key")
	ErrStale        = errors.New("the server holds a newer version")
	ErrFailed       = errors.New("server failed")
	ErrStamp        = errors.New("stamp refused")
	ErrVisitorOnly  = errors.New("mail is left by visitors only: dial without Static, so that the server does not learn who writes")
)

var statusErrors = map[Status]error{
	StatusStamp: ErrStamp, StatusAddressTaken: ErrAddressTaken, StatusRefused: ErrRefused,
	StatusBusy: ErrBusy, StatusNotFound: ErrNotFound, StatusFailed: ErrFailed, StatusStale: ErrStale,
}

// DialConfig says which server to open a control channel to, and as whom.
type DialConfig struct {
	Server crypto.Server
	Static *crypto.DHPrivate // our registration key; nil: as a visitor
	Key    crypto.PublicKey  // our identity; required with Static
	// Routes are the ways to the server, tried as Routes says; nil: straight to its
	// own port.
	Routes []Route
	// CA verifies HTTPS proxies and is what TLSWarning goes by; nil: the system's.
	// Servers need no good certificate.
	CA *x509.CertPool
	// DialContext opens the stream; nil: net.Dialer.
	DialContext func(ctx context.Context, network, addr string) (net.Conn, error)
	Logger      *slog.Logger
	Now         func() time.Time // nil: time.Now
	Timeout     time.Duration    // of dialling and of each request; 0: 15 s
}

func (c DialConfig) withDefaults() DialConfig {
	if c.DialContext == nil {
		c.DialContext = new(net.Dialer).DialContext
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if len(c.Routes) == 0 {
		c.Routes = []Route{{Port: c.Server.Port}}
	}
	if c.Timeout == 0 {
		c.Timeout = 15 * time.Second
	}
	return c
}

// Control is an open control channel. Its methods may be called from several
// goroutines; requests go one after the other.
type Control struct {
	cfg      DialConfig
	web      *web
	greeting Greeting
	offset   time.Duration // server's clock minus ours

	mu     sync.Mutex
	ws     *websocket.Conn
	tr     *crypto.Transport
	number uint16
}

// Dial opens a control channel. ErrServerKey in the error's chain says that
// somebody answers there who does not hold the key that we expect.
func Dial(ctx context.Context, cfg DialConfig) (*Control, error) {
	cfg = cfg.withDefaults()
	ctx, cancel := context.WithTimeout(ctx, cfg.Timeout)
	defer cancel()
	fail := func(err error) (*Control, error) {
		return nil, fmt.Errorf("relay: server %s: %w", cfg.Server.HostPort(), err)
	}
	if cfg.Static != nil && cfg.Key.IsZero() {
		return fail(errors.New("an agent's channel needs its identity (DialConfig.Key)"))
	}
	c, err := race(ctx, cfg.Routes, cfg.dial, func(c *Control) { c.Close() })
	if err != nil {
		return fail(err)
	}
	return c, nil
}

func (c DialConfig) dial(ctx context.Context, r Route) (*Control, error) {
	w, err := newWeb(ctx, c, r)
	if err != nil {
		return nil, err
	}
	ws, answer, err := websocket.Dial(ctx, w.url(ControlPath), &websocket.DialOptions{HTTPClient: &w.client})
	if err != nil {
		w.close()
		if answer != nil {
			err = fmt.Errorf("what answers is no rendezvous server: HTTP status %s", answer.Status)
		}
		return nil, slow(ctx, err)
	}
	ws.SetReadLimit(MaxAnswer + crypto.TransportOverhead)
	channel := &Control{cfg: c, web: w, ws: ws}
	if err := channel.handshake(ctx); err != nil {
		channel.Close()
		return nil, err
	}
	return channel, nil
}

func (c *Control) handshake(ctx context.Context) error {
	msg, hs, err := newControlHello(c.cfg.Server.Key, c.cfg.Static, c.cfg.Key.Fingerprint())
	if err != nil {
		return err
	}
	if err := c.ws.Write(ctx, websocket.MessageBinary, msg); err != nil {
		return fmt.Errorf("send handshake: %w", err)
	}
	_, answer, err := c.ws.Read(ctx)
	if websocket.CloseStatus(err) == CloseWrongKey {
		return c.wrongKey()
	}
	if err != nil {
		return fmt.Errorf("read handshake: %w", err)
	}
	payload, err := hs.Read(nil, answer)
	if err != nil {
		return c.wrongKey()
	}
	if c.greeting, err = parseGreeting(payload); err != nil {
		return err
	}
	keys, err := hs.Split()
	if err != nil {
		return err
	}
	c.tr = crypto.NewTransport(keys)
	c.offset = c.greeting.Time.Sub(c.cfg.Now())
	return nil
}

func (c *Control) wrongKey() error {
	key := c.cfg.Server.String()
	return fmt.Errorf("%w: expected %s; ask its operator for the line that `pilotctl server key` prints",
		ErrServerKey, key[len(key)-keyText:])
}

// keyText is the length of a server key in base32.
const keyText = 52

// Close ends the channel.
func (c *Control) Close() error {
	// A server that does not answer the close frame must not hold us up.
	err := c.ws.CloseNow()
	c.web.close()
	if err != nil {
		return fmt.Errorf("relay: close: %w", err)
	}
	return nil
}

// Time returns the server's clock now. It is authenticated.
func (c *Control) Time() time.Time { return c.cfg.Now().Add(c.offset) }

// TLSWarning says why the certificate of the server would not satisfy a browser,
// empty if it would. Noise authenticates the server, so this is for information:
// a self-signed certificate is normal. "inspected on the way" says that it is not
// the certificate which the server says it has.
func (c *Control) TLSWarning() string { return c.web.tlsWarning(&c.greeting.Mark) }

// Route returns the way that the channel took.
func (c *Control) Route() Route { return c.web.route }

func (c *Control) do(ctx context.Context, r Request) (Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.number++
	r.Number = c.number
	fail := func(err error) (Answer, error) {
		return Answer{}, fmt.Errorf("relay: server %s: %w", c.cfg.Server.HostPort(), err)
	}
	msg, err := c.tr.Seal(nil, AppendRequest(nil, r))
	if err != nil {
		return fail(err)
	}
	if err := c.ws.Write(ctx, websocket.MessageBinary, msg); err != nil {
		return fail(err)
	}
	_, sealed, err := c.ws.Read(ctx)
	if err != nil {
		return fail(err)
	}
	plain, err := c.tr.Open(nil, sealed)
	if err != nil {
		return fail(err)
	}
	a, err := ParseAnswer(plain)
	if err != nil {
		return fail(err)
	}
	if a.Number != r.Number || a.Op != r.Op {
		return fail(ErrMalformed)
	}
	c.offset = a.Time.Sub(c.cfg.Now())
	if a.Status != StatusOK {
		return a, fmt.Errorf("relay: server %s: %w: %q", c.cfg.Server.HostPort(), statusErrors[a.Status], a.Text)
	}
	return a, nil
}

// Claim shows our signed claim and card. When it returns nil the server has
// stored them for good. A first claim carries a stamp, which takes some time.
func (c *Control) Claim(ctx context.Context, claim, card []byte) error {
	r := Request{Op: OpClaim, Claim: claim, Card: card}
	a, err := c.do(ctx, r)
	if err == nil || a.Status != StatusStamp {
		return err
	}
	r.Stamp, err = NewStamp(ctx, c.cfg.Server.Key, OpClaim, ClaimSubject(claim), c.greeting.ClaimBits, c.Time())
	if err != nil {
		return err
	}
	_, err = c.do(ctx, r)
	return err
}

// Put leaves sealed mail for an agent at home on this server. When it returns
// nil the server has stored it. The channel must be a visitor's.
func (c *Control) Put(ctx context.Context, to crypto.Fingerprint, body []byte) error {
	if c.cfg.Static != nil {
		return fmt.Errorf("relay: put: %w", ErrVisitorOnly)
	}
	if len(body) == 0 || len(body) > MaxObject {
		return fmt.Errorf("relay: put: %w: mail of %d bytes, allowed are 1 to %d", ErrRefused, len(body), MaxObject)
	}
	stamp, err := NewStamp(ctx, c.cfg.Server.Key, OpPut, MailSubject(to, body), c.greeting.MailBits, c.Time())
	if err != nil {
		return err
	}
	_, err = c.do(ctx, Request{Op: OpPut, To: to, Stamp: stamp, Body: body})
	return err
}

// Mail returns the mail that waits for us, oldest first, and at most some hundreds
// of items at a time. It stays until Ack.
func (c *Control) Mail(ctx context.Context) ([]Item, error) {
	var items []Item
	r := Request{Op: OpList}
	for {
		a, err := c.do(ctx, r)
		if err != nil {
			return nil, err
		}
		for _, it := range a.Items {
			if it.ID <= r.After {
				return nil, fmt.Errorf("relay: server %s: %w: mail out of order", c.cfg.Server.HostPort(), ErrMalformed)
			}
			r.After = it.ID
			items = append(items, it)
		}
		if !a.More || len(a.Items) == 0 || len(items) >= mostMail {
			return items, nil
		}
	}
}

// mostMail is how many items are taken at a time. A server may keep more; one
// that never comes to an end is no reason to run out of memory.
const mostMail = 256

// Ack deletes mail that we have stored.
func (c *Control) Ack(ctx context.Context, ids ...uint64) error {
	for len(ids) > 0 {
		n := min(len(ids), maxItems)
		if _, err := c.do(ctx, Request{Op: OpAck, IDs: ids[:n]}); err != nil {
			return err
		}
		ids = ids[n:]
	}
	return nil
}

// Head asks for the signed head of ours that the server keeps; nil: none. If signed
// is not nil the server keeps it first, unless it has one with as high a count.
func (c *Control) Head(ctx context.Context, signed []byte) ([]byte, error) {
	a, err := c.do(ctx, Request{Op: OpHead, Body: signed})
	if err != nil || len(a.Head) == 0 {
		return nil, err
	}
	return a.Head, nil
}

// Ping asks for the server's time and so shows that the channel is alive.
func (c *Control) Ping(ctx context.Context) (time.Time, error) {
	a, err := c.do(ctx, Request{Op: OpTime})
	return a.Time, err
}
