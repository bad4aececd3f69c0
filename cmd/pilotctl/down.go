package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/pilotnet/pilot/ipam"
	"github.com/pilotnet/pilot/overlay"
	"github.com/pilotnet/pilot/overlay/api"
	"github.com/pilotnet/pilot/tun/resolv"
)

func (p *program) downCommand() *cli.Command {
	return &cli.Command{
		Name:  "down",
		Usage: "stop the agent, and tidy up after one that was killed",
		Flags: []cli.Flag{
			&cli.DurationFlag{Name: "wait", Value: 20 * time.Second, Usage: "wait so long for its end"},
			&cli.StringFlag{Name: "hosts-file", Value: "/etc/hosts", Hidden: true},
		},
		Action: func(c *cli.Context) error {
			if _, err := arguments(c); err != nil {
				return err
			}
			at, err := p.places(c)
			if err != nil {
				return err
			}
			ran, err := stop(c.Context, api.NewClient(at.socket), c.Duration("wait"))
			if err != nil {
				return err
			}
			if err := tidy(at, c.String("hosts-file")); err != nil {
				return err
			}
			if err := p.tidyMemory(at, c.String("hosts-file")); err != nil {
				return err
			}
			return p.result(map[string]bool{"was_up": ran}, func(w io.Writer) {
				if ran {
					fmt.Fprintln(w, "the agent is down")
				} else {
					fmt.Fprintln(w, "the agent was not up")
				}
			})
		},
	}
}

// stop ends the daemon and waits until its process is gone.
func stop(ctx context.Context, client *api.Client, wait time.Duration) (ran bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	pid, err := client.Down(ctx)
	if err != nil && api.AsError(err).Code == overlay.CodeNotRunning {
		return false, nil
	}
	if err == nil && pid != os.Getpid() && !gone(ctx, pid) {
		err = overlay.Errorf(overlay.CodeTimeout, "process %d is still there after %v", pid, wait).
			WithHint("kill -9 %d, then pilotctl down once more", pid)
	}
	return true, err
}

// tidy removes what a killed daemon leaves behind: socket files, names in the
// hosts file, and what told the system of the resolver. All are left alone while a daemon answers.
func tidy(at places, hosts string) error {
	if err := api.RemoveStale(at.socket); err != nil {
		return err
	}
	if runtime.GOOS == "darwin" {
		if err := resolv.RemoveFiles(resolv.DefaultResolverDir); err != nil {
			return systemError("remove what tells the system of the resolver", err)
		}
	}
	id, err := readIdentity(at)
	if err != nil {
		return nil // no agent here, or none that this user may look at
	}
	tag := id.Key.Public().Fingerprint().String()
	if err := resolv.RemoveResolvconf(tag, ipam.Prefix()); err != nil {
		return systemError("take the resolver out of resolv.conf", err)
	}
	// Read first: most users may not write the file, and need not.
	if text, err := os.ReadFile(hosts); err != nil || !strings.Contains(string(text), tag) {
		return nil
	}
	if err := resolv.NewHosts(hosts, tag).Remove(); err != nil {
		return systemError("take the names out of "+hosts, err)
	}
	return nil
}
