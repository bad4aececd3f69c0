//go:build !linux

package main

import (
	"github.com/urfave/cli/v2"

	"github.com/pilotnet/pilot/overlay"
)

func (p *program) runProgram(*cli.Context, []string) error {
	return overlay.Errorf(overlay.CodeDenied, "run needs Linux: it is made of network namespaces").
		WithHint("pilotctl up --tun userspace, and the proxy")
}
