package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/pilotnet/pilot/ipam"
	"github.com/pilotnet/pilot/overlay"
)

func (p *program) proxyCommand() *cli.Command {
	return &cli.Command{
		Name:  "proxy",
		Usage: "reach peers from programs that do not see the overlay",
		Subcommands: []*cli.Command{{
			Name:  "env",
			Usage: "print what makes a shell's programs use the agent's proxy",
			Description: `For machines without a network device for the agent (pilotctl status shows
"device userspace"). In a shell:

  eval "$(pilotctl proxy env)"
  curl http://bob.pilot.internal:8080/

The proxy speaks SOCKS 5 and HTTP on one port of the loopback. It knows the names
of peers; what is not for the overlay it connects to as the programs would have
done themselves, through the proxy of the environment in which the agent was
started, if there was one. A program that reads none of these variables takes the
address by hand: curl -x socks5h://127.0.0.1:1080.`,
			Action: func(c *cli.Context) error {
				client, _, err := p.asked(c)
				if err != nil {
					return err
				}
				s, err := client.Status(c.Context)
				if err != nil {
					return err
				}
				r, err := p.proxyEnv(s)
				if err != nil {
					return err
				}
				return p.result(r, func(w io.Writer) { r.text(w) })
			},
		}},
	}
}

// A variable is one of the environment.
type variable struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// A proxyEnv is what programs need to find the proxy.
type proxyEnv struct {
	Proxy     string     `json:"proxy"` // ADDRESS:PORT
	Variables []variable `json:"variables"`
}

func (e proxyEnv) text(w io.Writer) {
	for _, v := range e.Variables {
		fmt.Fprintf(w, "export %s='%s'\n", v.Name, strings.ReplaceAll(v.Value, "'", `'\''`))
	}
}

// proxyEnv makes the variables that programs read: curl and most others the small
// ones, some only the large ones. SOCKS is for what is neither HTTP nor HTTPS.
func (p *program) proxyEnv(s overlay.Status) (proxyEnv, error) {
	at := s.Device.Proxy
	if at == "" {
		e := overlay.Errorf(overlay.CodeNotFound, "%s has no proxy", s.Name)
		if s.Device.Userspace {
			return proxyEnv{}, e.WithHint("pilotctl down, then up --proxy auto")
		}
		return proxyEnv{}, e.WithHint("programs here need none: they reach peers through %s; pilotctl up --proxy 127.0.0.1:1080 makes one", s.Device.Name)
	}
	r := proxyEnv{Proxy: at}
	for _, v := range []variable{
		{"http_proxy", "http://" + at}, {"https_proxy", "http://" + at}, {"all_proxy", "socks5h://" + at}, {"no_proxy", p.noProxy()},
	} {
		r.Variables = append(r.Variables, v, variable{strings.ToUpper(v.Name), v.Value})
	}
	return r, nil
}

// noProxy is what programs reach themselves: the machine, and what the shell says
// already, but for words that would keep them from the overlay.
func (p *program) noProxy() string {
	list := []string{"localhost", "127.0.0.1", "::1"}
	for word := range strings.SplitSeq(either(p.getenv("no_proxy"), p.getenv("NO_PROXY")), ",") {
		word = strings.TrimSpace(word)
		domain := strings.TrimPrefix(strings.TrimPrefix(strings.ToLower(word), "*"), ".")
		if word == "" || slices.Contains(list, word) {
			continue
		}
		if domain == "" || domain == ipam.Suffix || strings.HasSuffix(ipam.Suffix, "."+domain) {
			p.tell("%s in NO_PROXY is left out: peers would not be reached", word)
			continue
		}
		list = append(list, word)
	}
	return strings.Join(list, ",")
}
