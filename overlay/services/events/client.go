package events

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/pilotnet/pilot/crypto"
)

const (
	pingEvery    = 5 * time.Second
	silence      = 20 * time.Second // after which the broker is taken for gone
	clientWindow = 256              // events that wait for their acknowledgement, each way
)

// A ClientConfig says how a Client connects.
type ClientConfig struct {
	ID      string        // empty: the broker chooses one
	Session time.Duration // how long the broker keeps the session without a connection; 0: not at all
	Clean   bool          // begin without what an older session left
}

// A Client speaks MQTT 5 to a broker. It is for one connection; its methods may be
// used from several goroutines.
type Client struct {
	conn    net.Conn
	r       *bufio.Reader
	present bool
	window  int // what the broker takes without an acknowledgement
	in      chan Incoming
	ended   chan struct{}
	leaving chan struct{} // closed by Close
	leave   sync.Once
	running sync.WaitGroup

	writing sync.Mutex

	mu      sync.Mutex
	err     error
	lastID  uint16
	waiting map[uint16]func(packets.Packet, error)
}

// An Incoming is an event that came, and is to be acknowledged.
type Incoming struct {
	Message
	Retained bool
	Again    bool // it may have come before
	id       uint16
}

// Connect begins a session on a connection, which it closes if that fails.
func Connect(ctx context.Context, conn net.Conn, config ClientConfig) (*Client, error) {
	c := &Client{conn: conn, r: bufio.NewReader(conn), in: make(chan Incoming, clientWindow), ended: make(chan struct{}), leaving: make(chan struct{}), waiting: map[uint16]func(packets.Packet, error){}}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	err := c.connect(config)
	if !stop() || err != nil {
		conn.Close()
		return nil, errors.Join(ctx.Err(), err)
	}
	c.running.Go(c.read)
	c.running.Go(c.ping)
	return c, nil
}

func (c *Client) connect(config ClientConfig) error {
	c.conn.SetDeadline(time.Now().Add(silence))
	pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Connect}, ProtocolVersion: 5}
	pk.Connect = packets.ConnectParams{ProtocolName: []byte("MQTT"), ClientIdentifier: config.ID, Clean: config.Clean || config.Session <= 0, Keepalive: uint16(silence / time.Second)}
	pk.Properties.ReceiveMaximum = clientWindow
	if s := uint32(config.Session / time.Second); s > 0 {
		pk.Properties.SessionExpiryInterval, pk.Properties.SessionExpiryIntervalFlag = s, true
	}
	if err := c.send(pk); err != nil {
		return err
	}
	ack, err := c.next()
	switch {
	case err != nil:
		return err
	case ack.FixedHeader.Type != packets.Connack:
		return errors.New("events: this is no MQTT broker")
	case ack.ReasonCode != 0:
		return reason(ack)
	}
	c.present, c.window = ack.SessionPresent, clientWindow
	if n := int(ack.Properties.ReceiveMaximum); n > 0 {
		c.window = min(n, clientWindow)
	}
	return c.conn.SetDeadline(time.Time{})
}

// Present says whether the broker still had the session.
func (c *Client) Present() bool { return c.present }

// Window is how many events may wait for their acknowledgement.
func (c *Client) Window() int { return c.window }

// reason is what a packet with a reason code says.
func reason(pk packets.Packet) error {
	text := pk.Properties.ReasonString
	if text == "" {
		text = fmt.Sprintf("reason code 0x%02x of MQTT", pk.ReasonCode)
	}
	return &Refusal{Code: pk.ReasonCode, Status: statusOf(pk.ReasonCode), Reason: text}
}

func statusOf(code byte) int {
	switch code {
	case packets.ErrNotAuthorized.Code:
		return 403
	case packets.ErrTopicNameInvalid.Code, packets.ErrTopicFilterInvalid.Code, packets.ErrClientIdentifierNotValid.Code:
		return 400
	case packets.ErrPacketTooLarge.Code:
		return 413
	case packets.ErrQuotaExceeded.Code:
		return 507
	}
	return 500
}

// send writes one packet.
func (c *Client) send(pk packets.Packet) (err error) {
	var buf bytes.Buffer
	pk.ProtocolVersion = 5
	switch pk.FixedHeader.Type {
	case packets.Connect:
		err = pk.ConnectEncode(&buf)
	case packets.Publish:
		err = pk.PublishEncode(&buf)
	case packets.Puback:
		err = pk.PubackEncode(&buf)
	case packets.Subscribe:
		err = pk.SubscribeEncode(&buf)
	case packets.Pingreq:
		err = pk.PingreqEncode(&buf)
	case packets.Disconnect:
		err = pk.DisconnectEncode(&buf)
	}
	if err != nil {
		return fmt.Errorf("events: encode: %w", err)
	}
	c.writing.Lock()
	defer c.writing.Unlock()
	c.conn.SetWriteDeadline(time.Now().Add(silence))
	_, err = c.conn.Write(buf.Bytes())
	return err
}

// next reads one packet. A packet that the library cannot take is an error.
func (c *Client) next() (pk packets.Packet, err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("events: the broker sent a malformed packet: %v", v)
		}
	}()
	first, err := c.r.ReadByte()
	if err != nil {
		return pk, err
	}
	pk.ProtocolVersion = 5
	if err := pk.FixedHeader.Decode(first); err != nil {
		return pk, err
	}
	n, _, err := packets.DecodeLength(c.r)
	if err != nil || n > maxPacket {
		return pk, errors.Join(err, errors.New("events: the broker sent a packet that is too large"))
	}
	pk.FixedHeader.Remaining = n
	body := make([]byte, n)
	if _, err := io.ReadFull(c.r, body); err != nil {
		return pk, err
	}
	switch pk.FixedHeader.Type {
	case packets.Connack:
		err = pk.ConnackDecode(body)
	case packets.Publish:
		err = pk.PublishDecode(body)
	case packets.Puback:
		err = pk.PubackDecode(body)
	case packets.Suback:
		err = pk.SubackDecode(body)
	case packets.Disconnect:
		err = pk.DisconnectDecode(body)
	}
	return pk, err
}

