package main

import (
	"bytes"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// The program starts itself on the hosts, which is this test then.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && (os.Args[1] == "httpd" || os.Args[1] == "end") {
		main()
		return
	}
	os.Exit(m.Run())
}

func TestParseStat(t *testing.T) {
	const text = "77 (a) b (c)) S 5 77 77 0 -1 4194304 1 2 3 4 150 250 30 20 20 0 4 0 100 1 1"
	p, ok := parseStat(77, []byte(text))
	if want := (process{pid: 77, parent: 5, own: 4, waited: 0.5}); !ok || p != want {
		t.Errorf("got %+v, %v, want %+v", p, ok, want)
	}
	if p, ok := parseStat(9, []byte(strings.Replace(text, "S 5", "S 2", 1))); !ok || !p.kernel {
		t.Errorf("a child of kthreadd is the kernel's: %+v", p)
	}
	for _, bad := range []string{"", "77 a S 5", "77 (a) S 5 77"} {
		if _, ok := parseStat(77, []byte(bad)); ok {
			t.Errorf("%q is no stat line", bad)
		}
	}
}

func TestDescends(t *testing.T) {
	all := map[int]process{1: {pid: 1}, 5: {pid: 5, parent: 1}, 6: {pid: 6, parent: 5}, 7: {pid: 7, parent: 1}}
	for pid, want := range map[int]bool{1: false, 5: true, 6: true, 7: false} {
		if got := descends(all, all[pid], 5); got != want {
			t.Errorf("%d below 5: %v", pid, got)
		}
	}
}

func TestStatusKB(t *testing.T) {
	const text = "Name:\tx\nVmRSS:\t   34900 kB\nRssAnon:\t   16400 kB\n"
	if n := statusKB([]byte(text), "RssAnon"); n != 16400 {
		t.Errorf("RssAnon %d", n)
	}
	if n := statusKB([]byte(text), "Rss"); n != 0 {
		t.Errorf("Rss %d", n)
	}
}

func TestParseOutputs(t *testing.T) {
	o, err := parseIperf([]byte(`{"end":{"sum_received":{"bytes":1250000000,"bits_per_second":5e9},"sum":{"packets":9}},
		"server_output_json":{"end":{"sum":{"packets":100,"lost_packets":90}}}}`))
	if err != nil || o.End.Received.Bits != 5e9 || o.Server.End.Sum.Packets-o.Server.End.Sum.Lost != 10 {
		t.Errorf("iperf3: %+v, %v", o, err)
	}
	if _, err := parseIperf([]byte(`{"error":"unable to connect"}`)); err == nil || !strings.Contains(err.Error(), "unable to connect") {
		t.Errorf("iperf3's error: %v", err)
	}
	if _, err := parseIperf([]byte("iperf3: nothing")); err == nil {
		t.Error("text is no result")
	}
	us := parsePing([]byte("64 bytes from ::1: icmp_seq=1 ttl=64 time=0.200 ms\n64 bytes from ::1: icmp_seq=2 ttl=64 time=0.0500 ms\n"))
	if !slices.Equal(us, []float64{50, 200}) {
		t.Errorf("ping: %v", us)
	}
	m, err := parseWrk([]byte("  Latency Distribution\n     50%  415.00us\n     90%    1.00ms\n     99%    4.50ms\nRequests/sec:  57700.12\n"))
	if err != nil || m["rps"] != 57700.12 || m["p50"] != 415 || m["p99"] != 4500 {
		t.Errorf("wrk: %v, %v", m, err)
	}
	if _, err := parseWrk([]byte("unable to connect")); err == nil {
		t.Error("wrk that failed has no result")
	}
}

