package main

import (
	"crypto/ecdh"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// A contestant is a way from host a to host b.
type contestant struct {
	*world
	name    string
	about   string
	address string // of host b
	pids    []int  // of its daemons
	servers []int  // of what relays between them
	peak    int    // largest RssAnon of one of them, kB
	peakAll int    // largest VmRSS, kB
}

var starters = map[string]func(*world) (*contestant, error){
	"veth":         startVeth,
	"wireguard-go": startWireGuard,
	"nebula":       startNebula,
	"pilot":        startPilot,
	direct:         startPilot,
	relayed:        startRelayed,
}

func startVeth(*world) (*contestant, error) {
	return &contestant{address: "10.99.0.2", about: "no overlay; IPv4"}, nil
}

// startWireGuard runs the main program of the module that we use the TUN of.
func startWireGuard(w *world) (*contestant, error) {
	const module = "golang.zx2c4.com/wireguard"
	program := filepath.Join(w.dir, "wireguard-go")
	if err := w.goBuild(program, module); err != nil {
		return nil, err
	}
	c := &contestant{address: "fd77::2", about: module + " " + output("go", "list", "-m", "-f", "{{.Version}}", module) + ", MTU 1420"}
	var keys [2]*ecdh.PrivateKey
	for i := range keys {
		k, err := ecdh.X25519().GenerateKey(rand.Reader)
		if err != nil {
			return nil, err
		}
		keys[i] = k
	}
	for i, host := range []string{"A", "B"} {
		device := fmt.Sprintf("wg%d%s", os.Getpid(), host)
		d, err := w.start(host, "wireguard"+host, []string{"LOG_LEVEL=error"}, program, "-f", device)
		if err != nil {
			return nil, err
		}
		c.pids = append(c.pids, d.Process.Pid)
		config := fmt.Sprintf("set=1\nprivate_key=%s\nlisten_port=51820\npublic_key=%s\nallowed_ip=fd77::%d/128\nendpoint=10.99.0.%d:51820\n\n",
			hex.EncodeToString(keys[i].Bytes()), hex.EncodeToString(keys[1-i].PublicKey().Bytes()), 2-i, 2-i)
		err = w.await(5*time.Second, "wireguard-go takes its configuration", func() bool { return configure(device, config) == nil })
		if err != nil {
			return nil, err
		}
		for _, line := range []string{
			fmt.Sprintf("-n %s addr add fd77::%d/64 dev %s nodad", host, i+1, device),
			fmt.Sprintf("-n %s link set %s up", host, device),
		} {
			if err := w.ip(line); err != nil {
				return nil, err
			}
		}
	}
	return c, w.reachable(c.address)
}

// configure sends one request over wireguard-go's configuration socket.
func configure(device, request string) error {
	conn, err := net.Dial("unix", "/var/run/wireguard/"+device+".sock")
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, request); err != nil {
		return err
	}
	answer := make([]byte, 100)
	n, err := conn.Read(answer)
	if err != nil {
		return err
	}
	if !strings.Contains(string(answer[:n]), "errno=0") {
		return errors.New(string(answer[:n]))
	}
	return nil
}

func (w *world) reachable(address string) error {
	return w.await(20*time.Second, address+" answers", func() bool {
		return w.command(w.ctx, "A", lookup("ping"), "-n", "-c", "1", "-w", "1", address).Run() == nil
	})
}

// An agent is one of the two that measure Pilot.
type agent struct {
	w     *world
	host  string
	state string
}

// pilot runs a pilotctl command at an agent and decodes its data.
func (a *agent) pilot(data any, args ...string) error {
	args = append([]string{a.w.pilotctl}, args...)
	args = append(args, "--state-dir", a.state, "--json")
	out, err := a.w.command(a.w.ctx, a.host, args...).Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, exit.Stderr)
		}
		return fmt.Errorf("pilotctl %s: %w", strings.Join(args[1:], " "), err)
	}
	if data == nil {
		return nil
	}
	return json.Unmarshal(out, &struct {
		Data any `json:"data"`
	}{data})
}

// identity gives an agent a key whose address was searched for before.
func (a *agent) identity(name string) error {
	dir := output("go", "list", "-f", "{{.Dir}}", "github.com/pilotnet/pilot/ipam")
	id, err := os.ReadFile(filepath.Join(dir, "testdata", name+".identity"))
	if err != nil {
		return err
	}
	if err := os.Mkdir(a.state, 0o700); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(a.state, "identity"), id, 0o600)
}

