package publish

import (
	"context"
	"io"
	"net"

	"github.com/pilotnet/pilot/overlay/services"
)

// forward joins a peer's connection with one to the program until both have
// ended. An end of one direction is passed on as such, an error as a reset.
func (p *publication) forward(ctx context.Context, c *services.Conn) {
	program, err := p.target.dial(ctx)
	if err != nil {
		p.log.Debug("a published program does not answer", "port", p.rule().Port, "target", p.rule().Target, "err", err)
		services.Reset(c)
		return
	}
	defer program.Close()
	// Both ends are as the network made them, so that the kernel can move the
	// bytes by itself.
	ends := make(chan error, 2)
	go func() { ends <- pass(program, c.Conn) }()
	go func() { ends <- pass(c.Conn, program) }()
	for range 2 {
		if err := <-ends; err != nil {
			services.Reset(program)
			services.Reset(c)
		}
	}
}

// pass copies one direction and ends it.
func pass(to, from net.Conn) error {
	if _, err := io.Copy(to, from); err != nil {
		return err
	}
	if h, ok := to.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return to.Close()
}
