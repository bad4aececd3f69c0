package events

import (
	"bytes"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/pilotnet/pilot/overlay/services/servicetest"
)

func TestTopics(t *testing.T) {
	for s, want := range map[string]bool{
		"a": true, "a/b": true, "/": true, "a//b": true, "ä/日本": true,
		"": false, "a/+": false, "a/#": false, "a+": false, "$SYS/x": false, "$share/g/a": false, "a\x00b": false, "a\nb": false, "\xff": false, "a\u0085": false,
		strings.Repeat("x", maxTopic): true, strings.Repeat("x", maxTopic+1): false,
		strings.Repeat("/", maxLevels-1): true, strings.Repeat("/", maxLevels): false,
	} {
		if got := CheckTopic(s) == nil; got != want {
			t.Errorf("topic %.40q: %v", s, got)
		}
	}
	for s, want := range map[string]bool{
		"#": true, "+": true, "a/+/b/#": true, "+/+": true, "a": true,
		"": false, "a/#/b": false, "a#": false, "#a": false, "a/b+": false, "$SYS/#": false, "$share/g/#": false, "$": false,
	} {
		if got := CheckFilter(s) == nil; got != want {
			t.Errorf("filter %q: %v", s, got)
		}
	}
}

func TestCovers(t *testing.T) {
	for _, c := range []struct {
		wide, narrow string
		want         bool
	}{
		{"public/#", "public/#", true}, {"public/#", "public/a/+", true}, {"public/#", "public", true}, {"public/#", "public/", true},
		{"public/#", "publicx", false}, {"public/#", "#", false}, {"public/#", "+/a", false}, {"public/#", "+", false},
		{"a/+/c", "a/b/c", true}, {"a/+/c", "a/+/c", true}, {"a/+/c", "a/#", false}, {"a/+/c", "a/b/c/d", false}, {"a/+", "a", false},
		{"a/+", "a/", true}, {"+", "a", true}, {"+", "a/b", false}, {"+/#", "a", true}, {"+/#", "a/b/c", true}, {"a/b", "a/+", false},
		{"#", "a/b", true}, {"a", "a/#", false}, {"a/#", "a/+/#", true}, {"a/+/#", "a/#", false}, {"a/+/#", "a/b", true}, {"+/b/#", "a/b", true},
	} {
		if got := Covers(c.wide, c.narrow); got != c.want {
			t.Errorf("%s covers %s: %v", c.wide, c.narrow, got)
		}
	}
}

// FuzzCovers: if a filter covers another, it selects every topic that one selects.
func FuzzCovers(f *testing.F) {
	f.Add("a/+/#", "a/b/#", "a/b/c")
	f.Add("a/#", "a", "a")
	f.Fuzz(func(t *testing.T, wide, narrow, topic string) {
		if CheckFilter(wide) != nil || CheckFilter(narrow) != nil || CheckTopic(topic) != nil {
			return
		}
		if Covers(wide, narrow) && Matches(narrow, topic) && !Matches(wide, topic) {
			t.Errorf("%q covers %q, but does not select %q", wide, narrow, topic)
		}
	})
}

func FuzzMessage(f *testing.F) {
	m := Message{Topic: "a/b", Payload: []byte("x"), QoS: 1, Retain: true, Created: 1, Expires: 2, ContentType: "text/plain", ReplyTo: "r", Correlation: []byte{1},
		Text: true, User: []packets.UserProperty{{Key: "k", Val: "v"}}}
	f.Add(m.append(nil))
	f.Add((&Message{Topic: "a"}).append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := decodeMessage(b)
		if err != nil {
			return
		}
		if again := m.append(nil); !bytes.Equal(again, b) {
			t.Errorf("%x became %x", b, again)
		}
	})
}

