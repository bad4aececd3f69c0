package tuntest_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"testing"
	"testing/synctest"

	"go.uber.org/goleak"

	"github.com/pilotnet/pilot/tun"
	"github.com/pilotnet/pilot/tun/tuntest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestChannelConformance(t *testing.T) {
	for name, o := range map[string]tun.Offload{
		"plain": {}, "checksum": {VNetHdr: true}, "tso": {VNetHdr: true, TSO: true},
		"uso": {VNetHdr: true, TSO: true, USO: true},
	} {
		t.Run(name, func(t *testing.T) {
			tuntest.Conformance(t, func(*testing.T) (tun.Device, tuntest.Host) {
				c := tuntest.New(tuntest.Options{Offload: o})
				return c, c
			})
		})
	}
}

func TestChannelInBubble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := tuntest.New(tuntest.Options{})
		got := make(chan error)
		go func() {
			_, err := c.Read(make([]tun.Packet, 1))
			got <- err
		}()
		synctest.Wait() // the reader waits on a channel of the bubble
		c.Close()
		if err := <-got; !errors.Is(err, os.ErrClosed) {
			t.Errorf("read: %v", err)
		}
	})
}

func TestChannelFull(t *testing.T) {
	c := tuntest.New(tuntest.Options{Depth: 2})
	defer c.Close()
	p := []tun.Packet{{Data: []byte{1}}, {Data: []byte{2}}, {Data: []byte{3}}}
	if err := c.Write(p); err == nil {
		t.Error("the third packet found room")
	}
	if c.Waiting() != 2 {
		t.Errorf("%d packets wait, want 2", c.Waiting())
	}
	for _, want := range []byte{1, 2} {
		q, err := c.Receive(t.Context())
		if err != nil || !bytes.Equal(q.Data, []byte{want}) {
			t.Errorf("got %x, %v", q.Data, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Receive(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("receive: %v", err)
	}
}
