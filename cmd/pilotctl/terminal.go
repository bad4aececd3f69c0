package main

import (
	"os"

	"golang.org/x/term"
)

// terminal says whether a person reads the result.
func (p *program) terminal() bool {
	f, ok := p.stdout.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
