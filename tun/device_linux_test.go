package tun_test

import (
	"net"
	"net/netip"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/pilotnet/pilot/tun"
	"github.com/pilotnet/pilot/tun/tuntest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestKernelConformance(t *testing.T) {
	needRoot(t)
	here := func(t *testing.T, ns *namespace, c tun.Config) tun.Device { return ns.open(t, c) }
	for name, c := range map[string]struct {
		without tun.Offload
		want    tun.Offload
		open    func(*testing.T, *namespace, tun.Config) tun.Device
	}{
		"all":               {tun.Offload{}, tun.Offload{VNetHdr: true, TSO: true, USO: true}, here},
		"no uso":            {tun.Offload{USO: true}, tun.Offload{VNetHdr: true, TSO: true}, here},
		"no gso":            {tun.Offload{TSO: true, USO: true}, tun.Offload{VNetHdr: true}, here},
		"plain":             {tun.Offload{VNetHdr: true}, tun.Offload{}, here},
		"handed over":       {tun.Offload{}, tun.Offload{VNetHdr: true, TSO: true, USO: true}, handedOver},
		"plain handed over": {tun.Offload{VNetHdr: true}, tun.Offload{}, handedOver},
	} {
		t.Run(name, func(t *testing.T) {
			tuntest.Conformance(t, func(t *testing.T) (tun.Device, tuntest.Host) {
				ns := newNamespace(t)
				d := c.open(t, ns, config(alice, c.without))
				if d.Offload() != c.want {
					t.Errorf("offloads %+v, want %+v", d.Offload(), c.want)
				}
				var h *packetHost
				ns.do(t, func() (err error) { h, err = newPacketHost(d.Name()); return err })
				t.Cleanup(func() { h.f.Close() })
				return d, h
			})
		})
	}
}

// handedOver is a device that one namespace made and another uses.
func handedOver(t *testing.T, ns *namespace, c tun.Config) (d tun.Device) {
	ns.do(t, func() error {
		f, err := tun.OpenFile(c)
		if err != nil {
			return err
		}
		return inNamespace(func() error {
			d, err = tun.FromFile(f, c)
			return err
		})
	})
	t.Cleanup(func() { d.Close() })
	return d
}

// What is no device, and one that nobody can have, are refused.
func TestHandoverRefused(t *testing.T) {
	needRoot(t)
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	if d, err := tun.FromFile(null, config(alice, tun.Offload{})); err == nil {
		t.Errorf("a device of %s: %v", os.DevNull, d.Name())
	}
	bad := config(alice, tun.Offload{})
	bad.MTU = 1
	if _, err := tun.OpenFile(bad); err == nil {
		t.Error("a device with an MTU of 1")
	}
}

// A link has addresses and default routes of the protocols that were asked for, and
// is gone when its file is closed.
func TestLink(t *testing.T) {
	needRoot(t)
	own := []netip.Prefix{netip.MustParsePrefix("192.0.0.2/29"), netip.MustParsePrefix("fd00::2/126")}
	ns := newNamespace(t)
	for n := range 3 {
		ns.do(t, func() error {
			f, err := tun.OpenLink("host0", 65520, own[:n])
			if err != nil {
				return err
			}
			ifi, err := net.InterfaceByName("host0")
			if err != nil || ifi.MTU != 65520 || ifi.Flags&net.FlagUp == 0 {
				t.Errorf("%+v, %v", ifi, err)
			}
			for i, to := range []string{"203.0.113.1:9", "[2001:db8::1]:9"} {
				c, err := net.Dial("udp", to)
				if (err == nil) != (i < n) {
					t.Errorf("%d addresses: %s: %v", n, to, err)
				}
				if err == nil {
					if from := c.LocalAddr().(*net.UDPAddr).AddrPort().Addr(); from != own[i].Addr() {
						t.Errorf("from %v", from)
					}
					c.Close()
				}
			}
			f.Close()
			if _, err := net.InterfaceByName("host0"); err == nil {
				t.Error("the interface is still there")
			}
			return nil
		})
	}
}
