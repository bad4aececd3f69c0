package main

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/pilotnet/pilot/overlay"
)

// place finds where the agent of run has its files. An ephemeral one has a socket of
// its own unless one is asked for, so that it does not meet the agent that is up here.
func (b *boxed) place() error {
	at, err := b.places(b.c)
	if err != nil {
		return err
	}
	b.at = at
	if b.ephemeral(b.c) {
		b.usual = at.config
		if b.c.String("socket") != "" {
			b.at, err = b.memoryPlaces(at)
		} else {
			b.at, err = b.runMemory()
		}
		if err != nil {
			return err
		}
	}
	return refuseRunning(b.c.Context, b.at)
}

const runMemoryPrefix = "run-" // and the number of the process

// runMemory are the places of an ephemeral agent that nobody else knows of.
func (p *program) runMemory() (places, error) {
	dir, err := p.memoryDir(runMemoryPrefix)
	if err != nil {
		return places{}, err
	}
	sweepMemory(dir)
	dir += strconv.Itoa(os.Getpid())
	return places{state: dir, socket: filepath.Join(dir, "pilot.sock"), config: filepath.Join(dir, "config.toml")}, nil
}

// sweepMemory removes what killed ones have left. The store of one that lives is
// locked, also where its process is not to be seen from here.
func sweepMemory(prefix string) {
	left, _ := filepath.Glob(prefix + "*")
	for _, dir := range left {
		pid, err := strconv.Atoi(strings.TrimPrefix(dir, prefix))
		if err == nil && pid > 0 && errors.Is(unix.Kill(pid, 0), unix.ESRCH) {
			removeMemory(places{state: dir}) // if not, the next one tries
		}
	}
}

// environment is the program's: pilotctl in there is for its own agent, and the token
// that made the agent is not for the program.
func (b *boxed) environment() []string {
	own := map[string]string{"PILOT_STATE_DIR": b.at.state, "PILOT_SOCKET": b.at.socket, "PILOT_CONFIG": b.at.config}
	env := slices.DeleteFunc(os.Environ(), func(e string) bool {
		name, _, _ := strings.Cut(e, "=")
		return own[name] != "" || name == "PILOT_INVITE" || name == "PILOT_INVITE_FILE"
	})
	for name, value := range own {
		env = append(env, name+"="+value)
	}
	return env
}

// settle makes the agent if there is none, with the home server of who invites it if
// it has no other. It may take its time, and ends with the first signal.
func (b *boxed) settle(signals <-chan os.Signal) error {
	usual := b.c.Context
	ctx, stop := context.WithCancel(usual)
	b.c.Context = ctx
	defer func() { b.c.Context = usual; stop() }()
	made := make(chan error, 1)
	go func() { made <- b.makeReady() }()
	for {
		select {
		case err := <-made:
			return err
		case s := <-signals:
			if ends(s) {
				stop()
				<-made
				return endedBy(s)
			}
		}
	}
}

func (b *boxed) makeReady() (err error) {
	if b.token, err = b.standingInvite(b.c); err != nil {
		return err
	}
	if err := b.prepareInvite(b.c, b.at, b.token); err != nil {
		return err
	}
	given, err := b.given(b.c)
	if err != nil {
		return err
	}
	return b.prepare(b.c, b.at, given)
}

// ends says whether a signal ends a program that does not know it.
func ends(s os.Signal) bool { return s != unix.SIGCONT && s != unix.SIGWINCH }

// endedBy is the end of run before the program was there to get the signal.
func endedBy(s os.Signal) error {
	n, _ := s.(unix.Signal)
	return &statusError{status: 128 + int(n), err: overlay.Errorf(overlay.CodeInternal, "%v before the program was started", n)}
}

// extras are what goes on beside the node.
func (b *boxed) extras(health net.Listener) extras {
	var more extras
	if health != nil {
		more.beside = append(more.beside, func(ctx context.Context) error { return serveHealth(ctx, health, b.node.Status, b.logger) })
	}
	if b.token != "" {
		more.beside = append(more.beside, func(ctx context.Context) error {
			who, err := useInvite(ctx, b.node, b.token, b.logger)
			if err == nil {
				_, err = b.node.Wait(ctx, who)
			}
			if ctx.Err() == nil {
				b.invited <- err
			}
			return nil
		})
	}
	if b.usual != "" {
		more.leave = func() { leave(b.node, b.logger) }
	}
	return more
}
