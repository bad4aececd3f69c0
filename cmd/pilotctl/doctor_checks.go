package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/pilotnet/pilot/ipam"
	"github.com/pilotnet/pilot/ipam/dns"
	"github.com/pilotnet/pilot/overlay"
	"github.com/pilotnet/pilot/tun/resolv"
)

// Clocks of servers are read to the second, over a network.
const (
	clockRight = 10 * time.Second
	clockWrong = time.Hour // beyond it handshakes need the home server's clock
	smallest   = 1280      // MTU of a device with IPv6 (RFC 8200 5)
)

func one(check, state, says, do string) []finding {
	return []finding{{Check: check, State: state, Says: says, Do: do}}
}

// daemon checks that it runs, and is the release that this program is.
func (e *examination) daemon() []finding {
	const check = "daemon"
	if e.down != nil {
		state := broken
		if e.denied() {
			state = unknown
		}
		return one(check, state, e.down.Message, e.down.Hint)
	}
	s := e.status
	says := "runs since " + span(e.now.Sub(s.Started)) + ", version " + s.Version
	list := one(check, fine, says, "")
	switch {
	case s.Version != release:
		list = one(check, doubt, fmt.Sprintf("%s, but this pilotctl is %s", says, release), "pilotctl down; pilotctl up")
	case s.State == "conflict":
		list = one(check, broken, "another machine runs with the same identity", "pilotctl down there; or here, then pilotctl up --takeover")
	}
	if x := s.Suspended; x != nil {
		list = append(list, finding{Check: "trust", State: broken,
			Says: fmt.Sprintf("suspended: this state is older than what %s was told, %d changes of trust against %d", x.By, x.Here, x.Told),
			Do:   "pilotctl trust list; pilotctl trust revoke who should not be there; pilotctl trust confirm"})
	}
	for _, w := range s.Warnings {
		list = append(list, finding{Check: check, State: doubt, Says: w})
	}
	return list
}

// denied says that the daemon may well run, but not for this user.
func (e *examination) denied() bool { return e.down != nil && e.down.Code == overlay.CodeDenied }

func (e *examination) settings() []finding {
	const check = "config"
	if e.config != nil {
		var with *overlay.Error
		if !errors.As(e.config, &with) {
			return one(check, broken, e.config.Error(), "")
		}
		if with.Code == overlay.CodeDenied {
			return one(check, unknown, with.Message, "")
		}
		return one(check, broken, with.Message, with.Hint)
	}
	return one(check, fine, "pilotctl config show --origin tells what is set where", "")
}

// state checks that nobody else can read the key.
func (e *examination) state() []finding {
	const check = "state"
	dir, id := e.machine.state, e.machine.identity
	switch {
	case errors.Is(dir.err, fs.ErrNotExist) && e.down == nil:
		return one(check, unknown, dir.path+" is not there: the daemon keeps its state elsewhere", "")
	case errors.Is(dir.err, fs.ErrNotExist), dir.err == nil && errors.Is(id.err, fs.ErrNotExist):
		return one(check, broken, "there is no agent in "+dir.path, "pilotctl up --name NAME --server HOST#KEY")
	case dir.err != nil:
		return one(check, unknown, dir.path+" is not open to this user, as it should be", "")
	case dir.mode.Perm()&0o077 != 0:
		return one(check, broken, fmt.Sprintf("%s is open to others (mode %04o)", dir.path, dir.mode.Perm()), "chmod 700 "+dir.path)
	case errors.Is(id.err, fs.ErrPermission):
		return one(check, unknown, dir.path+" is not open to this user, as it should be", "")
	case id.err != nil:
		return one(check, broken, id.err.Error(), "")
	case !dir.mode.IsDir() || !id.mode.IsRegular():
		return one(check, broken, fmt.Sprintf("%s is no directory, or %s no file", dir.path, identityFile), "bring them back from a backup")
	case id.mode.Perm()&0o077 != 0:
		return one(check, broken, fmt.Sprintf("%s is open to others (mode %04o)", id.path, id.mode.Perm()), "chmod 600 "+id.path)
	case !dir.mine || !id.mine:
		return one(check, doubt, filepath.Clean(dir.path)+" belongs to another user", "chown it to the user of the daemon")
	}
	return one(check, fine, fmt.Sprintf("%s is open to its owner only", dir.path), "")
}

