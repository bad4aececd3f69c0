package natt

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The system calls of both directions are raw and non-blocking: they do not tell the scheduler, which costs more than
// the call itself when datagrams are small. A goroutine parks in the runtime's poller only after EAGAIN.

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
}

// control holds the control messages of one message: a segment size or a time to live (24 bytes at most) and a packet
// info (40).
type control [8]uint64

// slots are the headers that a batch needs. They hold pointers into themselves and must not move.
type slots struct {
	msgs  [batchSize]mmsghdr
	iovs  [batchSize]unix.Iovec
	names [batchSize]unix.RawSockaddrInet6 // or an Inet4 in the same place
	ctls  [batchSize]control
}

func (s *slots) init() {
	for i := range s.msgs {
		h := &s.msgs[i].hdr
		h.Iov = &s.iovs[i]
		h.SetIovlen(1)
		h.Name = (*byte)(unsafe.Pointer(&s.names[i]))
	}
}

// reader belongs to the one goroutine that reads.
type reader struct {
	slots
	conn  *linuxConn
	want  int // messages to ask for
	got   int
	errno syscall.Errno
	call  func(fd uintptr) bool // recv, bound once so that a call allocates nothing
}

func (r *reader) init(c *linuxConn) {
	r.slots.init()
	r.conn = c
	r.call = r.recv
}

func (c *linuxConn) ReadBatch(m []Message) (int, error) {
	r := &c.reader
	r.want = min(len(m), batchSize)
	if r.want == 0 {
		return 0, nil
	}
	for i := range m[:r.want] {
		setIovec(&r.iovs[i], m[i].Buf)
		h := &r.msgs[i].hdr
		h.Namelen = unix.SizeofSockaddrInet6
		h.Control = (*byte)(unsafe.Pointer(&r.ctls[i]))
		h.SetControllen(int(unsafe.Sizeof(r.ctls[i])))
	}
	for tries := 0; ; tries++ {
		if err := c.rc.Read(r.call); err != nil {
			return 0, closedError(err)
		}
		if r.errno == 0 {
			break
		}
		// The report of some destination's error, which no read is about; other errors do not go away.
		if tries == batchSize {
			return 0, r.errno
		}
	}
	for i := range m[:r.got] {
		r.fill(i, &m[i])
	}
	return r.got, nil
}

// recv makes one system call and reports whether the goroutine has an answer.
func (r *reader) recv(fd uintptr) bool {
	for {
		if r.conn.offload.Batch {
			n, _, errno := syscall.RawSyscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&r.msgs[0])), uintptr(r.want), unix.MSG_DONTWAIT, 0, 0)
			r.got, r.errno = int(n), errno
		} else {
			n, _, errno := syscall.RawSyscall(unix.SYS_RECVMSG, fd, uintptr(unsafe.Pointer(&r.msgs[0].hdr)), unix.MSG_DONTWAIT)
			r.got, r.msgs[0].len, r.errno = 1, uint32(n), errno
		}
		if r.errno != unix.EINTR {
			return r.errno != unix.EAGAIN
		}
	}
}

// fill describes received message i to the caller.
func (r *reader) fill(i int, m *Message) {
	h := &r.msgs[i].hdr
	m.N, m.Segment, m.Local = int(r.msgs[i].len), 0, netip.Addr{}
	m.Addr = sockaddr(&r.names[i])
	if h.Flags&unix.MSG_TRUNC != 0 {
		m.N = 0
		return
	}
	b := unsafe.Slice((*byte)(unsafe.Pointer(&r.ctls[i])), int(h.Controllen))
	for len(b) >= unix.SizeofCmsghdr {
		c := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
		size := int(c.Len)
		if size < unix.SizeofCmsghdr || size > len(b) {
			return
		}
		data := b[unix.CmsgLen(0):size]
		switch {
		case c.Level == unix.IPPROTO_UDP && c.Type == unix.UDP_GRO && len(data) >= 4:
			if s := int(binary.NativeEndian.Uint32(data)); s < m.N {
				m.Segment = s
			}
		case c.Level == unix.IPPROTO_IPV6 && c.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			m.Local = netip.AddrFrom16([16]byte(data)).Unmap()
		case c.Level == unix.IPPROTO_IP && c.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			m.Local = netip.AddrFrom4([4]byte(data[8:])) // ipi_addr
		}
		b = b[min(len(b), unix.CmsgSpace(len(data))):]
	}
}

// writer is the state of one WriteBatch call.
type writer struct {
	slots
	conn  *linuxConn
	owner [batchSize]int // which message of the batch a slot belongs to
	size  [batchSize]int // datagram size of the slot's run, 0: one datagram
	used  int
	next  int // first slot not handed over yet
	count int // slots handed over by the last call
	ttl   int // of all, 0: the system's
	errno syscall.Errno
	call  func(fd uintptr) // try, bound once
	park  func(fd uintptr) bool
	fail  *WriteError
}