func TestPublishingIsBounded(t *testing.T) {
	r := newRig(t, 0)
	r.allow(Everybody, "#")
	alice := r.client("alice", ClientConfig{})
	alice.subscribe("#")
	for _, topic := range []string{"public/a", "peer/bob/a", "peer/alice", "peer/alicex/a", "peer", "PEER/alice/a"} {
		alice.refused(alice.publish(&Message{Topic: topic, Payload: []byte("x"), QoS: 1}), packets.ErrNotAuthorized)
		alice.refused(alice.publish(&Message{Topic: topic, Payload: []byte("x"), QoS: 1, Retain: true}), packets.ErrNotAuthorized)
	}
	alice.refused(alice.publish(&Message{Topic: "peer/alice/$/\x01", Payload: []byte("x"), QoS: 1}), packets.ErrTopicNameInvalid)
	if err := alice.publish(&Message{Topic: "peer/alice/a", Payload: []byte("y"), QoS: 1}); err != nil {
		t.Error(err)
	}
	alice.want("peer/alice/a", "y")
	if n := r.state().Retained; n != 0 {
		t.Errorf("%d are retained", n)
	}
	// At QoS 0 there is no answer but the end.
	alice.publish(&Message{Topic: "public/a", Payload: []byte("x")})
	_, err := alice.Receive(t.Context())
	alice.refused(err, packets.ErrNotAuthorized)
}

func TestSubscribingIsBounded(t *testing.T) {
	r := newRig(t, 0)
	owner := r.client("self", ClientConfig{})
	owner.publish(&Message{Topic: "build/log", Payload: []byte("kept"), QoS: 1, Retain: true})
	alice := r.client("alice", ClientConfig{})
	for _, filter := range []string{"#", "+", "+/log", "build/#", "build/log", "peer/alice/#", "$SYS/#", "$share/g/#", "$share/g/build/#", "$share/public/#", "$SHARE/g/public/#", "public/#/x"} {
		if err := alice.Subscribe(t.Context(), 1, filter); err == nil {
			t.Errorf("%s is granted", filter)
		}
	}
	alice.subscribe("public/#")
	alice.quiet(r)
	r.allow("alice", "build/+")
	alice.subscribe("build/log")
	alice.Acknowledge(alice.want("build/log", "kept"))
	bob := r.client("bob", ClientConfig{})
	if err := bob.Subscribe(t.Context(), 1, "build/log"); err == nil {
		t.Error("what alice may have is granted to bob")
	}
	// What is forbidden again does not come any more, and stays so.
	fp := servicetest.Agent("alice").Fingerprint.String()
	if err := r.broker.Allow(t.Context(), []Change{{Peer: fp, Filter: "build/+"}}); err != nil {
		t.Fatal(err)
	}
	owner.publish(&Message{Topic: "build/log", Payload: []byte("later"), QoS: 1})
	alice.quiet(r)
	r.allow("bob", "x/#")
	r.restart()
	if got := r.state().Access; len(got) != 2 || got[0].Peer != Everybody || got[1].Peer != "bob" {
		t.Errorf("%+v", got)
	}
}

// TestSameName: the client identifier of a peer is its own.
func TestSameName(t *testing.T) {
	r := newRig(t, 0)
	alice := r.client("alice", ClientConfig{ID: "x", Session: time.Hour})
	alice.subscribe("public/#")
	bob := r.client("bob", ClientConfig{ID: "x", Session: time.Hour})
	if bob.Present() {
		t.Error("bob has alice's session")
	}
	alice.quiet(r)
}

// raw connects without a client that would refuse to say such things.
func (r *rig) raw(who string, packets ...[]byte) net.Conn {
	r.Helper()
	c := r.lab.MustDial(who, "tcp", Port)
	c.SetDeadline(time.Now().Add(patience))
	for _, p := range packets {
		if _, err := c.Write(p); err != nil {
			r.Fatal(err)
		}
	}
	return c
}

func encode(pk packets.Packet, f func(*packets.Packet, *bytes.Buffer) error) []byte {
	var b bytes.Buffer
	if err := f(&pk, &b); err != nil {
		panic(err)
	}
	return b.Bytes()
}

func connectPacket(id string, expiry uint32) []byte {
	return encode(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Connect}, ProtocolVersion: 5,
		Connect:    packets.ConnectParams{ProtocolName: []byte("MQTT"), ClientIdentifier: id, Keepalive: 600},
		Properties: packets.Properties{SessionExpiryInterval: expiry, SessionExpiryIntervalFlag: expiry > 0}}, (*packets.Packet).ConnectEncode)
}

