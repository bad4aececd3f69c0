// Package mcp gives a language model the use of an agent, as a server of the Model
// Context Protocol. Every tool is a call of pilotctl, so that it does, checks and
// refuses what the command line does.
//
// # What a model may do
//
// The tools of the default set use the agent: they ask, send, fetch, publish, and
// take exposure away. None widens what others may reach: trust_request offers no
// more than echo in return. trust_approve is there only when whoever starts the
// server says so (Config.Govern), wants each grant spelt out, and stays within
// Config.Ports and Config.TTL; it needs the right to the govern socket besides. It
// takes a fingerprint, since a name in a request is the asker's choice, and decides
// requests only: it does not change what a peer has.
//
// Config.ReadOnly leaves the tools that change nothing, Config.Allow those that it
// names. Files are read and written below Config.Files only.
//
// # Other agents' words
//
// The reason of a trust request, the answer to a task, an event and a name in the
// inbox are written by strangers, who may write instructions. They come under
// untrusted_text, or that names their fields, and the result begins with a
// sentence that says so. That is a mark, not a wall: what a model may do at worst
// is the set of tools that it was given.
//
// # Errors
//
// A tool that fails gives an error result with {"code","message","hint",
// "retryable"}, as pilotctl --json does; not_running when there is no daemon. The
// server itself needs none to start.
package mcp
