package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

var soakPorts = map[string]string{"up": "5301", "down": "5302"}

// soakGrowth is how much of its memory a daemon may gain after the first minute:
// 5 %, and in a soak of less than five minutes, in which a Go heap of 8 MB has
// not found its size yet, what only a leak gains.
func soakGrowth(d time.Duration) float64 {
	if d < 5*time.Minute {
		return 1.25
	}
	return 1.05
}

// soak sends a stream each way through Pilot, over a link that loses and
// reorders, and fails if a byte is wrong, or a daemon's memory or the number of its
// descriptors grows.
func soak(ctx context.Context, o options) error {
	w, err := newSoakWorld(ctx, badLink{loss: 0.01, reorder: 0.01, delay: 2 * time.Millisecond})
	if err != nil {
		return err
	}
	defer w.close()
	w.pilotctl = o.pilotctl
	c, err := startPilot(w)
	if err != nil {
		return err
	}
	c.world = w
	fmt.Fprintln(os.Stderr, c.about)
	settled := min(time.Minute, o.soak/2)
	series := c.record(ctx)
	streams := make(chan error, 2)
	for _, way := range []string{"up", "down"} {
		go func() { streams <- c.stream(ctx, way, o.soak) }()
	}
	if err := errors.Join(<-streams, <-streams); err != nil {
		return fmt.Errorf("%w\n%s\n%s", err, w.log("alice"), w.log("bob"))
	}
	all := series()
	seconds := int(settled / time.Second)
	if len(all) < seconds+2 {
		return fmt.Errorf("only %d samples of memory in %v", len(all), o.soak)
	}
	before, after := highest(all[:seconds]), highest(all[seconds:])
	for i := range before {
		fmt.Fprintf(os.Stderr, "daemon %d: after %v %v, at the end %v\n", i+1, settled, before[i], after[i])
		if float64(after[i].kb) > soakGrowth(o.soak)*float64(before[i].kb) {
			err = errors.Join(err, fmt.Errorf("daemon %d grew from %d to %d kB", i+1, before[i].kb, after[i].kb))
		}
		if after[i].descriptors > before[i].descriptors {
			err = errors.Join(err, fmt.Errorf("daemon %d had %d descriptors and has %d", i+1, before[i].descriptors, after[i].descriptors))
		}
	}
	return err
}

func newSoakWorld(ctx context.Context, l badLink) (*world, error) {
	dir, err := os.MkdirTemp("", "pilotbench")
	if err != nil {
		return nil, err
	}
	w := &world{dir: dir, prefix: fmt.Sprintf("soak%d", os.Getpid())}
	w.ctx, w.stop = context.WithCancel(ctx)
	err = w.namespaces()
	if err == nil {
		err = w.join(l)
	}
	if err == nil {
		err = w.lines("-n R link set pa master br0 up", "-n A addr add 10.99.0.1/24 dev eth0", "-n A link set eth0 mtu 1500 up",
			"-n A route add default via 10.99.0.254")
	}
	if err == nil {
		err = w.plug("B", 2)
	}
	if err != nil {
		w.close()
		return nil, err
	}
	return w, nil
}

// A footprint is what a daemon holds.
type footprint struct{ kb, descriptors, threads int }

func (f footprint) String() string {
	return fmt.Sprintf("RssAnon %d kB, %d descriptors, %d threads", f.kb, f.descriptors, f.threads)
}

// soakWindow is how many samples, one a second, a footprint is the highest of:
// the memory of a Go program goes up and down with its collections.
const soakWindow = 20

// highest is the most that each daemon held in the last samples of a series.
func highest(series [][]footprint) []footprint {
	series = series[max(0, len(series)-soakWindow):]
	most := slices.Clone(series[0])
	for _, sample := range series {
		for i, f := range sample {
			most[i] = footprint{max(most[i].kb, f.kb), max(most[i].descriptors, f.descriptors), max(most[i].threads, f.threads)}
		}
	}
	return most
}

