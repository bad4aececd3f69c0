package lab

import (
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Masquerade makes a NAT router of the host: what leaves by the device outside gets
// the host's own address, and only answers come back in.
func (h *Host) Masquerade(outside string) error {
	if err := h.Forward(); err != nil {
		return err
	}
	c, err := nftables.New(nftables.WithNetNSFd(int(h.net)))
	if err != nil {
		return fmt.Errorf("lab: %s: open nftables: %w", h.name, err)
	}
	drop := nftables.ChainPolicyDrop
	t := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "router"})
	nat := c.AddChain(&nftables.Chain{Table: t, Name: "nat", Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource})
	c.AddRule(&nftables.Rule{Table: t, Chain: nat, Exprs: append(device(expr.MetaKeyOIFNAME, expr.CmpOpEq, outside), &expr.Masq{})})
	for name, hook := range map[string]*nftables.ChainHook{"forward": nftables.ChainHookForward, "input": nftables.ChainHookInput} {
		filter := c.AddChain(&nftables.Chain{Table: t, Name: name, Type: nftables.ChainTypeFilter,
			Hooknum: hook, Priority: nftables.ChainPriorityFilter, Policy: &drop})
		c.AddRule(&nftables.Rule{Table: t, Chain: filter, Exprs: append(answers(), accept())})
		c.AddRule(&nftables.Rule{Table: t, Chain: filter, Exprs: append(device(expr.MetaKeyIIFNAME, expr.CmpOpNeq, outside), accept())})
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("lab: %s: set up NAT (does this kernel have nf_tables and masquerading?): %w", h.name, err)
	}
	return nil
}

// device matches packets by the name of a device.
func device(key expr.MetaKey, op expr.CmpOp, name string) []expr.Any {
	padded := make([]byte, unix.IFNAMSIZ)
	copy(padded, name)
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: op, Register: 1, Data: padded}}
}

// answers matches packets of connections that exist, and errors about them.
func answers() []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Xor: make([]byte, 4),
			Mask: binaryutil.NativeEndian.PutUint32(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

func accept() expr.Any { return &expr.Verdict{Kind: expr.VerdictAccept} }

// Sever makes a router drop all that goes from one of its devices to the other,
// either way, until restore is called.
func (h *Host) Sever(a, b string) (restore func() error, err error) {
	c, err := nftables.New(nftables.WithNetNSFd(int(h.net)))
	if err != nil {
		return nil, fmt.Errorf("lab: %s: open nftables: %w", h.name, err)
	}
	t := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "severed"})
	chain := c.AddChain(&nftables.Chain{Table: t, Name: "forward", Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter})
	for _, way := range [][2]string{{a, b}, {b, a}} {
		match := append(device(expr.MetaKeyIIFNAME, expr.CmpOpEq, way[0]), device(expr.MetaKeyOIFNAME, expr.CmpOpEq, way[1])...)
		c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: append(match, &expr.Verdict{Kind: expr.VerdictDrop})})
	}
	if err := c.Flush(); err != nil {
		return nil, fmt.Errorf("lab: %s: sever %s from %s: %w", h.name, a, b, err)
	}
	return func() error {
		c.DelTable(t)
		if err := c.Flush(); err != nil {
			return fmt.Errorf("lab: %s: join %s to %s again: %w", h.name, a, b, err)
		}
		return nil
	}, nil
}
