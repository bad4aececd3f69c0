package main

import (
	"context"
	"os"
	"os/signal"
	"time"

	"github.com/pilotnet/pilot/crypto"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	p := &program{
		stdin:   os.Stdin,
		stdout:  os.Stdout,
		stderr:  os.Stderr,
		getenv:  os.Getenv,
		now:     time.Now,
		newKey:  crypto.GenerateKey,
		newNode: openNode,
		lookup:  lookupNames,
		examine: examineMachine,
	}
	status := p.run(ctx, os.Args)
	stop()
	os.Exit(status)
}