func willPacket(topic, payload string, retain bool) []byte {
	return encode(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Connect}, ProtocolVersion: 5,
		Connect: packets.ConnectParams{ProtocolName: []byte("MQTT"), ClientIdentifier: "w", Keepalive: 600, Clean: true,
			WillFlag: true, WillTopic: topic, WillPayload: []byte(payload), WillQos: 1, WillRetain: retain}}, (*packets.Packet).ConnectEncode)
}

func subscribePacket(filter string) []byte {
	return encode(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Subscribe, Qos: 1}, ProtocolVersion: 5, PacketID: 7,
		Filters: packets.Subscriptions{{Filter: filter, Qos: 1}}}, (*packets.Packet).SubscribeEncode)
}

func TestWills(t *testing.T) {
	r := newRig(t, 0)
	owner := r.client("self", ClientConfig{})
	owner.subscribe("#")
	for _, topic := range []string{"public/x", "peer/bob/x", "$SYS/x"} {
		c := r.raw("alice", willPacket(topic, "bad", true))
		b, err := io.ReadAll(c)
		if err != nil || len(b) < 4 || b[0] != 0x20 || b[3] < 0x80 {
			t.Errorf("a will under %s: %x %v", topic, b, err)
		}
	}
	c := r.raw("alice", willPacket("peer/alice/gone", "good", true))
	if _, err := c.Read(make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	c.Close()
	owner.Acknowledge(owner.want("peer/alice/gone", "good"))
	if n := r.state().Retained; n != 1 {
		t.Errorf("%d are retained", n)
	}
	c = r.raw("alice", willPacket("peer/alice/gone", "not sent", false), []byte{0xe0, 0})
	io.ReadAll(c)
	owner.quiet(r)
}

// TestAliases: a topic alias cannot carry an event past the check.
func TestAliases(t *testing.T) {
	r := newRig(t, 0)
	owner := r.client("self", ClientConfig{})
	owner.subscribe("#")
	for _, topic := range []string{"peer/alice/x", "public/x", ""} {
		pk := encode(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: 1}, ProtocolVersion: 5, PacketID: 3, TopicName: topic, Payload: []byte("p"),
			Properties: packets.Properties{TopicAlias: 1, TopicAliasFlag: true}}, (*packets.Packet).PublishEncode)
		c := r.raw("alice", connectPacket("a", 0), pk)
		b, err := io.ReadAll(c)
		if err != nil || !bytes.Contains(b, []byte{0xe0}) {
			t.Errorf("%q: %x %v", topic, b, err)
		}
	}
	owner.quiet(r)
}

// TestMalformed: each is refused, and the broker lives on. The first makes the
// library panic.
func TestMalformed(t *testing.T) {
	r := newRig(t, 0)
	alice := r.client("alice", ClientConfig{})
	alice.subscribe("public/#")
	connect := connectPacket("m", 0)
	for name, more := range map[string][]byte{
		"SUBSCRIBE of 8 bytes":   {0x82, 0x06, 0x00, 0x01, 0x00, 0x00, 0x01, 'a'},
		"UNSUBSCRIBE cut off":    {0xa2, 0x05, 0x00, 0x01, 0x00, 0x00, 0x09},
		"too large":              {0x30, 0xff, 0xff, 0xff, 0x7f},
		"bad flags":              {0x80, 0x00},
		"QoS 2":                  {0x34, 0x08, 0x00, 0x01, 'a', 0x00, 0x01, 0x00, 'x', 'y'},
		"QoS 3":                  {0x36, 0x00},
		"second CONNECT":         connect,
		"length without an end":  {0x30, 0xff, 0xff, 0xff, 0xff, 0xff},
		"PUBLISH without topic":  {0x32, 0x05, 0x00, 0x00, 0x00, 0x01, 0x00},
		"AUTH":                   {0xf0, 0x02, 0x18, 0x00},
		"PUBREL of nothing ever": {0x62, 0x01, 0x00},
	} {
		c := r.raw("bob", connect, more)
		b, err := io.ReadAll(c)
		if nerr, ok := err.(net.Error); ok && nerr.Timeout() {
			t.Errorf("%s: the connection stays open after %x", name, b)
			continue
		}
		if i := bytes.IndexByte(b[min(len(b), 10):], 0xe0); i < 0 {
			t.Logf("%s: no DISCONNECT in %x (%v)", name, b, err)
		}
	}
	for _, garbage := range []string{"\x00", "\xff\xff\xff\xff", "\x16\x03\x01\x02\x00", "SSH-2.0-x\r\n", "\x10\xff\xff\xff\xff\xff", "\x10\x02xx", "\x10\x00"} {
		c := r.raw("bob", []byte(garbage))
		b, err := io.ReadAll(c)
		if nerr, ok := err.(net.Error); ok && nerr.Timeout() || len(b) > 200 {
			t.Errorf("%q: %q, %v", garbage, b, err)
		}
	}
	alice.quiet(r)
	r.within("all are gone", func() bool { return len(r.state().Sessions) == 2 })
}

