package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/BurntSushi/toml"
	"github.com/urfave/cli/v2"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/ipam"
	"github.com/pilotnet/pilot/overlay"
	"github.com/pilotnet/pilot/overlay/services"
	"github.com/pilotnet/pilot/tun/resolv"
)

// settings are what a daemon is started with, from wherever each came.
type settings struct {
	name    string
	servers []crypto.Server
	tun     string // device name, "auto" or "userspace"
	proxy   string // ADDRESS:PORT, "auto" or "off"
	dns     string // "auto", "hosts" or "off"
	search  bool   // bare names too
	port    uint16 // 0: the stored one

	services []services.Service
	stun     []overlay.STUNServer
	caFile   string // certificates for proxies; empty: the system's only
}

// rawSettings are settings as they were written. An empty field was not given.
type rawSettings struct {
	Name    string   `toml:"name"`
	Servers []string `toml:"servers"`
	TUN     string   `toml:"tun"`
	Proxy   string   `toml:"proxy"`
	DNS     string   `toml:"dns"`
	Search  bool     `toml:"dns_search"`
	Port    int      `toml:"port"`

	Services string   `toml:"services"`
	STUN     []string `toml:"stun"`
	CAFile   string   `toml:"ca_file"`
}

// Words of the settings tun and proxy.
const (
	autoDevice      = "auto"
	userspaceDevice = "userspace"
	autoProxy       = overlay.ProxyAuto
	noProxy         = "off"
)

// nodeFlags are the flags that name and place a node; runFlags those that only a
// running daemon needs.
func nodeFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "name", Usage: "what the agent calls itself, and suggests to others (PILOT_NAME)"},
		&cli.StringSliceFlag{Name: "server", Usage: "home server HOST[:PORT]#KEY; repeatable (PILOT_SERVER)"},
	}
}

func runFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "tun", Usage: "name of the network device; auto: the first free one, or userspace where none is to be had; userspace: none, peers are reached through the proxy (PILOT_TUN)"},
		&cli.StringFlag{Name: "proxy", Usage: "where programs without the device reach peers, by SOCKS 5 or HTTP: ADDRESS:PORT of the loopback, auto, off (PILOT_PROXY)"},
		&cli.StringFlag{Name: "dns", Usage: "how programs find peers by name: auto, by what this system has; resolvconf, by that or openresolv; hosts, by the hosts file; off (PILOT_DNS)"},
		&cli.BoolFlag{Name: "dns-search", Usage: "make bare names work too (PILOT_DNS_SEARCH=1)"},
		&cli.StringFlag{Name: "services", Usage: "what to offer at well-known ports: all, none, or NAME,NAME (PILOT_SERVICES)"},
		&cli.IntFlag{Name: "port", Usage: "UDP port; 0: the one used before (PILOT_PORT)"},
		&cli.StringSliceFlag{Name: "stun", Usage: "ask this STUN server HOST[:PORT] too how the NAT maps; repeatable (PILOT_STUN)"},
		&cli.StringFlag{Name: "ca-file", Usage: "certificates in PEM to trust in HTTPS proxies besides the system's (PILOT_CA_FILE)"},
		&cli.StringFlag{Name: "hosts-file", Value: "/etc/hosts", Hidden: true},
		&cli.BoolFlag{Name: "takeover", Usage: "win over another machine that runs with the same identity"},
	}
}

