package main

import (
	"io"

	"github.com/urfave/cli/v2"

	"github.com/pilotnet/pilot/ipam"
	"github.com/pilotnet/pilot/overlay"
	"github.com/pilotnet/pilot/overlay/api"
)

// A resolved reference has every form that could be found.
type resolved struct {
	Name        string `json:"name,omitempty"`
	Host        string `json:"host,omitempty"` // NAME.pilot.internal
	Address     string `json:"address,omitempty"`
	ULA         string `json:"ula,omitempty"`
	Fingerprint string `json:"fingerprint,omitempty"`
	Contact     string `json:"contact,omitempty"`
}

func (p *program) resolveCommand() *cli.Command {
	return &cli.Command{
		Name:      "resolve",
		Usage:     "turn any form of an address into the others",
		ArgsUsage: "NAME|ADDRESS|ULA|FINGERPRINT|CONTACT",
		Description: `Addresses, ULAs and contacts need no daemon. Names and fingerprints are those of
this agent and of the peers it trusts.`,
		Action: func(c *cli.Context) error {
			args, err := arguments(c, "what to resolve")
			if err != nil {
				return err
			}
			ref, err := ipam.ParseRef(args[0])
			if err != nil {
				return badInput(err, "give a name, an address like 0:0000.1234.5678, a ULA, a fingerprint or a contact")
			}
			r, err := p.resolve(c, ref)
			if err != nil {
				return err
			}
			return p.result(r, func(w io.Writer) {
				facts(w, "name", r.Name, "host", r.Host, "address", r.Address, "ula", r.ULA,
					"fingerprint", r.Fingerprint, "contact", r.Contact)
			})
		},
	}
}

func (p *program) resolve(c *cli.Context, ref ipam.Ref) (resolved, error) {
	at, err := p.places(c)
	if err != nil {
		return resolved{}, err
	}
	if me, _, err := p.identify(c, at); err == nil && means(ref, me.Name, me.Address, me.Fingerprint) {
		return resolved{Name: me.Name, Address: me.Address, ULA: me.ULA, Fingerprint: me.Fingerprint, Contact: me.Contact}, nil
	}
	peers, failed := api.NewClient(at.socket).Peers(c.Context)
	for _, peer := range peers {
		if means(ref, peer.Name, peer.Address, peer.Fingerprint) {
			r := resolved{Name: peer.Name, Host: peer.Name + "." + ipam.Suffix, Address: peer.Address, ULA: peer.ULA, Fingerprint: peer.Fingerprint}
			if ref.Kind == ipam.RefContact {
				r.Contact = ref.Contact.String()
			}
			return r, nil
		}
	}
	switch ref.Kind {
	case ipam.RefAddr:
		return resolved{Address: ref.Addr.String(), ULA: ref.Addr.ULA().String()}, nil
	case ipam.RefContact:
		return resolved{Address: ref.Addr.String(), ULA: ref.Addr.ULA().String(),
			Fingerprint: ref.Fingerprint.String(), Contact: ref.Contact.String()}, nil
	}
	if failed != nil {
		return resolved{}, failed
	}
	return resolved{}, overlay.Errorf(overlay.CodeNotFound, "no peer has the %s %s", ref.Kind, ref).WithHint("pilotctl peers lists them")
}

// means says whether ref names the agent with this name, address and fingerprint.
func means(ref ipam.Ref, name, address, fingerprint string) bool {
	switch ref.Kind {
	case ipam.RefName:
		return ref.Name == name
	case ipam.RefAddr:
		return ref.Addr.String() == address
	}
	return ref.Fingerprint.String() == fingerprint
}
