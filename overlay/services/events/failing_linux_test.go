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

var failingSession = services.Peer{Self: true}.Fingerprint.String() + "/away"

// A failingRig is a broker with a subscriber that is away.
type failingRig struct {
	dir string
	b   *Broker
	end func()
}

func (r *failingRig) open() error {
	if r.end != nil {
		r.end()
		r.end = nil
	}
	b, err := New(Config{Dir: r.dir, Peer: trusted})
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- b.Run(ctx) }()
	r.b, r.end = b, func() {
		stop()
		<-ended
		b.Close()
	}
	if b.sessions[failingSession] != nil {
		return nil
	}
	s := newSession(failingSession, services.Peer{Self: true})
	s.keep, s.version, s.expiry = true, 5, 1<<31
	s.subs["q/#"] = packets.Subscription{Filter: "q/#", Qos: 1}
	b.mu.Lock()
	b.addSession(s)
	b.restore(s)
	b.mu.Unlock()
	return b.keepRecord(ctx, s)
}

// publish is a step: an event that is retained, too, each second one on the same topic.
func (r *failingRig) publish(i int) error {
	m := &Message{Topic: fmt.Sprint("q/", i%2*i), QoS: 1, Retain: true, Payload: fmt.Append(make([]byte, i*97%2500), i)}
	n, err := r.b.publishAndWait(context.Background(), services.Peer{Self: true}, "", m)
	if err == nil && n != 1 {
		err = fmt.Errorf("%d subscribers", n)
	}
	return err
}

func crashNumber(m *Message) (n int) {
	for _, c := range bytes.TrimLeft(m.Payload, "\x00") {
		n = n*10 + int(c-'0')
	}
	return n
}

func failingCheck(dir string, acked []int) error {
	b, err := New(Config{Dir: dir, Peer: trusted})
	if err != nil {
		return err
	}
	defer b.Close()
	s := b.sessions[failingSession]
	if s == nil {
		if len(acked) > 0 {
			return fmt.Errorf("the session of the subscriber is lost")
		}
		return nil
	}
	queued, last := map[int]bool{}, -1
	for _, e := range s.queue {
		m, err := b.fetch(e.seq)
		if err != nil || crashNumber(m) <= last {
			return fmt.Errorf("event after %d in the queue is %+v, %v", last, m, err)
		}
		last = crashNumber(m)
		queued[last] = true
	}
	least, most := -1, -1
	for i := range crashEvents {
		done, may := crashtest.Outcome(acked, i)
		if done && !queued[i] || queued[i] && !may {
			return fmt.Errorf("event %d: done %v, under way %v, queued %v", i, done, may, queued[i])
		}
		if i%2 == 0 {
			if done {
				least = i
			}
			if may {
				most = i
			}
			continue
		}
		if m := b.retained[fmt.Sprint("q/", i)]; done && (m == nil || crashNumber(m) != i) {
			return fmt.Errorf("retained event %d is %+v", i, m)
		}
	}
	if m := b.retained["q/0"]; m == nil && least >= 0 || m != nil && (crashNumber(m) < least || crashNumber(m) > most) {
		return fmt.Errorf("what is retained is %+v, want event %d to %d", m, least, most)
	}
	return nil
}

// TestHostileFailingDisk: single syncs and writes fail, and everything does for a while.
// After any restart or power failure the store can be opened, and every event whose
// publisher was told that it is stored waits for the subscriber that is away, once and
// in order, and is the retained one of its topic.
func TestHostileFailingDisk(t *testing.T) {
	crashtest.Test{
		Work: func(dir string, plan int) error {
			r := failingRig{dir: filepath.Join(dir, "events")}
			defer func() { r.end() }()
			return crashtest.Failing{Steps: crashEvents, Faults: 14, Open: r.open, Do: r.publish}.Run(plan)
		},
		Check: func(dir string, _ int, acked []int) error { return failingCheck(filepath.Join(dir, "events"), acked) },
		Syncs: crashEvents / 2, Changes: crashEvents, Seeds: 20, Hostile: 4_000, Plans: 14,
	}.Run(t)
}
