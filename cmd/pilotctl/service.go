package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strings"

	kardianos "github.com/kardianos/service"
	"github.com/urfave/cli/v2"

	"github.com/pilotnet/pilot/overlay"
	"github.com/pilotnet/pilot/packaging/service"
)

func (p *program) serviceCommand() *cli.Command {
	program := &cli.StringFlag{Name: "program", Usage: "the pilotctl that the service runs; default this one"}
	return &cli.Command{
		Name:  "service",
		Usage: "have systemd or launchd run the agent of this machine",
		Description: `The agent in /var/lib/pilot (macOS: /var/db/pilot) then starts with the machine. As
a service it has few rights: three capabilities, and nothing of /home. Members of
the group "pilot" may use its socket; approving trust stays with root. Units that
need the overlay order themselves after pilot-online.service.`,
		Subcommands: []*cli.Command{{
			Name:        "install",
			Usage:       "install and enable the service, or bring it up to date",
			Description: "Can be repeated. Starts nothing unless --now is given.",
			Flags:       []cli.Flag{&cli.BoolFlag{Name: "now", Usage: "start it too, or start it anew if its file changed"}, program},
			Action:      p.onService((*serviceInstall).install),
		}, {
			Name:        "uninstall",
			Usage:       "stop and remove the service; key, trust and settings stay",
			Description: "Can be repeated. With --purge the agent is lost: nobody can get its address back.",
			Flags:       []cli.Flag{&cli.BoolFlag{Name: "purge", Usage: "remove key, trust and settings too"}},
			Action:      p.onService((*serviceInstall).uninstall),
		}, {
			Name:   "status",
			Usage:  "tell whether the service is installed and runs",
			Action: p.onService((*serviceInstall).status),
		}, {
			Name:      "print",
			Usage:     "print the file that install would write",
			ArgsUsage: "systemd|systemd-online|launchd",
			Flags:     []cli.Flag{program},
			Action:    p.printService,
		}},
	}
}

func (p *program) printService(c *cli.Context) error {
	args, err := arguments(c, "systemd or launchd")
	if err != nil {
		return err
	}
	make, ok := map[string]func(string) (string, error){"systemd": service.Systemd, "systemd-online": service.SystemdOnline, "launchd": service.Launchd}[args[0]]
	if !ok {
		return usagef("%.40q: want systemd, systemd-online or launchd", args[0])
	}
	path, err := programPath(c.String("program"))
	if err != nil {
		return err
	}
	text, err := make(path)
	if err != nil {
		return badInput(err, "give a path without spaces and signs: --program /usr/local/bin/pilotctl")
	}
	return p.result(map[string]string{"manager": args[0], "text": text}, func(w io.Writer) { io.WriteString(w, text) })
}

// programPath is the absolute path of the program that the service is to run.
func programPath(chosen string) (string, error) {
	if chosen != "" {
		return filepath.Abs(chosen)
	}
	path, err := os.Executable()
	if err == nil {
		path, err = filepath.EvalSymlinks(path)
	}
	if err != nil {
		return "", systemError("find this program", err)
	}
	return path, nil
}

// A serviceInstall is one call about the service on this machine.
type serviceInstall struct {
	*program
	c       *cli.Context
	manager string // systemd or launchd
	system  kardianos.System
	at      places // of the machine's agent
	file    string // that makes the service known
	is      serviceResult
}

// A serviceResult says what is the case after a call.
type serviceResult struct {
	Manager   string `json:"manager"`
	File      string `json:"file"`
	Installed bool   `json:"installed"`
	Changed   bool   `json:"changed"`  // by this call
	Packaged  bool   `json:"packaged"` // the file belongs to a deb or rpm
	Running   bool   `json:"running"`
	Agent     string `json:"agent,omitempty"` // its state, if it answers
	Purged    bool   `json:"purged,omitempty"`
}

const (
	unitDir      = "/etc/systemd/system"
	launchdPlist = "/Library/LaunchDaemons/" + service.Label + ".plist"
)

// packagedUnits are where packages keep units.
var packagedUnits = []string{"/usr/lib/systemd/system", "/lib/systemd/system"}

