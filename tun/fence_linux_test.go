package tun_test

import (
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pilotnet/pilot/tun"
)

// run runs a shell script in the namespace.
func (n *namespace) run(t testing.TB, script string) string {
	t.Helper()
	var out []byte
	n.do(t, func() (err error) {
		out, err = exec.Command("sh", "-ec", "PATH=$PATH:/usr/sbin:/sbin\n"+script).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		return err
	})
	return string(out)
}

// hear opens a UDP socket in the namespace; what comes to it comes to the channel.
func (n *namespace) hear(t testing.TB, address string, heard chan<- string) {
	t.Helper()
	var c net.PacketConn
	n.do(t, func() (err error) { c, err = net.ListenPacket("udp6", address); return err })
	t.Cleanup(func() { c.Close() })
	go func() {
		b := make([]byte, 100)
		for {
			k, _, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			heard <- string(b[:k])
		}
	}()
}

// say sends one datagram that says which it is.
func (n *namespace) say(t testing.TB, from, to string) {
	t.Helper()
	n.do(t, func() error {
		d := net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(from)}}
		c, err := d.Dial("udp6", to)
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write([]byte(from + " to " + to))
		return err
	})
}

// A neighbour in the LAN who sends to the overlay address, or in the name of a
// peer, reaches no program, whatever it listens on; this host reaches its own, and
// neighbours who do not lie are heard at other addresses. The fence goes with the
// device.
func TestHostileNeighbour(t *testing.T) {
	needRoot(t)
	t.Parallel()
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("needs ip")
	}
	const own, peer, lan, neighbour = "fd50:494c:4f54::2", "fd50:494c:4f54::1", "fd00:1::2", "fd00:1::1"
	ns, lanNS := newNamespace(t), newNamespace(t)
	var tid int
	lanNS.do(t, func() error { tid = unix.Gettid(); return nil })
	const up = "for f in all default lo lan0; do echo 0 > /proc/sys/net/ipv6/conf/$f/disable_ipv6; done; ip link set lo up; ip link set lan0 up\n"
	ns.run(t, fmt.Sprintf("ip link add lan0 type veth peer name lan1; ip link set lan1 netns %d name lan0", tid)+"\n"+
		up+"ip addr add "+lan+"/64 dev lan0 nodad; ip addr add "+own+"/128 dev lo nodad")
	lanNS.run(t, up+"ip addr add "+neighbour+"/64 dev lan0 nodad; ip addr add "+peer+"/128 dev lo nodad; ip route add "+own+"/128 via "+lan)

	heard := make(chan string, 100)
	ns.hear(t, "[::]:9000", heard)
	var tcp net.Listener
	ns.do(t, func() (err error) { tcp, err = net.Listen("tcp6", "[::]:9002"); return err })
	defer tcp.Close()
	forged := []string{peer + " to [" + own + "]:9000", peer + " to [" + lan + "]:9000", neighbour + " to [" + own + "]:9000"}
	honest := neighbour + " to [" + lan + "]:9000"
	// attempt sends all, the honest one last, and returns which of the others came.
	attempt := func() (came []string) {
		for _, s := range append(forged, honest) {
			from, to, _ := strings.Cut(s, " to ")
			lanNS.say(t, from, to)
		}
		for late := time.After(10 * time.Second); ; {
			select {
			case s := <-heard:
				if s == honest {
					return came
				}
				came = append(came, s)
			case <-late:
				t.Fatal("what an honest neighbour says does not come")
			}
		}
	}
	dial := func(n *namespace, from string, wait time.Duration) (err error) {
		n.do(t, func() error {
			d := net.Dialer{Timeout: wait, LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
			var c net.Conn
			if c, err = d.Dial("tcp6", "["+own+"]:9002"); err == nil {
				c.Close()
			}
			return nil
		})
		return err
	}
	// Without a fence all of it comes: so Linux does.
	if came := attempt(); len(came) != len(forged) {
		t.Fatalf("the control: only %q came", came)
	}
	if err := dial(lanNS, neighbour, 10*time.Second); err != nil {
		t.Fatalf("the control: %v", err)
	}
	ns.run(t, "ip addr del "+own+"/128 dev lo")
	d := ns.open(t, config(netip.MustParseAddr(own), tun.Offload{}))
	ns.hear(t, "["+own+"]:9001", heard)
	forged = append(forged, peer+" to ["+own+"]:9001", neighbour+" to ["+own+"]:9001")
	if came := attempt(); len(came) > 0 {
		t.Errorf("heard from a neighbour: %q", came)
	}
	for _, from := range []string{neighbour, peer} {
		if dial(lanNS, from, 500*time.Millisecond) == nil {
			t.Errorf("a neighbour connects from %s", from)
		}
	}
	if err := dial(ns, own, 10*time.Second); err != nil {
		t.Errorf("this host to itself: %v", err)
	}
	if _, err := exec.LookPath("nft"); err == nil {
		if out := ns.run(t, "nft list ruleset; ! nft delete table ip6 pilot-pilot0; nft flush ruleset || true"); strings.Count(out, "drop") != 2 {
			t.Errorf("the rules: %s", out)
		}
		if came := attempt(); len(came) > 0 {
			t.Errorf("after others flushed their rules: %q", came)
		}
	}
	d.Close()
	if _, err := exec.LookPath("nft"); err == nil {
		if out := ns.run(t, "nft list ruleset"); out != "" {
			t.Errorf("left behind: %s", out)
		}
	}
}
