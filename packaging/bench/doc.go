// Bench measures Pilot beside its rivals on one Linux machine: bare veth,
// wireguard-go built from the module that Pilot itself depends on, and Nebula where
// nebula and nebula-cert are installed.
//
//	go run ./packaging/bench [flags]        (as root; "make bench")
//
// For each contestant it makes three network namespaces, two hosts on a bridge
// in the third, and starts it between the hosts. Pilot runs as users run it: a
// server, two agents, trust for all ports; replay window, address checks and
// firewall are in the measured path. All carry IPv6 inside and IPv4
// underneath, each with its default MTU. The bridge is a cable: no packet filter
// sees what crosses it, also where the kernel would offer it.
//
// A round runs each test on each contestant, one directly after the other and
// every round in another order, so that a ratio compares what ran within
// seconds. Both hosts, their daemons and the programs that measure share the
// machine's CPUs: throughput says what everything costs together, and the CPU
// seconds that both daemons used per gigabyte say what they cost. A test during
// which other programs used the machine is run again, up to -tries times; the
// least disturbed try counts, and the table says how much it was disturbed.
//
// TCP is measured by iperf3, HTTP by wrk against a Go server. The UDP flood is our
// own program (flood_linux.go) for all contestants: iperf3's receiver lost half of
// what was delivered to it. Beside each ratio stand its goal and its floor, and
// where even the bare link does not reach the goal, that.
//
// The relay is measured last: two agents that the bridge keeps apart, and the server
// between them, beside the direct path of the same agents in the same rounds, with the
// server's CPU seconds per gigabyte (-relay=false leaves it out).
//
// With -soak it measures nothing: it sends random bytes both ways for so long,
// over a link in user space that loses 1 % of the packets and lets another 1 %
// be overtaken, and fails unless both sides saw the same bytes and no daemon's
// memory has grown by more than 5 % since the first minute.
//
// The results, with every round, go to a Markdown file. Needs iperf3, ping and
// ip; ethtool for the variants of the link; wrk for HTTP.
package main