// record takes the footprints every second until what it returns is called, which
// gives them.
func (c *contestant) record(ctx context.Context) func() [][]footprint {
	ctx, stop := context.WithCancel(ctx)
	done := make(chan [][]footprint)
	go func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		var series [][]footprint
		for {
			select {
			case <-ctx.Done():
				done <- series
				return
			case <-tick.C:
				series = append(series, c.footprints())
			}
		}
	}()
	return func() [][]footprint {
		stop()
		return <-done
	}
}

// footprints are those of the daemons.
func (c *contestant) footprints() (list []footprint) {
	for _, pid := range c.pids {
		dir := filepath.Join("/proc", strconv.Itoa(pid))
		b, _ := os.ReadFile(filepath.Join(dir, "status"))
		fds, _ := os.ReadDir(filepath.Join(dir, "fd"))
		list = append(list, footprint{kb: statusKB(b, "RssAnon"), descriptors: len(fds), threads: statusKB(b, "Threads")})
	}
	return list
}

// stream sends random bytes for a while, from A to B ("up") or back, and
// compares what both sides have counted and hashed.
func (c *contestant) stream(ctx context.Context, way string, d time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, d+2*time.Minute)
	defer cancel()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	var heard strings.Builder
	server := c.command(ctx, "B", self, "end", "listen", way, ":"+soakPorts[way], d.String())
	server.Stdout, server.Stderr = &heard, os.Stderr
	if err := server.Start(); err != nil {
		return err
	}
	address := net.JoinHostPort(c.address, soakPorts[way])
	client := c.command(ctx, "A", self, "end", "dial", way, address, d.String())
	client.Stderr = os.Stderr
	said, err := client.Output()
	err = errors.Join(err, server.Wait())
	if err != nil {
		return fmt.Errorf("stream %s: %w", way, err)
	}
	fmt.Fprintf(os.Stderr, "%s: %s", way, said)
	if string(said) != heard.String() || len(said) == 0 {
		return fmt.Errorf("stream %s: one side has %s, the other %s", way, strings.TrimSpace(string(said)), strings.TrimSpace(heard.String()))
	}
	return nil
}

// soakEnd is one end of a stream, in a process of its own: it prints how many
// bytes passed, and their hash.
func soakEnd(role, way, address string, d time.Duration) error {
	var conn net.Conn
	if role == "listen" {
		l, err := net.Listen("tcp", address)
		if err != nil {
			return err
		}
		if conn, err = l.Accept(); err != nil {
			return err
		}
		l.Close()
	} else {
		var err error
		for range 50 { // until the other end listens
			if conn, err = net.DialTimeout("tcp", address, 10*time.Second); err == nil {
				break
			}
			<-time.After(100 * time.Millisecond)
		}
		if err != nil {
			return err
		}
	}
	defer conn.Close()
	hash := sha256.New()
	var n int64
	var err error
	if (role == "dial") == (way == "up") {
		n, err = pour(io.MultiWriter(conn, hash), d)
		if err == nil {
			err = conn.(*net.TCPConn).CloseWrite()
		}
		if err == nil {
			_, err = io.Copy(io.Discard, conn) // until the other end has all
		}
	} else {
		n, err = io.Copy(hash, conn)
	}
	if err != nil {
		return err
	}
	fmt.Printf("%d bytes, SHA-256 %s\n", n, hex.EncodeToString(hash.Sum(nil)))
	return nil
}

// pour writes random bytes in pieces of all sizes until time is up.
func pour(w io.Writer, d time.Duration) (n int64, err error) {
	var seed [32]byte
	for i := range seed {
		seed[i] = byte(rand.Uint32())
	}
	source, buf := rand.NewChaCha8(seed), make([]byte, 128<<10)
	for end := time.Now().Add(d); time.Now().Before(end); {
		b := buf[:1+rand.IntN(len(buf))]
		_, _ = source.Read(b) // never fails
		m, err := w.Write(b)
		n += int64(m)
		if err != nil {
			return n, err
		}
	}
	return n, nil
}
