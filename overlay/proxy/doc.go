// Package proxy is the way into the overlay for programs that do not see it: one
// port of the loopback that speaks SOCKS 5 (RFC 1928, CONNECT without
// authentication) and HTTP (CONNECT, RFC 9110 9.3.6, and requests with an absolute
// URI, RFC 9112 3.2.2). The first byte tells them apart: 5, or a letter.
//
// Names are resolved here and nowhere else, so that NAME.pilot.internal works in
// programs whose resolver does not know it: with socks5h:// and with HTTP proxies.
//
//	*.pilot.internal, overlay addresses    the overlay
//	everything else                        the host's own network, through the
//	                                       next proxy where there is one
//
// The rest is not refused, because the variables that programs read (ALL_PROXY,
// HTTP_PROXY) send all that they do to one place, and a program must not lose the
// Internet for a peer.
//
// Whoever reaches the port is the agent, as with a network device whoever runs on
// the machine is. So the port is on the loopback only, and a web page gets nothing
// from it: what a browser can be made to send, a request for a path or a form,
// is neither SOCKS nor CONNECT nor an absolute URI, and is refused.
package proxy