func TestReport(t *testing.T) {
	o, err := parse([]string{"-variants", "default", "-rounds", "3", "-contestants", "veth,wireguard-go,pilot"})
	if err != nil {
		t.Fatal(err)
	}
	r := &report{options: o, machine: readMachine(), began: time.Unix(1_800_000_000, 0), memory: []memory{{"default", "pilot", 12_345, 30_000}}}
	for i, v := range []float64{4000, 6000, 5500} {
		r.add(result{variant: "default", test: "tcp", round: i + 1, tries: 1, foreign: 0.02, figures: map[string]metrics{
			"veth": {"mbps": 14000}, "wireguard-go": {"mbps": 2000, "cpu": 5}, "pilot": {"mbps": v, "cpu": 1.25},
		}})
	}
	var b bytes.Buffer
	if err := r.write(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"| TCP, one stream, Mbit/s | 14000 (14000-14000) | 2000 (2000-2000) | 5500 (4000-6000) | **2.75** (2-3) | >= 2.6 (2.2) | goal met |",
		"| CPU of both daemons, one stream, s/GB |  | 5.00 (5.00-5.00) | 1.25 (1.25-1.25) | **0.25** (0.25-0.25) | <= 0.28 (0.34) | goal met |",
		"| default | pilot | 12.3 | 30.0 | <= 16 (24) | goal met |",
		"| TCP, one stream, Mbit/s | 2 | 14000 | 2000 | 6000 | 0.02 | 1 |",
	} {
		if !strings.Contains(b.String(), want+"\n") {
			t.Errorf("missing: %s\n%s", want, &b)
		}
	}
	if strings.Contains(b.String(), "HTTP") {
		t.Error("a test that did not run has a line")
	}
}

func TestReportRelay(t *testing.T) {
	r := &report{options: options{seconds: 4}}
	for i, v := range []float64{1000, 800, 900} {
		r.relay = append(r.relay, result{test: "tcp", round: i + 1, tries: 1, figures: map[string]metrics{
			direct: {"mbps": 4000, "cpu": 2.5}, relayed: {"mbps": v, "cpu": 3, "server": 1.5},
		}})
	}
	var b bytes.Buffer
	if err := r.write(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"Medians of 3 rounds of 3 s",
		"| TCP, one stream, Mbit/s | 4000 (4000-4000) | 900 (800-1000) | **0.225** (0.2-0.25) |",
		"| CPU of the server, s/GB |  | 1.50 (1.50-1.50) |  |",
		"| CPU of the server, s/GB | 2 |  | 1.50 | 0.00 | 1 |",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("missing: %s\n%s", want, &b)
		}
	}
}

// Nebula has a ratio of its own beside that to the rival, if it takes part.
func TestReportNebula(t *testing.T) {
	r := &report{options: options{contenders: []string{rival, other, "pilot"}, variants: []string{"default"}}}
	r.add(result{variant: "default", test: "tcp", round: 1, figures: map[string]metrics{rival: {"mbps": 1000}, other: {"mbps": 2000}, "pilot": {"mbps": 3000}}})
	var b bytes.Buffer
	if err := r.write(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"| | wireguard-go | nebula | pilot | pilot / nebula | pilot / wireguard-go | goal (floor) | |\n|---|---|---|---|---|---|---|---|\n",
		"| 3000 (3000-3000) | **1.5** (1.5-1.5) | **3** (3-3) | >= 2.6 (2.2) | goal met |",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("missing: %s\n%s", want, &b)
		}
	}
}

func TestParseFlags(t *testing.T) {
	for _, bad := range [][]string{
		{"-tests", "tcp,udp"}, {"-variants", "fast"}, {"-contestants", "nobody"}, {"-rounds", "0"}, {"now"},
	} {
		if _, err := parse(bad); err == nil {
			t.Errorf("%v was accepted", bad)
		}
	}
}

// The whole measurement, once, as "make bench" runs it.
func TestMeasure(t *testing.T) {
	if os.Getenv("PILOT_BENCH") != "1" {
		t.Skip("takes a minute and the whole machine: PILOT_BENCH=1")
	}
	t.Chdir("../..")
	o, err := parse([]string{"-rounds", "1", "-seconds", "1", "-tries", "1", "-benchmarks=false", "-out", t.TempDir() + "/RESULTS.md"})
	if err != nil {
		t.Fatal(err)
	}
	if err := run(t.Context(), o); err != nil {
		t.Fatal(err)
	}
}

// The soak of "make soak", as long as PILOT_SOAK says.
func TestSoak(t *testing.T) {
	d := os.Getenv("PILOT_SOAK")
	if d == "" {
		t.Skip("takes as long as you like: PILOT_SOAK=1m")
	}
	o, err := parse([]string{"-soak", d})
	if err != nil {
		t.Fatal(err)
	}
	if err := run(t.Context(), o); err != nil {
		t.Fatal(err)
	}
}