// clock compares ours with that of the first server that tells.
func (e *examination) clock() []finding {
	const check = "clock"
	for _, s := range e.machine.servers {
		if s.tls != nil {
			continue
		}
		off := s.ahead.Abs()
		says := fmt.Sprintf("%v behind that of %s", off, s.name)
		if s.ahead < 0 {
			says = fmt.Sprintf("%v ahead of that of %s", off, s.name)
		}
		const do = "set it: timedatectl set-ntp true; ends of trust and invitations follow this machine's clock"
		switch {
		case off <= clockRight:
			return one(check, fine, fmt.Sprintf("within %v of that of %s", max(off, time.Second), s.name), "")
		case off < clockWrong:
			return one(check, doubt, says, do)
		}
		return one(check, broken, says, do)
	}
	return one(check, unknown, "no server to compare with", "")
}

// device checks the driver, and the daemon's device.
func (e *examination) device() []finding {
	const check = "device"
	m, s := e.machine, e.status
	if s.Device.Userspace {
		says := "userspace mode: programs reach peers through the proxy"
		if s.Device.Why != "" {
			says += "; " + s.Device.Why
		}
		if s.Device.Proxy == "" {
			return one(check, doubt, "userspace mode without a proxy: programs here cannot reach peers", "pilotctl down; pilotctl up --proxy auto")
		}
		return one(check, fine, says, `eval "$(pilotctl proxy env)" tells a shell's programs`)
	}
	if e.down != nil {
		spare := e.set.tun == autoDevice || e.set.tun == userspaceDevice
		switch {
		case spare && (m.tun != nil || !m.netAdmin):
			return one(check, fine, "no network device for this user: the agent will run in userspace mode", "for a device: run it as root, with /dev/net/tun")
		case errors.Is(m.tun, fs.ErrNotExist):
			return one(check, broken, "there is no /dev/net/tun", "modprobe tun; for a container --device /dev/net/tun --cap-add NET_ADMIN")
		case errors.Is(m.tun, fs.ErrPermission), m.tun == nil && !m.netAdmin:
			if !m.root {
				return one(check, unknown, "this user may not make network devices; the daemon has to run as one who may", "run it as root (sudo), or with CAP_NET_ADMIN")
			}
			return one(check, broken, "this root may not make network devices: it lacks CAP_NET_ADMIN", "for a container --device /dev/net/tun --cap-add NET_ADMIN")
		case m.tun != nil:
			return one(check, broken, m.tun.Error(), "modprobe tun; for a container --device /dev/net/tun --cap-add NET_ADMIN")
		}
		return one(check, fine, "/dev/net/tun is there, and this user may make devices", "")
	}
	d, name := m.device, s.Device.Name
	switch {
	case d.err != nil:
		return one(check, broken, fmt.Sprintf("the daemon's device %s cannot be seen from here: %v", name, d.err),
			"is this the network namespace of the daemon? otherwise pilotctl down; pilotctl up")
	case !d.up:
		return one(check, broken, name+" is down", "ip link set "+name+" up, or pilotctl down; pilotctl up")
	case d.mtu < smallest:
		return one(check, broken, fmt.Sprintf("%s has an MTU of %d: IPv6 needs %d", name, d.mtu, smallest), fmt.Sprintf("ip link set %s mtu %d; pilotctl down; pilotctl up", name, s.Device.MTU))
	}
	return one(check, fine, fmt.Sprintf("%s is up, MTU %d", name, d.mtu), "")
}

