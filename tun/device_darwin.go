package tun

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"

	"golang.org/x/sys/unix"
	wgtun "golang.zx2c4.com/wireguard/tun"
)

// utunHeader precedes each packet of a utun device: the address family.
const utunHeader = 4

// utunDevice is a utun interface of macOS, opened and driven by wireguard/tun.
// The kernel has no offloads for it and hands out one packet per read.
type utunDevice struct {
	dev     wgtun.Device
	name    string
	mtu     int
	drained chan struct{}

	// Read's.
	buf   []byte
	bufs  [1][]byte
	sizes [1]int

	writeMu  sync.Mutex
	emit     func(Packet) error
	flat     Flattener
	out      []byte
	outs     [1][]byte
	closeErr error
	once     sync.Once
}

func open(c Config) (Device, error) {
	name := c.Name
	if name == "" {
		name = "utun"
	}
	dev, err := wgtun.CreateTUN(name, c.MTU)
	if err != nil {
		return nil, utunError(name, err)
	}
	d := &utunDevice{
		dev: dev, mtu: c.MTU, drained: make(chan struct{}),
		buf: make([]byte, Headroom+maxPacket+1+Tailroom),
		out: make([]byte, utunHeader, utunHeader+maxPacket),
	}
	d.emit = d.writeOne
	// wireguard/tun's monitor stops only if somebody takes its events.
	go func() {
		defer close(d.drained)
		for range dev.Events() {
		}
	}()
	d.name, err = dev.Name()
	if err == nil {
		err = configure(d.name, c.Address.Addr(), c.Route)
	}
	if err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

func utunError(name string, err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return &HelpError{fmt.Errorf("tun: make interface %s: %w (%w)", name, ErrPermission, err), "run it as root, with sudo"}
	case errors.Is(err, unix.EBUSY):
		return &HelpError{fmt.Errorf("tun: make interface %s: %w (%w)", name, ErrNameTaken, err),
			"choose another number, or utun to let the system choose"}
	}
	return fmt.Errorf("tun: make interface %s: %w", name, err)
}

func (d *utunDevice) Name() string     { return d.name }
func (d *utunDevice) MTU() int         { return d.mtu }
func (d *utunDevice) BatchSize() int   { return 1 }
func (d *utunDevice) Offload() Offload { return Offload{} }

func (d *utunDevice) Read(p []Packet) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		d.bufs[0] = d.buf[:len(d.buf)-Tailroom]
		n, err := d.dev.Read(d.bufs[:], d.sizes[:], Headroom)
		if errors.Is(err, os.ErrClosed) {
			return 0, os.ErrClosed
		}
		if err != nil {
			return 0, fmt.Errorf("tun: read %s: %w", d.name, err)
		}
		if n == 0 || d.sizes[0] == 0 {
			continue
		}
		room := Headroom + d.sizes[0] + Tailroom
		p[0] = Packet{Data: d.buf[Headroom : Headroom+d.sizes[0] : room], Buf: d.buf[:room:room]}
		return 1, nil
	}
}

func (d *utunDevice) Write(p []Packet) error {
	d.writeMu.Lock()
	defer d.writeMu.Unlock()
	var first error
	for i := range p {
		if err := d.flat.Flatten(p[i], Offload{}, d.emit); err != nil && first == nil {
			first = err
		}
	}
	return first
}

func (d *utunDevice) writeOne(p Packet) error {
	if len(p.Data) == 0 || len(p.Data) > maxPacket {
		return ErrMalformed
	}
	d.out = append(d.out[:utunHeader], p.Data...)
	d.outs[0] = d.out
	_, err := d.dev.Write(d.outs[:], utunHeader)
	if errors.Is(err, os.ErrClosed) {
		return os.ErrClosed
	}
	if err != nil {
		return fmt.Errorf("tun: write %s: packet of %d octets refused: %w", d.name, len(p.Data), err)
	}
	return nil
}

func (d *utunDevice) Close() error {
	d.once.Do(func() {
		if err := d.dev.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			d.closeErr = fmt.Errorf("tun: close %s: %w", d.name, err)
		}
		<-d.drained
	})
	return d.closeErr
}
