package events

import (
	"encoding/binary"
	"errors"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/pilotnet/pilot/crypto"
)

// A Message is one event.
type Message struct {
	Topic       string
	Payload     []byte
	QoS         byte  // 0 or 1, as it was published
	Retain      bool  // as it was published
	Created     int64 // seconds since 1970, by the broker's clock
	Expires     int64 // likewise; 0: never
	From        crypto.Fingerprint
	ContentType string
	ReplyTo     string // response topic of MQTT 5
	Correlation []byte
	Text        bool // the payload was declared to be UTF-8
	User        []packets.UserProperty
}

var errRecord = errors.New("events: a stored event is damaged")

const recordVersion = 1

const (
	flagQoS1 = 1 << iota
	flagRetain
	flagText
	allFlags = flagQoS1 | flagRetain | flagText
)

// append adds the stored form of m: a version, flags, two times, the publisher's
// fingerprint and, each with its length as a varint, the rest.
func (m *Message) append(b []byte) []byte {
	var flags byte
	if m.QoS > 0 {
		flags |= flagQoS1
	}
	if m.Retain {
		flags |= flagRetain
	}
	if m.Text {
		flags |= flagText
	}
	b = append(b, recordVersion, flags)
	b = binary.BigEndian.AppendUint64(b, uint64(m.Created))
	b = binary.BigEndian.AppendUint64(b, uint64(m.Expires))
	b = append(b, m.From[:]...)
	b = appendText(b, m.Topic)
	b = appendText(b, m.ContentType)
	b = appendText(b, m.ReplyTo)
	b = appendText(b, string(m.Correlation))
	b = binary.AppendUvarint(b, uint64(len(m.User)))
	for _, p := range m.User {
		b = appendText(appendText(b, p.Key), p.Val)
	}
	return append(b, m.Payload...)
}

func appendText(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// decodeMessage reads what append wrote. The message does not refer to b.
func decodeMessage(b []byte) (*Message, error) {
	const fixed = 2 + 8 + 8 + len(crypto.Fingerprint{})
	if len(b) < fixed || b[0] != recordVersion || b[1]&^allFlags != 0 {
		return nil, errRecord
	}
	m := &Message{Retain: b[1]&flagRetain != 0, Text: b[1]&flagText != 0, QoS: b[1] & flagQoS1}
	m.Created = int64(binary.BigEndian.Uint64(b[2:]))
	m.Expires = int64(binary.BigEndian.Uint64(b[10:]))
	copy(m.From[:], b[18:])
	r := reader{b: b[fixed:]}
	m.Topic, m.ContentType, m.ReplyTo = r.text(), r.text(), r.text()
	if c := r.text(); c != "" {
		m.Correlation = []byte(c)
	}
	for n := r.number(); n > 0 && !r.bad; n-- {
		m.User = append(m.User, packets.UserProperty{Key: r.text(), Val: r.text()})
	}
	if r.bad {
		return nil, errRecord
	}
	m.Payload = append([]byte{}, r.b...)
	return m, nil
}

// A reader takes varints and texts from a record; bad sticks.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) number() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 || n > 1 && r.b[n-1] == 0 { // short, too large, or not the shortest form
		r.bad = true
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) text() string {
	n := r.number()
	if r.bad || n > uint64(len(r.b)) {
		r.bad = true
		return ""
	}
	s := string(r.b[:n])
	r.b = r.b[n:]
	return s
}

// overhead is what an event costs beside its bytes: it is counted against quotas,
// so that they bound the number of events too.
const overhead = 256

func (m *Message) size() int64 {
	n := len(m.Topic) + len(m.Payload) + len(m.ContentType) + len(m.ReplyTo) + len(m.Correlation)
	for _, p := range m.User {
		n += len(p.Key) + len(p.Val) + 16
	}
	return int64(n) + overhead
}

// messageOf is the event in a PUBLISH packet.
func messageOf(pk *packets.Packet, from crypto.Fingerprint, now int64) *Message {
	p := &pk.Properties
	m := &Message{
		Topic: pk.TopicName, Payload: pk.Payload, QoS: pk.FixedHeader.Qos, Retain: pk.FixedHeader.Retain, Created: now, From: from,
		ContentType: p.ContentType, ReplyTo: p.ResponseTopic, Correlation: p.CorrelationData,
		Text: p.PayloadFormatFlag && p.PayloadFormat == 1, User: p.User,
	}
	if p.MessageExpiryInterval > 0 {
		m.Expires = now + int64(p.MessageExpiryInterval)
	}
	return m
}

// packet is a PUBLISH packet with m.
func (m *Message) packet(version byte, now int64) packets.Packet {
	pk := packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Publish}, ProtocolVersion: version,
		TopicName: m.Topic, Payload: m.Payload, Mods: packets.Mods{AllowResponseInfo: true},
		Properties: packets.Properties{ContentType: m.ContentType, ResponseTopic: m.ReplyTo, CorrelationData: m.Correlation, User: m.User},
	}
	if m.Text {
		pk.Properties.PayloadFormat, pk.Properties.PayloadFormatFlag = 1, true
	}
	if m.Expires > 0 {
		pk.Properties.MessageExpiryInterval = uint32(max(m.Expires-now, 1))
	}
	return pk
}

func (m *Message) expired(now int64) bool { return m.Expires > 0 && m.Expires <= now }
