package rendezvous

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/natt/relay"
	"github.com/pilotnet/pilot/overlay/services/disk"
)

// scaleServer, set, makes the test binary a server with this state directory.
const scaleServer = "PILOT_SCALE_SERVER"

// A scaleReport is what the server process says about itself after a GC.
type scaleReport struct {
	Line     string `json:"line,omitempty"`
	Sessions int    `json:"sessions"`
	RssAnon  int    `json:"rss_anon"` // bytes
	Heap     uint64 `json:"heap"`
	Routines int    `json:"routines"`
}

// serveScale runs a server until stdin ends and reports at every line of it.
func serveScale(dir string) error {
	enc := json.NewEncoder(os.Stdout)
	limits := testLimits()
	s, err := New(Config{StateDir: dir, Limits: limits, Listen: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")},
		Ready: func(line string) { enc.Encode(scaleReport{Line: line}) }})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		for in := bufio.NewScanner(os.Stdin); in.Scan(); {
			debug.FreeOSMemory()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			enc.Encode(scaleReport{Sessions: s.Status().Sessions, RssAnon: rssAnon(), Heap: m.HeapAlloc, Routines: runtime.NumGoroutine()})
		}
		cancel()
	}()
	return s.Run(ctx)
}

func rssAnon() int {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "RssAnon:" {
			n, _ := strconv.Atoi(f[1])
			return n << 10
		}
	}
	return 0
}

// TestScale measures what registered idle agents cost a server: real HELLO
// sessions from this process to a server in another. PILOT_SCALE=1 runs it with
// 10,000, another number with as many.
func TestScale(t *testing.T) {
	agents, _ := strconv.Atoi(os.Getenv("PILOT_SCALE"))
	if agents == 0 {
		t.Skip("set PILOT_SCALE=1")
	}
	if agents == 1 {
		agents = 10_000
	}
	dir := t.TempDir()
	keys := fillScale(t, filepath.Join(dir, storeFile), agents)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), scaleServer+"="+dir)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer in.Close()
	dec := json.NewDecoder(out)
	report := func() (r scaleReport) {
		if err := dec.Decode(&r); err != nil {
			t.Fatal(err)
		}
		return r
	}
	server, err := crypto.ParseServer(strings.TrimPrefix(report().Line, "--server "))
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(in, "report")
	empty := report()

	began := time.Now()
	var group sync.WaitGroup
	const workers = 8
	for w := range workers {
		group.Go(func() {
			a := &agent{t: t, server: server, conn: dialUDP(t)}
			for i := w; i < agents; i += workers {
				a.home = relay.NewHome(relay.HomeConfig{Server: server.Key, Static: keys[i].reg, Key: keys[i].key, Instance: 1})
				a.until(relay.Registered)
			}
		})
	}
	group.Wait()
	took := time.Since(began)
	fmt.Fprintln(in, "report")
	full := report()
	t.Logf("%d agents registered in %v (%.0f/s, both sides on %d cores)", agents, took, float64(agents)/took.Seconds(), runtime.NumCPU())
	t.Logf("RssAnon %.1f MiB, of it %.1f MiB before the first agent; heap %.1f MiB; %d goroutines; %.0f bytes an agent",
		mib(full.RssAnon), mib(empty.RssAnon), mib(int(full.Heap)), full.Routines, float64(full.RssAnon-empty.RssAnon)/float64(agents))
	if full.Sessions != agents {
		t.Errorf("%d sessions", full.Sessions)
	}
	if agents == 10_000 && full.RssAnon > 100<<20 {
		t.Error("more than 100 MiB")
	}
}

func mib(n int) float64 { return float64(n) / (1 << 20) }

type scaleKey struct {
	key crypto.PublicKey
	reg crypto.DHPrivate
}

// fillScale writes a store in which that many agents have claimed. Their
// addresses do not follow from their keys: deriving 10,000 takes hours.
func fillScale(t *testing.T, path string, n int) []scaleKey {
	t.Helper()
	db, err := openBolt(path)
	if err != nil {
		t.Fatal(err)
	}
	db.NoSync = true
	kept, err := disk.Keep(func() (*bbolt.DB, error) { return db, nil }, makeBuckets)
	if err != nil {
		t.Fatal(err)
	}
	s := BoltStore{db: kept}
	keys := make([]scaleKey, n)
	for i := range keys {
		reg, err := crypto.GenerateDH()
		if err != nil {
			t.Fatal(err)
		}
		key, err := crypto.GenerateKey()
		if err != nil {
			t.Fatal(err)
		}
		keys[i] = scaleKey{key.Public(), reg}
		a := Agent{Key: key.Public(), Addr: [6]byte{0, 0, 1, byte(i >> 16), byte(i >> 8), byte(i)}, Registration: reg.Public(),
			Claim: make([]byte, 160), Card: make([]byte, 1500)}
		if err := s.Register(a); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Sync(); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return keys
}
