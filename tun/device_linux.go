package tun

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
	wgtun "golang.zx2c4.com/wireguard/tun"
)

const (
	clonePath = "/dev/net/tun"
	// batchSize is so large that a flood of small packets fills runs of frames.
	batchSize = 256

	// vnetLen is the size of struct virtio_net_hdr, which precedes each packet.
	vnetLen = 10

	// arenaSize is the memory of one Read. A packet is read only while a whole
	// superpacket still fits, so that a batch is many small packets, or some
	// small ones and one superpacket that is still in the cache when used.
	arenaSize = 2 * (Headroom + maxPacket + 1 + Tailroom)
)

// kernelDevice is a TUN device of Linux.
type kernelDevice struct {
	name    string
	mtu     int
	offload Offload
	log     *slog.Logger
	file    *os.File
	raw     syscall.RawConn
	closed  atomic.Bool
	probe   *probeRoute // nil: none was asked for
	fence   *fence      // nil: the kernel has none

	// Read's, and valid while it runs.
	arena     []byte
	readable  func(fd uintptr) bool
	readInto  []Packet
	readCount int
	readErr   error

	writeMu   sync.Mutex
	writable  func(fd uintptr)
	emit      func(Packet) error
	writeFrom []Packet
	writeErr  error
	writeFD   uintptr
	flat      Flattener
	vnet      [vnetLen]byte
	vectors   []unix.Iovec
	unfence   sync.Once
}

// openQueue makes the interface and returns the device, not configured yet.
//
// The file is opened here, and not by wireguard/tun's CreateTUN, for three
// reasons: CreateTUN attaches to a persistent interface that somebody else made,
// it offers no device without virtio header, and its monitor writes to the
// device once a second for as long as it lives. wireguard/tun is then given the
// descriptor, sets it up and names it; what it would need for its own packet
// path is dropped with its Device, the file is all that we keep.
func openQueue(c Config) (*kernelDevice, error) {
	fd, name, o, err := attach(c)
	if err != nil {
		return nil, err
	}
	return fromDescriptor(fd, name, o.VNetHdr, c)
}

// fromDescriptor makes the device of an open descriptor, which it takes over.
func fromDescriptor(fd int, name string, vnet bool, c Config) (*kernelDevice, error) {
	dev, _, err := wgtun.CreateUnmonitoredTUNFromFD(fd)
	if err != nil {
		// The descriptor's new owner closes it when collected.
		return nil, fmt.Errorf("tun: %s: %w", name, err)
	}
	d := &kernelDevice{name: name, mtu: c.MTU, log: c.Logger, file: dev.File(), arena: make([]byte, arenaSize)}
	d.readable, d.writable, d.emit = d.readBatch, d.writeBatch, d.writeOne
	d.vectors = make([]unix.Iovec, 0, maxSegments+2)
	if d.raw, err = d.file.SyscallConn(); err != nil {
		d.file.Close()
		return nil, fmt.Errorf("tun: %s: %w", name, err)
	}
	if vnet {
		// wireguard/tun has asked for its own set of offloads.
		err := d.raw.Control(func(fd uintptr) { d.offload = setOffload(int(fd), c.Without) })
		if err != nil {
			d.file.Close()
			return nil, fmt.Errorf("tun: %s: %w", name, err)
		}
	}
	return d, nil
}

// attach opens the clone device and makes the interface, with virtio header if
// the kernel has it and c allows it.
func attach(c Config) (fd int, name string, o Offload, err error) {
	try := []uint16{unix.IFF_VNET_HDR, 0}
	if c.Without.VNetHdr {
		try = try[1:]
	}
	for i, flag := range try {
		fd, name, err = attachFlags(c.Name, flag)
		if err != nil {
			if errors.Is(err, unix.EINVAL) && i < len(try)-1 {
				continue
			}
			return -1, "", o, err
		}
		if flag == 0 {
			return fd, name, Offload{}, nil
		}
		if unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, unix.TUN_F_CSUM|unix.TUN_F_TSO4|unix.TUN_F_TSO6) == nil {
			return fd, name, Offload{VNetHdr: true}, nil
		}
		unix.Close(fd) // and with it the interface
	}
	return -1, "", o, fmt.Errorf("tun: %s: neither with nor without virtio header", c.Name)
}

func attachFlags(name string, flags uint16) (int, string, error) {
	if name == "" {
		name = "pilot%d"
	}
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return -1, "", fmt.Errorf("tun: interface name %q: want at most %d octets", name, unix.IFNAMSIZ-1)
	}
	fd, err := unix.Open(clonePath, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return -1, "", openError(err)
	}
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_TUN_EXCL | flags)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		unix.Close(fd)
		return -1, "", attachError(name, err)
	}
	return fd, ifr.Name(), nil
}

