// Package portmap asks the gateway to let the Internet reach our UDP port: by PCP, by NAT-PMP and by UPnP, all at once.
// Nobody waits for it. A Mapper has one goroutine, Run, which reports each mapping when it comes and when it goes; the
// user of a mapping holds it for a hint until a packet came in through it, since gateways err and lie.
//
// # What is asked
//
// One mapping per protocol and address family, for our own UDP port and nothing else. In IPv4 the external port that
// is wished for is the internal one, later the one that we had; any other is taken too. In IPv6 nothing is
// translated, and what is asked for is a hole in the firewall.
//
//	         IPv4                        IPv6
//	PCP      MAP                         MAP
//	NAT-PMP  external address, map UDP   -
//	UPnP     WANIPConnection 2 and 1,    WANIPv6FirewallControl 1
//	         WANPPPConnection 1
//
// A mapping whose external address is private, of a carrier's NAT (100.64.0.0/10), inside Config.Exclude or no address of
// the Internet at all is withdrawn and reported as a Problem: another NAT stands in front. UPnP is not tried if our own
// IPv4 address is public, nor is anything in IPv6 if it is not.
//
// # When
//
// PCP and NAT-PMP ask at once and again after 250 ms, 500 ms, 1 s and 2 s, the times of RFC 6886 section 3.1 (RFC 6887
// has 3 s, for servers far away; ours is on our link). A gateway that stays silent is asked again after 10 minutes,
// one that refuses after the time that it names, within 30 s and 30 minutes. Mappings are asked for 20 minutes and renewed
// at half of what was granted, then at half of what is left; what lasts less than 10 s is not taken. UPnP mappings
// are asked for an hour (for ever, where the device knows nothing else), looked at every 10 minutes and renewed at half
// life.
//
// All of it is asked anew when Kick is called, and when a gateway lost its state: PCP and NAT-PMP tell by an epoch, in
// answers and in announcements to 224.0.0.1:5350, and the rule is that of RFC 6887 section 8.5. One protocol that
// notices makes the others ask. This is believed once a minute at most, for announcements can be forged. If Kick or the
// look at the route once a minute finds another gateway, another address or another port of ours, the old mappings are
// withdrawn and new ones made at the same time. At the end of Run all are withdrawn, in less than half a second.
//
// # Whom we believe
//
// PCP and NAT-PMP use a socket of their own each, on a random port, which hears the gateway's address and port 5351
// only. PCP has a random nonce of 96 bits beside. Announcements count if they come from there, and can only make us ask.
//
// UPnP's search goes to the gateway itself and by multicast to our link. If the gateway is no IGD, a neighbour is
// taken: a host in the same /24 (IPv6: /64 or link-local). A device speaks for itself only: every URL, of description
// and control, has to lead by plain HTTP to the very address that the answer came from, by number. Redirects and
// proxies are not followed, a request takes 3 s at most, a body 256 KiB, a header 16 KiB, and there are at most 4 devices
// with 4 services each.
//
// A UPnP mapping is looked up before it is made or renewed. One that leads to another host, or to another port of our
// host, is not touched: another external port is taken. It is looked up again afterwards, for some devices say
// yes and map something else. It is removed only if it still leads to us. Pinholes cannot be looked up; they have a
// number that only we know.
//
// # PCP on the wire (RFC 6887)
//
// UDP to port 5351 of the gateway, big-endian, at most 1,100 bytes, a multiple of 4.
//
//	request of MAP                             answer
//	 0  version 2                               0  version 2
//	 1  opcode 1                                1  opcode | 0x80
//	 2  zero                                    2  zero
//	                                            3  result, 0 for success
//	 4  lifetime in seconds, 0 withdraws        4  lifetime, of the mapping or of the refusal
//	 8  our address, 16 bytes                   8  epoch in seconds
//	                                           12  zero, 12 bytes
//	24  nonce, 12 bytes                        24  the same
//	36  protocol 17, 3 bytes zero              36  the same
//	40  internal port                          40  the same
//	42  external port, wished for              42  external port
//	44  external address, wished for           44  external address, 16 bytes
//
// IPv4 addresses are written ::ffff:a.b.c.d. An announcement is an answer with opcode 0 that ends before the nonce.
// Requests are read exactly; in answers reserved bytes and options are ignored, as the RFC asks.
//
// # NAT-PMP on the wire (RFC 6886)
//
// The same port. Every length is exact, but a refusal may end behind the epoch.
//
//	external address   0  0                    answer   0  128  result 2  epoch 4  address 4
//	map UDP            0  1  0 0               answer   0  129  result 2  epoch 4
//	                   internal port 2                  internal port 2  external port 2  lifetime 4
//	                   external port 2
//	                   lifetime 4, 0 withdraws
//
// # Sources
//
// RFC 6886 (NAT-PMP), RFC 6887 (PCP), UPnP Device Architecture 1.1, and of the UPnP Forum WANIPConnection:1 and :2,
// WANPPPConnection:1 and WANIPv6FirewallControl:1, spoken with the help of github.com/huin/goupnp.
package portmap
