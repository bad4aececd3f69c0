package main

import (
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

const progressWidth = 24

// bar shows how far a transfer is, on a terminal only and never beside JSON. The
// first function takes the bytes that are done, the second ends the bar.
func (p *program) bar(label string, size int64) (progress func(done int64), end func()) {
	f, ok := p.stderr.(*os.File)
	if !ok || p.json || !term.IsTerminal(int(f.Fd())) {
		return func(int64) {}, func() {}
	}
	b := progressbar.NewOptions64(size,
		progressbar.OptionSetWriter(f),
		progressbar.OptionSetDescription(label),
		progressbar.OptionShowBytes(true),
		progressbar.OptionUseIECUnits(true),
		progressbar.OptionSetWidth(progressWidth),
		progressbar.OptionThrottle(100*time.Millisecond),
		progressbar.OptionSetPredictTime(true),
		progressbar.OptionClearOnFinish(),
	)
	return func(done int64) { b.Set64(done) }, func() { b.Clear() }
}
