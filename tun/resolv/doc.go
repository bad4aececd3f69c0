// Package resolv tells the resolver of the operating system the names of peers.
// A Manager does so by the first of these means that fits, goes over to another
// when that changes, and takes back what it did when it ends:
//
//   - systemd-resolved, on Linux: it is told over D-Bus
//     (org.freedesktop.resolve1(5)) to ask our resolver about two zones.
//   - Debian's resolvconf or openresolv, on Linux: it is run to put our resolver
//     before the others in the resolv.conf that it keeps.
//   - Files in /etc/resolver, on macOS (resolver(5)): the same for its resolver.
//   - A managed block in the hosts file (usually /etc/hosts, see hosts(5)), which
//     every resolver of every libc reads. The set of names is small: the peers
//     that an agent trusts.
//
// It never writes resolv.conf itself, and never takes it over. With all means but
// resolvconf no program's question about any other name comes our way.
//
// # systemd-resolved
//
// It is used if it answers on the bus and programs here really ask it: every
// nameserver of resolv.conf is its stub, 127.0.0.53; nsswitch.conf, where there
// is one, does not keep glibc from asking; and the socket on port 53 of the stub
// in our network namespace belongs to the user who has the name on the bus.
// The last tells containers and namespaces that can reach the bus of the host:
// there our interface number would mean an interface of somebody else. A
// service that is not running is not started.
//
// The link of the device gets our resolver as server (SetLinkDNS), the zone of
// names as routing-only domain, or as search domain if that is wanted, the
// reverse zone as routing-only domain (SetLinkDomains), and no part in anything
// else: no default route, LLMNR, multicast DNS, DNSSEC or DNS over TLS. Then a
// name that our resolver always knows is asked for by way of the stub. If it
// does not come through all is undone, and the next means is tried.
//
// All is done again when the service comes back on the bus (NameOwnerChanged),
// and looked at every minute. No call may take longer than a second. The settings
// belong to the link: they go away with it, however the process ends.
//
// # resolvconf
//
// resolv.conf knows no zones: all questions go to its first server. Our resolver
// refuses those that are not about its zones at once (REFUSED), and glibc, musl
// and Go's resolver then ask the next server. So its place is the first, without
// passing anything on; the price is that it sees the other questions, which it
// keeps no record of, and one more exchange inside the machine for each.
//
// The record is called "lo.pilot-TAG": both programs sort what begins with "lo."
// to the front, as a name server of this machine. openresolv's -m would not do
// that (records without a metric come before those with 0), and its -x would take
// the other servers out. This means is used only if
//
//   - one of the programs is installed (systemd's resolvconf, which is
//     resolvectl, is not one) and keeps the resolv.conf in use: a link into
//     /run/resolvconf, or a file that openresolv signs;
//   - it has one or two other servers: with none programs would have nobody
//     else, and with three, which is all that a libc reads, one would be lost;
//   - the first of these is no forwarder on this machine, which would ask ours
//     about everything, and no option (rotate, use-vc) keeps programs from asking
//     the first server first over UDP;
//   - the files are not those of a machine whose network namespace is another;
//   - our resolver answers, and afterwards really stands first. If not the record
//     is removed, and not made again until the servers change.
//
// This is looked at every minute. Whoever kills the process leaves the record
// until the next start, "pilotctl down" or the next boot. Since the device is gone
// the server cannot be reached then, and programs ask the next; so that this does
// not take them a timeout where there is a default route, Config.Route has a
// second route of the lowest priority meanwhile, which says "unreachable".
//
// # /etc/resolver
//
// One file for each zone, with the address of our resolver, and one named
// search.pilot if bare names are to be looked up too. Each begins with a line
// that says who made it, and a file without this line is not touched. What a
// killed agent left is replaced or removed at its next start, or by RemoveFiles.
//
// # The block
//
// Each agent has a tag, and each line of its block ends with the tag:
//
//	# pilot:TAG begin
//	fd50:494c:4f54::a91c:33f0 bob.pilot.internal # pilot:TAG
//	# pilot:TAG end
//
// A line belongs to an agent if and only if it carries its mark, so a block
// that was torn, doubled or written into by somebody else is put right without
// a guess about where it ends. Everything else in the file stays equal byte for
// byte, and Remove gives the file back as it was. Two cases need a note for that:
//
//   - The file had no line feed at its end: one is put before the block, the
//     first line reads "# pilot:TAG begin joined", and whoever removes that block takes the
//     line feed along, hands the note on to the block that follows, or keeps
//     the line feed if text of others follows by then.
//   - There was no file: it begins with the line "# pilot: made this file ...",
//     and goes away with the last block if it holds nothing else.
//
// Blocks stand at the end, where entries of the user that come first win.
//
// # The lock
//
// Several agents may share one file, in different containers too. They take
// turns by flock(2) on the file itself. A lock file beside it would need a
// writable directory (containers often have a read-only root and a hosts file
// mounted on top), would stay behind as litter, and would not be seen by an
// agent that shares only the mounted file. The price is that a lock can be held on an inode
// that a rename has replaced: after each lock the path must still lead to the
// locked inode, or it is opened again. Since whoever can read the file can
// lock it, waiting is bounded and ends with ErrBusy.
//
// # The write
//
// The file is replaced by a rename, so that readers see the old or the new one
// and a crash leaves either. Where that cannot work it is written in place:
// when the rename fails (EBUSY or EXDEV on a file that is a mount point, as in
// containers), when no file can be made beside it, and when a new file would lose
// what the old one has (further hard links, an owner that we cannot give,
// extended attributes such as an SELinux label or an ACL). Writing in place
// first appends what makes the file longer and takes it back if the disk is full, then
// overwrites what differs. An unchanged file is not written.
//
// Programs that change the file without the lock, editors for example, may
// undo or lose a change made in the same instant; the next Set repairs it.
package resolv
