// Package api is the local control interface of a running agent: HTTP with JSON
// bodies on two unix sockets, never on TCP. It holds the server, which the daemon
// runs, and the client, which pilotctl uses. Any HTTP client will do:
//
//	curl --unix-socket /run/pilot/pilot.sock http://pilot/v1/status
//
// # Two sockets, two rights
//
// The use socket (pilot.sock, mode 0660, group pilot where that group exists)
// serves what an agent needs in its daily work. The govern socket (govern.sock
// beside it, mode 0600) serves everything, and alone serves what widens or ends
// the agent's exposure. So a program that was given the use socket, such as a
// language model, cannot be talked into approving a stranger: the right is a
// file permission, not a promise. Each call on the govern socket is logged with
// the caller's process and user number where the kernel tells them.
//
//	use     GET  /v1/id  /v1/status  /v1/peers  /v1/pending  /v1/outgoing  /v1/whois?addr=IP[:PORT]  /v1/netcheck
//	             /v1/served  /v1/invites
//	        POST /v1/request  /v1/wait  /v1/accept  /v1/revoke  /v1/ping  /v1/serve  /v1/unserve
//	govern  POST /v1/approve  /v1/reject  /v1/block  /v1/confirm  /v1/invite  /v1/invites/end  /v1/withdraw  /v1/down
//
// Services add paths of their own on both sockets: /v1/exchange/ and /v1/tasks/,
// see packages services/exchange and services/tasks.
//
// Revoking is a matter of use: it only ever takes exposure away. So is serving: a
// published program is reached by those peers only whose grants, a matter of
// govern, include its port.
//
// # Messages
//
// A POST carries one JSON object of at most 64 KiB; unknown fields are refused,
// so that a misspelt option is an error and not silence. Every answer is one
// object:
//
//	{"schema":1,"ok":true,"data":...}
//	{"schema":1,"ok":false,"error":{"code":"not_found","message":"...","hint":"...","retryable":false}}
//
// Within one schema number and one path version fields are only added. The HTTP
// status repeats the error code for clients that look at nothing else. Durations
// in request bodies are nanoseconds, as encoding/json writes a time.Duration.
// Fields listed under "untrusted_text" are another agent's words.
//
// # The socket files
//
// Both files are made under a lock on their directory and with a umask that never
// leaves them open for a moment. What already lies at the path is replaced only if
// it is a socket of our own user that nobody listens on (the rest of a killed
// daemon); a symbolic link, another kind of file or somebody else's socket is
// refused, and so is a directory in which everybody may rename files. Closing
// removes a file only if it is still the one that was made.
package api