// given reads what c and the environment say.
func (p *program) given(c *cli.Context) (rawSettings, error) {
	r := rawSettings{
		Name:    either(c.String("name"), p.getenv("PILOT_NAME")),
		Servers: c.StringSlice("server"),
		TUN:     either(c.String("tun"), p.getenv("PILOT_TUN")),
		Proxy:   either(c.String("proxy"), p.getenv("PILOT_PROXY")),
		DNS:     either(c.String("dns"), p.getenv("PILOT_DNS")),
		Search:  c.Bool("dns-search") || p.getenv("PILOT_DNS_SEARCH") == "1",
		Port:    c.Int("port"),

		Services: either(c.String("services"), p.getenv("PILOT_SERVICES")),
		STUN:     c.StringSlice("stun"),
		CAFile:   either(c.String("ca-file"), p.getenv("PILOT_CA_FILE")),
	}
	listed := func(r rune) bool { return r == ' ' || r == ',' }
	if len(r.STUN) == 0 {
		r.STUN = strings.FieldsFunc(p.getenv("PILOT_STUN"), listed)
	}
	if len(r.Servers) == 0 {
		r.Servers = strings.FieldsFunc(p.getenv("PILOT_SERVER"), listed)
	}
	if text := p.getenv("PILOT_PORT"); r.Port == 0 && text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			return r, usagef("PILOT_PORT: %.40q is no port", text)
		}
		r.Port = n
	}
	return r, nil
}

// over returns r with the fields that r leaves open taken from below.
func (r rawSettings) over(below rawSettings) rawSettings {
	r.Name, r.TUN, r.DNS = either(r.Name, below.Name), either(r.TUN, below.TUN), either(r.DNS, below.DNS)
	r.CAFile, r.Proxy = either(r.CAFile, below.CAFile), either(r.Proxy, below.Proxy)
	r.Services = either(r.Services, below.Services)
	r.Search = r.Search || below.Search
	if len(r.Servers) == 0 {
		r.Servers = below.Servers
	}
	if len(r.STUN) == 0 {
		r.STUN = below.STUN
	}
	if r.Port == 0 {
		r.Port = below.Port
	}
	return r
}

// check turns what was written into settings, or says what is wrong with it.
func (r rawSettings) check() (settings, error) {
	s := settings{name: r.Name, tun: either(r.TUN, autoDevice), proxy: either(r.Proxy, autoProxy), dns: either(r.DNS, "auto"), search: r.Search, caFile: r.CAFile}
	if r.Name != "" {
		if err := ipam.ValidName(r.Name); err != nil {
			return s, badInput(err, "a name is like alice or build-7")
		}
	}
	for _, text := range r.Servers {
		server, err := crypto.ParseServer(text)
		if err != nil {
			return s, badInput(err, "a server is HOST[:PORT]#KEY, the line that pilotctl server run prints; quote it in a shell")
		}
		if !slices.Contains(s.servers, server) {
			s.servers = append(s.servers, server)
		}
	}
	if len(s.servers) > maxServers {
		return s, usagef("%d servers are too many: the most is %d", len(s.servers), maxServers)
	}
	for _, text := range r.STUN {
		server, err := overlay.ParseSTUNServer(text)
		if err != nil {
			return s, badInput(err, "a STUN server is HOST or HOST:PORT, such as stun.example:3478")
		}
		if !slices.Contains(s.stun, server) {
			s.stun = append(s.stun, server)
		}
	}
	if len(s.stun) > overlay.MaxSTUN {
		return s, usagef("%d STUN servers are too many: the most is %d", len(s.stun), overlay.MaxSTUN)
	}
	if !slices.Contains([]resolv.Mode{resolv.Auto, resolv.Resolvconf, resolv.HostFile, resolv.Off}, resolv.Mode(s.dns)) {
		return s, usagef("--dns %.40q: want auto, resolvconf, hosts or off", s.dns)
	}
	if s.proxy != autoProxy && s.proxy != noProxy {
		if at, err := netip.ParseAddrPort(s.proxy); err != nil || !at.Addr().IsLoopback() {
			return s, usagef("--proxy %.60q: want ADDRESS:PORT of the loopback, auto or off", s.proxy).
				WithHint("for example --proxy 127.0.0.1:1080; whoever reaches the proxy is this agent, so it is for this machine only")
		}
	}
	if r.Port < 0 || r.Port > 65535 {
		return s, usagef("--port %d: want 0 to 65535", r.Port)
	}
	s.port = uint16(r.Port)
	var err error
	s.services, err = chooseServices(r.Services)
	return s, err
}

// maxServers is what fits a card, and what the node uses.
const maxServers = 4

