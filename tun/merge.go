package tun

import "encoding/binary"

const (
	// A UDP superpacket has at most as many datagrams as Linux takes
	// (UDP_MAX_SEGMENTS of all kernels so far, or less).
	maxDatagrams = 64
	// A TCP superpacket is bounded so that its parts fit one writev.
	maxSegments = 512

	mergeSets = 8
	mergeWays = 4
)

// A Merger joins packets that came together into superpackets, so that the host
// takes them in one piece. It joins only what the host could have received as
// one: consecutive packets of one flow whose checksums are partial and whose
// headers agree in everything that a superpacket can express once, which is
// traffic class with ECN, flow label, hop limit, and for TCP acknowledgement,
// window, urgent pointer and options. Cutting a superpacket of a Merger gives
// back the very packets that went in.
//
// The order within a flow is kept. Flows may be mixed: a small table holds an
// open superpacket for each of up to 32 flows, and a flow too many costs only
// merging.
//
// The Merger copies no payload. It borrows every packet, with the right to
// change it, until the packets of Flush have been written. It is not safe for
// concurrent use and does not allocate once its tables have grown.
type Merger struct {
	offload Offload
	groups  []group
	parts   []part
	open    [mergeSets][mergeWays]int32 // 1 + index into groups; 0: free
	packets []Packet
	tails   [][]byte
}

// A group is one packet of the result.
type group struct {
	first   []byte // the first packet, whole
	head    int32  // chain of further payload in Merger.parts: 1 + index
	tail    int32
	count   int32
	size    int32 // payload of one segment
	length  int32 // of the whole
	next    uint32
	hl      uint8
	proto   uint8
	push    bool
	partial bool
}

type part struct {
	data []byte
	next int32
}

// NewMerger returns a Merger for a device with these offloads.
func NewMerger(o Offload) *Merger { return &Merger{offload: o} }

// Len is the number of packets that Flush would return.
func (m *Merger) Len() int { return len(m.groups) }

// Add takes one packet. A packet with a partial checksum that is not plain TCP
// or UDP is refused with ErrMalformed and not kept.
func (m *Merger) Add(pkt []byte, partial bool) error {
	proto, hl, ok := transport(pkt)
	ok = ok && consistent(pkt, proto)
	if !ok {
		if partial {
			return ErrMalformed
		}
		if len(pkt) < headerLen || pkt[6] != protoICMP {
			// Perhaps a fragment of an open flow: nothing may overtake it.
			clear(m.open[:])
		}
		m.groups = append(m.groups, group{first: pkt})
		return nil
	}
	set := &m.open[flowHash(pkt)]
	way := m.find(set, pkt)
	payload := len(pkt) - hl
	if way >= 0 && partial {
		if g := &m.groups[set[way]-1]; g.takes(pkt, hl, payload) {
			if m.join(g, pkt, hl, payload) {
				set[way] = 0
			}
			return nil
		}
	}
	g := group{
		first: pkt, count: 1, size: int32(payload), length: int32(len(pkt)),
		hl: uint8(hl), proto: proto, partial: partial,
	}
	mergeable := partial && payload > 0
	if proto == protoTCP {
		flags := pkt[tcpFlags]
		g.push = flags&flagPSH != 0
		g.next = binary.BigEndian.Uint32(pkt[tcpSeq:]) + uint32(payload)
		mergeable = mergeable && m.offload.TSO && flags&^flagECE == flagACK
	} else {
		mergeable = mergeable && m.offload.USO
	}
	m.groups = append(m.groups, g)
	switch {
	case mergeable && way >= 0:
		set[way] = int32(len(m.groups))
	case mergeable:
		set[victim(set)] = int32(len(m.groups))
	case way >= 0:
		set[way] = 0
	}
	return nil
}

// Flush returns what was added since the last Flush. The packets are valid until
// the next Add.
func (m *Merger) Flush() []Packet {
	m.packets, m.tails = m.packets[:0], m.tails[:0]
	if n := len(m.parts); cap(m.tails) < n {
		m.tails = make([][]byte, 0, cap(m.parts)) // so that no append moves it
	}
	for i := range m.groups {
		m.packets = append(m.packets, m.packet(&m.groups[i]))
	}
	m.groups, m.parts = m.groups[:0], m.parts[:0]
	clear(m.open[:])
	return m.packets
}

