// Package userspace is a TCP/IP stack inside this process, for machines that
// offer no TUN: a sandbox without the driver, a container without the right to
// use it, an ordinary user.
//
// A Stack is a tun.Device whose host is not the kernel but netstack, the TCP/IP
// implementation of gVisor: what the stack sends comes out of Read, and what is
// given to Write is received by the stack. No program of the machine sees the
// agent's address; it is reached through the stack's own listeners and dials,
// which packages above put behind services and a proxy.
//
//	Node <-> Device.Read, Device.Write <-> link <-> netstack <-> Listen, Dial
//
// # Why not golang.zx2c4.com/wireguard/tun/netstack
//
// The stack is the one that wireguard/tun/netstack wraps, at the version that it
// pins, but is put together here. That wrapper keeps gVisor's stack to itself, so
// that neither forwarders nor the options of a connection (resets, keepalive) can
// be had from it; it moves one packet at a time from goroutine to goroutine, and
// computes every checksum in software; and its Close panics if a packet is under
// way. The link here carries superpackets both ways, as the kernel's TUN does.
//
// # Superpackets
//
// Towards the tunnel TCP hands over up to 64 KiB with a partial checksum, and the
// tun.Cutter does the rest; from it the stack takes superpackets as tun.Merger
// makes them. A partial checksum is a promise that the bytes were not damaged
// since they left the sending host, and is believed as by the kernel. Whole
// checksums are verified. Datagrams come and go one by one.
//
// # Flow
//
// A kernel stops a connection that has filled the queue of its device. netstack
// has no such thing: it would drop the packet and back off. So the link makes the
// sender of bulk data wait for room, for a moment (patience); all others, who may
// hold locks that the reader of the device needs, lose the packet.
//
// # Identity
//
// The source address of a connection is who calls, as with a TUN: the stack takes
// packets from Write only, which the firewall of package overlay has checked, and
// from itself, under its own address. It refuses packets from Write that claim to
// come from its own address.
package userspace
