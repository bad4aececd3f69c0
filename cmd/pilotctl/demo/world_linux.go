package demo

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/pilotnet/pilot/cmd/pilotctl/demo/lab"
)

// The demo's Internet, in the address blocks that are set aside for documentation.
//
//	server 192.0.2.10 ---- core ---- 198.51.100.2 router 10.1.0.1 ---- alice 10.1.0.2
//	                         |
//	                         +------ 203.0.113.2  router 10.2.0.1 -+-- bob     10.2.0.2
//	                                                               +-- mallory 10.2.0.66
const (
	serverHost = "rendezvous.example"
	serverAddr = "192.0.2.10"
	bobAddr    = "10.2.0.2"
)

// A world is the lab with its hosts.
type world struct {
	dir   string // in memory; PATH begins with dir/bin
	hosts map[string]*lab.Host
	err   error
}

// buildWorld makes the lab. dir becomes a file system in memory.
func buildWorld(dir, exe string) (*world, error) {
	if err := lab.Scratch(dir); err != nil {
		return nil, err
	}
	w := &world{dir: dir, hosts: make(map[string]*lab.Host)}
	w.do(os.Mkdir(filepath.Join(dir, "bin"), 0o755))
	w.do(os.Symlink(exe, filepath.Join(dir, "bin", "pilotctl")))
	for _, name := range []string{"core", "server", "router-a", "router-b", "alice", "bob", "mallory"} {
		h, err := lab.NewHost(name)
		w.do(err)
		w.hosts[name] = h
	}
	w.wire("core", "server", "192.0.2.1/24", "server", "eth0", serverAddr+"/24")
	w.wire("core", "isp-a", "198.51.100.1/24", "router-a", "wan", "198.51.100.2/24")
	w.wire("core", "isp-b", "203.0.113.1/24", "router-b", "wan", "203.0.113.2/24")
	w.wire("router-a", "lan", "10.1.0.1/24", "alice", "eth0", "10.1.0.2/24")
	w.wire("router-b", "lan1", "", "bob", "eth0", bobAddr+"/24")
	w.wire("router-b", "lan2", "", "mallory", "eth0", "10.2.0.66/24")
	if w.err != nil {
		return nil, w.err
	}
	w.do(w.hosts["router-b"].Bridge("lan", "lan1", "lan2"))
	w.address("router-b", "lan", "10.2.0.1/24")
	w.do(w.hosts["core"].Forward())
	for host, router := range map[string]string{"server": "192.0.2.1", "router-a": "198.51.100.1", "router-b": "203.0.113.1",
		"alice": "10.1.0.1", "bob": "10.2.0.1", "mallory": "10.2.0.1"} {
		w.do(w.hosts[host].Gateway(netip.MustParseAddr(router)))
	}
	w.do(w.hosts["router-a"].Masquerade("wan"))
	w.do(w.hosts["router-b"].Masquerade("wan"))
	for _, name := range []string{"server", "alice", "bob", "mallory"} {
		w.do(w.furnish(w.hosts[name]))
	}
	return w, w.err
}

// do keeps the first error; what comes after it does nothing of use.
func (w *world) do(err error) {
	if w.err == nil {
		w.err = err
	}
}

func (w *world) wire(a, deviceA, addrA, b, deviceB, addrB string) {
	if w.err != nil {
		return
	}
	w.do(lab.Wire(w.hosts[a], deviceA, w.hosts[b], deviceB))
	w.address(a, deviceA, addrA)
	w.address(b, deviceB, addrB)
}

func (w *world) address(host, device, prefix string) {
	if w.err == nil && prefix != "" {
		w.do(w.hosts[host].Address(device, netip.MustParsePrefix(prefix)))
	}
}

// furnish gives a host its home and its own copies of the files by which names are
// resolved, without a way around them to a resolver of the machine.
func (w *world) furnish(h *lab.Host) error {
	home := w.home(h)
	if err := os.Mkdir(home, 0o755); err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	machine, err := os.ReadFile("/etc/hosts")
	if err != nil {
		return fmt.Errorf("demo: the hosts file to make private copies of: %w", err)
	}
	text := strings.TrimRight(string(machine), "\n") + "\n" + serverAddr + " " + serverHost + "\n"
	for _, file := range []struct {
		path, text string
		optional   bool
	}{
		{"/etc/hosts", text, false},
		{"/etc/resolv.conf", "nameserver 127.0.0.1\n", true},
		{"/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n", true},
	} {
		own := filepath.Join(home, filepath.Base(file.path))
		if err := os.WriteFile(own, []byte(file.text), 0o644); err != nil {
			return fmt.Errorf("demo: %w", err)
		}
		if err := h.Cover(file.path, own); err != nil && !(file.optional && errors.Is(err, fs.ErrNotExist)) {
			return err
		}
	}
	return nil
}

func (w *world) home(h *lab.Host) string { return filepath.Join(w.dir, h.Name()) }

// command is a program on a host, with an environment of its own: proxies and
// settings of the machine mean nothing here.
func (w *world) command(h *lab.Host, argv ...string) (*exec.Cmd, error) {
	path, err := w.find(argv[0])
	if err != nil {
		return nil, err
	}
	home := w.home(h)
	cmd := exec.Command(path)
	cmd.Args = argv
	cmd.Dir = home
	cmd.Env = []string{
		"PATH=" + filepath.Join(w.dir, "bin") + ":" + os.Getenv("PATH"),
		"HOME=" + home,
		"LANG=C.UTF-8",
		"PS1=" + h.Name() + "$ ",
		"PILOT_STATE_DIR=" + filepath.Join(home, "state"),
		"PILOT_SERVER_STATE_DIR=" + filepath.Join(home, "state"),
	}
	return cmd, nil
}

func (w *world) find(program string) (string, error) {
	if program == "pilotctl" {
		return filepath.Join(w.dir, "bin", program), nil
	}
	return exec.LookPath(program)
}

// severDirect leaves alice and bob the server only.
func (w *world) severDirect() (restore func() error, err error) {
	return w.hosts["core"].Sever("isp-a", "isp-b")
}

// furnished says whether somebody lives on the host.
func (w *world) furnished(name string) bool {
	return name != "core" && !strings.HasPrefix(name, "router")
}