// setOffload turns on as much as the kernel takes and c leaves.
func setOffload(fd int, without Offload) Offload {
	const (
		tcp = unix.TUN_F_TSO4 | unix.TUN_F_TSO6
		ecn = unix.TUN_F_TSO_ECN
		udp = unix.TUN_F_USO4 | unix.TUN_F_USO6 // Linux takes both or neither
	)
	set := func(f int) bool { return unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, unix.TUN_F_CSUM|f) == nil }
	o := Offload{VNetHdr: true, TSO: !without.TSO, USO: !without.USO}
	var f int
	if o.TSO {
		f = tcp | ecn
	}
	switch {
	case o.USO && set(f|udp):
		return o
	case set(f):
		o.USO = false
		return o
	case o.TSO && set(tcp):
		o.USO = false
		return o
	}
	set(0)
	return Offload{VNetHdr: true}
}

func (d *kernelDevice) Name() string     { return d.name }
func (d *kernelDevice) MTU() int         { return d.mtu }
func (d *kernelDevice) BatchSize() int   { return batchSize }
func (d *kernelDevice) Offload() Offload { return d.offload }
func (d *kernelDevice) Close() error {
	if d.probe != nil {
		d.probe.close()
	}
	d.unfence.Do(d.fence.close)
	d.closed.Store(true)
	if err := d.file.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("tun: close %s: %w", d.name, err)
	}
	return nil
}

func (d *kernelDevice) Read(p []Packet) (int, error) {
	d.readInto, d.readCount, d.readErr = p[:min(len(p), batchSize)], 0, nil
	if len(p) == 0 {
		return 0, nil
	}
	if err := d.raw.Read(d.readable); d.closed.Load() {
		return 0, os.ErrClosed
	} else if err != nil { // without our own call: the poller has heard of it first
		return 0, d.gone(err)
	}
	d.readInto = nil
	if d.readCount > 0 {
		return d.readCount, nil
	}
	return 0, d.readErr
}

func (d *kernelDevice) gone(err error) error {
	return fmt.Errorf("tun: read %s: the interface is gone or broken: %w", d.name, err)
}

// readBatch fills readInto. False means that there is nothing to read yet.
//
// The calls do not tell Go's scheduler that they are system calls: they never
// block and copy at most 64 KiB.
func (d *kernelDevice) readBatch(fd uintptr) bool {
	const slot = Headroom + maxPacket + 1 + Tailroom
	vnet := 0
	if d.offload.VNetHdr {
		vnet = vnetLen
	}
	for pos := 0; d.readCount < len(d.readInto) && pos+slot <= len(d.arena); {
		buf := d.arena[pos : pos+slot]
		at := buf[Headroom-vnet : slot-Tailroom]
		n, _, errno := syscall.RawSyscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(&at[0])), uintptr(len(at)))
		switch {
		case errno == unix.EAGAIN:
			return d.readCount > 0
		case errno == unix.EINTR:
			continue
		case errno != 0:
			d.readErr = d.gone(errno)
			return true
		case int(n) <= vnet:
			continue
		}
		size := int(n) - vnet
		room := Headroom + size + Tailroom
		p := &d.readInto[d.readCount]
		*p = Packet{Data: buf[Headroom : Headroom+size : room], Buf: buf[:room:room]}
		if vnet > 0 && !decodeVNet(buf[Headroom-vnetLen:Headroom], p) {
			continue
		}
		d.readCount++
		pos += (room + 63) &^ 63
	}
	return true
}

// decodeVNet applies a virtio-net header to the packet that it came with. False
// means that the two do not fit and the packet is dropped.
func decodeVNet(h []byte, p *Packet) bool {
	p.SegmentSize, p.Partial = 0, false
	if h[1]&^unix.VIRTIO_NET_HDR_GSO_ECN != unix.VIRTIO_NET_HDR_GSO_NONE {
		p.SegmentSize = int(binary.NativeEndian.Uint16(h[4:]))
		p.Partial = true
		return p.SegmentSize > 0
	}
	if h[0]&unix.VIRTIO_NET_HDR_F_NEEDS_CSUM == 0 {
		return true
	}
	if _, _, ok := transport(p.Data); ok {
		p.Partial = true
		return true
	}
	// Something else left its checksum to the hardware: what follows Partial
	// knows TCP and UDP only, so be the hardware.
	start := int(binary.NativeEndian.Uint16(h[6:]))
	field := start + int(binary.NativeEndian.Uint16(h[8:]))
	if field+2 > len(p.Data) {
		return false
	}
	binary.BigEndian.PutUint16(p.Data[field:], ^fold(sum(p.Data[start:], 0)))
	return true
}

