package events

import (
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/pilotnet/pilot/overlay/services"
)

// A hook takes over from the library wherever an event, a subscription or a
// session is concerned.
type hook struct {
	mqtt.HookBase
	broker *Broker
}

// ID implements mqtt.Hook.
func (*hook) ID() string { return "pilot" }

// Provides implements mqtt.Hook.
func (*hook) Provides(b byte) bool {
	switch b {
	case mqtt.OnConnect, mqtt.OnConnectAuthenticate, mqtt.OnSessionEstablish, mqtt.OnSessionEstablished, mqtt.OnACLCheck,
		mqtt.OnPacketRead, mqtt.OnPacketEncode, mqtt.OnPublish, mqtt.OnSubscribe, mqtt.OnSubscribed, mqtt.OnUnsubscribed:
		return true
	}
	return false
}

func linkOf(cl *mqtt.Client) *link {
	if c, ok := cl.Net.Conn.(*mqttConn); ok {
		return c.link
	}
	return nil // a session of the store
}

// OnConnect decides on a client. Its identifier means something among the
// identifiers of the same peer only: nobody can take over the session of another.
func (h *hook) OnConnect(cl *mqtt.Client, pk packets.Packet) error {
	l := linkOf(cl)
	l.cl = cl
	p, ok := l.peer()
	if !ok {
		return packets.ErrNotAuthorized
	}
	err := h.admit(l, p, cl, &pk)
	if err != nil {
		r := asRefusal(err)
		code := r.code()
		if cl.Properties.ProtocolVersion < 5 {
			code = packets.ErrNotAuthorized // the library translates it
			if r.Code == packets.ErrQuotaExceeded.Code {
				code = packets.ErrServerUnavailable
			}
		}
		h.broker.server.SendConnack(cl, code, false, nil)
		return r
	}
	if cl.State.Keepalive == 0 || cl.State.Keepalive > 2*keepAlive {
		if cl.Properties.ProtocolVersion == 5 {
			cl.State.Keepalive, cl.State.ServerKeepalive = keepAlive, true
		} else {
			cl.State.Keepalive = 0 // the system's own probes find dead connections
		}
	}
	return nil
}

func (h *hook) admit(l *link, p services.Peer, cl *mqtt.Client, pk *packets.Packet) error {
	if err := clientID(cl.ID); err != nil {
		return err
	}
	cl.ID = p.Fingerprint.String() + "/" + cl.ID
	h.broker.mu.Lock()
	known, n := h.broker.sessions[cl.ID] != nil, h.broker.account(p.Fingerprint).sessions
	h.broker.mu.Unlock()
	if !known && n >= maxSessions {
		return refusal(packets.ErrQuotaExceeded, 507, "quota: you have %d sessions here already", n)
	}
	if pk.Connect.WillFlag {
		now := time.Now().Unix()
		w := &Message{Topic: pk.Connect.WillTopic, Payload: pk.Connect.WillPayload, QoS: min(pk.Connect.WillQos, 1), Retain: pk.Connect.WillRetain,
			Created: now, From: p.Fingerprint, ContentType: pk.Connect.WillProperties.ContentType, ReplyTo: pk.Connect.WillProperties.ResponseTopic,
			Correlation: pk.Connect.WillProperties.CorrelationData, User: pk.Connect.WillProperties.User}
		if err := mayPublish(p, w); err != nil {
			return err
		}
		l.will = w
		l.delay = time.Duration(min(cl.Properties.Will.WillDelayInterval, maxExpiry)) * time.Second
	}
	cl.Properties.Will = mqtt.Will{} // the library would send it past us
	return nil
}

// OnConnectAuthenticate implements mqtt.Hook: the tunnel did that.
func (*hook) OnConnectAuthenticate(*mqtt.Client, packets.Packet) bool { return true }