// settings merges command line, environment, configuration file and defaults.
func (p *program) settings(c *cli.Context, at places) (settings, error) {
	top, err := p.given(c)
	if err != nil {
		return settings{}, err
	}
	file, err := readConfig(at.config)
	if err != nil {
		return settings{}, err
	}
	return top.over(file).check()
}

// readConfig reads the configuration file; one that is not there is empty.
func readConfig(path string) (rawSettings, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return rawSettings{}, nil
	}
	if err != nil {
		return rawSettings{}, systemError("read the configuration", err)
	}
	defer f.Close()
	r, err := parseConfig(f)
	if err != nil {
		return r, usagef("%s: %v", path, err).WithHint("the keys are name, servers, tun, proxy, dns, dns_search, services, stun, port and ca_file")
	}
	return r, nil
}

func parseConfig(in io.Reader) (rawSettings, error) {
	var r rawSettings
	meta, err := toml.NewDecoder(in).Decode(&r)
	if err != nil {
		return r, err
	}
	if unknown := meta.Undecoded(); len(unknown) > 0 {
		return r, fmt.Errorf("unknown key %q", unknown[0].String())
	}
	return r, nil
}

// saveConfig puts what r says and the file does not into the file, above the
// lines that are there, which stay as they are. It returns the keys that the file
// has with another value.
func saveConfig(path string, r rawSettings) (differs []string, err error) {
	have, err := readConfig(path)
	if err != nil {
		return nil, err
	}
	old, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, systemError("read the configuration", err)
	}
	var head bytes.Buffer
	if len(old) == 0 {
		fmt.Fprintf(&head, "# Configuration of a Pilot agent. Flags and PILOT_* variables win over it.\n")
	}
	switch {
	case r.Name == "" || r.Name == have.Name:
	case have.Name == "":
		fmt.Fprintf(&head, "name = %q\n", r.Name)
	default:
		differs = append(differs, "name")
	}
	switch {
	case len(r.Servers) == 0 || slices.Equal(r.Servers, have.Servers):
	case len(have.Servers) == 0:
		fmt.Fprintf(&head, "servers = [%s]\n", joinQuoted(r.Servers))
	default:
		differs = append(differs, "servers")
	}
	if head.Len() == 0 {
		return differs, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return differs, systemError("make the directory of the configuration", err)
	}
	head.Write(old)
	return differs, replaceFile(path, head.Bytes(), 0o644)
}

func joinQuoted(list []string) string {
	quoted := make([]string, len(list))
	for i, s := range list {
		quoted[i] = strconv.Quote(s)
	}
	return strings.Join(quoted, ", ")
}

// replaceFile writes a file so that a crash leaves the old one or the new one.
func replaceFile(path string, data []byte, mode fs.FileMode) error {
	temp, err := writeTemp(path, data, mode)
	if err != nil {
		return err
	}
	if err := os.Rename(temp, path); err != nil {
		os.Remove(temp)
		return systemError("write "+path, err)
	}
	return syncDir(filepath.Dir(path))
}

// writeTemp writes data beside path, synced, and returns the name.
func writeTemp(path string, data []byte, mode fs.FileMode) (string, error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-")
	if err == nil {
		_, err = f.Write(data)
		err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
		if err == nil {
			return f.Name(), nil
		}
		os.Remove(f.Name())
	}
	return "", systemError("write "+path, err)
}

// badInput makes a usage error of what a parser said, without the package name
// with which that begins.
func badInput(err error, hint string) error {
	text := err.Error()
	for _, room := range []string{"ipam: ", "crypto: ", "trust: ", "overlay: ", "publish: "} {
		text = strings.TrimPrefix(text, room)
	}
	return usagef("%s", text).WithHint("%s", hint)
}

// systemError is a failed system call in the words of this program.
func systemError(what string, err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return overlay.Errorf(overlay.CodeDenied, "%s: %v", what, err).
			WithHint("run it as root (sudo), or choose other places with --state-dir")
	}
	return overlay.Errorf(overlay.CodeInternal, "%s: %v", what, err)
}
