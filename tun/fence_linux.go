package tun

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// A fence keeps the neighbours of a host away from its overlay address. Linux
// takes a packet for any of its addresses from any interface, so a neighbour in
// the LAN could send one to the overlay address, or one that names a peer's
// address as its source, and a program that listens on all addresses would take
// it for the peer's. The fence drops both where packets are delivered:
//
//	what is for our own address and comes neither from the device nor from this host
//	what comes from an address within the overlay over anything but a tunnel device
//
// It is a table of nf_tables that belongs to a netlink socket (NFT_TABLE_F_OWNER,
// Linux 5.12): the kernel removes it when the socket is closed, so none is left
// by a process that is killed, and others do not remove it when they flush theirs.
type fence struct{ fd int }

const fencePriority = -250 // before the filters of others

// newFence makes the fence of an interface, in the network of this thread.
func newFence(name string, own netip.Addr, overlay netip.Prefix) (*fence, error) {
	device, err := net.InterfaceByName(name)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	f := &fence{fd}
	err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	if err == nil {
		err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5})
	}
	if err == nil {
		err = f.commit(fenceMessages(name, device.Index, own, overlay))
	}
	if err != nil {
		f.close()
		return nil, err
	}
	return f, nil
}

func (f *fence) close() {
	if f != nil {
		unix.Close(f.fd)
	}
}

// An nfMessage is one change of the rules.
type nfMessage struct {
	kind  uint16
	flags uint16
	attrs []byte
}