// OnSessionEstablish finds or makes the session, before the library takes over
// what an older connection had.
func (h *hook) OnSessionEstablish(cl *mqtt.Client, pk packets.Packet) {
	b, l := h.broker, linkOf(cl)
	p, _ := l.peer()
	version := cl.Properties.ProtocolVersion
	keep, expiry := !pk.Connect.Clean, uint32(maxExpiry)
	if version == 5 {
		expiry = min(cl.Properties.Props.SessionExpiryInterval, maxExpiry)
		keep = expiry > 0
	}
	existing, ok := b.server.Clients.Get(cl.ID)
	fresh := pk.Connect.Clean || !ok || existing.Properties.Clean && existing.Properties.ProtocolVersion < 5
	b.mu.Lock()
	old := b.sessions[cl.ID]
	if old != nil && fresh {
		b.removeSession(old)
		old = nil
	}
	s := old
	if s == nil {
		s = newSession(cl.ID, p)
		b.addSession(s)
	}
	stores := keep && !s.keep && len(s.queue) > 0
	s.out, s.since = nil, time.Now() // an older connection sends no more
	s.version, s.keep, s.expiry = version, keep, expiry
	l.session = s
	b.mu.Unlock()
	l.window, l.most = maxWindow, cl.Properties.Props.MaximumPacketSize
	if n := int(cl.Properties.Props.ReceiveMaximum); n > 0 {
		l.window = min(n, maxWindow)
	}
	if stores {
		b.storeQueue(l.conn.gone, s)
	}
	if keep {
		b.keepRecord(l.conn.gone, s)
	}
}

// OnSessionEstablished begins to send, after CONNACK.
func (h *hook) OnSessionEstablished(cl *mqtt.Client, _ packets.Packet) {
	b, l := h.broker, linkOf(cl)
	b.mu.Lock()
	if b.sessions[cl.ID] == l.session {
		l.session.rewind()
		l.session.out = l.out
	}
	b.mu.Unlock()
	l.writers.Go(l.write)
}

// OnACLCheck decides on subscriptions. Events to be published are checked in
// OnPublish.
func (h *hook) OnACLCheck(cl *mqtt.Client, filter string, write bool) bool {
	if write {
		return true
	}
	l := linkOf(cl)
	if l == nil || CheckFilter(filter) != nil {
		return false
	}
	p, ok := l.peer()
	h.broker.mu.Lock()
	defer h.broker.mu.Unlock()
	_, known := l.session.subs[filter]
	return ok && (known || len(l.session.subs) < maxSubs) && h.broker.access.Reads(p, filter)
}

// OnPacketRead takes the acknowledgements of subscribers, and refuses QoS 2, which
// is not offered.
func (h *hook) OnPacketRead(cl *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	l := linkOf(cl)
	switch {
	case pk.FixedHeader.Type == packets.Puback && l.session != nil:
		h.broker.acknowledged(l.session, pk.PacketID)
	case pk.FixedHeader.Type == packets.Auth: // there is no method to go on with
		return pk, h.disconnect(cl, packets.ErrProtocolViolation)
	case pk.FixedHeader.Type == packets.Publish && pk.FixedHeader.Qos > 1:
		return pk, h.disconnect(cl, packets.ErrQosNotSupported)
	case pk.FixedHeader.Type == packets.Publish && pk.Properties.TopicAliasFlag:
		return pk, h.disconnect(cl, packets.ErrTopicAliasInvalid)
	case pk.FixedHeader.Type == packets.Publish && len(pk.Payload) > MaxPayload:
		return pk, h.disconnect(cl, packets.ErrPacketTooLarge)
	}
	return pk, nil
}

// disconnect ends a connection with a reason, if the client knows reasons.
func (h *hook) disconnect(cl *mqtt.Client, code packets.Code) error {
	if cl.Properties.ProtocolVersion == 5 {
		h.broker.server.DisconnectClient(cl, code)
	}
	cl.Stop(code)
	return packets.ErrRejectPacket
}

