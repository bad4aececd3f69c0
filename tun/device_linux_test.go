package tun_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/pilotnet/pilot/tun"
	"github.com/pilotnet/pilot/tun/tuntest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestKernelConformance(t *testing.T) {
	needRoot(t)
	for name, c := range map[string]struct {
		without tun.Offload
		want    tun.Offload
	}{
		"all":    {tun.Offload{}, tun.Offload{VNetHdr: true, TSO: true, USO: true}},
		"no uso": {tun.Offload{USO: true}, tun.Offload{VNetHdr: true, TSO: true}},
		"no gso": {tun.Offload{TSO: true, USO: true}, tun.Offload{VNetHdr: true}},
		"plain":  {tun.Offload{VNetHdr: true}, tun.Offload{}},
	} {
		t.Run(name, func(t *testing.T) {
			tuntest.Conformance(t, func(t *testing.T) (tun.Device, tuntest.Host) {
				ns := newNamespace(t)
				d := ns.open(t, config(alice, c.without))
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
