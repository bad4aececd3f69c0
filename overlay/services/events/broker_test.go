package events

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

func TestPublishAndSubscribe(t *testing.T) {
	r := newRig(t, 0)
	alice, owner := r.client("alice", ClientConfig{}), r.client("self", ClientConfig{})
	alice.subscribe("public/+/state", "public/news/#")
	owner.subscribe("#")
	for _, topic := range []string{"public/a/state", "public/news", "public/news/x/y", "public/b/other"} {
		if err := owner.publish(&Message{Topic: topic, Payload: []byte(topic), QoS: 1}); err != nil {
			t.Fatal(err)
		}
	}
	for _, topic := range []string{"public/a/state", "public/news", "public/news/x/y"} {
		alice.Acknowledge(alice.want(topic, topic))
		owner.Acknowledge(owner.want(topic, topic))
	}
	owner.want("public/b/other", "public/b/other")
	m := &Message{Topic: "peer/alice/out", Payload: []byte(`{"n":1}`), QoS: 1, ContentType: "application/json", ReplyTo: "peer/alice/in",
		Correlation: []byte("c"), User: []packets.UserProperty{{Key: "k", Val: "v"}}}
	if err := alice.publish(m); err != nil {
		t.Fatal(err)
	}
	in := owner.want("peer/alice/out", `{"n":1}`)
	if in.ContentType != m.ContentType || in.ReplyTo != m.ReplyTo || string(in.Correlation) != "c" || len(in.User) != 1 || in.QoS != 1 {
		t.Errorf("%+v", in)
	}
}

// TestSurvival: what was acknowledged is there after the broker has gone without
// a word, and in order; sessions and subscriptions too.
func TestSurvival(t *testing.T) {
	const n = 500
	r := newRig(t, 0)
	session := ClientConfig{ID: "log", Session: time.Hour}
	alice := r.client("alice", session)
	if alice.Present() {
		t.Error("a session is there already")
	}
	alice.subscribe("public/#")
	alice.Close()
	owner := r.client("self", ClientConfig{})
	acks := make(chan error, n)
	for i := range n {
		owner.Publish(&Message{Topic: "public/n", Payload: numbered(i), QoS: 1}, false, func(err error) { acks <- err })
	}
	for range n {
		if err := <-acks; err != nil {
			t.Fatal(err)
		}
	}
	r.restart()
	alice = r.client("alice", session)
	if !alice.Present() {
		t.Error("the session is lost")
	}
	for i := range n / 2 {
		alice.Acknowledge(alice.want("public/n", string(numbered(i))))
	}
	r.within("acknowledged", func() bool { return r.state().Stored == n/2 })
	r.restart()
	alice = r.client("alice", session)
	for i := n / 2; i < n; i++ {
		alice.Acknowledge(alice.want("public/n", string(numbered(i))))
	}
	r.within("nothing waits", func() bool { s := r.state(); return s.Stored == 0 && s.Bytes == 0 && s.Sessions[0].Bytes == 0 })
	alice.Close()
	begin := r.client("alice", ClientConfig{ID: "log"})
	if begin.Present() {
		t.Error("a clean start finds the session")
	}
	begin.Close()
	r.restart()
	if s := r.state().Sessions; len(s) != 0 {
		t.Errorf("%+v", s)
	}
}

// TestUnacknowledged: a connection that breaks gets all again, in order.
func TestUnacknowledged(t *testing.T) {
	r := newRig(t, 0)
	session := ClientConfig{ID: "s", Session: time.Hour}
	alice := r.client("alice", session)
	alice.subscribe("public/#")
	owner := r.client("self", ClientConfig{})
	for i := range 20 {
		owner.publish(&Message{Topic: "public/n", Payload: numbered(i), QoS: 1})
	}
	for i := range 10 {
		in := alice.want("public/n", string(numbered(i)))
		if i%2 == 1 { // out of order too
			alice.Acknowledge(in)
		}
	}
	r.within("acknowledged", func() bool { return r.state().Stored == 15 })
	alice = r.client("alice", session) // takes over
	for i := range 20 {
		if i < 10 && i%2 == 1 {
			continue
		}
		if in := alice.want("public/n", string(numbered(i))); i < 10 && !in.Again {
			t.Errorf("%d is not marked as sent again", i)
		}
	}
}

// TestRetained: new subscribers get the last event, also after a restart.
func TestRetained(t *testing.T) {
	r := newRig(t, 0)
	owner := r.client("self", ClientConfig{})
	for _, v := range []string{"old", "new"} {
		owner.publish(&Message{Topic: "public/state", Payload: []byte(v), QoS: 1, Retain: true})
		owner.publish(&Message{Topic: "secret/state", Payload: []byte(v), QoS: 1, Retain: true})
	}
	r.restart()
	alice := r.client("alice", ClientConfig{})
	alice.subscribe("public/#")
	if in := alice.want("public/state", "new"); !in.Retained {
		t.Error("it is not marked as retained")
	}
	owner = r.client("self", ClientConfig{})
	owner.publish(&Message{Topic: "public/state", QoS: 1, Retain: true})
	alice.want("public/state", "")
	r.restart()
	alice = r.client("alice", ClientConfig{})
	alice.subscribe("public/#")
	alice.quiet(r)
}

