package run

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/pilotnet/pilot/tun/userspace/forward"
)

// Names answers DNS queries of the program: those of the overlay's zones from the
// agent, all others from the resolvers of the host, whose answers it does not touch.
type Names struct {
	Zones   []string                                                               // without a dot at the end
	Overlay func(ctx context.Context) (net.Conn, error)                            // a UDP socket to the agent's resolver
	File    string                                                                 // the host's resolv.conf, read for each query
	Dial    func(ctx context.Context, network string, to string) (net.Conn, error) // nil: the host's sockets
}

const (
	tryTime    = 5 * time.Second // per resolver, as resolv.conf(5) has it
	maxServers = 3               // that are used of a resolv.conf
	maxUDP     = 65535
)

// Answer answers one query, which came over network ("tcp" or "udp").
func (n *Names) Answer(ctx context.Context, network string, query []byte) ([]byte, error) {
	var p dnsmessage.Parser
	if _, err := p.Start(query); err != nil {
		return nil, fmt.Errorf("run: not a DNS query: %w", err)
	}
	if q, err := p.Question(); err == nil && n.ours(q.Name.String()) {
		c, err := n.Overlay(ctx)
		if err != nil {
			return nil, err
		}
		return exchange(ctx, c, "udp", query)
	}
	text, _ := os.ReadFile(n.File) // none: the resolver of this machine
	dial := n.Dial
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	var failed error
	for _, server := range Resolvers(text) {
		c, err := dial(ctx, network, net.JoinHostPort(server, "53"))
		if err == nil {
			var reply []byte
			if reply, err = exchange(ctx, c, network, query); err == nil {
				return reply, nil
			}
		}
		failed = errors.Join(failed, err)
		if ctx.Err() != nil {
			break
		}
	}
	return nil, failed
}

// ours says whether a name is in a zone of the overlay.
func (n *Names) ours(name string) bool {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	for _, zone := range n.Zones {
		if name == zone || strings.HasSuffix(name, "."+zone) {
			return true
		}
	}
	return false
}

// exchange asks over c, which it closes.
func exchange(ctx context.Context, c net.Conn, network string, query []byte) ([]byte, error) {
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	c.SetDeadline(time.Now().Add(tryTime))
	if network == "tcp" {
		if err := forward.WriteMessage(c, query); err != nil {
			return nil, err
		}
		return forward.ReadMessage(c)
	}
	if _, err := c.Write(query); err != nil {
		return nil, err
	}
	b := make([]byte, maxUDP)
	for {
		k, err := c.Read(b)
		if err != nil {
			return nil, err
		}
		if k >= 2 && bytes.Equal(b[:2], query[:2]) { // the answer to an earlier try has another
			return b[:k], nil
		}
	}
}

// Resolvers are the name servers of a resolv.conf, or the one of this machine if it
// names none (resolv.conf(5)).
func Resolvers(text []byte) []string {
	var list []string
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		f := strings.Fields(lines.Text())
		if len(f) < 2 || f[0] != "nameserver" || len(list) == maxServers {
			continue
		}
		if a, err := netip.ParseAddr(f[1]); err == nil {
			list = append(list, a.String())
		}
	}
	if len(list) == 0 {
		return []string{"127.0.0.1"}
	}
	return list
}

// ResolvConf is the program's resolv.conf: the host's, with our name server in the
// place of its own, and with search, unless empty, as the first search domain.
func ResolvConf(host []byte, search string) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "# Made by pilotctl run.\nnameserver %s\n", NameServer)
	domains := strings.Fields(search)
	for lines := bufio.NewScanner(bytes.NewReader(host)); lines.Scan(); {
		f := strings.Fields(lines.Text())
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "search", "domain":
			domains = append(strings.Fields(search), f[1:]...) // the last of them counts
		case "options":
			fmt.Fprintln(&b, strings.Join(f, " "))
		}
	}
	if len(domains) > 0 {
		fmt.Fprintln(&b, "search", strings.Join(domains, " "))
	}
	return b.Bytes()
}
