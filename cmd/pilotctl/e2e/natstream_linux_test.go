package e2e_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	streamPort    = "7000"
	streamPayload = 200 // bytes of UDP payload inside the tunnel
	// streamInner is what the payload is as a packet in the tunnel, with the
	// headers of IPv6 and UDP.
	streamInner = streamPayload + 40 + 8
)

// A stream sends numbered packets from one agent to another through the tunnel,
// and looks at the receiver's network card to see from where they come.
type stream struct {
	in, out *net.UDPConn
	card    *os.File
	quit    chan struct{}
	sending sync.WaitGroup
	reading sync.WaitGroup

	mu sync.Mutex
	r  record
}

// A record is what became of a stream. All times are by the same clock, those of
// arrivals the kernel's, so that a busy machine does not falsify them.
type record struct {
	sent []time.Time // by number
	got  []arrival   // in order
	wire []passage   // packets of the stream at the receiver's card, in order
}

type arrival struct {
	number int
	at     time.Time
}

// A passage is one packet outside the tunnel.
type passage struct {
	at     time.Time
	from   netip.Addr
	direct bool // not from a server
}

// stream begins one.
func (m *meeting) stream(t *testing.T, from, to *agent) *stream {
	t.Helper()
	s := &stream{quit: make(chan struct{})}
	s.in = m.listenUDP(t, to.host, net.JoinHostPort(m.plan.ula[to.name], streamPort))
	s.out = m.dial(t, from.host, "udp", net.JoinHostPort(m.plan.ula[to.name], streamPort)).(*net.UDPConn)
	s.card = m.card(t, to.host)
	ofStream(t, s.card)
	for _, c := range []syscall.Conn{s.in, s.card} {
		if err := stamp(c); err != nil {
			t.Fatal(err)
		}
	}
	s.reading.Add(2)
	go s.receive()
	go s.watch()
	s.sending.Add(1)
	go s.send(time.Second / time.Duration(m.rate))
	t.Cleanup(func() { s.stop(0) })
	return s
}

// halt ends the sending.
func (s *stream) halt() {
	select {
	case <-s.quit:
	default:
		close(s.quit)
		s.sending.Wait()
	}
}

// stop ends the stream, waits so long for what is under way, and returns all.
func (s *stream) stop(late time.Duration) record {
	s.halt()
	if late > 0 {
		<-time.After(late)
	}
	s.in.Close()
	s.out.Close()
	s.card.Close()
	s.reading.Wait()
	return s.so()
}

// so is what is known so far.
func (s *stream) so() record {
	s.mu.Lock()
	defer s.mu.Unlock()
	return record{sent: s.r.sent[:len(s.r.sent):len(s.r.sent)], got: s.r.got[:len(s.r.got):len(s.r.got)], wire: s.r.wire[:len(s.r.wire):len(s.r.wire)]}
}

// send keeps to the schedule: what a busy machine delayed goes out at once.
func (s *stream) send(every time.Duration) {
	defer s.sending.Done()
	begin := time.Now()
	b := make([]byte, streamPayload)
	pause := time.NewTimer(0)
	defer pause.Stop()
	for n := 0; ; n++ {
		pause.Reset(time.Until(begin.Add(time.Duration(n) * every)))
		select {
		case <-s.quit:
			return
		case <-pause.C:
		}
		binary.BigEndian.PutUint32(b, uint32(n))
		s.mu.Lock()
		s.r.sent = append(s.r.sent, time.Now().Round(0))
		s.mu.Unlock()
		_, _ = s.out.Write(b) // what fails is lost
	}
}

func (s *stream) receive() {
	defer s.reading.Done()
	b, oob := make([]byte, 2048), make([]byte, 128)
	for {
		n, k, _, _, err := s.in.ReadMsgUDP(b, oob)
		if err != nil {
			return
		}
		if n == streamPayload {
			s.mu.Lock()
			s.r.got = append(s.r.got, arrival{int(binary.BigEndian.Uint32(b)), stamped(oob[:k])})
			s.mu.Unlock()
		}
	}
}

// watch reads the cards: what came in of the size that the stream has.
func (s *stream) watch() {
	defer s.reading.Done()
	frames(s.card, func(b []byte, out bool, at time.Time) {
		src, size, ok := outerUDP(b)
		if !ok || out || size < streamInner {
			return
		}
		p := passage{at: at, from: src, direct: !isServer(src)}
		if p.direct && !carriesStream(size) {
			return
		}
		s.mu.Lock()
		s.r.wire = append(s.r.wire, p)
		s.mu.Unlock()
	})
}

