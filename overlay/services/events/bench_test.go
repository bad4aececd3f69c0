package events

import (
	"context"
	"testing"
	"time"
)

// BenchmarkEvents sends events of 100 bytes at QoS 1 from one publisher to one
// subscriber over loopback: with a session that is stored, so that each is on the
// disk before it is acknowledged, and with one that is not.
func BenchmarkEvents(b *testing.B) {
	for name, session := range map[string]time.Duration{"stored": time.Hour, "live": 0} {
		b.Run(name, func(b *testing.B) {
			r := newRig(b, 1<<30)
			in := r.client("alice", ClientConfig{ID: "in", Session: session})
			in.subscribe("public/#")
			out := r.client("self", ClientConfig{})
			payload := make([]byte, 100)
			slots := make(chan error, out.Window())
			b.ResetTimer()
			go func() {
				for range b.N {
					slots <- nil
					out.Publish(&Message{Topic: "public/n", Payload: payload, QoS: 1}, false, func(err error) {
						if err != nil {
							b.Error(err)
						}
						<-slots
					})
				}
			}()
			for range b.N {
				e, err := in.Receive(context.Background())
				if err != nil {
					b.Fatal(err)
				}
				in.Acknowledge(e)
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
		})
	}
}