// OnPacketEncode adds to CONNACK what this broker does not offer.
func (*hook) OnPacketEncode(_ *mqtt.Client, pk packets.Packet) packets.Packet {
	if pk.FixedHeader.Type == packets.Connack && pk.ReasonCode == 0 {
		pk.Properties.MaximumPacketSize = maxPacket
		pk.Properties.SharedSubAvailable, pk.Properties.SharedSubAvailableFlag = 0, true
	}
	return pk
}

// OnPublish takes an event from the library, which would acknowledge it first and
// then store it.
func (h *hook) OnPublish(cl *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	b, l := h.broker, linkOf(cl)
	p, ok := l.peer()
	if !ok {
		return pk, h.disconnect(cl, packets.ErrNotAuthorized)
	}
	m := messageOf(&pk, p.Fingerprint, time.Now().Unix())
	err := mayPublish(p, m)
	switch {
	case err != nil && (m.QoS == 0 || cl.Properties.ProtocolVersion < 5):
		return pk, h.disconnect(cl, asRefusal(err).code())
	case m.QoS == 0 && !m.Retain:
		b.spread(p, cl.ID, m)
		return pk, packets.ErrRejectPacket
	}
	select {
	case l.slots <- struct{}{}:
	case <-l.conn.gone.Done():
		return pk, packets.ErrRejectPacket
	}
	gate, n := b.gate(p.Fingerprint), m.size()
	if gate.Acquire(l.conn.gone, n) != nil {
		return pk, packets.ErrRejectPacket
	}
	answer := func(matched int, err error) {
		gate.Release(n)
		if m.QoS == 0 {
			<-l.slots
			return
		}
		l.acknowledge(pk.PacketID, matched, err)
	}
	if err != nil {
		ok = b.refuse(l.conn.gone, err, answer)
	} else {
		ok = b.publish(l.conn.gone, p, cl.ID, m, answer)
	}
	if !ok {
		gate.Release(n)
		cl.Stop(packets.ErrServerShuttingDown)
	}
	return pk, packets.ErrRejectPacket
}

// OnSubscribe limits the QoS to what is offered.
func (*hook) OnSubscribe(_ *mqtt.Client, pk packets.Packet) packets.Packet {
	for i := range pk.Filters {
		pk.Filters[i].Qos = min(pk.Filters[i].Qos, 1)
	}
	return pk
}

// OnSubscribed stores subscriptions before they are acknowledged, and sends what
// is retained.
func (h *hook) OnSubscribed(cl *mqtt.Client, pk packets.Packet, codes []byte) {
	b, l := h.broker, linkOf(cl)
	p, _ := l.peer()
	var fresh []packets.Subscription // whose retained events are wanted
	b.mu.Lock()
	for i, sub := range pk.Filters {
		if codes[i] >= packets.ErrUnspecifiedError.Code {
			continue
		}
		_, existed := l.session.subs[sub.Filter]
		l.session.subs[sub.Filter] = sub
		if sub.RetainHandling == 0 || sub.RetainHandling == 1 && !existed {
			fresh = append(fresh, sub)
		}
	}
	b.mu.Unlock()
	if err := b.keepRecord(l.conn.gone, l.session); err != nil {
		cl.Stop(packets.ErrUnspecifiedError)
		return
	}
	for _, sub := range fresh {
		b.sendRetained(l.conn.gone, l.session, p, sub)
	}
}

// OnUnsubscribed stores that subscriptions have ended.
func (h *hook) OnUnsubscribed(cl *mqtt.Client, pk packets.Packet) {
	l := linkOf(cl)
	if l == nil || l.session == nil {
		return
	}
	h.broker.mu.Lock()
	changed := false
	if h.broker.sessions[cl.ID] == l.session && l.session.out == l.out {
		for _, sub := range pk.Filters {
			if _, ok := l.session.subs[sub.Filter]; ok {
				delete(l.session.subs, sub.Filter)
				changed = true
			}
		}
	}
	h.broker.mu.Unlock()
	if changed {
		h.broker.keepRecord(l.conn.gone, l.session)
	}
}