// ofStream lets only frames of a stream come up: those that come in over an
// Ethernet card and are long enough.
func ofStream(t *testing.T, card *os.File) {
	t.Helper()
	const hardware = 1<<32 - 0x1000 + 28 // where a filter finds the kind of the card: SKF_AD_OFF + SKF_AD_HATYPE
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: hardware},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 3, K: unix.ARPHRD_ETHER},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_LEN},
		{Code: unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K, Jf: 1, K: streamInner},
		{Code: unix.BPF_RET | unix.BPF_K, K: 1 << 17},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	}
	raw, err := card.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = errors.Join(unix.SetsockoptInt(int(fd), unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
			unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}))
	})
	if err := errors.Join(err, failed); err != nil {
		t.Fatal(err)
	}
}

// frames calls f for each frame of an Ethernet card that goes out or comes in,
// until the file is closed.
func frames(card *os.File, f func(b []byte, out bool, at time.Time)) {
	raw, err := card.SyscallConn()
	if err != nil {
		return
	}
	b, oob := make([]byte, 1<<17), make([]byte, 128)
	for {
		var n, k int
		var from unix.Sockaddr
		err := raw.Read(func(fd uintptr) bool {
			n, k, _, from, err = unix.Recvmsg(int(fd), b, oob, unix.MSG_DONTWAIT)
			return !errors.Is(err, unix.EAGAIN)
		})
		if err != nil {
			return
		}
		if link, ok := from.(*unix.SockaddrLinklayer); ok && link.Hatype == unix.ARPHRD_ETHER {
			f(b[:n], link.Pkttype == unix.PACKET_OUTGOING, stamped(oob[:k]))
		}
	}
}

// carriesStream says whether one to four packets of a stream, padded to a
// multiple of 16 bytes, give a datagram of that size. More of them could be
// mistaken for a challenge.
func carriesStream(size int) bool {
	for n := 1; n <= 4; n++ {
		if size == (n*streamInner+15)/16*16+32 {
			return true
		}
	}
	return false
}

// isServer tells the addresses of rdv and rdv2.
func isServer(a netip.Addr) bool {
	return netip.MustParsePrefix("192.0.2.0/24").Contains(a) || netip.MustParsePrefix("2001:db8::/48").Contains(a)
}

// isSite tells the public addresses of the sites.
func isSite(a netip.Addr) bool {
	return netip.MustParsePrefix("203.0.113.0/24").Contains(a) || netip.MustParsePrefix("198.51.100.0/24").Contains(a)
}

// outerUDP reads the source and the size of the payload of a UDP datagram in an
// Ethernet frame.
func outerUDP(b []byte) (netip.Addr, int, bool) {
	const ethernet = 14
	if len(b) < ethernet+20 {
		return netip.Addr{}, 0, false
	}
	kind := binary.BigEndian.Uint16(b[12:])
	b = b[ethernet:]
	switch {
	case kind == unix.ETH_P_IP && b[9] == unix.IPPROTO_UDP:
		return netip.AddrFrom4([4]byte(b[12:16])), len(b) - int(b[0]&15)*4 - 8, true
	case kind == unix.ETH_P_IPV6 && len(b) >= 48 && b[6] == unix.IPPROTO_UDP:
		return netip.AddrFrom16([16]byte(b[8:24])), len(b) - 48, true
	}
	return netip.Addr{}, 0, false
}

// card opens the network cards of a host for looking.
func (l *lab) card(t *testing.T, host string) *os.File {
	t.Helper()
	var f *os.File
	l.inside(t, host, func() error {
		all := uint16(unix.ETH_P_ALL)<<8 | uint16(unix.ETH_P_ALL)>>8 // in network order
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, int(all))
		if err != nil {
			return err
		}
		f = os.NewFile(uintptr(fd), "card")
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all})
	})
	return f
}

// stamp asks the kernel for the time at which each packet came.
func stamp(c syscall.Conn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = errors.Join(unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1),
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20))
	})
	return errors.Join(err, failed)
}

// stamped is that time.
func stamped(oob []byte) time.Time {
	list, err := unix.ParseSocketControlMessage(oob)
	if err == nil {
		for _, c := range list {
			if c.Header.Level == unix.SOL_SOCKET && c.Header.Type == unix.SCM_TIMESTAMPNS && len(c.Data) >= 16 {
				return time.Unix(int64(binary.NativeEndian.Uint64(c.Data)), int64(binary.NativeEndian.Uint64(c.Data[8:])))
			}
		}
	}
	return time.Now().Round(0)
}

// arrived is the time of the first arrival of each number.
func (r record) arrived() map[int]time.Time {
	m := make(map[int]time.Time, len(r.got))
	for _, a := range r.got {
		if _, again := m[a.number]; !again {
			m[a.number] = a.at
		}
	}
	return m
}