// commit makes all changes, or none.
func (f *fence) commit(list []nfMessage) error {
	const nfnl = unix.NFNL_SUBSYS_NFTABLES << 8
	batch := func(b []byte, kind uint16) []byte {
		return appendMessage(b, kind, unix.NLM_F_REQUEST, 0, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES, nil)
	}
	b := batch(nil, unix.NFNL_MSG_BATCH_BEGIN)
	for i, m := range list {
		b = appendMessage(b, nfnl|m.kind, unix.NLM_F_REQUEST|unix.NLM_F_ACK|m.flags, uint32(i+1), unix.NFPROTO_IPV6, 0, m.attrs)
	}
	b = batch(b, unix.NFNL_MSG_BATCH_END)
	if err := unix.Sendto(f.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	buf := make([]byte, 8<<10)
	for done := 0; done < len(list); {
		n, _, err := unix.Recvfrom(f.fd, buf, 0)
		if err != nil {
			return fmt.Errorf("netlink: %w", err)
		}
		acks, err := readAcks(buf[:n])
		if err != nil {
			return err
		}
		done += acks
	}
	return nil
}

// readAcks counts the acknowledgements in a datagram of the kernel's.
func readAcks(b []byte) (n int, err error) {
	const header = unix.SizeofNlMsghdr
	for len(b) >= header+4 {
		size := int(binary.NativeEndian.Uint32(b))
		if size < header+4 || size > len(b) {
			return n, errors.New("netlink: malformed answer")
		}
		if binary.NativeEndian.Uint16(b[4:]) == unix.NLMSG_ERROR {
			if code := int32(binary.NativeEndian.Uint32(b[header:])); code != 0 {
				return n, fmt.Errorf("nf_tables: %w", unix.Errno(-code))
			}
			n++
		}
		b = b[min((size+3)&^3, len(b)):]
	}
	return n, nil
}

// appendMessage appends one netlink message with the header of nfnetlink.
func appendMessage(b []byte, kind, flags uint16, seq uint32, family uint8, res uint16, attrs []byte) []byte {
	b = binary.NativeEndian.AppendUint32(b, uint32(unix.SizeofNlMsghdr+4+len(attrs)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = binary.NativeEndian.AppendUint16(b, flags)
	b = binary.NativeEndian.AppendUint32(b, seq)
	b = binary.NativeEndian.AppendUint32(b, 0)
	b = append(b, family, unix.NFNETLINK_V0)
	b = binary.BigEndian.AppendUint16(b, res)
	return append(b, attrs...)
}

// attr is one netlink attribute, nest one that holds others.
func attr(kind uint16, value []byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(4+len(value)))
	b = append(binary.NativeEndian.AppendUint16(b, kind), value...)
	return append(b, make([]byte, -len(b)&3)...)
}

func nest(kind uint16, parts ...[]byte) []byte {
	var all []byte
	for _, p := range parts {
		all = append(all, p...)
	}
	return attr(kind|unix.NLA_F_NESTED, all)
}

func word(v uint32) []byte     { return binary.BigEndian.AppendUint32(nil, v) }
func text(s string) []byte     { return append([]byte(s), 0) }
func native16(v uint16) []byte { return binary.NativeEndian.AppendUint16(nil, v) }
func native32(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

// fenceMessages is the table, its chain and its two rules.
func fenceMessages(name string, index int, own netip.Addr, overlay netip.Prefix) []nfMessage {
	const (
		loopback  = 1      // index of lo in every network
		noHeader  = 0xfffe // ARPHRD_NONE: a tunnel device, perhaps of another agent here
		srcAt     = 8      // in the IPv6 header
		dstAt     = 24
		inputHook = 1 // NF_INET_LOCAL_IN
		drop      = 0 // NF_DROP
		owned     = 2 // NFT_TABLE_F_OWNER
	)
	table, chain := text("pilot-"+name), text("input")
	start := uint16(unix.NLM_F_CREATE | unix.NLM_F_EXCL)
	rule := func(expressions ...[]byte) nfMessage {
		list := append(expressions, expression("counter"), expression("immediate",
			attr(unix.NFTA_IMMEDIATE_DREG, word(unix.NFT_REG_VERDICT)),
			nest(unix.NFTA_IMMEDIATE_DATA, nest(unix.NFTA_DATA_VERDICT, attr(unix.NFTA_VERDICT_CODE, word(drop))))))
		return nfMessage{unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE | unix.NLM_F_APPEND, append(append(
			attr(unix.NFTA_RULE_TABLE, table), attr(unix.NFTA_RULE_CHAIN, chain)...),
			nest(unix.NFTA_RULE_EXPRESSIONS, list...)...)}
	}
	whole := overlay.Bits() / 8
	return []nfMessage{
		{unix.NFT_MSG_NEWTABLE, start, append(
			attr(unix.NFTA_TABLE_NAME, table), attr(unix.NFTA_TABLE_FLAGS, word(owned))...)},
		{unix.NFT_MSG_NEWCHAIN, start, append(append(append(
			attr(unix.NFTA_CHAIN_TABLE, table), attr(unix.NFTA_CHAIN_NAME, chain)...), attr(unix.NFTA_CHAIN_TYPE, text("filter"))...),
			nest(unix.NFTA_CHAIN_HOOK, attr(unix.NFTA_HOOK_HOOKNUM, word(inputHook)), attr(unix.NFTA_HOOK_PRIORITY, word(uint32(fencePriority&0xffffffff))))...)},
		rule(
			loadMeta(unix.NFT_META_IIF), compare(unix.NFT_CMP_NEQ, native32(uint32(index))), compare(unix.NFT_CMP_NEQ, native32(loopback)),
			loadHeader(dstAt, 16), compare(unix.NFT_CMP_EQ, own.AsSlice())),
		rule(
			loadMeta(unix.NFT_META_IIF), compare(unix.NFT_CMP_NEQ, native32(uint32(index))), compare(unix.NFT_CMP_NEQ, native32(loopback)),
			loadMeta(unix.NFT_META_IIFTYPE), compare(unix.NFT_CMP_NEQ, native16(noHeader)),
			loadHeader(srcAt, whole), compare(unix.NFT_CMP_EQ, overlay.Addr().AsSlice()[:whole])),
	}
}

func expression(name string, attrs ...[]byte) []byte {
	return nest(unix.NFTA_LIST_ELEM, attr(unix.NFTA_EXPR_NAME, text(name)), nest(unix.NFTA_EXPR_DATA, attrs...))
}

func loadMeta(key uint32) []byte {
	return expression("meta", attr(unix.NFTA_META_DREG, word(unix.NFT_REG_1)), attr(unix.NFTA_META_KEY, word(key)))
}

func loadHeader(at, length int) []byte {
	return expression("payload", attr(unix.NFTA_PAYLOAD_DREG, word(unix.NFT_REG_1)),
		attr(unix.NFTA_PAYLOAD_BASE, word(unix.NFT_PAYLOAD_NETWORK_HEADER)),
		attr(unix.NFTA_PAYLOAD_OFFSET, word(uint32(at))), attr(unix.NFTA_PAYLOAD_LEN, word(uint32(length))))
}

func compare(how uint32, value []byte) []byte {
	return expression("cmp", attr(unix.NFTA_CMP_SREG, word(unix.NFT_REG_1)), attr(unix.NFTA_CMP_OP, word(how)),
		nest(unix.NFTA_CMP_DATA, attr(unix.NFTA_DATA_VALUE, value)))
}
