// Package demo tells the whole story of Pilot on one machine: a server, alice and
// bob behind a NAT router each, and a stranger, in a lab of namespaces. What is
// typed there is run as child processes of the real program, and shown with what
// came back.
//
// # Processes
//
//	pilotctl demo            shows the transcript; makes and removes a directory in TMPDIR
//	  pilotctl demo stage    first process of the namespaces: collects the dead
//	    pilotctl demo story  builds the lab, plays, answers enter and down
//	      pilotctl up, curl, ...
//
// The stage ends with the story, and the story when its lifeline, a pipe from the
// first process, is closed. So the kernel ends everything, daemons in the background
// too, however the first process ends. What the agents store is in memory, mounted
// where only they see it. To keep the lab, the first process writes a byte to the
// lifeline before it ends.
//
// # Control socket
//
// The directory holds one socket. A client sends one JSON object, a request, with
// the file descriptors of a program's input and outputs; the answer is one JSON
// object, sent when the program has ended. The program is killed when the client
// hangs up. To the request "down" there is no answer but the end.
package demo
