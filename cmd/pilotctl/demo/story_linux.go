package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/pilotnet/pilot/overlay"
)

const (
	stepTime  = 30 * time.Second      // the most that one command may take
	askEvery  = 50 * time.Millisecond // while the story waits for something
	page      = "http://bob.pilot.internal:8080/"
	knocks    = 1000
	serverLog = "server.log"
	logLines  = 12 // to show after a failure
)

// A story is one performance.
type story struct {
	*transcript
	ctx   context.Context
	begun time.Time
	world *world
	keep  bool
	curl  bool // is installed
}

func newStory(ctx context.Context, dir string, o Options) (*story, error) {
	s := &story{transcript: &transcript{w: o.Out, color: o.Color}, ctx: ctx, begun: time.Now(), keep: o.Keep}
	exe, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("demo: find this program: %w", err)
	}
	_, err = exec.LookPath("curl")
	s.curl = err == nil
	s.world, err = buildWorld(dir, exe)
	return s, err
}

// tell plays all scenes.
func (s *story) tell() error {
	s.lines(fmt.Sprintf(strings.TrimSpace(`
Pilot, the whole story on this machine, in namespaces that end with it:

  server %s --- Internet --+-- NAT router 198.51.100.2 -- alice 10.1.0.2
                                   +-- NAT router 203.0.113.2 --- bob %s, mallory 10.2.0.66`), serverAddr, bobAddr))
	for _, scene := range []func() error{s.join, s.meet, s.talk, s.knock, s.part} {
		if err := scene(); err != nil {
			return err
		}
	}
	took := time.Since(s.begun).Seconds()
	if !s.keep {
		s.heading("That was all, in %.0f s. Nothing of it stays behind.", took)
	} else {
		s.heading("That was all, in %.0f s.", took)
		s.lines("The lab stays up. Look around:  pilotctl demo enter alice   (also bob, mallory, server)\n" +
			"Remove it:                      pilotctl demo down")
	}
	return nil
}

// join starts the server and both agents.
func (s *story) join() error {
	s.heading("A server that anyone can run. It prints the line that agents need:")
	argv := []string{"pilotctl", "server", "run", "--listen", serverAddr + ":3478", "--public", serverHost}
	flag, err := s.startServer(argv)
	if err != nil {
		return err
	}
	s.heading("Each agent makes its identity and its permanent address, and comes up:")
	for _, name := range []string{"alice", "bob"} {
		if err := s.must(s.run(name, "pilotctl", "up", "--name", name, "--server", strings.TrimPrefix(flag, "--server "))); err != nil {
			return err
		}
	}
	return s.webServer()
}

// startServer runs the server in the background until the end of the demo, and
// returns the flag that it prints.
func (s *story) startServer(argv []string) (string, error) {
	s.command("server", argv, " &")
	h := s.world.hosts["server"]
	cmd, err := s.world.command(h, argv...)
	if err != nil {
		return "", err
	}
	log, err := os.Create(filepath.Join(s.world.home(h), serverLog))
	if err != nil {
		return "", err
	}
	defer log.Close()
	cmd.Stderr = log
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", err
	}
	if err := h.Start(cmd); err != nil {
		return "", fmt.Errorf("demo: start the server: %w", err)
	}
	line := make(chan string, 1)
	go func() {
		buf := make([]byte, 512)
		n, _ := out.Read(buf)
		line <- string(buf[:n])
	}()
	select {
	case flag := <-line:
		if !strings.HasPrefix(flag, "--server ") {
			return "", overlay.Errorf(overlay.CodeInternal, "the server did not start")
		}
		s.lines(flag)
		return strings.TrimSpace(flag), nil
	case <-time.After(stepTime):
		return "", overlay.Errorf(overlay.CodeTimeout, "the server is not ready after %v", stepTime)
	case <-s.ctx.Done():
		return "", s.ctx.Err()
	}
}

// logs shows the last that the programs in the background said, after a failure.
func (s *story) logs() {
	for host, log := range map[string]string{"server": serverLog, "alice": "state/daemon.log", "bob": "state/daemon.log"} {
		path := filepath.Join(s.world.home(s.world.hosts[host]), log)
		text, err := os.ReadFile(path)
		if err != nil || len(text) == 0 {
			continue
		}
		lines := strings.Split(strings.TrimSpace(string(text)), "\n")
		s.heading("the end of the log of %s:", host)
		s.lines(strings.Join(lines[max(0, len(lines)-logLines):], "\n"))
	}
}

