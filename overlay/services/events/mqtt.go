package events

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/pilotnet/pilot/overlay/services"
)

const (
	connectTime = 10 * time.Second // for the first byte, and for CONNECT
	writeTime   = 30 * time.Second // within which a client takes what is written
	goodbyeTime = time.Second
	keepAlive   = 20 * 60 // seconds, for clients that want none
)

// newServer is the library's side: the protocol, without listeners, timers, stores
// and system topics of its own.
func newServer(b *Broker) (*mqtt.Server, error) {
	c := mqtt.NewDefaultServerCapabilities()
	c.MaximumPacketSize = maxPacket
	c.MaximumSessionExpiryInterval = maxExpiry
	c.MaximumClientWritesPending = 16 // its queue of events, which is not used
	c.ReceiveMaximum = maxPending
	c.MaximumQos = 1
	c.TopicAliasMaximum = 0
	c.SharedSubAvailable = 0
	c.Compatibilities.NoInheritedPropertiesOnAck = true
	s := mqtt.New(&mqtt.Options{Capabilities: c, Logger: slog.New(slog.DiscardHandler), SysTopicResendInterval: 1 << 30})
	if err := s.AddHook(&hook{broker: b}, nil); err != nil {
		return nil, fmt.Errorf("events: start: %w", err)
	}
	return s, nil
}

// restore makes a session of the store known to the library.
func (b *Broker) restore(s *session) {
	cl := b.server.NewClient(nil, "", s.id, false)
	cl.Properties.ProtocolVersion = s.version
	cl.Properties.Props.SessionExpiryInterval, cl.Properties.Props.SessionExpiryIntervalFlag = s.expiry, true
	for filter, sub := range s.subs {
		cl.State.Subscriptions.Add(filter, sub)
		b.server.Topics.Subscribe(s.id, sub)
	}
	cl.Stop(nil)
	b.server.Clients.Add(cl)
}

// A link is the connection of an MQTT client.
type link struct {
	broker  *Broker
	conn    *mqttConn
	peer    func() (services.Peer, bool)
	cl      *mqtt.Client
	session *session
	out     *outlet
	window  int
	most    uint32 // bytes of a packet that the client takes; 0: any
	will    *Message
	delay   time.Duration // of the will
	writers sync.WaitGroup
	slots   chan struct{} // one for each event that waits to be stored

	mu   sync.Mutex
	acks []byte // PUBACK packets to be written
}

// A mqttConn is the connection as the library sees it: closing it only ends its
// reading, so that the last word can still be said.
type mqttConn struct {
	net.Conn
	link *link
	once sync.Once
	gone context.Context
	end  context.CancelFunc
	head io.Reader
	said atomic.Bool // DISCONNECT was sent
}

func (c *mqttConn) Read(p []byte) (int, error) {
	if c.gone.Err() != nil {
		return 0, net.ErrClosed
	}
	return c.head.Read(p)
}

// Write gives every packet its own time: a reader that does not read loses the
// connection.
func (c *mqttConn) Write(p []byte) (int, error) {
	if c.gone.Err() != nil {
		return 0, net.ErrClosed
	}
	if len(p) > 0 && p[0]>>4 == packets.Disconnect {
		c.said.Store(true)
	}
	c.Conn.SetWriteDeadline(time.Now().Add(writeTime))
	n, err := c.Conn.Write(p)
	if err != nil {
		c.Close()
	}
	return n, err
}

// SetDeadline is for reading: the library means the keep-alive.
func (c *mqttConn) SetDeadline(t time.Time) error {
	err := c.SetReadDeadline(t)
	if c.gone.Err() != nil { // it was closed just now
		c.Conn.SetReadDeadline(time.Unix(1, 0))
	}
	return err
}

func (c *mqttConn) Close() error {
	c.once.Do(func() {
		c.end()
		c.Conn.SetReadDeadline(time.Unix(1, 0))
		c.Conn.SetWriteDeadline(time.Now().Add(goodbyeTime))
	})
	return nil
}

// serveMQTT speaks MQTT on a connection until it ends; head has what was read
// from it before and then the rest. The library panics on some malformed packets;
// that ends the connection, and nothing else.
func (b *Broker) serveMQTT(ctx context.Context, conn net.Conn, head io.Reader, peer func() (services.Peer, bool)) {
	gone, end := context.WithCancel(ctx)
	defer end()
	l := &link{broker: b, peer: peer, out: newOutlet(), slots: make(chan struct{}, maxPending)}
	l.conn = &mqttConn{Conn: conn, link: l, gone: gone, end: end, head: head}
	stop := context.AfterFunc(ctx, func() { l.conn.Close() })
	defer stop()
	conn.SetReadDeadline(time.Now().Add(connectTime))
	err := b.establish(l)
	l.conn.Close()
	l.writers.Wait()
	l.goodbye(err)
	if ctx.Err() == nil {
		l.hangUp(err)
	}
}