// TestStrangers: who is no peer gets nothing.
func TestStrangers(t *testing.T) {
	r := newRig(t, 0)
	if got, err := r.lab.Answer("mallory", Port, 1); err == nil || got != "" {
		t.Errorf("%q, %v", got, err)
	}
	bob := r.client("bob", ClientConfig{})
	bob.subscribe("public/#")
	r.lab.Revoke("bob")
	bob.publish(&Message{Topic: "peer/bob/x", Payload: []byte("x"), QoS: 1})
	if _, err := bob.Receive(t.Context()); err == nil {
		t.Error("bob still speaks")
	}
}

// TestManyConnections: one peer that opens 1,000 connections and says nothing does
// not keep another out.
func TestManyConnections(t *testing.T) {
	r := newRig(t, 0)
	for range 1000 {
		if c, err := r.lab.Dial(t.Context(), "bob", "tcp", Port); err == nil { // or it is reset already
			defer c.Close()
		}
	}
	alice := r.client("alice", ClientConfig{})
	alice.subscribe("public/#")
	alice.quiet(r)
}

func TestSessionsAreBounded(t *testing.T) {
	r := newRig(t, 0)
	for i := range maxSessions {
		r.client("bob", ClientConfig{ID: "s" + string(numbered(i)), Session: time.Hour})
	}
	_, err := Connect(t.Context(), r.lab.MustDial("bob", "tcp", Port), ClientConfig{ID: "more", Session: time.Hour})
	var refused *Refusal
	if !errors.As(err, &refused) || refused.Code != packets.ErrQuotaExceeded.Code || !strings.Contains(refused.Reason, "64") {
		t.Errorf("%v", err)
	}
	r.client("bob", ClientConfig{ID: "s1", Session: time.Hour})
	r.client("alice", ClientConfig{ID: "more", Session: time.Hour})
	if _, err := Connect(t.Context(), r.lab.MustDial("alice", "tcp", Port), ClientConfig{ID: strings.Repeat("x", maxClientID+1)}); !errors.As(err, &refused) {
		t.Errorf("%v", err)
	}
	alice := r.client("alice", ClientConfig{})
	for i := range maxSubs {
		alice.subscribe("public/" + string(numbered(i)))
	}
	if err := alice.Subscribe(t.Context(), 1, "public/more"); err == nil {
		t.Error("there is no end of subscriptions")
	}
}

// FuzzHow: how an entry of a queue is delivered is the same after it was stored again,
// whatever was read.
func FuzzHow(f *testing.F) {
	f.Add((&entry{retain: true, subs: []int{1, 300, 268_435_455}}).appendHow())
	f.Add([]byte{})
	f.Add([]byte{1, 0x80})
	f.Fuzz(func(t *testing.T, b []byte) {
		var e, again entry
		e.readHow(b)
		again.readHow(e.appendHow())
		if e.retain != again.retain || !slices.Equal(e.subs, again.subs) {
			t.Errorf("%x is %+v, stored again %+v", b, e, again)
		}
	})
}