// webServer is a plain program of bob's that knows nothing of Pilot.
func (s *story) webServer() error {
	var l net.Listener
	err := s.world.hosts["bob"].Do(func() (err error) {
		l, err = net.Listen("tcp", "[::]:8080")
		return err
	})
	if err != nil {
		return fmt.Errorf("demo: web server of bob: %w", err)
	}
	go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		fmt.Fprintf(w, "Hello from bob's plain web server. You come from %s.\n", host)
	}))
	return nil
}

// meet makes alice and bob trust each other.
func (s *story) meet() error {
	s.heading("Nobody can reach bob before he says so. He gives alice his contact, and she asks:")
	if err := s.must(s.run("bob", "sh", "-c", "pilotctl id | grep contact")); err != nil {
		return err
	}
	var bob overlay.ID
	if err := s.ask("bob", &bob, "id"); err != nil {
		return err
	}
	if err := s.must(s.run("alice", "pilotctl", "trust", "request", bob.Contact, "--reason", "read the weekly report", "--ports", "8080")); err != nil {
		return err
	}
	var waiting []overlay.Request
	err := s.until("alice's request to reach bob", func() (bool, error) {
		err := s.ask("bob", &waiting, "trust", "pending")
		return len(waiting) > 0, err
	})
	if err != nil {
		return err
	}
	if err := s.must(s.run("bob", "pilotctl", "trust", "pending")); err != nil {
		return err
	}
	if err := s.must(s.run("bob", "pilotctl", "trust", "approve", "alice")); err != nil {
		return err
	}
	return s.until("bob's grant to reach alice", func() (bool, error) {
		_, known, err := s.peer("alice", "bob")
		return known, err
	})
}

// talk uses the trust.
func (s *story) talk() error {
	restore, err := s.world.severDirect()
	if err != nil {
		return err
	}
	s.heading("The tunnel, by relay, which is there at once (the lab cuts the direct way for this ping):")
	relayed, err := s.run("alice", "pilotctl", "ping", "bob", "-c", "1")
	if err := errors.Join(restore(), s.must(relayed, err)); err != nil {
		return err
	}
	if !strings.Contains(relayed.output, "path=relay") {
		return overlay.Errorf(overlay.CodeInternal, "that did not go by relay")
	}
	s.heading("and straight through both NATs, as soon as that works:")
	if err := s.must(s.run("alice", "pilotctl", "ping", "bob", "--until-direct", "-i", "200ms")); err != nil {
		return err
	}
	s.heading("An unmodified program on an ordinary URL:")
	if !s.curl {
		s.lines("(curl is not installed: Go's HTTP client does it)")
	}
	got, err := s.fetch()
	if err := s.must(got, err); err != nil {
		return err
	}
	if !strings.Contains(got.output, "Hello from bob") {
		return overlay.Errorf(overlay.CodeInternal, "that was not bob's page")
	}
	return s.must(s.run("alice", "sh", "-c", "pilotctl status | tail -n 2"))
}

// fetch gets bob's page as alice.
func (s *story) fetch() (outcome, error) {
	if !s.curl {
		return s.run("alice", "pilotctl", "demo", "get", page)
	}
	return s.run("alice", "curl", "-sS", "--max-time", strconv.Itoa(int(GetTimeout.Seconds())), page)
}

// knock has a stranger try bob's socket.
func (s *story) knock() error {
	s.heading("A stranger on bob's own LAN, who even knows his UDP port, gets silence:")
	var before, after overlay.Status
	if err := s.ask("bob", &before, "status"); err != nil {
		return err
	}
	at := netip.AddrPortFrom(netip.MustParseAddr(bobAddr), before.Socket.Port)
	knocked, err := s.run("mallory", "pilotctl", "demo", "knock", at.String(), "--count", strconv.Itoa(knocks))
	if err := s.must(knocked, err); err != nil {
		return err
	}
	if !strings.Contains(knocked.output, " 0 bytes came back") {
		return overlay.Errorf(overlay.CodeInternal, "the stranger got an answer")
	}
	if err := s.ask("bob", &after, "status"); err != nil {
		return err
	}
	arrived, reasons := rise(before.Drops, after.Drops)
	s.lines(fmt.Sprintf("(bob's counters: %d datagrams arrived and were dropped: %s)", arrived, reasons))
	if arrived < knocks {
		return overlay.Errorf(overlay.CodeInternal, "only %d of %d datagrams arrived: the silence proves nothing", arrived, knocks)
	}
	s.heading("while alice, on the same socket, is answered:")
	return s.must(s.run("alice", "pilotctl", "ping", "bob", "-c", "1"))
}

