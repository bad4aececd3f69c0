// Pilotctl is the one program of Pilot: it makes an agent's identity, runs its
// daemon, asks the daemon for everything else, and runs a rendezvous server.
//
// It never prompts. The result is on stdout, progress and logs are on stderr.
// Every command takes --json, which prints one object (a stream prints one a line):
//
//	{"schema":1,"ok":true,"data":...}
//	{"schema":1,"ok":false,"error":{"code":"...","message":"...","hint":"...","retryable":false}}
//
// # Exit status
//
//	0 done               1 internal error       2 wrong usage
//	3 daemon not running 4 not found            5 not trusted, or not yet
//	6 timeout, peer or server not reachable (also: over a quota, try later)
//	7 conflict           8 needs a privilege or something of the system: root, TUN, IPv6
//	9 check failed       130 interrupted
//
// # Places
//
// A setting comes from its flag, else from the environment (PILOT_STATE_DIR,
// PILOT_SOCKET, PILOT_CONFIG, PILOT_NAME, PILOT_SERVER, PILOT_TUN, PILOT_DNS,
// PILOT_DNS_SEARCH, PILOT_PORT, PILOT_SERVICES, PILOT_CA_FILE, PILOT_JSON), else
// from the configuration file, else it has its default; "pilotctl config show
// --origin" tells which. Root uses the places of the system, other users those of
// the XDG base directories. When only the state directory is named, the
// configuration and the sockets are in it too, so that many agents can run on one
// machine.
//
// Flags may stand before or after arguments; see normalise.
package main
