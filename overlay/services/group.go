package services

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"
)

// A Group runs services side by side.
type Group struct {
	env     Env
	members []*member
}

type member struct {
	Service
	mu    sync.Mutex
	state string
	err   error
}

// Status is what one service does.
type Status struct {
	Name  string
	Port  uint16
	State string // "starting", "running", "failed"
	Err   error  // why it failed, or what ails it while it runs
}

// A Troubled service can say what ails it while it runs; nil: nothing.
type Troubled interface{ Trouble() error }

const (
	firstPause = time.Second
	lastPause  = time.Minute
)

// NewGroup returns a group that Run starts. The Ready of env is replaced.
func NewGroup(env Env, list ...Service) *Group {
	g := &Group{env: env}
	for _, s := range list {
		g.members = append(g.members, &member{Service: s, state: "starting"})
	}
	return g
}

// Run runs all services until ctx ends, and returns after the last.
func (g *Group) Run(ctx context.Context) {
	var running sync.WaitGroup
	for _, m := range g.members {
		running.Go(func() { m.keep(ctx, g.env) })
	}
	running.Wait()
}

// Status lists the services in the order in which they were given.
func (g *Group) Status() []Status {
	list := make([]Status, len(g.members))
	for i, m := range g.members {
		m.mu.Lock()
		list[i] = Status{Name: m.Name(), Port: m.Port(), State: m.state, Err: m.err}
		m.mu.Unlock()
		if t, ok := m.Service.(Troubled); ok && list[i].State == "running" && list[i].Err == nil {
			list[i].Err = t.Trouble()
		}
	}
	return list
}

// keep starts the service again whenever it ends.
func (m *member) keep(ctx context.Context, env Env) {
	env.Logger = env.Logger.With("service", m.Name())
	pause := firstPause
	env.Ready = func() {
		m.set("running", nil)
		pause = firstPause
	}
	for {
		err := m.once(ctx, env)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			err = errors.New("it ended by itself")
		}
		if was := m.set("failed", err); was == nil || was.Error() != err.Error() {
			env.Logger.Warn("service does not run; it is tried again", "port", m.Port(), "err", err)
		}
		if !sleep(ctx, pause) {
			return
		}
		pause = min(2*pause, lastPause)
	}
}

// once makes an error of a panic.
func (m *member) once(ctx context.Context, env Env) (err error) {
	defer func() {
		if v := recover(); v != nil {
			env.Logger.Error("a service panicked", "err", fmt.Sprint(v), "stack", string(debug.Stack()))
			err = fmt.Errorf("services: %s: panic: %v", m.Name(), v)
		}
	}()
	return m.Run(ctx, env)
}

// set changes the state and returns the error that was shown before.
func (m *member) set(state string, err error) (was error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	was, m.state, m.err = m.err, state, err
	return was
}