// strange are the reasons for which a datagram is dropped before it has proved to
// come from a peer.
var strange = []string{"in_unknown", "in_short", "in_init_tag", "in_init_mac", "in_resp_index", "in_index", "in_auth"}

// rise counts what strangers sent between two states.
func rise(before, after map[string]uint64) (total uint64, reasons string) {
	var list []string
	for _, reason := range strange {
		if n := after[reason] - before[reason]; n > 0 {
			total += n
			list = append(list, fmt.Sprintf("%s %d", strings.ReplaceAll(strings.TrimPrefix(reason, "in_"), "_", " "), n))
		}
	}
	return total, strings.Join(list, ", ")
}

// part ends the trust.
func (s *story) part() error {
	s.heading("Trust ends as soon as bob says so:")
	if err := s.must(s.run("bob", "pilotctl", "trust", "revoke", "alice")); err != nil {
		return err
	}
	got, err := s.fetch()
	if err != nil {
		return err
	}
	if got.status == 0 {
		return overlay.Errorf(overlay.CodeInternal, "alice still got the page")
	}
	return nil
}

// An outcome is what a command printed, and its exit status.
type outcome struct {
	command string
	output  string
	errors  string // and progress
	status  int
}

// must makes an error of a command that failed.
func (s *story) must(o outcome, err error) error {
	if err == nil && o.status != 0 {
		err = overlay.Errorf(overlay.CodeInternal, "%s failed with exit status %d", o.command, o.status).
			WithHint("pilotctl demo --keep leaves the lab up, to look around")
	}
	return err
}

// run types a command on a host and shows what comes back: its result and, where it
// fails, the errors. Progress, which is on stderr too, would only be noise.
func (s *story) run(host string, argv ...string) (outcome, error) {
	s.command(host, argv, "")
	o, err := s.quietly(host, argv...)
	if err != nil {
		return o, err
	}
	s.lines(o.output)
	if o.status != 0 {
		s.lines(o.errors)
		s.lines(fmt.Sprintf("(exit status %d)", o.status))
	}
	return o, nil
}

// quietly runs a command on a host.
func (s *story) quietly(host string, argv ...string) (outcome, error) {
	o := outcome{command: strings.Join(argv[:min(len(argv), 3)], " ")}
	h := s.world.hosts[host]
	cmd, err := s.world.command(h, argv...)
	if err != nil {
		return o, fmt.Errorf("demo: %w", err)
	}
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := h.Start(cmd); err != nil {
		return o, fmt.Errorf("demo: start %s: %w", o.command, err)
	}
	late := time.AfterFunc(stepTime, func() { cmd.Process.Kill() })
	defer late.Stop()
	defer context.AfterFunc(s.ctx, func() { cmd.Process.Kill() })()
	err = cmd.Wait()
	if s.ctx.Err() != nil {
		return o, s.ctx.Err()
	}
	if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) {
		return o, fmt.Errorf("demo: %s: %w", o.command, err)
	}
	o.output, o.errors, o.status = out.String(), errs.String(), cmd.ProcessState.ExitCode()
	return o, nil
}

// ask reads the data of a pilotctl command.
func (s *story) ask(host string, data any, command ...string) error {
	argv := append([]string{"pilotctl", "--json"}, command...)
	o, err := s.quietly(host, argv...)
	if err != nil {
		return err
	}
	answer := struct {
		Data  any            `json:"data"`
		Error *overlay.Error `json:"error"`
	}{Data: data}
	if err := json.Unmarshal([]byte(o.output), &answer); err != nil {
		return fmt.Errorf("demo: %s on %s answers %q: %w", o.command, host, o.output, err)
	}
	if answer.Error != nil {
		return answer.Error
	}
	return nil
}

// peer is what a host's agent knows of one of its peers.
func (s *story) peer(host, name string) (overlay.Peer, bool, error) {
	var peers []overlay.Peer
	if err := s.ask(host, &peers, "peers"); err != nil {
		return overlay.Peer{}, false, err
	}
	for _, p := range peers {
		if p.Name == name {
			return p, true, nil
		}
	}
	return overlay.Peer{}, false, nil
}

// until waits for something that other processes bring about.
func (s *story) until(what string, done func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(s.ctx, stepTime)
	defer cancel()
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	for {
		ok, err := done()
		if ok || err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			if s.ctx.Err() != nil {
				return s.ctx.Err()
			}
			return overlay.Errorf(overlay.CodeTimeout, "waited %v for %s", stepTime, what)
		}
	}
}
