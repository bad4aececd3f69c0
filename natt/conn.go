package natt

import (
	"fmt"
	"log/slog"
	"net/netip"
)

// A Message is a run of equal-sized datagrams laid end to end, from or to one address; the last of them may be shorter.
type Message struct {
	// Buf is the buffer to fill (ReadBatch) or the bytes to send (WriteBatch).
	// A reader that hands in less than MaxRun bytes may lose what does not fit.
	Buf []byte
	// N is the number of bytes received. ReadBatch sets it, WriteBatch ignores it.
	// A run that did not fit Buf is lost: N is 0, or where the system does not tell, Buf is full.
	N int
	// Segment is the size of each datagram of the run. 0 says that there is one datagram only.
	Segment int
	// Addr is the remote address. An IPv4 address has its 4-byte form.
	Addr netip.AddrPort
	// Local is the address of ours that the datagram came to, or must leave from.
	// The zero value says unknown, or any. ReadBatch sets it when the socket was opened with PacketInfo.
	Local netip.Addr
}

// MaxRun is the size of a receive buffer that holds every run.
const MaxRun = 1 << 16

// A PacketConn is a UDP socket that moves batches of runs.
//
// One goroutine reads. Any number of goroutines may write at the same time, and Close may be called at any time; the
// runs of one WriteBatch call keep their order. Buffers are borrowed until the call returns.
type PacketConn interface {
	// LocalAddr returns the address the socket is bound to.
	LocalAddr() netip.AddrPort
	// BatchSize returns the number of messages that one ReadBatch can fill. WriteBatch takes any number.
	BatchSize() int
	// ReadBatch blocks until there is a datagram, takes what already waits, and returns the number of messages
	// filled. The error is net.ErrClosed after Close. What the network reports about single destinations is not an error.
	ReadBatch(m []Message) (n int, err error)
	// WriteBatch sends all messages and returns when all are handed over. A message that fails does not keep the
	// others from being sent. n is the number of messages before the first that failed, and the error is then a
	// *WriteError; after Close it is net.ErrClosed. A message whose datagrams are too large for the link fails with
	// syscall.EMSGSIZE (test with errors.Is). A run that the link refuses as a run is sent as single datagrams.
	WriteBatch(m []Message) (n int, err error)
	// Offload says what the socket does natively.
	Offload() Offload
	// Close closes the socket and wakes the reader.
	Close() error
}

// A TTLWriter is a PacketConn that can send packets which die on the way.
type TTLWriter interface {
	// WriteTTL is WriteBatch with a time to live (hop limit), 1 to 255. Every message is one datagram.
	WriteTTL(m []Message, ttl int) (n int, err error)
}

// Offload says what a PacketConn hands to the kernel. All of it is invisible to the caller except in speed.
type Offload struct {
	GSO   bool // a run leaves in one piece (UDP_SEGMENT)
	GRO   bool // runs arrive in one piece (UDP_GRO)
	Batch bool // several messages a system call
}

// A WriteError says which messages of a batch were not sent, and why the first of them was not.
type WriteError struct {
	Addr   netip.AddrPort // where the first failed message was to go
	Failed []int          // indices into the batch, ascending; never empty
	Err    error          // of the first; a syscall.Errno if it came from the kernel
}

func (e *WriteError) Error() string {
	return fmt.Sprintf("natt: send to %v: %v", e.Addr, e.Err)
}

func (e *WriteError) Unwrap() error { return e.Err }

// ListenConfig describes a socket.
type ListenConfig struct {
	// Addr is the address to bind. Without an address, or with [::], the socket takes IPv6 and IPv4; on a host that has
	// no IPv6 it takes IPv4. Port 0 lets the system choose.
	Addr netip.AddrPort
	// PacketInfo fills Message.Local on reading and obeys it on writing, so that a server on a wildcard address answers
	// from the address that was asked. Linux only.
	PacketInfo bool
	// DontFragment sets DF on every packet and lets no learned path MTU cut or refuse one: what is larger than the
	// link fails with EMSGSIZE, what is larger than the path is lost on it.
	DontFragment bool
	// ReceiveBuffer is the size of the kernel's buffers, DefaultReceiveBuffer if 0. Without the privilege to
	// exceed the system's limit the limit applies.
	ReceiveBuffer int
	// Device binds the socket to a network interface. Linux only.
	Device string
	// NoGSO, NoGRO and NoBatch do without the named mechanism, as on a kernel that lacks it.
	NoGSO, NoGRO, NoBatch bool
	// Portable opens what systems without an implementation of their own have, and macOS: one datagram a system call.
	// DontFragment, PacketInfo and Device are then ignored.
	Portable bool
	// Logger receives what the socket had to do without. May be nil.
	Logger *slog.Logger
}

// DefaultReceiveBuffer holds about 5 ms of traffic at 5 Gbit/s.
const DefaultReceiveBuffer = 4 << 20

// Listen opens a UDP socket.
func Listen(c ListenConfig) (PacketConn, error) {
	if c.ReceiveBuffer == 0 {
		c.ReceiveBuffer = DefaultReceiveBuffer
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Portable {
		return listenGeneric(c, nil)
	}
	return listen(c)
}
