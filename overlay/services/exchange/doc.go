// Package exchange is the data exchange of an agent, port 1001: files and
// messages between trusted peers, over HTTP that any client speaks.
//
// # What a peer may do
//
// The caller is known by its source address; there is no token and no login.
//
//	GET    /v1/                  limits, and how much of the caller's quota is used
//	POST   /v1/messages          leave a message; its Content-Type is kept
//	PUT    /v1/files/NAME        leave a file
//	GET    /v1/files/            list what this agent offers to the caller
//	GET    /v1/files/NAME        fetch it; Range, If-Range, If-None-Match; HEAD
//	GET    /v1/sent/             list what the caller has left here
//	HEAD   /v1/sent/NAME         size and digest of such a file, not the file
//	POST   /v1/uploads/          begin a resumable upload: tus 1.0.0
//	GET    /v1/uploads/          list the caller's unfinished uploads
//	HEAD   /v1/uploads/ID        where to go on; PATCH goes on, DELETE gives up
//
// What is left here is the owner's: the caller cannot read, change or remove it
// (only replace it, by naming what it replaces), and no peer sees anything of
// another one. What is offered lies where the owner put it, in share/all for
// every peer and in share/FINGERPRINT for one.
//
// # Never half a file, never a silent overwrite
//
// A file is written under another name, checked, synced and then renamed. A name
// that is taken is 409 with the entity tag of what is there; If-Match with that
// tag replaces it, If-None-Match: * turns the 409 into the 412 of RFC 9110, 13.
// Of two uploads of one name the first to end wins.
//
// The digest is SHA-256. It is checked when the request has Content-Digest or
// Repr-Digest of RFC 9530, as a header or as a trailer; a tus upload carries it
// in Upload-Metadata as sha256, in hexadecimal, beside filename, which it must
// have. A wrong digest is 422 and nothing is kept. A GET or HEAD with
// Want-Repr-Digest is answered with Repr-Digest.
//
// # Names
//
// A name is one path component of at most 255 bytes of UTF-8, in the form NFC:
// other forms are normalised, and the answer says the name that was used. See
// CleanName for what is refused and why. Within the directories everything goes
// through os.Root, so that neither a name nor a symbolic link leads out.
//
// # Limits
//
// Every peer has a quota (1 GiB unless Config says otherwise) for what lies here,
// unfinished uploads with their full announced size, and may keep 10,000 items. A
// file larger than the quota is 413, one larger than what is left of it is 507; so
// is one that would fill the disk. Unfinished uploads go after seven days without
// progress. A message has at most 1 MiB. A request has 10 s for its header, and its
// body must bring 16 KiB a minute; a reader must take something every two minutes. A
// peer may have 64 requests at work. Memory does not grow with the size of a file.
//
// Errors are JSON, {"code","message","hint","retryable"}, and over a quota also
// "quota" and "used" in bytes. The protocol errors of tus itself are text.
//
// Requests that a browser sends for a foreign page are refused (Origin,
// Sec-Fetch-Site, and a Host that is no name of an agent): otherwise a page could
// speak with the identity of the machine on which it is looked at.
//
// # The owner's side
//
// Owner is the handler for programs of this machine, served by the local API
// under /v1/exchange/. It lists, reads and removes what came in, fills share, and
// keeps the queue: files for peers that are offline, copied into the state
// directory and delivered by Run.
//
//	GET    inbox[?wait=30s]                  newest last; wait: until there is something
//	GET    inbox/FINGERPRINT/files/NAME      HEAD, DELETE; also messages/ID
//	GET    share                             what is offered, to whom
//	PUT    share/all/NAME                    or share/FINGERPRINT/NAME; also DELETE
//	GET    queue
//	POST   queue?to=FINGERPRINT&name=NAME    the body is the file
//	DELETE queue/ID
//
// # Files
//
//	FINGERPRINT/files/NAME      what a peer left: complete and checked
//	FINGERPRINT/meta/NAME       JSON: digest, type, time
//	FINGERPRINT/messages/ID     one line of JSON, then the message
//	FINGERPRINT/uploads/ID      unfinished, with ID.info; as tusd's filestore keeps them
//	share/all/NAME  share/FINGERPRINT/NAME
//	queue/ID  queue/ID.json     a file to deliver
//	temp/                       emptied at every start
//	schema                      the number of this layout
package exchange