// read hands packets out until the connection ends.
func (c *Client) read() {
	err := c.dispatch()
	c.conn.Close()
	c.mu.Lock()
	if c.err == nil {
		c.err = err
	}
	waiting := c.waiting
	c.waiting = nil
	close(c.ended)
	c.mu.Unlock()
	for _, f := range waiting {
		f(packets.Packet{}, err)
	}
}

func (c *Client) dispatch() error {
	for {
		c.conn.SetReadDeadline(time.Now().Add(silence))
		pk, err := c.next()
		if err != nil {
			return err
		}
		switch pk.FixedHeader.Type {
		case packets.Publish:
			m := messageOf(&pk, crypto.Fingerprint{}, 0)
			in := Incoming{Message: *m, Retained: pk.FixedHeader.Retain, Again: pk.FixedHeader.Dup, id: pk.PacketID}
			if !c.hand(in) {
				return net.ErrClosed
			}
		case packets.Puback, packets.Suback:
			c.mu.Lock()
			f := c.waiting[pk.PacketID]
			delete(c.waiting, pk.PacketID)
			c.mu.Unlock()
			if f != nil {
				f(pk, nil)
			}
		case packets.Disconnect:
			return reason(pk)
		}
	}
}

// hand gives an event to whoever calls Receive.
func (c *Client) hand(in Incoming) bool {
	select {
	case c.in <- in:
		return true
	case <-c.leaving:
		return false
	}
}

func (c *Client) ping() {
	tick := time.NewTicker(pingEvery)
	defer tick.Stop()
	for {
		select {
		case <-c.ended:
			return
		case <-tick.C:
			if c.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pingreq}}) != nil {
				c.conn.Close()
			}
		}
	}
}

// expect gives a packet an identifier, and a function its answer.
func (c *Client) expect(answer func(packets.Packet, error)) (uint16, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.waiting == nil {
		return 0, c.err
	}
	for {
		c.lastID++
		if _, used := c.waiting[c.lastID]; c.lastID != 0 && !used {
			c.waiting[c.lastID] = answer
			return c.lastID, nil
		}
	}
}

// Publish sends an event. At QoS 1 answer is called once, when the broker has
// stored the event or has refused it or the connection ended; the caller keeps
// within Window. At QoS 0 answer is called at once.
func (c *Client) Publish(m *Message, again bool, answer func(error)) {
	pk := m.packet(5, time.Now().Unix())
	pk.FixedHeader.Retain, pk.FixedHeader.Qos = m.Retain, m.QoS
	if m.QoS == 0 {
		answer(c.send(pk))
		return
	}
	id, err := c.expect(func(ack packets.Packet, err error) {
		if err == nil && ack.ReasonCode >= packets.ErrUnspecifiedError.Code {
			err = reason(ack)
		}
		answer(err)
	})
	if err != nil {
		answer(err)
		return
	}
	pk.PacketID, pk.FixedHeader.Dup = id, again
	if c.send(pk) != nil {
		c.conn.Close() // and read answers
	}
}

// Subscribe asks for filters at a QoS, and waits for the answer. The error names
// the first filter that was refused.
func (c *Client) Subscribe(ctx context.Context, qos byte, filters ...string) error {
	type result struct {
		pk  packets.Packet
		err error
	}
	got := make(chan result, 1)
	id, err := c.expect(func(pk packets.Packet, err error) { got <- result{pk, err} })
	if err != nil {
		return err
	}
	pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Subscribe, Qos: 1}, PacketID: id}
	for _, f := range filters {
		pk.Filters = append(pk.Filters, packets.Subscription{Filter: f, Qos: qos, RetainAsPublished: false, RetainHandling: 1})
	}
	if err := c.send(pk); err != nil {
		return err
	}
	select {
	case r := <-got:
		if r.err != nil {
			return r.err
		}
		for i, code := range r.pk.ReasonCodes {
			if code >= packets.ErrUnspecifiedError.Code && i < len(filters) {
				return &Refusal{Code: code, Status: statusOf(code), Reason: fmt.Sprintf("the broker refuses the filter %q", filters[i])}
			}
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Receive waits for the next event.
func (c *Client) Receive(ctx context.Context) (Incoming, error) {
	select {
	case in := <-c.in:
		return in, nil
	case <-ctx.Done():
		return Incoming{}, ctx.Err()
	case <-c.ended:
	}
	select {
	case in := <-c.in:
		return in, nil
	default:
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return Incoming{}, c.err
}

// Acknowledge tells the broker that it need not send an event again.
func (c *Client) Acknowledge(in Incoming) error {
	if in.QoS == 0 {
		return nil
	}
	return c.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Puback}, PacketID: in.id})
}

// Close says goodbye and ends the connection.
func (c *Client) Close() error {
	c.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Disconnect}})
	err := c.conn.Close()
	c.leave.Do(func() { close(c.leaving) })
	c.running.Wait()
	return err
}

// Event is what JSON shows of it.
func (in *Incoming) Event() Event { return newEvent(&in.Message, in.Retained) }
