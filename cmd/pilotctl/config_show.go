package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"
)

// A setting is one setting, as a daemon that is started now would have it.
type setting struct {
	Key    string `json:"key"`
	Value  string `json:"value"`
	Origin string `json:"origin"` // "default", "FILE:LINE", "PILOT_NAME" or "--flag"
}

// A source is one setting by its names: in the file, on the command line, in the
// environment.
type source struct {
	key, flag, env string
	value          func(rawSettings) string
	usual          string // the default, in words
}

func sources() []source {
	return []source{
		{"name", "name", "PILOT_NAME", func(r rawSettings) string { return r.Name }, hostName()},
		{"servers", "server", "PILOT_SERVER", func(r rawSettings) string { return strings.Join(r.Servers, " ") }, "none"},
		{"tun", "tun", "PILOT_TUN", func(r rawSettings) string { return r.TUN }, autoDevice},
		{"proxy", "proxy", "PILOT_PROXY", func(r rawSettings) string { return r.Proxy }, autoProxy},
		{"dns", "dns", "PILOT_DNS", func(r rawSettings) string { return r.DNS }, "auto"},
		{"dns_search", "dns-search", "PILOT_DNS_SEARCH", searchText, "false"},
		{"services", "services", "PILOT_SERVICES", func(r rawSettings) string { return r.Services }, allServices},
		{"stun", "stun", "PILOT_STUN", func(r rawSettings) string { return strings.Join(r.STUN, " ") }, "none"},
		{"port", "port", "PILOT_PORT", portText, "0"},
		{"ca_file", "ca-file", "PILOT_CA_FILE", func(r rawSettings) string { return r.CAFile }, "none"},
	}
}

func searchText(r rawSettings) string {
	if r.Search {
		return "true"
	}
	return ""
}

func portText(r rawSettings) string {
	if r.Port == 0 {
		return ""
	}
	return strconv.Itoa(r.Port)
}

func (p *program) configCommand() *cli.Command {
	return &cli.Command{
		Name:  "config",
		Usage: "show the settings, and where each comes from",
		Subcommands: []*cli.Command{{
			Name:  "show",
			Usage: "list the settings that a daemon started now would have",
			Description: `A flag wins over a PILOT_* variable, that over the configuration file, and that
over the default. The flags are those of "pilotctl up"; give them too, to see
what comes of them.`,
			Flags: slices.Concat([]cli.Flag{&cli.BoolFlag{Name: "origin", Usage: "tell where each comes from: default, FILE:LINE, variable or flag"}}, nodeFlags(), runFlags()),
			Action: func(c *cli.Context) error {
				if _, err := arguments(c); err != nil {
					return err
				}
				list, err := p.showSettings(c)
				if err != nil {
					return err
				}
				return p.result(list, func(w io.Writer) { settingsText(w, list, c.Bool("origin")) })
			},
		}},
	}
}

func settingsText(w io.Writer, list []setting, origin bool) {
	t := newTable(w)
	for _, s := range list {
		if origin {
			t.row(s.Key, s.Value, s.Origin)
		} else {
			t.row(s.Key, s.Value)
		}
	}
	t.close()
}

// showSettings finds each setting and the highest place that says it. Settings
// that no daemon would start with are an error.
func (p *program) showSettings(c *cli.Context) ([]setting, error) {
	at, err := p.places(c)
	if err != nil {
		return nil, err
	}
	if _, err := p.settings(c, at); err != nil {
		return nil, err
	}
	top, err := p.given(c)
	if err != nil {
		return nil, err
	}
	file, err := readConfig(at.config)
	if err != nil {
		return nil, err
	}
	lines := keyLines(at.config)
	list := []setting{p.place(c, "state_dir", "state-dir", at.state), p.place(c, "socket", "socket", at.socket), p.place(c, "config", "config", at.config)}
	for _, s := range sources() {
		v := setting{Key: s.key, Value: s.usual, Origin: "default"}
		switch {
		case s.value(top) != "" && c.IsSet(s.flag):
			v.Value, v.Origin = s.value(top), "--"+s.flag
		case s.value(top) != "":
			v.Value, v.Origin = s.value(top), s.env
		case s.value(file) != "":
			v.Value, v.Origin = s.value(file), fmt.Sprintf("%s:%d", at.config, lines[s.key])
		}
		list = append(list, v)
	}
	return list, nil
}

// place is where one of the agent's files lies.
func (p *program) place(c *cli.Context, key, flag, path string) setting {
	s := setting{Key: key, Value: path, Origin: "default"}
	env := "PILOT_" + strings.ToUpper(key)
	switch {
	case c.String(flag) != "":
		s.Origin = "--" + flag
	case p.getenv(env) != "":
		s.Origin = env
	case c.String("state-dir") != "":
		s.Origin = "--state-dir"
	case p.getenv("PILOT_STATE_DIR") != "":
		s.Origin = "PILOT_STATE_DIR"
	}
	return s
}

// keyLines are the lines on which the keys of a configuration file stand. All its
// keys are bare, or quoted, words at the top.
func keyLines(path string) map[string]int {
	lines := map[string]int{}
	text, err := os.ReadFile(path)
	if err != nil {
		return lines
	}
	number := 0
	for line := range strings.Lines(string(text)) {
		number++
		key, _, ok := strings.Cut(line, "=")
		key = strings.Trim(strings.TrimSpace(key), `"'`)
		if _, seen := lines[key]; ok && !seen {
			lines[key] = number
		}
	}
	return lines
}