func (d *kernelDevice) Write(p []Packet) error {
	d.writeMu.Lock()
	defer d.writeMu.Unlock()
	d.writeFrom, d.writeErr = p, nil
	if err := d.raw.Control(d.writable); err != nil {
		return os.ErrClosed
	}
	d.writeFrom = nil
	return d.writeErr
}

func (d *kernelDevice) writeBatch(fd uintptr) {
	d.writeFD = fd
	for i := range d.writeFrom {
		p := &d.writeFrom[i]
		var err error
		if d.offload.takes(p) {
			err = d.writeOne(*p)
		} else {
			err = d.flat.Flatten(*p, d.offload, d.emit)
		}
		if err != nil && d.writeErr == nil {
			d.writeErr = err
		}
	}
}

// writeOne hands one packet over that needs no more work. A TUN device never
// makes a writer wait: the packet is taken or refused at once.
func (d *kernelDevice) writeOne(p Packet) error {
	if len(p.Data) == 0 {
		return ErrMalformed
	}
	v := d.vectors[:0]
	if d.offload.VNetHdr {
		if !encodeVNet(&d.vnet, &p) {
			return ErrMalformed
		}
		v = append(v, unix.Iovec{Base: &d.vnet[0], Len: vnetLen})
	}
	v = append(v, vector(p.Data))
	for _, t := range p.Tail {
		if len(v) == cap(v) {
			return ErrMalformed
		}
		if len(t) > 0 {
			v = append(v, vector(t))
		}
	}
	for {
		_, _, errno := syscall.RawSyscall(unix.SYS_WRITEV, d.writeFD, uintptr(unsafe.Pointer(&v[0])), uintptr(len(v)))
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
		default:
			if d.writeErr != nil {
				return d.writeErr // one report a batch is enough
			}
			return fmt.Errorf("tun: write %s: packet of %d octets refused: %w", d.name, p.Len(), errno)
		}
	}
}

func vector(b []byte) unix.Iovec {
	v := unix.Iovec{Base: unsafe.SliceData(b)}
	v.SetLen(len(b))
	return v
}

// encodeVNet writes the virtio-net header of a packet. False means that the
// packet is not what its marks say.
func encodeVNet(h *[vnetLen]byte, p *Packet) bool {
	*h = [vnetLen]byte{}
	if !p.Partial && p.SegmentSize == 0 {
		return true
	}
	proto, hl, ok := transport(p.Data)
	if !ok {
		return false
	}
	h[0] = unix.VIRTIO_NET_HDR_F_NEEDS_CSUM
	binary.NativeEndian.PutUint16(h[6:], headerLen)
	binary.NativeEndian.PutUint16(h[8:], uint16(checksumField(proto)-headerLen))
	if p.SegmentSize == 0 {
		return true
	}
	if p.SegmentSize > maxPacket {
		return false
	}
	h[1] = unix.VIRTIO_NET_HDR_GSO_UDP_L4
	if proto == protoTCP {
		h[1] = unix.VIRTIO_NET_HDR_GSO_TCPV6
		if p.Data[tcpFlags]&flagCWR != 0 {
			h[1] |= unix.VIRTIO_NET_HDR_GSO_ECN
		}
	}
	binary.NativeEndian.PutUint16(h[2:], uint16(hl))
	binary.NativeEndian.PutUint16(h[4:], uint16(p.SegmentSize))
	return true
}

func open(c Config) (Device, error) {
	d, err := openQueue(c)
	if err != nil {
		return nil, err
	}
	if err := configure(d.name, netip.PrefixFrom(c.Address.Addr(), 128), c.Route, c.MTU, c.Logger); err != nil {
		d.Close()
		return nil, err
	}
	if d.fence, err = newFence(d.name, c.Address.Addr(), c.Route); err != nil {
		c.Logger.Warn("the LAN can send to programs that listen on all addresses in the name of peers; nf_tables of Linux 5.12 would prevent it", "error", err)
	}
	if c.IPv6Probe.IsValid() {
		d.probe, err = newProbeRoute(d.name, c.IPv6Probe, c.Address.Addr())
		if err == nil {
			err = d.probe.update()
		}
		if err != nil {
			c.Logger.Warn("no route for programs that look whether there is IPv6", "error", err)
		}
	}
	return d, nil
}

// Reroute implements Rerouter.
func (d *kernelDevice) Reroute() error {
	if d.probe == nil {
		return nil
	}
	return d.probe.update()
}