// ipv6 checks what our addresses need of this machine.
func (e *examination) ipv6() []finding {
	const check = "ipv6"
	f, s := e.machine.ipv6, e.status
	if s.Device.Userspace {
		return one(check, fine, "not needed in userspace mode", "")
	}
	enable := "sysctl -w net.ipv6.conf.all.disable_ipv6=0; for a container --sysctl net.ipv6.conf.all.disable_ipv6=0"
	switch {
	case len(f.rivals) > 0 && e.denied():
		return one(check, unknown, "only the daemon's users can tell its device from others", "")
	case len(f.rivals) > 0:
		return one(check, broken, fmt.Sprintf("%s, inside %v, which is Pilot's", strings.Join(f.rivals, "; "), ipam.Prefix()),
			"stop the agent or tunnel that uses it, or run this one in a network namespace of its own")
	}
	switch {
	case f.unseen == nil && !f.kernel:
		return one(check, broken, "the kernel runs without IPv6", "boot without ipv6.disable=1, or modprobe ipv6")
	case e.down != nil && f.unseen != nil:
		return one(check, unknown, f.unseen.Error(), "")
	case e.down != nil && len(f.off) > 0 && !f.writable && e.machine.root:
		return one(check, broken, strings.Join(f.off, " and ")+" is 1, and cannot be changed here", enable)
	case e.down != nil && len(f.off) > 0:
		return one(check, fine, strings.Join(f.off, " and ")+" is 1: the daemon enables IPv6 on its own device", "")
	case e.down != nil:
		return one(check, fine, "enabled", "")
	case e.machine.device.err != nil:
		return one(check, unknown, "the daemon's device cannot be seen from here", "")
	}
	name, own := s.Device.Name, "net.ipv6.conf."+s.Device.Name+".disable_ipv6"
	has := slices.ContainsFunc(e.machine.device.addresses, func(a netip.Addr) bool { return a.String() == s.ULA })
	switch {
	case slices.Contains(f.off, own):
		return one(check, broken, "disabled on "+name+" since the daemon started", fmt.Sprintf("sysctl -w %s=0; pilotctl down; pilotctl up", own))
	case !has:
		return one(check, broken, fmt.Sprintf("%s has lost the address %s", name, s.ULA), "pilotctl down; pilotctl up")
	case e.machine.device.way != "" && e.machine.device.way != name:
		return one(check, broken, fmt.Sprintf("packets for %v go to %s, not to %s", ipam.Prefix(), e.machine.device.way, name),
			"ip -6 rule and ip -6 route show why: another VPN may have taken all routes")
	case e.machine.device.way == "" && f.unseen == nil:
		return one(check, broken, fmt.Sprintf("there is no route to %v any more", ipam.Prefix()), "pilotctl down; pilotctl up")
	}
	return one(check, fine, fmt.Sprintf("%s has %s and the route to %v", name, s.ULA, ipam.Prefix()), "")
}

// firewall says whether the rules of this machine leave room for the overlay.
func (e *examination) firewall() []finding {
	const check = "firewall"
	f := e.machine.firewall
	if e.status.Device.Userspace {
		return one(check, fine, "sees nothing of the overlay in userspace mode", "")
	}
	device := either(e.status.Device.Name, "pilot0")
	var list []finding
	for _, h := range f.hooks {
		if h.names(device) {
			continue
		}
		who := "peers may not get through to programs here"
		if h.at == "output" {
			who = "programs here may not get through to peers"
		}
		list = append(list, finding{check, doubt, fmt.Sprintf("%s drops what no rule lets pass, and none speaks of %s: %s", h.chain, device, who),
			h.opening(device) + "  (Pilot itself lets peers through to granted ports only)"})
	}
	switch {
	case len(list) > 0:
		return list
	case f.unseen != nil:
		return one(check, unknown, f.unseen.Error(), "")
	case len(f.hooks) > 0:
		return one(check, fine, "drops by default, and has rules for "+device, "")
	}
	return one(check, fine, "no rules that drop by default", "")
}

// servers checks the ways to each home server.
func (e *examination) servers() []finding {
	const check = "server"
	if len(e.machine.servers) == 0 {
		if e.config != nil {
			return one(check, unknown, "they are among the settings", "")
		}
		if len(e.status.Servers) == 0 {
			return one(check, doubt, "none is configured: others cannot find this agent", "pilotctl up --server HOST#KEY")
		}
		return one(check, unknown, "only the daemon knows its servers, which came from flags", "pilotctl status")
	}
	var list []finding
	for _, s := range e.machine.servers {
		f := e.server(s)
		f.Check = check
		list = append(list, f)
	}
	return list
}

