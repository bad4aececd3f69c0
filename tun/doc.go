// Package tun is the virtual network interface: packets, addresses and routes.
//
// Open makes a TUN device, gives it the agent's address as a /128 and the route
// to all other agents, and returns it as a Device. The rest of Pilot sees packets
// come out of Read and puts packets into Write; package tuntest has a Device in
// memory and the conformance suite that all devices pass.
//
// # Superpackets
//
// What makes a tunnel in user space slow is work per packet: a system call, a
// checksum, a copy. So both ends of a Device carry superpackets where the kernel
// can: one TCP or UDP header with the payload of up to 64 KiB of segments, which
// the kernel made with TCP segmentation offload, or will take apart itself or
// deliver in one piece. Their checksums, and those of most single packets, are
// partial: the field holds the ones' complement sum of the pseudo-header (RFC
// 8200 section 8.1) and nobody has summed up the payload yet. The virtio network
// header before each packet says so (Virtual I/O Device 1.2, section 5.1.6;
// struct virtio_net_hdr of linux/virtio_net.h).
//
// A packet's way out and in through this package:
//
//	Device.Read -> Cutter -> (sealed, sent, received, opened) -> Merger -> Device.Write
//
// A Cutter cuts a superpacket into packets that fit the path, a Merger joins what
// arrives together; neither copies payload nor computes a checksum over it. The
// Merger returns a superpacket as the first packet and a list of payloads, which
// Write gathers, so the bytes go from where they were decrypted into the kernel.
// Cutting is exact: the segments of a superpacket are those that the kernel would
// have sent itself (PSH and FIN on the last, CWR on the first), and cutting what
// a Merger joined gives back what it was given. Only TCP may come out in other
// sizes than the kernel asked for, when the path demands smaller ones; a datagram
// never changes.
//
// A partial checksum is a promise that the bytes were not damaged since they left
// the sending kernel. It holds inside the authenticated tunnel, and the receiver
// derives what the checksum field must hold from the packet alone (SetPartial,
// Merger): nothing that a peer wrote there reaches the kernel. Packets with whole
// checksums pass untouched and are never merged, so damage done before they came
// to us is still seen at the end.
//
// # Who owns the bytes
//
// Packets of Read are the device's and valid until the next Read; packets given
// to Write, to Cutter and to Merger are borrowed until it is done with them, and
// may be changed meanwhile. Each type says when that is. Every packet of Read has
// Headroom octets before it and Tailroom octets after it that are nobody else's.
//
// # Linux
//
// Packets are read and written by plain non-blocking system calls on the device's
// descriptor; only a Read that finds nothing waits, in the runtime's poller. The
// interface is not persistent: it exists as long as the descriptor is open and
// takes address and route with it, also after SIGKILL. It has no link-local
// address and no multicast, so the kernel sends nothing into it unasked. Its
// gso_max_size is such that the full segments of a superpacket still fit one UDP
// send when each has become a frame. Interfaces that start with IPv6 disabled, as
// in some containers, have it enabled for this one and for the loopback device,
// through which goes what the host sends to its own address, and for no other. The
// loopback device keeps it.
//
// Linux takes a packet for any of its addresses from any interface. So a fence in
// nf_tables keeps neighbours in the LAN from sending to the agent's address, or in
// the name of another one; it ends with the descriptor that it belongs to, also
// after SIGKILL. A kernel that cannot have it costs a warning.
//
// Offloads that a kernel lacks are done without: without UDP segmentation (before
// Linux 6.2) datagrams come one by one, and without the virtio header the device
// itself cuts superpackets and completes checksums in Write.
//
// Chromium asks for IPv6 addresses only on hosts that have a route to one address
// of the public Internet. Config.IPv6Probe puts a route to it into the device
// where there is no other, and takes it away when the host gets one (Reroute).
//
// The device belongs to the network namespace of the thread that calls Open.
//
// # macOS
//
// A utun interface, one packet per system call and no offloads; address and route
// are set by ioctl and routing socket. This code compiles for macOS and follows
// its headers, but none of its tests has run on a Mac.
package tun
