package events

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/pilotnet/pilot/overlay/services"
	"github.com/pilotnet/pilot/trust/crashtest"
)

const crashEvents = 40

// crashWork publishes to a subscriber that is away. Every event is retained, too,
// each second one on the same topic; and each eighth the broker starts anew.
func crashWork(t *testing.T, dir string) {
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	self := services.Peer{Self: true}
	var b *Broker
	start := func() func() {
		var err error
		if b, err = New(Config{Dir: dir, Peer: trusted}); err != nil {
			t.Fatal(err)
		}
		running, end := context.WithCancel(ctx)
		ended := make(chan error, 1)
		go func() { ended <- b.Run(running) }()
		return func() { // as a crash would: what is not stored is gone
			end()
			<-ended
			if err := b.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	end := start()
	defer func() { end() }()
	s := newSession(self.Fingerprint.String()+"/away", self)
	s.keep, s.version, s.expiry = true, 5, 1<<31
	s.subs["q/#"] = packets.Subscription{Filter: "q/#", Qos: 1}
	b.mu.Lock()
	b.addSession(s)
	b.restore(s)
	b.mu.Unlock()
	if err := b.keepRecord(ctx, s); err != nil {
		t.Fatal(err)
	}
	for i := range crashEvents {
		m := &Message{Topic: fmt.Sprint("q/", i%2*i), QoS: 1, Retain: true, Payload: fmt.Append(make([]byte, i*97%2500), i)}
		if n, err := b.publishAndWait(ctx, self, "", m); err != nil || n != 1 {
			t.Fatalf("%d subscribers, %v", n, err)
		}
		crashtest.Ack(i)
		if i%8 == 7 {
			end()
			end = start()
		}
	}
}

func crashCheck(dir string, acked int) error {
	b, err := New(Config{Dir: dir, Peer: trusted})
	if err != nil {
		return err
	}
	defer b.Close()
	if acked == 0 {
		return nil
	}
	number := func(m *Message) (n int) {
		for _, c := range bytes.TrimLeft(m.Payload, "\x00") {
			n = n*10 + int(c-'0')
		}
		return n
	}
	for i := range acked {
		m := b.retained[fmt.Sprint("q/", i%2*i)]
		if m == nil || i%2 == 1 && number(m) != i || i%2 == 0 && number(m) < i {
			return fmt.Errorf("retained event %d is lost", i)
		}
	}
	s := b.sessions[(services.Peer{Self: true}).Fingerprint.String()+"/away"]
	if s == nil || len(s.queue) < acked || len(s.queue) > acked+1 {
		return fmt.Errorf("of %d events that wait for the subscriber %+v", acked, s)
	}
	for i, e := range s.queue {
		m, err := b.fetch(e.seq)
		if err != nil || number(m) != i {
			return fmt.Errorf("event %d in the queue is %+v, %v", i, m, err)
		}
	}
	return nil
}

// TestHostilePowerFailure: whenever the power fails, the store can be opened, and
// every event whose publisher was told that it is stored waits for the subscriber
// that is away, once and in order, and is the retained one of its topic.
func TestHostilePowerFailure(t *testing.T) {
	crashtest.Test{
		Work: func(dir string, _ int) error { crashWork(t, filepath.Join(dir, "events")); return nil },
		Check: func(dir string, _ int, acked []int) error {
			return crashCheck(filepath.Join(dir, "events"), len(acked))
		},
		Syncs: crashEvents, Changes: 2 * crashEvents, Seeds: 30, Hostile: 2_000,
	}.Run(t)
}