func (c *linuxConn) WriteBatch(m []Message) (int, error) { return c.writeBatch(m, 0) }

// WriteTTL implements TTLWriter.
func (c *linuxConn) WriteTTL(m []Message, ttl int) (int, error) {
	single := make([]Message, len(m))
	for i, o := range m {
		o.Segment = 0 // there is no place for both control messages
		single[i] = o
	}
	return c.writeBatch(single, ttl)
}

func (c *linuxConn) writeBatch(m []Message, ttl int) (int, error) {
	var w *writer
	select {
	case w = <-c.writers:
	default:
		w = &writer{conn: c}
		w.slots.init()
		w.call, w.park = w.try, w.wait
	}
	w.ttl = ttl
	err := w.write(m)
	n := len(m)
	if w.fail != nil {
		n = w.fail.Failed[0]
		if err == nil {
			err = w.fail
		}
	} else if err != nil {
		n = 0
	}
	clear(w.iovs[:]) // do not keep the caller's buffers
	w.used, w.next, w.fail = 0, 0, nil
	select {
	case c.writers <- w:
	default:
	}
	return n, err
}

// write queues and sends the whole batch. Only a closed socket is an error; what else fails is in w.fail.
func (w *writer) write(m []Message) error {
	for i := range m {
		if !m[i].Addr.IsValid() {
			if err := w.flush(m); err != nil {
				return err
			}
			w.fail = failed(w.fail, i, m[i].Addr, unix.EDESTADDRREQ)
			continue
		}
		size, step := len(m[i].Buf), 0
		if s := m[i].Segment; s > 0 && s < size {
			size, step = s, s
			if k := min(maxSegments, maxRunBytes/s); k > 1 && w.conn.segments(m[i].Addr.Addr()) {
				size = k * s
			}
		}
		for b := m[i].Buf; ; {
			n := min(size, len(b))
			if w.used == batchSize {
				if err := w.flush(m); err != nil {
					return err
				}
			}
			if w.failed(i) {
				break
			}
			if n <= step {
				w.queue(i, &m[i], b[:n], 0)
			} else {
				w.queue(i, &m[i], b[:n], step)
			}
			if b = b[n:]; len(b) == 0 {
				break
			}
		}
	}
	return w.flush(m)
}

// failed reports whether message i is known not to go out, so that the rest of it can be left.
func (w *writer) failed(i int) bool {
	return w.fail != nil && w.fail.Failed[len(w.fail.Failed)-1] == i
}

// queue puts bytes of message i into the next slot: one datagram, or a run if step is not 0.
func (w *writer) queue(i int, m *Message, b []byte, step int) {
	s := w.used
	w.used++
	w.owner[s], w.size[s] = i, step
	setIovec(&w.iovs[s], b)
	h := &w.msgs[s].hdr
	h.Namelen = w.conn.setSockaddr(&w.names[s], m.Addr)
	used := 0
	ctl := unsafe.Slice((*byte)(unsafe.Pointer(&w.ctls[s])), unsafe.Sizeof(w.ctls[s]))
	if step > 0 {
		data := appendCmsg(ctl, &used, unix.IPPROTO_UDP, unix.UDP_SEGMENT, 2)
		binary.NativeEndian.PutUint16(data, uint16(step))
	}
	if w.ttl > 0 { // an AF_INET6 socket takes the IPv4 option for mapped addresses
		level, option := int32(unix.IPPROTO_IP), int32(unix.IP_TTL)
		if !m.Addr.Addr().Is4() {
			level, option = unix.IPPROTO_IPV6, unix.IPV6_HOPLIMIT
		}
		binary.NativeEndian.PutUint32(appendCmsg(ctl, &used, level, option, 4), uint32(w.ttl))
	}
	if local := m.Local; w.conn.pktinfo && local.IsValid() {
		if w.conn.ipv6 { // understood for mapped IPv4 addresses too
			ip := local.As16()
			copy(appendCmsg(ctl, &used, unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, unix.SizeofInet6Pktinfo), ip[:])
		} else if local.Is4() {
			ip := local.As4()
			copy(appendCmsg(ctl, &used, unix.IPPROTO_IP, unix.IP_PKTINFO, unix.SizeofInet4Pktinfo)[4:], ip[:]) // ipi_spec_dst
		}
	}
	h.Control = nil
	if used > 0 {
		h.Control = &ctl[0]
	}
	h.SetControllen(used)
}