func (b *Broker) establish(l *link) (err error) {
	defer func() {
		if v := recover(); v != nil {
			b.Logger.Warn("a malformed MQTT packet ends its connection", "from", l.conn.RemoteAddr(), "err", fmt.Sprint(v))
			err = packets.ErrMalformedPacket
		}
	}()
	return b.server.EstablishConnection("events", l.conn)
}

// goodbye tells an MQTT 5 client why it is disconnected, where the library did not:
// it is silent about packets that it cannot read.
func (l *link) goodbye(err error) {
	var code packets.Code
	if l.session == nil || l.cl.Properties.ProtocolVersion != 5 || !errors.As(err, &code) || code.Code < packets.ErrUnspecifiedError.Code || l.conn.said.Load() {
		return
	}
	pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Disconnect}, ProtocolVersion: 5, ReasonCode: code.Code, Properties: packets.Properties{ReasonString: code.Reason}}
	var buf bytes.Buffer
	if pk.DisconnectEncode(&buf) == nil {
		l.conn.Conn.Write(buf.Bytes())
	}
}

// hangUp ends what a connection had.
func (l *link) hangUp(err error) {
	b, s := l.broker, l.session
	if s == nil {
		return
	}
	b.mu.Lock()
	mine := s.out == l.out
	if mine {
		s.out, s.since = nil, time.Now()
		props := &l.cl.Properties
		if props.ProtocolVersion == 5 {
			s.expiry = min(props.Props.SessionExpiryInterval, maxExpiry)
		}
		if !s.keep || s.expiry == 0 {
			b.removeSession(s)
		}
	}
	b.mu.Unlock()
	if mine && s.keep {
		b.keepRecord(context.Background(), s)
	}
	if err != nil && l.will != nil {
		b.sendWill(l, s)
	}
}

// sendWill publishes the will of a client that went without a word, at once or
// after its delay unless the session is connected again by then.
func (b *Broker) sendWill(l *link, s *session) {
	send := func() {
		if p, ok := l.peer(); ok && mayPublish(p, l.will) == nil {
			l.will.Created = time.Now().Unix()
			b.publish(context.Background(), p, s.id, l.will, func(int, error) {})
		}
	}
	if l.delay <= 0 {
		send()
		return
	}
	time.AfterFunc(l.delay, func() {
		b.mu.Lock()
		back := b.sessions[s.id] != nil && b.sessions[s.id].out != nil
		b.mu.Unlock()
		if !back {
			send()
		}
	})
}

// write sends acknowledgements and events until the connection ends.
func (l *link) write() {
	b, s := l.broker, l.session
	for {
		l.mu.Lock()
		buf := l.acks
		l.acks = nil
		l.mu.Unlock()
		list := b.take(s, l.out, l.window)
		if len(list) > 0 {
			buf = append(buf, b.encode(s, list, l.cl.Properties.ProtocolVersion, l.most, time.Now().Unix())...)
		}
		if len(buf) > 0 {
			if _, err := l.conn.Write(buf); err != nil {
				return
			}
			continue
		}
		if len(list) > 0 {
			continue
		}
		select {
		case <-l.out.wake:
		case <-l.conn.gone.Done():
			return
		}
	}
}

// acknowledge queues the PUBACK of an event. Clients of MQTT 3.1.1 know no reason
// codes; they lose the connection instead, and can send the event again.
func (l *link) acknowledge(id uint16, matched int, err error) {
	<-l.slots
	version := l.cl.Properties.ProtocolVersion
	if err != nil && version < 5 {
		l.conn.Close()
		return
	}
	l.mu.Lock()
	l.acks = appendAck(l.acks, version, id, matched, err)
	l.mu.Unlock()
	l.out.ring()
}

// appendAck adds a PUBACK packet.
func appendAck(b []byte, version byte, id uint16, matched int, err error) []byte {
	switch {
	case err != nil:
		r := asRefusal(err)
		ack := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Puback}, ProtocolVersion: version, PacketID: id, ReasonCode: r.Code,
			Properties: packets.Properties{ReasonString: r.Reason}}
		var buf bytes.Buffer
		if ack.PubackEncode(&buf) == nil {
			b = append(b, buf.Bytes()...)
		}
		return b
	case matched == 0 && version == 5: // which the library cannot say
		return append(b, packets.Puback<<4, 3, byte(id>>8), byte(id), packets.CodeNoMatchingSubscribers.Code)
	}
	return append(b, packets.Puback<<4, 2, byte(id>>8), byte(id))
}

// clientID checks what a client calls itself.
func clientID(id string) error {
	if len(id) > maxClientID {
		return refusal(packets.ErrClientIdentifierNotValid, 400, "a client identifier has at most %d bytes", maxClientID)
	}
	if strings.ContainsFunc(id, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return refusal(packets.ErrClientIdentifierNotValid, 400, "the client identifier has control characters")
	}
	return nil
}
