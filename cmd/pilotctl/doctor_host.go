package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/pilotnet/pilot/crypto"
	"github.com/pilotnet/pilot/ipam"
	"github.com/pilotnet/pilot/ipam/dns"
	"github.com/pilotnet/pilot/natt/stun"
	"github.com/pilotnet/pilot/overlay"
)

const (
	serverPatience = 3 * time.Second // for one way to one server
	askAgain       = 500 * time.Millisecond
)

// A subject says what examine looks at.
type subject struct {
	at      places
	device  string // the daemon's; empty while it is down
	servers []crypto.Server
	proxies overlay.Proxies
	now     func() time.Time
}

// machineFacts are what can be seen of this machine. Whatever is an error was
// looked for, and could not be seen or is not there.
type machineFacts struct {
	root     bool
	state    fileFact
	identity fileFact
	tun      error // why this user cannot open the TUN driver
	netAdmin bool  // this user may make network devices
	device   deviceFact
	ipv6     ipv6Fact
	firewall firewallFact
	servers  []serverFact
	hosts    []string // how glibc looks up hosts: the hosts line of nsswitch.conf
}

// A fileFact is what keeps others out of a file.
type fileFact struct {
	path string
	mode fs.FileMode
	mine bool // of the user who looks, or of root
	err  error
}

// A deviceFact is the agent's network device.
type deviceFact struct {
	up        bool
	mtu       int
	addresses []netip.Addr
	way       string // the device to which the kernel sends packets for the overlay
	err       error
}

// An ipv6Fact is what this machine says of IPv6.
type ipv6Fact struct {
	kernel   bool     // it can IPv6 at all
	off      []string // which of the sysctls say that it is disabled
	writable bool     // the daemon could enable it on its own device
	rivals   []string // devices, not ours, with addresses or routes inside our prefix
	unseen   error    // why nothing of this is known
}

// A serverFact is how one home server answers.
type serverFact struct {
	name   string // HOST or HOST:PORT
	lookup error  // of its name
	udp    error
	rtt    time.Duration
	tls    error
	ahead  time.Duration // its clock minus ours, to the second
}

// examineMachine looks at this machine. It changes nothing and returns within
// some seconds.
func examineMachine(ctx context.Context, s subject) machineFacts {
	m := machineFacts{
		root: os.Geteuid() == 0, state: lookAtFile(s.at.state), identity: lookAtFile(filepath.Join(s.at.state, identityFile)),
		servers: make([]serverFact, len(s.servers)), hosts: hostsLine(),
	}
	var group sync.WaitGroup
	for i, server := range s.servers {
		group.Go(func() { m.servers[i] = examineServer(ctx, server, s) })
	}
	group.Go(func() { m.firewall = examineFirewall(ctx) })
	m.tun, m.netAdmin = examineTUN()
	m.device = examineDevice(s.device)
	m.ipv6 = examineIPv6(s.device)
	group.Wait()
	return m
}

func examineDevice(name string) (d deviceFact) {
	if name == "" {
		return d
	}
	i, err := net.InterfaceByName(name)
	if err != nil {
		return deviceFact{err: err}
	}
	d.up, d.mtu, d.way = i.Flags&net.FlagUp != 0, i.MTU, wayTo(dns.Address())
	addrs, err := i.Addrs()
	if err != nil {
		return deviceFact{err: err}
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			d.addresses = append(d.addresses, p.Addr())
		}
	}
	return d
}

// rivalAddresses are the devices, other than ours, that have addresses inside
// our prefix.
func rivalAddresses(own string) (list []string) {
	all, err := net.Interfaces()
	if err != nil {
		return nil
	}
	for _, i := range all {
		addrs, err := i.Addrs()
		if err != nil || i.Name == own {
			continue
		}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil && ipam.Prefix().Contains(p.Addr()) {
				list = append(list, fmt.Sprintf("%s has the address %s", i.Name, p.Addr()))
			}
		}
	}
	return slices.Compact(list)
}

// examineServer asks a home server over UDP and over TLS, both at once.
func examineServer(ctx context.Context, s crypto.Server, subject subject) serverFact {
	ctx, cancel := context.WithTimeout(ctx, serverPatience)
	defer cancel()
	host, _, _ := net.SplitHostPort(s.HostPort())
	f := serverFact{name: s.HostPort()}
	if s.Port == crypto.DefaultPort {
		f.name = host
	}
	list, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil || len(list) == 0 {
		f.lookup = err
		if err == nil {
			f.lookup = errors.New("no address")
		}
	}
	var group sync.WaitGroup
	group.Go(func() { // a proxy may know a name that we do not
		f.ahead, f.tls = serverClock(ctx, s, subject)
	})
	if f.lookup == nil {
		f.rtt, f.udp = serverAnswer(ctx, netip.AddrPortFrom(list[0].Unmap(), s.Port))
	}
	group.Wait()
	return f
}

// serverAnswer is the time that a STUN server takes to answer over UDP
// (RFC 8489).
func serverAnswer(ctx context.Context, to netip.AddrPort) (time.Duration, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "udp", to.String())
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	b := make([]byte, 1500)
	for ctx.Err() == nil {
		var id stun.TransactionID
		// crypto/rand never fails (it ends the process instead).
		_, _ = rand.Read(id[:])
		begin := time.Now()
		if _, err := conn.Write(stun.Request(id)); err != nil {
			return 0, err
		}
		if err := conn.SetReadDeadline(begin.Add(askAgain)); err != nil {
			return 0, err
		}
		n, err := conn.Read(b)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			continue
		}
		if err != nil && ctx.Err() == nil {
			return 0, err // such as a port that nobody listens on
		}
		if got, _, err := stun.ParseResponse(b[:n]); err == nil && got == id {
			return time.Since(begin), nil
		}
	}
	return 0, errors.New("no answer")
}

// serverClock is how far the clock of a server is ahead of ours, by the Date of
// an HTTPS answer. It is not authenticated, and good for finding a clock that was
// never set.
func serverClock(ctx context.Context, s crypto.Server, subject subject) (time.Duration, error) {
	transport := &http.Transport{
		DisableKeepAlives: true,
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true, ServerName: s.Host}, // servers make their own certificates; the key is in their name
	}
	if find := subject.proxies.Find; find != nil {
		transport.Proxy = func(r *http.Request) (*url.URL, error) { return find(r.URL) }
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodHead, "https://"+net.JoinHostPort(s.Host, strconv.Itoa(int(s.Port)))+"/", nil)
	if err != nil {
		return 0, err
	}
	begin := subject.now()
	answer, err := transport.RoundTrip(r)
	if err != nil {
		if ctx.Err() != nil {
			err = errors.New("no answer")
		}
		return 0, err
	}
	answer.Body.Close()
	date, err := http.ParseTime(answer.Header.Get("Date"))
	if err != nil {
		return 0, errors.New("it does not tell the time")
	}
	middle := begin.Add(subject.now().Sub(begin) / 2)
	return date.Add(time.Second / 2).Sub(middle).Round(time.Second), nil
}
