package main

import (
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/pilotnet/pilot/overlay"
)

// normalise rewrites args so that the library below sees what the user meant. On
// its own it takes flags only before arguments and silently passes the others on
// as arguments: "ping bob -c 3" would ping for ever. The result is
//
//	program, global flags, command path, flags of the command, "--", arguments
//
// A flag is looked up in the command at hand first, then among the global ones.
// What starts with "-" and is no known flag is an error, unless it is "-" itself
// or comes after "--". A flag that takes a value takes the next word, whatever
// that looks like. "--help" anywhere, and the word help before a command, show
// that command's help.
func normalise(app *cli.App, args []string) ([]string, error) {
	n := normaliser{commands: app.Commands, global: app.Flags}
	words := args[1:]
	for len(words) > 0 {
		word := words[0]
		words = words[1:]
		switch {
		case word == "--":
			n.arguments = append(n.arguments, words...)
			words = nil
		case len(word) > 1 && word[0] == '-':
			rest, err := n.flag(word, words)
			if err != nil {
				return nil, err
			}
			words = rest
		default:
			if err := n.word(word); err != nil {
				return nil, err
			}
		}
	}
	out := append([]string{args[0]}, n.globalFlags...)
	out = append(out, n.path...)
	if n.help {
		return append(out, "--help"), nil
	}
	out = append(out, n.flags...)
	if len(n.arguments) > 0 {
		out = append(append(out, "--"), n.arguments...)
	}
	return out, nil
}

type normaliser struct {
	commands []*cli.Command // that may come next
	current  *cli.Command   // nil: none yet
	global   []cli.Flag

	globalFlags, path, flags, arguments []string
	help                                bool
}

// word takes a command's name or an argument.
func (n *normaliser) word(word string) error {
	if len(n.commands) == 0 {
		n.arguments = append(n.arguments, word)
		return nil
	}
	if word == "help" {
		n.help = true
		return nil
	}
	for _, c := range n.commands {
		if c.HasName(word) {
			n.current, n.commands, n.path = c, c.Subcommands, append(n.path, word)
			return nil
		}
	}
	name := strings.Join(append([]string{"pilotctl"}, n.path...), " ")
	return usagef("%s has no command %.40q", name, word).WithHint("it has: %s", names(n.commands))
}

// flag takes a flag and, where it needs one, its value from rest.
func (n *normaliser) flag(word string, rest []string) ([]string, error) {
	name, _, hasValue := strings.Cut(strings.TrimLeft(word, "-"), "=")
	if name == "help" || name == "h" {
		n.help = true
		return rest, nil
	}
	into := &n.flags
	var found cli.Flag
	if n.current != nil {
		found = flagNamed(n.current.Flags, name)
	}
	if found == nil {
		found, into = flagNamed(n.global, name), &n.globalFlags
	}
	if found == nil {
		where := strings.Join(append([]string{"pilotctl"}, n.path...), " ")
		e := usagef("%s has no flag %.40q", where, word)
		if len(n.commands) > 0 {
			return nil, e.WithHint("flags of a command come after its name; %s --help", where)
		}
		return nil, e.WithHint("%s --help; an argument that starts with '-' comes after --", where)
	}
	*into = append(*into, word)
	if f, ok := found.(cli.DocGenerationFlag); hasValue || ok && !f.TakesValue() {
		return rest, nil
	}
	if len(rest) == 0 {
		return nil, usagef("flag %s needs a value", word)
	}
	*into = append(*into, rest[0])
	return rest[1:], nil
}

func flagNamed(flags []cli.Flag, name string) cli.Flag {
	for _, f := range flags {
		if slices.Contains(f.Names(), name) {
			return f
		}
	}
	return nil
}

func names(commands []*cli.Command) string {
	var list []string
	for _, c := range commands {
		if !c.Hidden {
			list = append(list, c.Name)
		}
	}
	return strings.Join(list, ", ")
}

// wantsJSON looks for --json without understanding the rest, since errors in the
// rest are also told in JSON.
func wantsJSON(args []string, getenv func(string) string) bool {
	for _, a := range args {
		switch a {
		case "--":
			return truth(getenv("PILOT_JSON"))
		case "--json", "-json", "--json=true":
			return true
		case "--json=false":
			return false
		}
	}
	return truth(getenv("PILOT_JSON"))
}

func truth(s string) bool { return s != "" && s != "0" && s != "false" }

// usagef makes the error of a command line that cannot be carried out.
func usagef(format string, args ...any) *overlay.Error {
	return overlay.Errorf(overlay.CodeInvalidArgument, format, args...)
}

// arguments checks that c has as many arguments as names, and returns them.
func arguments(c *cli.Context, names ...string) ([]string, error) {
	given := c.Args().Slice()
	switch {
	case len(given) < len(names):
		return nil, usagef("%s needs %s", c.Command.HelpName, strings.Join(names[len(given):], " and ")).
			WithHint("%s --help", c.Command.HelpName)
	case len(given) > len(names):
		return nil, usagef("%s: one argument too many: %.40q", c.Command.HelpName, given[len(names)]).
			WithHint("%s --help; quote a text that holds spaces", c.Command.HelpName)
	}
	return given, nil
}