// twice counts what came more than once.
func (r record) twice() int { return len(r.got) - len(r.arrived()) }

// lost counts what was sent from one time to another and never came.
func (r record) lost(from, to time.Time) (n int) {
	came := r.arrived()
	for k, at := range r.sent {
		if _, ok := came[k]; !ok && !at.Before(from) && at.Before(to) {
			n++
		}
	}
	return n
}

// gap is the longest time without an arrival that ends after from and begins
// before to; a stream that stays silent has one to the end of what was sent.
func (r record) gap(from, to time.Time) (most time.Duration) {
	if len(r.sent) == 0 {
		return 0
	}
	last := r.sent[0]
	for _, a := range r.got {
		if a.at.After(from) && last.Before(to) {
			most = max(most, a.at.Sub(last))
		}
		last = a.at
	}
	if end := r.sent[len(r.sent)-1]; last.Before(to) && end.After(last) {
		most = max(most, end.Sub(last))
	}
	return most
}

// late is how long a packet came after the first one that was sent later.
func (r record) late() (most time.Duration) {
	highest, since := -1, time.Time{}
	for _, a := range r.got {
		if a.number > highest {
			highest, since = a.number, a.at
		} else {
			most = max(most, a.at.Sub(since))
		}
	}
	return most
}

// directAt is when the first packet came directly; from says by which addresses.
func (r record) directAt(from func(netip.Addr) bool) (time.Time, bool) {
	for _, p := range r.wire {
		if p.direct && (from == nil || from(p.from)) {
			return p.at, true
		}
	}
	return time.Time{}, false
}

// directAgain is how long after an event packets came directly again for good:
// zero if they did all the time, false if they did no more at the end.
func (r record) directAgain(event time.Time) (again time.Duration, ok bool) {
	const pause = 150 * time.Millisecond
	last := event
	for _, p := range r.wire {
		if !p.direct || !p.at.After(last) {
			continue
		}
		if p.at.Sub(last) > pause {
			again = p.at.Sub(event)
		}
		last = p.at
	}
	return again, r.sent[len(r.sent)-1].Sub(last) <= pause
}

// outgoing counts the packets that leave a host.
type outgoing struct {
	mu   sync.Mutex
	sent []passage // from is the destination here
}

// outgoing begins to count.
func (l *lab) outgoing(t *testing.T, host string) *outgoing {
	t.Helper()
	o, card, done := &outgoing{}, l.card(t, host), make(chan struct{})
	go func() {
		defer close(done)
		frames(card, func(b []byte, out bool, at time.Time) {
			to, ok := destination(b)
			if !ok || !out {
				return
			}
			o.mu.Lock()
			o.sent = append(o.sent, passage{at: at, from: to, direct: isSite(to)})
			o.mu.Unlock()
		})
	}()
	t.Cleanup(func() {
		card.Close()
		<-done
	})
	return o
}

// count is what went to servers and to other sites in some time.
func (o *outgoing) count(from, to time.Time) (servers, peers int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, p := range o.sent {
		switch {
		case p.at.Before(from) || !p.at.Before(to):
		case p.direct:
			peers++
		case isServer(p.from):
			servers++
		}
	}
	return servers, peers
}

// destination is that of an IP packet to one host.
func destination(b []byte) (netip.Addr, bool) {
	var a netip.Addr
	switch {
	case len(b) >= 34 && binary.BigEndian.Uint16(b[12:]) == unix.ETH_P_IP:
		a = netip.AddrFrom4([4]byte(b[30:34]))
	case len(b) >= 54 && binary.BigEndian.Uint16(b[12:]) == unix.ETH_P_IPV6:
		a = netip.AddrFrom16([16]byte(b[38:54]))
	}
	return a, a.IsValid() && !a.IsMulticast()
}

// missing names the packets that never came, as ranges of numbers, and when the
// first packet of all came.
func (r record) missing() string {
	if len(r.got) == 0 {
		return "all"
	}
	came := r.arrived()
	var texts []string
	for n := 0; n < len(r.sent); n++ {
		if _, ok := came[n]; ok {
			continue
		}
		first := n
		for n+1 < len(r.sent) {
			if _, ok := came[n+1]; ok {
				break
			}
			n++
		}
		texts = append(texts, fmt.Sprintf("%d-%d (%s ms)", first, n, ms(r.sent[first].Sub(r.sent[0]))))
	}
	if len(texts) > 12 {
		texts = append(texts[:12], "...")
	}
	return strings.Join(texts, " ")
}