// pilotStatus is what we read of "pilotctl status --json".
type pilotStatus struct {
	Name     string
	Contact  string
	ULA      string
	Requests []struct{ Name string }
	Device   struct {
		MTU     int
		Offload string
	}
	Socket  struct{ Offload string }
	Servers []struct{ State string }
	Peers   []struct {
		Name, Trust, Path string
		Budget            int
	}
}

func (a *agent) status() (s pilotStatus) {
	_ = a.pilot(&s, "status") // asked again
	return s
}

func startPilot(w *world) (*contestant, error) { return startAgents(w, "direct") }

// startRelayed is startPilot where the agents do not reach each other.
func startRelayed(w *world) (*contestant, error) {
	if err := w.isolate(); err != nil {
		return nil, err
	}
	return startAgents(w, "relay", "--relay-rate", "100000")
}

// startAgents runs a server with these flags and two agents, which are to find a
// path of this kind.
func startAgents(w *world, path string, flags ...string) (*contestant, error) {
	if w.pilotctl == "" {
		w.pilotctl = filepath.Join(w.dir, "pilotctl")
		if err := w.goBuild(w.pilotctl, "github.com/pilotnet/pilot/cmd/pilotctl"); err != nil {
			return nil, err
		}
	}
	serverState := filepath.Join(w.dir, "server")
	out, err := w.command(w.ctx, "R", w.pilotctl, "server", "key", "--state-dir", serverState).Output()
	if err != nil {
		return nil, fmt.Errorf("pilotctl server key: %w", err)
	}
	args := append([]string{w.pilotctl, "server", "run", "--listen", "10.99.0.254:3478", "--state-dir", serverState}, flags...)
	server, err := w.start("R", "server", nil, args...)
	if err != nil {
		return nil, err
	}
	c := &contestant{}
	if path == "relay" {
		c.servers = []int{server.Process.Pid}
	}
	agents := [2]*agent{{w, "A", filepath.Join(w.dir, "alice")}, {w, "B", filepath.Join(w.dir, "bob")}}
	for i, name := range []string{"alice", "bob"} {
		a := agents[i]
		if err := a.identity(name); err != nil {
			return nil, err
		}
		d, err := w.start(a.host, name, nil, w.pilotctl, "daemon", "run", "--state-dir", a.state, "--dns", "off",
			"--name", name, "--server", "10.99.0.254#"+strings.TrimSpace(string(out)))
		if err != nil {
			return nil, err
		}
		c.pids = append(c.pids, d.Process.Pid)
		err = w.await(20*time.Second, name+" is registered", func() bool {
			s := a.status()
			return len(s.Servers) == 1 && s.Servers[0].State == "registered"
		})
		if err != nil {
			return nil, fmt.Errorf("%w: %s", err, w.log(name))
		}
	}
	if err := befriend(w, agents[0], agents[1]); err != nil {
		return nil, err
	}
	c.address = agents[1].status().ULA
	if err := w.reachable(c.address); err != nil {
		return nil, err
	}
	return c, w.await(20*time.Second, "the path is "+path+" and its size is known", func() bool {
		s := agents[0].status()
		if len(s.Peers) != 1 || s.Peers[0].Path != path || s.Peers[0].Budget < 1500 {
			return false
		}
		c.about = fmt.Sprintf("MTU %d, TUN %s, UDP %s, %s path, frames of %d bytes",
			s.Device.MTU, s.Device.Offload, s.Socket.Offload, s.Peers[0].Path, s.Peers[0].Budget)
		return true
	})
}

// befriend gives both agents all ports of the other.
func befriend(w *world, a, b *agent) error {
	if err := a.pilot(nil, "trust", "request", b.status().Contact, "--reason", "measurement", "--ports", "all", "--offer", "all"); err != nil {
		return err
	}
	if err := w.await(20*time.Second, "the request has come", func() bool { return len(b.status().Requests) == 1 }); err != nil {
		return err
	}
	if err := b.pilot(nil, "approve", "alice", "--ports", "all"); err != nil {
		return err
	}
	return w.await(20*time.Second, "trust is mutual", func() bool {
		s := a.status()
		return len(s.Peers) == 1 && s.Peers[0].Trust == "active"
	})
}

// watchMemory keeps the peaks of the contestants until the returned function is
// called.
func watchMemory(all []*contestant) (stop func()) {
	done := make(chan struct{})
	var ended sync.WaitGroup
	ended.Go(func() {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			for _, c := range all {
				for _, pid := range c.pids {
					b, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
					c.peak = max(c.peak, statusKB(b, "RssAnon"))
					c.peakAll = max(c.peakAll, statusKB(b, "VmRSS"))
				}
			}
			select {
			case <-done:
				return
			case <-tick.C:
			}
		}
	})
	return func() { close(done); ended.Wait() }
}
