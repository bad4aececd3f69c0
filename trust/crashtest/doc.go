// Package crashtest shows, for tests only, what a program's files look like after
// the power failed. It runs a program under ptrace and records every change that
// it makes to one directory (creations, writes, truncations, renames, removals),
// every fsync, and what the program acknowledged in between. From the record it
// builds directories as a disk may hold them that lost power at any moment: what
// was synced is there, and of the rest any subset.
//
// The program is the real one with its real system calls; nothing is put under it.
// So the record also holds for memory-mapped databases such as bbolt.
//
// # The disk
//
// It promises what POSIX does and no more:
//
//   - Sectors of 512 bytes are written as a whole or not at all, in any order.
//   - fsync and fdatasync of a file make its content durable that was written
//     before the call began, and its length. They do not make its name durable.
//   - fsync of a directory makes the names in it durable. A rename is one step; it
//     is durable when the directory is that it leads to.
//   - What was not synced survives in part: each sector, each truncation and each
//     change of a name by itself, or all of them up to some moment, as a journal
//     would have it, or all of it, as when only the process died.
//
// A disk may also fail for the program itself: FailSync, FailWrite and FailAll make its
// system calls return EIO. What was written to a file before a sync of it that failed
// may be lost for good, as Linux has it: the program reads it, but a later sync that
// succeeds says nothing about it. Lengths and names wait for that one.
//
// # Use
//
// A test starts its own binary again, and work runs there:
//
//	crashtest.Test{
//		Work:  work,  // calls crashtest.Ack(i) when step i is promised to be durable
//		Check: check, // whether what was acknowledged is still there
//		Seeds: 60, Hostile: 10_000,
//	}.Run(t)
//
// It needs Linux 5.3 and the right to trace one's own children.
package crashtest
