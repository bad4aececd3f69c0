package tun

import (
	"bytes"
	"encoding/binary"
	"testing"

	"golang.org/x/sys/unix"
)

// FuzzVNet: what a virtio-net header says of a packet is what the header says that we
// would write for it. A header that does not fit leaves the packet as it is, and a
// checksum that is filled in is the only change.
func FuzzVNet(f *testing.F) {
	tcp := make([]byte, 80)
	tcp[0], tcp[5], tcp[6], tcp[7], tcp[52] = 0x60, 40, protoTCP, 64, 5<<4
	udp := make([]byte, 60)
	udp[0], udp[5], udp[6], udp[7], udp[45] = 0x60, 20, protoUDP, 64, 20
	icmp := bytes.Clone(udp)
	icmp[6] = 58
	for _, p := range []Packet{{Data: tcp}, {Data: tcp, Partial: true}, {Data: tcp, Partial: true, SegmentSize: 10}, {Data: udp, Partial: true, SegmentSize: 4}} {
		var h [vnetLen]byte
		if !encodeVNet(&h, &p) {
			f.Fatalf("%+v has no header", p)
		}
		f.Add(h[:], p.Data)
	}
	hardware := []byte{unix.VIRTIO_NET_HDR_F_NEEDS_CSUM, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	binary.NativeEndian.PutUint16(hardware[6:], 40)
	binary.NativeEndian.PutUint16(hardware[8:], 2)
	f.Add(hardware, icmp)
	f.Fuzz(func(t *testing.T, header, data []byte) {
		if len(header) != vnetLen || len(data) == 0 {
			return
		}
		h, p := bytes.Clone(header), Packet{Data: bytes.Clone(data)}
		taken := decodeVNet(h, &p)
		if !bytes.Equal(h, header) {
			t.Fatalf("the header became %x", h)
		}
		changed := 0
		for i, b := range data {
			if p.Data[i] != b {
				changed++
			}
		}
		if changed > 0 && (!taken || p.Partial || header[0]&unix.VIRTIO_NET_HDR_F_NEEDS_CSUM == 0) || changed > 2 {
			t.Fatalf("%d octets of %x with %x changed: %x, %v", changed, data, header, p.Data, taken)
		}
		if !taken {
			return
		}
		var again [vnetLen]byte
		if !encodeVNet(&again, &p) {
			return // its marks do not fit it: it is refused where it is to go
		}
		q := Packet{Data: bytes.Clone(p.Data)}
		if !decodeVNet(again[:], &q) || q.SegmentSize != p.SegmentSize || q.Partial != p.Partial || !bytes.Equal(q.Data, p.Data) {
			t.Errorf("%x with %x: %+v, and from %x %+v", data, header, p, again, q)
		}
	})
}

// FuzzAcks: an answer of the kernel holds at most as many acknowledgements as headers
// fit in, and half of one is none.
func FuzzAcks(f *testing.F) {
	ack := func(code int32) []byte {
		b := binary.NativeEndian.AppendUint32(nil, 36)
		b = binary.NativeEndian.AppendUint16(b, unix.NLMSG_ERROR)
		b = append(b, make([]byte, 10)...)
		return append(binary.NativeEndian.AppendUint32(b, uint32(code)), make([]byte, 16)...)
	}
	f.Add(ack(0))
	f.Add(append(ack(0), ack(-int32(unix.EPERM))...))
	f.Fuzz(func(t *testing.T, b []byte) {
		n, err := readAcks(b)
		if n < 0 || n > len(b)/(unix.SizeofNlMsghdr+4) {
			t.Fatalf("%d in %d octets", n, len(b))
		}
		if more, err2 := readAcks(append(bytes.Clone(b), ack(0)[:10]...)); err == nil && err2 == nil && more != n && len(b)%4 == 0 {
			t.Errorf("%d became %d by half an answer", n, more)
		}
	})
}
