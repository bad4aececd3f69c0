//go:build !linux

package main

import "context"

// gone waits for the end of a process that is not our child.
func gone(ctx context.Context, pid int) bool { return goneByKill(ctx, pid) }