// flush sends the queued slots.
func (w *writer) flush(m []Message) error {
	for w.next < w.used {
		if w.failed(w.owner[w.next]) {
			w.next++
			continue
		}
		if err := w.send(); err != nil {
			return err
		}
		if w.errno == 0 {
			w.next += w.count
			continue
		}
		s := w.next
		w.next++
		if w.size[s] > 0 && (w.errno == unix.EIO || w.errno == unix.EINVAL) {
			if err := w.singly(m, s); err != nil {
				return err
			}
			continue
		}
		w.fail = failed(w.fail, w.owner[s], m[w.owner[s]].Addr, w.errno)
	}
	w.used, w.next = 0, 0
	return nil
}

// singly sends the run in slot s one datagram at a time. EIO says that the link cannot cut runs; EINVAL is what
// kernels before 6.14 say of segments that are too large for it, and the single datagram then tells.
func (w *writer) singly(m []Message, s int) error {
	if w.errno == unix.EIO {
		w.conn.refuseSegments(m[w.owner[s]].Addr.Addr())
	}
	base, size, owner := w.iovs[s].Base, w.size[s], w.owner[s]
	rest := unsafe.Slice(base, int(w.iovs[s].Len))
	used, next := w.used, w.next
	defer func() { w.used, w.next = used, next }()
	for len(rest) > 0 && !w.failed(owner) {
		n := min(size, len(rest))
		w.used = s
		w.queue(owner, &m[owner], rest[:n], 0)
		w.next = s
		if err := w.send(); err != nil {
			return err
		}
		if w.errno != 0 {
			w.fail = failed(w.fail, owner, m[owner].Addr, w.errno)
		}
		rest = rest[n:]
	}
	return nil
}

// send hands over slots from w.next on and leaves in w.count and w.errno what became of them.
// The first attempt takes no lock, so that several goroutines can be in the kernel at once.
func (w *writer) send() error {
	if err := w.conn.rc.Control(w.call); err != nil {
		return closedError(err)
	}
	if w.errno == unix.EAGAIN {
		if err := w.conn.rc.Write(w.park); err != nil {
			return closedError(err)
		}
	}
	return nil
}

func (w *writer) wait(fd uintptr) bool {
	w.try(fd)
	return w.errno != unix.EAGAIN
}

func (w *writer) try(fd uintptr) {
	for {
		if w.conn.offload.Batch {
			n, _, errno := syscall.RawSyscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&w.msgs[w.next])), uintptr(w.used-w.next), unix.MSG_DONTWAIT, 0, 0)
			w.count, w.errno = int(n), errno
		} else {
			_, _, errno := syscall.RawSyscall(unix.SYS_SENDMSG, fd, uintptr(unsafe.Pointer(&w.msgs[w.next].hdr)), unix.MSG_DONTWAIT)
			w.count, w.errno = 1, errno
		}
		if w.errno != unix.EINTR {
			return
		}
	}
}

func setIovec(v *unix.Iovec, b []byte) {
	v.Base = unsafe.SliceData(b)
	v.SetLen(len(b))
}

// appendCmsg adds a control message to b, of which *used bytes are taken, and returns the place of its data, zeroed.
func appendCmsg(b []byte, used *int, level, kind int32, size int) []byte {
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[*used]))
	h.Level, h.Type = level, kind
	h.SetLen(unix.CmsgLen(size))
	data := b[*used+unix.CmsgLen(0):][:size]
	clear(data)
	*used += unix.CmsgSpace(size)
	return data
}

// setSockaddr writes an address in the form of the socket's family and returns its length. An IPv6 address on an IPv4
// socket becomes what the kernel refuses with EAFNOSUPPORT.
func (c *linuxConn) setSockaddr(sa *unix.RawSockaddrInet6, a netip.AddrPort) uint32 {
	var port uint16 // in network order
	binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&port))[:], a.Port())
	if !c.ipv6 && a.Addr().Is4() {
		sa4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(sa))
		*sa4 = unix.RawSockaddrInet4{Family: unix.AF_INET, Port: port, Addr: a.Addr().As4()}
		return unix.SizeofSockaddrInet4
	}
	*sa = unix.RawSockaddrInet6{Family: unix.AF_INET6, Port: port, Addr: a.Addr().As16()}
	return unix.SizeofSockaddrInet6
}

// sockaddr reads an address that the kernel wrote.
func sockaddr(sa *unix.RawSockaddrInet6) netip.AddrPort {
	port := binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(&sa.Port))[:])
	if sa.Family == unix.AF_INET {
		return netip.AddrPortFrom(netip.AddrFrom4((*unix.RawSockaddrInet4)(unsafe.Pointer(sa)).Addr), port)
	}
	return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), port)
}

// closedError gives the poller's error the name that callers of a socket expect.
func closedError(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return err
	}
	return net.ErrClosed
}
