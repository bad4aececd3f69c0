package rendezvous

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/pilotnet/pilot/natt"
	"github.com/pilotnet/pilot/natt/relay"
)

// bindings is the file by which a restarted server finds the agents that were
// registered: session numbers and addresses, nothing about who. It is appended to
// without fsync (the page cache outlives a killed process; after a power cut the
// agents' own keepalive finds out) and written anew at start and when most of it
// is out of date. All methods work on a nil *bindings, which keeps nothing.
//
// A record is 56 bytes: session 8, remote address 16 and port 2, local address 16
// (zeros: any), local port 2, zero 8, CRC-32C of these 4.
type bindings struct {
	mu      sync.Mutex
	f       *os.File
	dir     string
	records int
	live    func() []*session
	failed  bool
}

const (
	bindingSize    = 56
	bindingsSlack  = 4096 // records out of date before the file is written anew
	bindingsMax    = 1 << 20
	hintsPerSecond = 2000
)

// A known is one record.
type known struct {
	session uint64
	remote  netip.AddrPort
	local   netip.AddrPort
}

// openBindings opens the file in dir and returns what an earlier run left.
func openBindings(dir string, live func() []*session) (*bindings, []known, error) {
	if dir == "" {
		return nil, nil, nil
	}
	path := filepath.Join(dir, bindingsFile)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, nil, fmt.Errorf("rendezvous: %w", err)
	}
	old, err := readBindings(f)
	if err != nil {
		f.Close()
		return nil, nil, fmt.Errorf("rendezvous: %s: %w", path, err)
	}
	b := &bindings{f: f, dir: dir, live: live}
	return b, old, nil
}

// readBindings returns the last record of each session. It skips what is damaged:
// an agent that is not hinted comes back by itself, only later.
func readBindings(r io.Reader) ([]known, error) {
	all, err := io.ReadAll(io.LimitReader(r, bindingsMax*bindingSize))
	if err != nil {
		return nil, err
	}
	var out []known
	at := make(map[uint64]int)
	for ; len(all) >= bindingSize; all = all[bindingSize:] {
		k, ok := parseBinding(all[:bindingSize])
		if !ok {
			continue
		}
		if i, seen := at[k.session]; seen {
			out[i] = k
			continue
		}
		at[k.session] = len(out)
		out = append(out, k)
	}
	return out, nil
}

func appendBinding(dst []byte, k known) []byte {
	start := len(dst)
	dst = binary.BigEndian.AppendUint64(dst, k.session)
	for _, a := range []netip.AddrPort{k.remote, k.local} {
		var ip [16]byte
		if a.Addr().IsValid() {
			ip = a.Addr().As16()
		}
		dst = binary.BigEndian.AppendUint16(append(dst, ip[:]...), a.Port())
	}
	dst = append(dst, 0, 0, 0, 0, 0, 0, 0, 0)
	return binary.BigEndian.AppendUint32(dst, crc32.Checksum(dst[start:], castagnoli))
}

func parseBinding(b []byte) (known, bool) {
	if len(b) != bindingSize || binary.BigEndian.Uint32(b[52:]) != crc32.Checksum(b[:52], castagnoli) ||
		binary.BigEndian.Uint64(b[44:]) != 0 {
		return known{}, false
	}
	k := known{session: binary.BigEndian.Uint64(b)}
	k.remote = netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[8:24])).Unmap(), binary.BigEndian.Uint16(b[24:]))
	var local netip.Addr
	if ip := netip.AddrFrom16([16]byte(b[26:42])); !ip.IsUnspecified() {
		local = ip.Unmap()
	}
	k.local = netip.AddrPortFrom(local, binary.BigEndian.Uint16(b[42:]))
	return k, k.session != 0 && k.remote.Port() != 0
}

func (b *binding) known(session uint64) known {
	return known{session: session, remote: b.addr, local: netip.AddrPortFrom(b.local, b.sock.port)}
}

// add records where a session is reached. A full disk costs only speed of recovery.
func (b *bindings) add(session uint64, at binding) {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.f == nil {
		return
	}
	if b.records++; b.records > bindingsSlack {
		if live := b.live(); b.records > 2*len(live)+bindingsSlack {
			b.rewriteLocked(live)
		}
	}
	_, err := b.f.Write(appendBinding(nil, at.known(session)))
	b.failed = err != nil
}

// rewrite makes the file hold the current sessions only.
func (b *bindings) rewrite() {
	if b == nil {
		return
	}
	live := b.live()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.f != nil {
		b.rewriteLocked(live)
	}
}

func (b *bindings) rewriteLocked(live []*session) {
	var all []byte
	for _, s := range live {
		if b := s.bind.Load(); b.sock.carrier == nil { // connections do not outlive us
			all = appendBinding(all, b.known(s.number))
		}
	}
	path := filepath.Join(b.dir, bindingsFile)
	f, err := os.OpenFile(path+".new", os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return
	}
	if _, err = f.Write(all); err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		f.Close()
		return
	}
	b.f.Close()
	b.f, b.records = f, len(live)
}

func (b *bindings) close() error {
	if b == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	err := b.f.Close()
	b.f = nil
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

// hintRounds is when after a start the agents of the earlier run are told of it.
var hintRounds = [...]time.Duration{0, time.Second, 2500 * time.Millisecond}

// recall tells the agents of an earlier run that we have lost their sessions,
// skipping those that are back.
func (s *Server) recall(ctx context.Context, old []known) {
	start := s.cfg.Now()
	for _, after := range hintRounds {
		if !sleep(ctx, after-s.cfg.Now().Sub(start)) {
			return
		}
		back := make(map[netip.AddrPort]bool)
		for _, sess := range s.table.current() {
			back[sess.bind.Load().addr] = true
		}
		sent := 0
		for _, k := range old {
			sock := s.socketOf(k.local.Port())
			if sock == nil || back[k.remote] {
				continue
			}
			m := [1]natt.Message{{Buf: relay.AppendHint(nil, relay.HintSession, k.session), Addr: k.remote, Local: k.local.Addr()}}
			if _, err := sock.conn.WriteBatch(m[:]); err != nil {
				s.count.sendErrors.Add(1)
			}
			if sent++; sent%(hintsPerSecond/20) == 0 && !sleep(ctx, time.Second/20) {
				return
			}
		}
	}
	s.bindings.rewrite()
}

// sleep waits, and reports false if ctx ended.
func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

func (s *Server) socketOf(port uint16) *socket {
	for _, sock := range s.sockets {
		if sock.port == port {
			return sock
		}
	}
	return nil
}