func (e *examination) server(s serverFact) finding {
	var known overlay.ServerStatus // what the daemon says of it
	for _, k := range e.status.Servers {
		host, _, _ := strings.Cut(k.Server, "#")
		if host == s.name {
			known = k
		}
	}
	registered := known.State == "registered"
	switch {
	case s.udp == nil && s.lookup == nil && s.tls == nil:
		if e.down == nil && known.State == "refused" && e.status.State == "conflict" {
			return finding{State: broken, Says: serverText(known), Do: "pilotctl down there; or here, then pilotctl up --takeover"}
		}
		if e.down == nil && !registered && known.State != "" {
			return finding{State: broken, Says: serverText(known) + ", though it answers over UDP and TLS", Do: "is its key still the one after # in --server? its owner can tell: pilotctl server key"}
		}
		return finding{State: fine, Says: fmt.Sprintf("%s answers over UDP, %s, and TLS", s.name, either(millis(float64(s.rtt)/1e6), "at once"))}
	case s.lookup != nil && s.tls != nil && !registered:
		return finding{State: broken, Says: fmt.Sprintf("%s: %v", s.name, s.lookup), Do: "is the name right, and does this machine find others? getent hosts " + hostOnly(s.name)}
	case s.lookup == nil && s.udp == nil:
		return finding{State: doubt, Says: fmt.Sprintf("%s answers over UDP, but not over TLS (%v): there is no other way should UDP be blocked", s.name, s.tls),
			Do: "let TCP to that port through, on the server too"}
	case s.tls == nil:
		return finding{State: doubt, Says: fmt.Sprintf("%s answers over TLS, but not over UDP: it works, at the price of TCP in TCP", s.name),
			Do: "let UDP to that port, or to 443, through; pilotctl netcheck tells more"}
	case registered:
		return finding{State: doubt, Says: fmt.Sprintf("%s answers neither over UDP nor over TLS to this user, but the daemon has a way: %s", s.name, serverText(known))}
	}
	return finding{State: broken, Says: fmt.Sprintf("%s answers neither over UDP (%v) nor over TLS (%v)", s.name, s.udp, s.tls),
		Do: "does it run, and does a firewall let UDP and TCP through, there and here?"}
}

func hostOnly(name string) string {
	if i := strings.LastIndexByte(name, ':'); i > 0 && !strings.HasSuffix(name, "]") {
		return name[:i]
	}
	return name
}

// naming checks that programs find peers by name.
func (e *examination) naming() []finding {
	const check = "names"
	s := e.status
	switch {
	case e.down != nil:
		return one(check, unknown, "the daemon does not say", "")
	case s.Device.Userspace:
		return one(check, fine, "the proxy knows the names of peers, and other programs do not", "")
	case s.Device.DNS == string(resolv.Off):
		return one(check, fine, "off, as configured: programs do not know the names", "")
	case e.names.resolver != nil:
		return one(check, broken, fmt.Sprintf("the agent's resolver at %v: %v", dns.Address(), e.names.resolver),
			"is this the network namespace of the daemon, and does a firewall drop what comes in over "+s.Device.Name+"?")
	case s.Name == "":
		return one(check, fine, fmt.Sprintf("the agent's resolver answers; mode %s", s.Device.DNS), "")
	}
	name := s.Name + "." + dns.Domain
	if e.names.system == nil {
		return one(check, fine, fmt.Sprintf("%s is found; mode %s", name, s.Device.DNS), "")
	}
	do := "pilotctl dns status tells how names are made known"
	if how := e.machine.hosts; how != nil {
		needs := []string{"files"}
		switch resolv.Mode(s.Device.DNS) {
		case resolv.Resolved:
			needs = []string{"dns", "resolve"}
		case resolv.Resolvconf:
			needs = []string{"dns"}
		}
		if !slices.ContainsFunc(needs, func(n string) bool { return slices.Contains(how, n) }) {
			do = fmt.Sprintf("add %q to the hosts line of /etc/nsswitch.conf", needs[0])
		}
	}
	return one(check, broken, fmt.Sprintf("the agent knows %s, this machine's programs do not: %v; mode %s", name, e.names.system, s.Device.DNS), do)
}

// services shows only those that ail.
func (e *examination) services() (list []finding) {
	for _, s := range e.status.Services {
		if s.Error != "" {
			list = append(list, finding{"services", doubt, fmt.Sprintf("%s, port %d: %s", s.Name, s.Port, s.Error), "free the port, or leave the service out with --services"})
		}
	}
	return list
}