// TestSlowSubscriber: one that reads nothing does not hold up others, and the
// publisher is told when it was left out.
func TestSlowSubscriber(t *testing.T) {
	r := newRig(t, 4<<20)
	slow := r.lab.MustDial("bob", "tcp", Port)
	slow.Write(connectPacket("slow", 3600))
	slow.Write(subscribePacket("public/#"))
	quick := r.client("alice", ClientConfig{})
	quick.subscribe("public/#")
	r.within("both subscribe", func() bool {
		n := 0
		for _, s := range r.state().Sessions {
			n += len(s.Filters)
		}
		return n == 2
	})
	owner := r.client("self", ClientConfig{})
	payload := strings.Repeat("x", 100_000)
	left := 0
	for i := range 300 { // 30 MB: more than sockets and the quota take
		if err := owner.publish(&Message{Topic: "public/n", Payload: []byte(payload), QoS: 1}); err != nil {
			owner.refused(err, packets.ErrQuotaExceeded)
			left++
		}
		quick.Acknowledge(quick.want("public/n", payload))
		_ = i
	}
	if left == 0 || left > 290 {
		t.Errorf("%d of 300 events were not for all", left)
	}
	if n := r.state().Bytes; n > 5<<20 {
		t.Errorf("%d bytes are stored", n)
	}
}

// TestPublisherQuota: what one peer causes to be stored is bounded, and no event
// is dropped without a word.
func TestPublisherQuota(t *testing.T) {
	r := newRig(t, 1<<20)
	owner := r.client("self", ClientConfig{ID: "mine", Session: time.Hour})
	owner.subscribe("peer/#")
	owner.Close()
	alice, bob := r.client("alice", ClientConfig{}), r.client("bob", ClientConfig{})
	payload := []byte(strings.Repeat("x", 100_000))
	stored := 0
	var err error
	for err == nil {
		if err = alice.publish(&Message{Topic: "peer/alice/n", Payload: payload, QoS: 1}); err == nil {
			stored++
		}
	}
	alice.refused(err, packets.ErrQuotaExceeded)
	if !strings.Contains(err.Error(), "1048576") {
		t.Errorf("the limit is not said: %v", err)
	}
	if stored != 10 {
		t.Errorf("%d events were stored", stored)
	}
	if err := bob.publish(&Message{Topic: "peer/bob/n", Payload: payload, QoS: 1}); err != nil {
		t.Errorf("another peer: %v", err)
	}
	for i := 0; err == nil; i++ {
		err = alice.publish(&Message{Topic: "peer/alice/" + string(numbered(i)), Payload: payload, QoS: 1, Retain: true})
	}
	alice.refused(err, packets.ErrQuotaExceeded)
}

func TestExpiry(t *testing.T) {
	r := newRig(t, 0)
	alice := r.client("alice", ClientConfig{ID: "short", Session: time.Second})
	alice.subscribe("public/#")
	alice.Close()
	r.within("offline", func() bool { return !r.state().Sessions[0].Connected })
	owner := r.client("self", ClientConfig{})
	owner.publish(&Message{Topic: "public/n", Payload: []byte("1"), QoS: 1})
	r.broker.expire(time.Now().Add(2 * time.Second))
	if s := r.state(); s.Stored != 0 || len(s.Sessions) != 1 {
		t.Errorf("%+v", s)
	}
	bob := r.client("bob", ClientConfig{ID: "b", Session: time.Hour})
	bob.subscribe("public/#")
	bob.Close()
	r.within("offline", func() bool {
		for _, s := range r.state().Sessions {
			if s.Client == "b" {
				return !s.Connected
			}
		}
		return false
	})
	owner.publish(&Message{Topic: "public/n", Payload: []byte("gone"), QoS: 1, Expires: time.Now().Unix() + 1})
	owner.publish(&Message{Topic: "public/n", Payload: []byte("here"), QoS: 1})
	<-time.After(2100 * time.Millisecond)
	bob = r.client("bob", ClientConfig{ID: "b", Session: time.Hour})
	bob.want("public/n", "here")
}

// TestQoS0 needs no store.
func TestQoS0(t *testing.T) {
	r := newRig(t, 0)
	alice, owner := r.client("alice", ClientConfig{}), r.client("self", ClientConfig{})
	if err := alice.Subscribe(t.Context(), 0, "public/#"); err != nil {
		t.Fatal(err)
	}
	for i := range 100 {
		if err := owner.publish(&Message{Topic: "public/n", Payload: numbered(i), QoS: byte(i % 2)}); err != nil {
			t.Fatal(err)
		}
	}
	seen := map[string]bool{}
	for range 100 {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		in, err := alice.Receive(ctx)
		cancel()
		if err != nil || in.QoS != 0 {
			t.Fatalf("%v %+v", err, in)
		}
		seen[string(in.Payload)] = true
	}
	if len(seen) != 100 || r.state().Stored != 0 {
		t.Errorf("%d events, %d stored", len(seen), r.state().Stored)
	}
}
