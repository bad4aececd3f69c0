// Package publish makes programs of this machine reachable for peers: pilotctl
// serve. Most agents' servers listen on 127.0.0.1, or refuse requests whose Host
// is not localhost; a publication listens on the agent's overlay address and
// forwards to them. It never widens trust: a peer reaches a published port if and
// only if its grant includes that port; Rule.Allow can only narrow that.
//
// # Targets
//
// A target is a port on the loopback: 8080, 127.0.0.1:8080, localhost:8080 or
// [::1]:8080, for the HTTP kinds also http://localhost:8080. Without an address
// both 127.0.0.1 and ::1 are tried. Other machines are refused: an agent is not a
// gateway into its network.
//
// # tcp
//
// Bytes are forwarded as they are, with half-close, without any timeout. The
// program sees connections from 127.0.0.1 and cannot tell peers from local users.
//
// # http, mcp, a2a
//
// A streaming reverse proxy for HTTP/1.1 and HTTP/2 without TLS (prior
// knowledge); what the program writes is sent on at once, WebSocket upgrades pass,
// other upgrades do not (an upgraded h2c stream would carry requests past all that
// follows). gRPC (content type application/grpc) is spoken to the program over
// HTTP/2, everything else over HTTP/1.1. Of each request:
//
//	Host      must be NAME or NAME.pilot.internal, the agent's overlay address or
//	          its ULA, with or without a port; else 421. NAME is any name that an
//	          agent may have, since peers choose for themselves what they call us,
//	          and no web site has such a name. This check stands in for that of
//	          the program, against pages that point their own name at our address.
//	          It becomes localhost:PORT, PORT being the target's, also for 80.
//	Origin    becomes http://localhost:PORT if it is the Host of the request, that
//	          is, for pages of the published program itself. Others stay as they
//	          are, for the program to refuse.
//	identity  Forwarded, X-Forwarded-*, X-Real-Ip and Pilot-Peer-* are removed, in
//	          every spelling that a CGI-like program takes for the same name (case,
//	          "_" for "-"), and in trailers. Then are set, from the source address
//	          of the connection and nothing else:
//	            X-Forwarded-For         the peer's ULA
//	            X-Forwarded-Host        the Host as it came
//	            X-Forwarded-Proto       http
//	            Pilot-Peer-Address      0:0000.1A2B.3C4D, in lower case
//	            Pilot-Peer-Name         the owner's name for the peer
//	            Pilot-Peer-Fingerprint  26 characters of base32
//	rest      method, path, query and other headers are not touched; CONNECT is
//	          refused.
//
// In responses, a Location or Content-Location at the target itself
// (http://localhost:PORT/...) becomes one at the Host that the client used. mcp is
// http under a name that tells what it is for.
//
// a2a also rewrites agent cards, the answers to GET .../.well-known/agent-card.json
// and agent.json: in url, additionalInterfaces[].url and
// supportedInterfaces[].url, a loopback or unspecified host with the target's port,
// or with that of another publication, becomes the Host that the client used, with
// that publication's port. Other members stay byte for byte. A card with signatures
// is not touched, since its signature would break; that, and a URL that cannot be
// mended, is shown as a warning. A card above 256 KiB is refused with 502.
//
// # Ports
//
// A publication needs its port free of programs that listen on [::]; a taken one
// is an error that names the program and a free port. After a restart such a
// publication waits, and tries again every five seconds.
package publish
