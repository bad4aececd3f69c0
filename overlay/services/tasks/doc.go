// Package tasks takes tasks of trusted peers on port 1003, over A2A 1.0 and 0.3,
// and gives them to a handler of the owner's choice. Any A2A client will do; an
// agent that speaks A2A itself is published with serve a2a (package publish)
// instead.
//
// # What a peer may do
//
// The caller is known by its source address; there is no token and no login.
//
//	GET  /.well-known/agent-card.json   the card, readable as 1.0 and as 0.3; also /.well-known/agent.json
//	POST /                              JSON-RPC of either version, told apart by the method
//
// SendMessage, SendStreamingMessage, GetTask, ListTasks, CancelTask and
// SubscribeToTask work, and in 0.3 message/send, message/stream, tasks/get,
// tasks/cancel and tasks/resubscribe. Push notifications do not: an agent does
// not call addresses that a peer names. A peer sees the tasks that it sent and no
// others: those of others are "not found". The owner sees all.
//
// A message makes one task. It has ended when the handler has; one cannot add to
// a task, but messages may share a context, which the handler is told.
//
// # No handler, no work
//
// Without a handler every message becomes a task that is rejected with a text
// that says so. It is not kept. A handler is one of
//
//	command   run once for each task, as the user who set it, who is told by the
//	          kernel at the control socket: never as root unless root set it. What
//	          the peer wrote comes on stdin, never in an argument or through a
//	          shell. The environment is PATH, HOME, USER, LOGNAME and LANG of that
//	          user, PILOT_TASK_ID, PILOT_CONTEXT_ID, PILOT_PEER_NAME,
//	          PILOT_PEER_ADDRESS, PILOT_PEER_ULA and PILOT_PEER_FINGERPRINT, and
//	          nothing else. On Linux it can gain no privileges (no_new_privs, no
//	          ambient capabilities) and dies with the daemon. It is the leader of
//	          a process group, which ends with it: at the time limit, at a
//	          cancellation and when it writes too much, with SIGTERM and two seconds
//	          later with SIGKILL. What leaves the group by setsid is not followed.
//	URL       gets a POST for each task, with Pilot-Task-Id, Pilot-Context-Id and
//	          the Pilot-Peer-* headers of package publish. Redirects are not
//	          followed and proxies not used.
//
// With the format text, stdin or the body is the text of the message, and
// stdout or the answer is the text of the task's artifact, passed on while it is
// written. With the format json the input is
//
//	{"task_id":"...","context_id":"...","peer":{"name":"...","address":"...",
//	 "ula":"...","fingerprint":"..."},"message":{the A2A message}}
//
// and the output is one JSON value, which becomes a data part. Exit status 0 or an
// HTTP status of 200 to 299 completes the task, others fail it. A peer learns the status;
// what the command wrote on stderr (its last 4 KiB) is kept for the owner alone.
//
// # Nothing is lost silently
//
// A task is on disk before its handler begins, and its end is on disk before
// anybody is told. A task whose handler was at work when the agent stopped,
// crashed or lost power is found at the next start and marked as failed,
// "interrupted". It is not tried again, for the handler may have done its work.
// Partial output is kept in memory until the end.
//
// # Limits
//
// A message has at most 1 MiB as JSON, an output 1 MiB unless the handler says
// otherwise, a task ten minutes likewise. Four tasks of a peer and sixteen in all
// are at work; a message beyond that is refused with a text that says so. A peer
// may have 64 requests open. Its latest 1000 tasks are kept, if they fit into
// 64 MiB. A header must come within 10 s and a body within 30 s; a reader of a
// stream must take something every two minutes. A slow reader delays nobody.
//
// Requests that a browser sends for a foreign page are refused, as in package
// exchange.
//
// # The client
//
// Client sends tasks to other agents. It believes little of a card: at most
// 64 KiB are read, and of the URLs in it only the path is used, since an agent
// whose card leads elsewhere could make its callers speak to a third party.
//
// # The owner's side
//
// Served by the local API below /v1/tasks/:
//
//	GET    handler                   PUT: set it; DELETE: none any more
//	GET    list[?peer=FINGERPRINT]   the latest first, without what they answered
//	GET    task/ID                   POST task/ID/cancel
//
// # Files
//
//	tasks.db   bbolt: bucket "handler" with one JSON value; bucket "tasks" with one bucket for each
//	           fingerprint, of task ID (UUID version 7, so in order of time) -> JSON
package tasks
