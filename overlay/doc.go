// Package overlay is the agent's node: it joins the network device (tun), the
// tunnels (crypto), the way to others (natt), trust and the address plan (ipam).
//
// New opens an agent from its Config, and Node.Run runs it. A program that is an
// agent by itself needs six methods, and no right of the system if it says
// UserspaceAlways:
//
//	Listen(ctx, port)             peers connect; each connection says whose it is
//	Dial(ctx, network, address)   for http.Transport.DialContext; bob.pilot.internal:80
//	ID, Status                    who it is, and how it is
//	Invite, Accept                trust by a token; or Request, Pending, Approve
//
// The examples have a whole MCP server and an HTTP client. What the daemon of
// pilotctl does besides, package api serves to others. How it works inside is told
// in design.go. Errors are *Error, with a Code and what to do next.
package overlay
