package overlay

import (
	"context"
	"errors"
	"testing"

	"github.com/pilotnet/pilot/natt"
	"github.com/pilotnet/pilot/tun"
	"github.com/pilotnet/pilot/tun/tuntest"
)

// A forcedUnderlay has a socket that does without.
type forcedUnderlay struct {
	crowdUnderlay
	config natt.ListenConfig
}

func (u forcedUnderlay) ListenUDP(port uint16) (natt.PacketConn, error) {
	return natt.Listen(u.config)
}

// What a node has to do without is chosen when it starts, and status says it. That
// the packets are the same is for TestPathVariants.
func TestStatusFallbacks(t *testing.T) {
	probe, err := natt.Listen(natt.ListenConfig{})
	if err != nil {
		t.Fatal(err)
	}
	here := probe.Offload()
	probe.Close()
	id := identity(t, "alice")
	for name, c := range map[string]struct {
		socket     natt.ListenConfig
		device     tun.Offload
		userspace  Userspace
		wantDevice string
		without    natt.Offload // of what this machine has
	}{
		"everything":       {device: allOffloads, wantDevice: "vnet+tso+uso"},
		"no UDP GSO":       {socket: natt.ListenConfig{NoGSO: true}, device: allOffloads, wantDevice: "vnet+tso+uso", without: natt.Offload{GSO: true}},
		"no UDP GRO":       {socket: natt.ListenConfig{NoGRO: true}, device: allOffloads, wantDevice: "vnet+tso+uso", without: natt.Offload{GRO: true}},
		"no batches":       {socket: natt.ListenConfig{NoBatch: true}, device: allOffloads, wantDevice: "vnet+tso+uso", without: natt.Offload{Batch: true}},
		"no USO":           {device: tun.Offload{VNetHdr: true, TSO: true}, wantDevice: "vnet+tso"},
		"no TSO":           {device: tun.Offload{VNetHdr: true}, wantDevice: "vnet"},
		"no virtio header": {wantDevice: "none"},
		"as on macOS":      {socket: natt.ListenConfig{Portable: true}, wantDevice: "none", without: natt.Offload{GSO: true, GRO: true, Batch: true}},
		"userspace":        {userspace: UserspaceAlways, wantDevice: "vnet+tso"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := Config{StateDir: t.TempDir(), Name: "alice", Identity: id, Underlay: forcedUnderlay{config: c.socket}, Userspace: c.userspace}
			if c.userspace == UserspaceNever {
				cfg.Device = tuntest.New(tuntest.Options{Offload: c.device})
			}
			n, err := New(cfg)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- n.Run(ctx) }()
			s := n.Status()
			cancel()
			if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
			want := natt.Offload{GSO: here.GSO && !c.without.GSO, GRO: here.GRO && !c.without.GRO, Batch: here.Batch && !c.without.Batch}
			if s.Socket.Offload != socketOffload(want) || s.Device.Offload != c.wantDevice || s.Device.Userspace != (c.userspace == UserspaceAlways) {
				t.Errorf("device %q, userspace %v, UDP %q; want %q, UDP %q", s.Device.Offload, s.Device.Userspace, s.Socket.Offload, c.wantDevice, socketOffload(want))
			}
		})
	}
}
