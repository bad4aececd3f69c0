//go:build !linux

package demo

import (
	"context"

	"github.com/pilotnet/pilot/overlay"
)

// Run tells the story; it needs Linux.
func Run(context.Context, Options) (Result, error) { return Result{}, needsLinux() }

// Stage is the first process of the namespaces; it needs Linux.
func Stage(string, Options) (int, error) { return 0, needsLinux() }

// Play is the process that tells the story; it needs Linux.
func Play(context.Context, string, Options) error { return needsLinux() }

// Enter runs a program in a lab that was kept; it needs Linux.
func Enter(context.Context, string, []string, Streams) (int, error) { return 0, needsLinux() }

// Down removes labs; it needs Linux.
func Down(context.Context) (int, error) { return 0, needsLinux() }

func needsLinux() error {
	return overlay.Errorf(overlay.CodeDenied, "the demo needs Linux: it is made of network namespaces").
		WithHint("run it in a Linux virtual machine; on two machines, the quickstart in README.md does the same")
}
