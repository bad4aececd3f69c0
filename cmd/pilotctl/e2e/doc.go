// Package e2e has tests only: it runs the real pilotctl, as users do, on an
// Internet of network namespaces with real NATs, real programs and the kernel's
// own TUN.
//
// The Internet is natlab.sh, which is kept beside this repository and not in it;
// without it the tests are skipped. They need root and the programs that needLab
// names. PILOT_REQUIRE_ROOT=1 makes a missing one a failure, and PILOT_LONG=1
// holds the download that loses its network to 30 s instead of 15.
//
// The tests with programs of others run on one Ethernet of namespaces instead and
// need no natlab.sh. npm packages of testdata/clients are looked for in
// PILOT_CLIENTS, a directory outside the tree where .ci/run has "npm ci" put
// them; TestContainer needs runc or crun. PILOT_REQUIRE_TOOLS=1 makes a missing package
// or program a failure.
//
// Each test has a lab of its own and all run at the same time. Every agent has a
// private /etc/hosts; the machine's is never touched. Agents have the identities
// of ipam/testdata, because deriving one takes seconds, except where making one
// is what is shown.
package e2e