func (m *Merger) packet(g *group) Packet {
	p := Packet{Data: g.first, Partial: g.partial}
	if g.count > 1 {
		from := len(m.tails)
		for i := g.head; i != 0; i = m.parts[i-1].next {
			m.tails = append(m.tails, m.parts[i-1].data)
		}
		p.Tail = m.tails[from:len(m.tails):len(m.tails)]
		p.SegmentSize = int(g.size)
		n := uint16(g.length - headerLen)
		binary.BigEndian.PutUint16(g.first[4:], n)
		if g.proto == protoUDP {
			binary.BigEndian.PutUint16(g.first[udpLength:], n)
		} else if g.push {
			g.first[tcpFlags] |= flagPSH
		}
	}
	if g.partial {
		v := fold(addressSum(g.first) + uint64(g.length-headerLen))
		binary.BigEndian.PutUint16(g.first[checksumField(g.proto):], v)
	}
	return p
}

// takes says whether a packet with a partial checksum continues the group.
func (g *group) takes(pkt []byte, hl, payload int) bool {
	f := g.first
	if payload == 0 || payload > int(g.size) || int(g.length)+payload > maxPacket || hl != int(g.hl) ||
		binary.BigEndian.Uint32(pkt) != binary.BigEndian.Uint32(f) || // version, class, label
		pkt[7] != f[7] { // hop limit
		return false
	}
	if g.proto == protoUDP {
		return g.count < maxDatagrams
	}
	// Acknowledgement, data offset, reserved bits, flags and window in one word;
	// the group's first packet has no PSH.
	const push = flagPSH << 16
	return g.count < maxSegments &&
		binary.BigEndian.Uint32(pkt[tcpSeq:]) == g.next &&
		binary.BigEndian.Uint64(pkt[tcpAck:])&^push == binary.BigEndian.Uint64(f[tcpAck:]) &&
		binary.BigEndian.Uint16(pkt[tcpUrgent:]) == binary.BigEndian.Uint16(f[tcpUrgent:]) &&
		string(pkt[headerLen+tcpHeaderLen:hl]) == string(f[headerLen+tcpHeaderLen:hl])
}

// join appends a packet to a group and says whether it must be the last one.
func (m *Merger) join(g *group, pkt []byte, hl, payload int) (last bool) {
	m.parts = append(m.parts, part{data: pkt[hl:]})
	i := int32(len(m.parts))
	if g.tail == 0 {
		g.head = i
	} else {
		m.parts[g.tail-1].next = i
	}
	g.tail = i
	g.count++
	g.length += int32(payload)
	g.next += uint32(payload)
	g.push = g.proto == protoTCP && pkt[tcpFlags]&flagPSH != 0
	return g.push || payload < int(g.size)
}

// find returns which way of a set holds the packet's flow, or -1.
func (m *Merger) find(set *[mergeWays]int32, pkt []byte) int {
	for i, n := range set {
		if n == 0 {
			continue
		}
		if sameFlow(m.groups[n-1].first, pkt) {
			return i
		}
	}
	return -1
}

// sameFlow compares protocol, ports and addresses of two transport packets.
func sameFlow(a, b []byte) bool {
	a, b = a[6:headerLen+4], b[6:headerLen+4]
	return a[0] == b[0] &&
		binary.NativeEndian.Uint32(a[34:]) == binary.NativeEndian.Uint32(b[34:]) &&
		binary.NativeEndian.Uint64(a[26:]) == binary.NativeEndian.Uint64(b[26:]) &&
		binary.NativeEndian.Uint64(a[18:]) == binary.NativeEndian.Uint64(b[18:]) &&
		binary.NativeEndian.Uint64(a[10:]) == binary.NativeEndian.Uint64(b[10:]) &&
		binary.NativeEndian.Uint64(a[2:]) == binary.NativeEndian.Uint64(b[2:])
}

// victim returns the way of a set to use for a new flow: a free one, else the
// one whose superpacket was begun first.
func victim(set *[mergeWays]int32) int {
	way := 0
	for i, n := range set {
		if n < set[way] {
			way = i
		}
	}
	return way
}

// flowHash spreads flows over the sets. An attacker who makes his flows meet
// only prevents their merging.
func flowHash(pkt []byte) uint32 {
	h := binary.BigEndian.Uint32(pkt[headerLen:]) ^ binary.BigEndian.Uint32(pkt[20:]) ^ binary.BigEndian.Uint32(pkt[36:])
	return h * 0x9e3779b1 >> (32 - 3)
}
