package publish

import (
	"io"
	"net/http"
	"slices"
	"testing"
	"time"
)

// BenchmarkAddedLatency measures what serve http adds to a request over one
// connection: a request to the program itself and one through the publication in
// turns, so that both meet the same machine.
func BenchmarkAddedLatency(b *testing.B) {
	d := newDesk(b)
	port := program(b, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") }))
	d.publish(Rule{Kind: HTTP, Port: 8080, Target: itoa(port)})
	straight, through := http.DefaultTransport.(*http.Transport).Clone(), d.client("alice").Transport
	b.Cleanup(straight.CloseIdleConnections)
	ask := func(t http.RoundTripper, to string) time.Duration {
		r, err := http.NewRequestWithContext(b.Context(), http.MethodGet, to, nil)
		if err != nil {
			b.Fatal(err)
		}
		begin := time.Now()
		a, err := t.RoundTrip(r)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, a.Body); err != nil {
			b.Fatal(err)
		}
		a.Body.Close()
		return time.Since(begin)
	}
	var plain, served []time.Duration
	for b.Loop() {
		plain = append(plain, ask(straight, "http://127.0.0.1:"+itoa(port)+"/"))
		served = append(served, ask(through, bobURL))
	}
	p, s := median(plain), median(served)
	b.ReportMetric(float64(p.Nanoseconds())/1e3, "straight-p50-us")
	b.ReportMetric(float64(s.Nanoseconds())/1e3, "served-p50-us")
	b.ReportMetric(float64((s-p).Nanoseconds())/1e3, "added-p50-us")
	b.ReportMetric(float64(s)/float64(p), "ratio")
}

func median(list []time.Duration) time.Duration {
	slices.Sort(list)
	return list[len(list)/2]
}
