package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
)

// completer is the hidden command that the scripts below ask with the words of the
// line up to the cursor; it prints what may stand there, one a line.
const completer = "__complete"

// completeWait bounds how long a shell waits for the names of peers.
const completeWait = 300 * time.Millisecond

func (p *program) completionCommand() *cli.Command {
	return &cli.Command{
		Name:      "completion",
		Usage:     "print the completion script of a shell",
		ArgsUsage: "bash|zsh|fish",
		Description: `bash: source <(pilotctl completion bash)
zsh:  source <(pilotctl completion zsh), after compinit
fish: pilotctl completion fish | source`,
		Action: func(c *cli.Context) error {
			args, err := arguments(c, "a shell")
			if err != nil {
				return err
			}
			text, ok := map[string]string{"bash": bashCompletion, "zsh": zshCompletion, "fish": fishCompletion}[args[0]]
			if !ok {
				return usagef("%.40q: want bash, zsh or fish", args[0])
			}
			return p.result(map[string]string{"shell": args[0], "text": text}, func(w io.Writer) { io.WriteString(w, text) })
		},
	}
}

func (p *program) completeCommand() *cli.Command {
	return &cli.Command{
		Name:   completer,
		Hidden: true,
		Action: func(c *cli.Context) error {
			words := c.Args().Slice()
			if len(words) == 0 {
				words = []string{""}
			}
			for _, word := range p.complete(c, words) {
				fmt.Fprintln(p.stdout, word)
			}
			return nil
		},
	}
}

// complete returns what may take the place of the last of words, the first of
// which follows the program's name. Where nothing of ours fits it is empty, and
// the shell offers files.
func (p *program) complete(c *cli.Context, words []string) []string {
	last := words[len(words)-1]
	commands, flags, usage := c.App.Commands, c.App.Flags, ""
	var pending cli.Flag // that takes the next word
	for _, word := range words[:len(words)-1] {
		if pending != nil {
			pending = nil
			continue
		}
		if strings.HasPrefix(word, "-") {
			name := strings.TrimLeft(word, "-")
			if f, ok := flagNamed(flags, name).(cli.DocGenerationFlag); ok && f.TakesValue() && !strings.Contains(name, "=") {
				pending = f.(cli.Flag)
			}
			continue
		}
		i := slices.IndexFunc(commands, func(c *cli.Command) bool { return c.HasName(word) })
		if i < 0 {
			continue
		}
		flags, usage = append(slices.Clone(commands[i].Flags), c.App.Flags...), commands[i].ArgsUsage
		commands = commands[i].Subcommands
	}
	var offer []string
	switch {
	case pending != nil:
		if slices.Contains(pending.Names(), "allow") {
			offer = p.peerNames(c)
		}
	case strings.HasPrefix(last, "-"):
		for _, f := range flags {
			if v, ok := f.(cli.VisibleFlag); ok && v.IsVisible() {
				offer = append(offer, "--"+f.Names()[0])
			}
		}
		offer = append(offer, "--help")
	case len(commands) > 0:
		for _, command := range commands {
			if !command.Hidden {
				offer = append(offer, command.Name)
			}
		}
	case strings.Contains(usage, "PEER"):
		offer = p.peerNames(c)
	case strings.Contains(usage, "|"): // a choice of words
		offer = strings.Split(usage, "|")
	}
	slices.Sort(offer)
	return slices.DeleteFunc(slices.Compact(offer), func(word string) bool { return !strings.HasPrefix(word, last) })
}

// peerNames asks the daemon; none where it does not answer soon. A petname is
// the owner's word for a peer and has no character that a shell would act on.
func (p *program) peerNames(c *cli.Context) []string {
	client, err := p.client(c)
	if err != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(c.Context, completeWait)
	defer cancel()
	peers, err := client.Peers(ctx)
	if err != nil {
		return nil
	}
	var list []string
	for _, peer := range peers {
		if peer.Name != "" && plain(peer.Name) == peer.Name {
			list = append(list, peer.Name)
		}
	}
	return list
}

const bashCompletion = `# bash completion for pilotctl
_pilotctl() {
	local IFS=$'\n'
	COMPREPLY=($("${COMP_WORDS[0]}" ` + completer + ` -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
}
complete -o default -F _pilotctl pilotctl
`

const zshCompletion = `#compdef pilotctl
_pilotctl() {
	local -a offer
	offer=("${(@f)$("${words[1]}" ` + completer + ` -- "${(@)words[2,CURRENT]}" 2>/dev/null)}")
	if [[ -n "${offer[1]}" ]]; then compadd -- "${offer[@]}"; else _files; fi
}
if [[ "${funcstack[1]}" == _pilotctl ]]; then _pilotctl "$@"; else compdef _pilotctl pilotctl; fi
`

const fishCompletion = `# fish completion for pilotctl
function __pilotctl_complete
	set -l words (commandline -opc) (commandline -ct)
	$words[1] ` + completer + ` -- $words[2..-1] 2>/dev/null
end
complete -c pilotctl -a '(__pilotctl_complete)'
`