// onService is the action of the commands that touch the service.
func (p *program) onService(do func(*serviceInstall) error) cli.ActionFunc {
	return func(c *cli.Context) error {
		if _, err := arguments(c); err != nil {
			return err
		}
		s := &serviceInstall{program: p, c: c, manager: "systemd", at: systemPlaces(runtime.GOOS), file: filepath.Join(unitDir, service.Name+".service")}
		if runtime.GOOS == "darwin" {
			s.manager, s.file = "launchd", launchdPlist
		}
		for _, system := range kardianos.AvailableSystems() {
			if system.String() == runtime.GOOS+"-"+s.manager && system.Detect() {
				s.system = system
			}
		}
		if s.system == nil {
			return overlay.Errorf(overlay.CodeNotFound, "%s does not run on this machine", s.manager).
				WithHint("pilotctl up runs the agent in the background, daemon run in the foreground for another manager; service print %s shows the file", s.manager)
		}
		if c.Command.Name != "status" && os.Geteuid() != 0 {
			return overlay.Errorf(overlay.CodeDenied, "only root may %s a service", c.Command.Name).WithHint("sudo pilotctl service %s", c.Command.Name)
		}
		s.is = serviceResult{Manager: s.manager, File: s.file}
		for _, dir := range packagedUnits {
			if path := filepath.Join(dir, filepath.Base(s.file)); s.manager == "systemd" && exists(path) && !exists(s.file) {
				s.is.File, s.is.Packaged = path, true
			}
		}
		s.is.Installed = s.is.Packaged || exists(s.file)
		return do(s)
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// with is the service with a program and the text of its file, for the library.
func (s *serviceInstall) with(path, text string) (kardianos.Service, error) {
	config := &kardianos.Config{Name: service.Name, Executable: path, Option: kardianos.KeyValue{"SystemdScript": text, "LaunchdConfig": text}}
	if s.manager == "launchd" {
		config.Name = service.Label
	}
	return s.system.New(nil, config)
}

func (s *serviceInstall) install() error {
	if s.c.Bool("now") && !exists(filepath.Join(s.at.state, identityFile)) {
		return overlay.Errorf(overlay.CodeNotFound, "there is no agent in %s to start", s.at.state).
			WithHint("pilotctl init --name NAME --server HOST#KEY makes one")
	}
	path, err := programPath(s.c.String("program"))
	if err != nil {
		return err
	}
	if err := usableByService(path); err != nil {
		return err
	}
	if s.manager == "systemd" {
		if err := makeGroup(); err != nil {
			return err
		}
	}
	if s.is.Packaged {
		err = command("systemctl", "enable", service.Name+".service")
	} else {
		err = s.write(path)
	}
	if err != nil {
		return err
	}
	s.is.Installed = true
	if s.c.Bool("now") {
		if err := s.start(); err != nil {
			return err
		}
	}
	return s.show()
}

// write brings the service's files up to date and enables it.
func (s *serviceInstall) write(path string) error {
	text, err := service.Systemd(path)
	if s.manager == "launchd" {
		text, err = service.Launchd(path)
	}
	if err != nil {
		return badInput(err, "give a path without spaces and signs: --program /usr/local/bin/pilotctl")
	}
	if s.manager == "systemd" {
		online, err := service.SystemdOnline(path)
		if err != nil {
			return err
		}
		changed, err := updateFile(filepath.Join(unitDir, service.Online+".service"), online)
		if err != nil {
			return err
		}
		s.is.Changed = changed
	}
	if old, err := os.ReadFile(s.file); err == nil && string(old) == text {
		if s.manager == "systemd" {
			return errors.Join(command("systemctl", "enable", service.Name+".service"), command("systemctl", "daemon-reload"))
		}
		return nil
	}
	// The library refuses to replace a file.
	if err := os.Remove(s.file); err != nil && !errors.Is(err, os.ErrNotExist) {
		return systemError("replace the service", err)
	}
	known, err := s.with(path, text)
	if err == nil {
		err = known.Install()
	}
	if err != nil {
		return systemError("install the service", err)
	}
	s.is.Changed = true
	return nil
}

// updateFile writes text to path unless that is what it has.
func updateFile(path, text string) (changed bool, err error) {
	if old, err := os.ReadFile(path); err == nil && string(old) == text {
		return false, nil
	}
	if err := replaceFile(path, []byte(text), 0o644); err != nil {
		return false, err
	}
	return true, nil
}

// usableByService refuses a program that the service could not run, since it sees
// neither /home nor /tmp of the others, or that others than root could replace.
func usableByService(path string) error {
	hint := "install -m 755 " + path + " /usr/local/bin/pilotctl, then /usr/local/bin/pilotctl service install"
	for _, dir := range []string{"/home/", "/root/", "/run/user/", "/tmp/", "/var/tmp/"} {
		if strings.HasPrefix(path, dir) {
			return overlay.Errorf(overlay.CodeConflict, "a service does not see %s", path).WithHint("%s", hint)
		}
	}
	info, err := os.Stat(path)
	if err != nil {
		return overlay.Errorf(overlay.CodeNotFound, "no program for the service: %v", err).WithHint("--program PATH")
	}
	if info.Mode().Perm()&0o022 != 0 || info.Mode().Perm()&0o111 == 0 || !info.Mode().IsRegular() {
		return overlay.Errorf(overlay.CodeConflict, "%s is not a program that only its owner may change (mode %v)", path, info.Mode()).WithHint("%s", hint)
	}
	return nil
}

// makeGroup makes the group of those who may use the socket.
func makeGroup() error {
	if _, err := user.LookupGroup(service.Group); err == nil {
		return nil
	}
	return command("groupadd", "--system", service.Group)
}

func (s *serviceInstall) start() error {
	if s.manager == "launchd" {
		if s.is.Changed {
			command("launchctl", "bootout", "system/"+service.Label) // refused if it is not known yet
		}
		if command("launchctl", "print", "system/"+service.Label) == nil {
			return nil
		}
		return command("launchctl", "bootstrap", "system", s.file)
	}
	verb := "start"
	if s.is.Changed {
		verb = "restart"
	}
	return command("systemctl", verb, service.Name+".service")
}

func (s *serviceInstall) uninstall() error {
	was := s.is.Installed
	unit := service.Name + ".service"
	switch {
	case was && s.is.Packaged:
		if err := command("systemctl", "disable", "--now", unit); err != nil {
			return err
		}
	case was:
		known, err := s.with("", "")
		if err != nil {
			return err
		}
		if s.manager == "launchd" {
			command("launchctl", "bootout", "system/"+service.Label) // refused if it does not run
		} else if err := known.Stop(); err != nil {
			return systemError("stop the service", err)
		}
		if err := known.Uninstall(); err != nil {
			return systemError("remove the service", err)
		}
		s.is.Installed = false
	}
	s.is.Changed = was
	if s.manager == "systemd" && !s.is.Packaged {
		if err := os.Remove(filepath.Join(unitDir, service.Online+".service")); err != nil && !errors.Is(err, os.ErrNotExist) {
			return systemError("remove the service", err)
		}
	}
	if s.c.Bool("purge") {
		if err := s.purge(); err != nil {
			return err
		}
	}
	return s.show()
}

// purge removes the machine's agent. One that still runs, without the service, is
// left alone.
func (s *serviceInstall) purge() error {
	if err := tidy(s.at, "/etc/hosts"); err != nil {
		return err
	}
	dirs := []string{s.at.state, filepath.Dir(s.at.config)}
	if s.manager == "systemd" {
		dirs = append(dirs, filepath.Dir(s.at.socket))
	}
	for _, dir := range dirs {
		if err := os.RemoveAll(dir); err != nil {
			return systemError("remove "+dir, err)
		}
	}
	s.is.Purged = true
	return nil
}

func (s *serviceInstall) status() error {
	if !s.is.Installed {
		return overlay.Errorf(overlay.CodeNotFound, "the service is not installed").WithHint("pilotctl service install")
	}
	return s.show()
}

// show prints what is the case now.
func (s *serviceInstall) show() error {
	r := &s.is
	if known, err := s.with("", ""); err == nil {
		status, err := known.Status()
		r.Running = err == nil && status == kardianos.StatusRunning
	}
	if client, err := s.client(s.c); err == nil {
		if state, err := client.Status(s.c.Context); err == nil {
			r.Agent = state.State
		}
	}
	return s.result(r, func(w io.Writer) {
		switch {
		case !r.Installed && r.Changed:
			fmt.Fprintln(w, "the service is removed")
		case !r.Installed:
			fmt.Fprintln(w, "the service is not installed")
		case r.Running:
			fmt.Fprintln(w, "the service is installed and runs")
		default:
			fmt.Fprintln(w, "the service is installed and does not run")
		}
		if r.Installed {
			facts(w, "manager", r.Manager, "file", r.File, "agent", r.Agent)
		}
		switch {
		case r.Purged:
			fmt.Fprintln(w, "key, trust and settings are removed")
		case !r.Installed && exists(filepath.Join(s.at.state, identityFile)):
			fmt.Fprintf(w, "the agent is still in %s\n", s.at.state)
		case r.Installed && !r.Running && !exists(filepath.Join(s.at.state, identityFile)):
			fmt.Fprintln(w, "next: pilotctl init --name NAME --server HOST#KEY, then pilotctl service install --now")
		case r.Installed && !r.Running:
			fmt.Fprintln(w, "next: pilotctl service install --now")
		}
	})
}

// command runs a program of the system; the error has its own words.
func command(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err == nil {
		return nil
	}
	return overlay.Errorf(overlay.CodeInternal, "%s %s: %v: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(out)).
		WithHint("journalctl -u %s tells more if the service did not start", service.Name)
}
