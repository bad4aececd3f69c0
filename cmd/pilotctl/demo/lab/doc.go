// Package lab makes a small Internet out of Linux namespaces: hosts, wires, bridges
// and NAT routers on one machine, for demonstrations. It needs no program such as
// ip or nft; all is done by netlink.
//
// # Containment
//
// Everything happens in processes that [Contain] started: in PID, mount, network,
// UTS and IPC namespaces of their own and, where the caller is not root, in a user
// namespace in which it is. The first process runs [Init]. When it ends, for
// whatever reason, the kernel kills every process in the PID namespace, daemons in
// the background included, and with them go the namespaces, devices and mounts.
// They have no names outside, so nothing needs tidying up even after SIGKILL.
//
// # Hosts
//
// A [Host] is a network namespace and a mount namespace, held by file descriptors.
// [Host.Do] and [Host.Start] run functions and programs in it. [Host.Cover] puts a
// private file over one of the machine's, such as /etc/hosts, for programs on that
// host alone; no mount is propagated to the machine.
//
// # NAT
//
// [Host.Masquerade] is what a home router does: plain source NAT by nftables, which
// keeps ports where it can, and a stateful filter that drops whatever comes from
// outside and answers nothing. It drops before connection tracking confirms the
// packet, so that a packet which comes too early leaves no state behind.
package lab
