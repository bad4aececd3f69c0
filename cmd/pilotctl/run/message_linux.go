package run

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"github.com/pilotnet/pilot/tun"
)

// What the first process asks the keeper for.
const (
	opEnter  = "enter"  // devices, files and limits of the namespaces; answer: the file of host0
	opDevice = "device" // answer: the file of the overlay's device
	opListen = "listen" // answer: a socket on the overlay
	opDial   = "dial"   // answer: a socket that is connected
	opStart  = "start"  // the program; Exit is sent when it has ended
	opSignal = "signal"
)

// A request is one of the above. ID is chosen by the asker and is not 0.
type request struct {
	ID int    `json:"id"`
	Op string `json:"op"`

	Link   *link       `json:"link,omitempty"`
	Device *tunConfig  `json:"device,omitempty"`
	Net    string      `json:"net,omitempty"` // "tcp" or "udp"
	Addr   string      `json:"addr,omitempty"`
	Bind   string      `json:"bind,omitempty"` // device
	Path   string      `json:"path,omitempty"`
	Signal unix.Signal `json:"signal,omitempty"`
}

// A link is what host0 and the files of the program's view are made of.
type link struct {
	Own   []netip.Prefix    `json:"own"`
	MTU   int               `json:"mtu"`
	Cover map[string]string `json:"cover"` // file in the program's view -> file of the host
}

// tunConfig is the part of tun.Config that matters to the kernel.
type tunConfig struct {
	Name    string       `json:"name"`
	Address netip.Prefix `json:"address"`
	Route   netip.Prefix `json:"route"`
	Probe   netip.Addr   `json:"probe"`
	MTU     int          `json:"mtu"`
}

func (c tunConfig) config() tun.Config {
	return tun.Config{Name: c.Name, Address: c.Address, Route: c.Route, IPv6Probe: c.Probe, MTU: c.MTU}
}

// A response answers the request with the same ID; with ID 0 it says how the program
// ended.
type response struct {
	ID    int      `json:"id"`
	Error *failure `json:"error,omitempty"`
	Exit  *int     `json:"exit,omitempty"` // as wait(2) has it
}

// A failure is an error with the causes that the first process tells apart.
type failure struct {
	Message string `json:"message"`
	Help    string `json:"help,omitempty"`
	Kind    string `json:"kind,omitempty"`
	Errno   int    `json:"errno,omitempty"`
}

// kinds are the causes that survive the way out.
var kinds = map[string]error{
	"permission": tun.ErrPermission, "no device": tun.ErrNoDevice, "ipv6": tun.ErrIPv6Disabled, "name": tun.ErrNameTaken, "route": tun.ErrRouteTaken,
}

func fail(err error) *failure {
	f := &failure{Message: err.Error()}
	if h := new(tun.HelpError); errors.As(err, &h) {
		f.Message, f.Help = h.Err.Error(), h.Help
	}
	for kind, cause := range kinds {
		if errors.Is(err, cause) {
			f.Kind = kind
		}
	}
	if e := unix.Errno(0); errors.As(err, &e) {
		f.Errno = int(e)
	}
	return f
}

// A cause is an error from inside.
type cause struct {
	text string
	is   []error
}

func (c *cause) Error() string   { return c.text }
func (c *cause) Unwrap() []error { return c.is }

func (f *failure) err() error {
	c := &cause{text: f.Message}
	if kind := kinds[f.Kind]; kind != nil {
		c.is = append(c.is, kind)
	}
	if f.Errno != 0 {
		c.is = append(c.is, unix.Errno(f.Errno))
	}
	if f.Help != "" {
		return &tun.HelpError{Err: c, Help: f.Help}
	}
	return c
}

// maxMessage is more than any message has: the arguments of the program are on the
// keeper's own command line.
const maxMessage = 64 << 10

// send writes one message, with a descriptor unless f is nil.
func send(c *net.UnixConn, v any, f *os.File) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(body) > maxMessage {
		return fmt.Errorf("run: a message of %d octets", len(body))
	}
	var rights []byte
	if f != nil {
		rights = unix.UnixRights(int(f.Fd()))
	}
	_, _, err = c.WriteMsgUnix(body, rights, nil)
	return err
}

// receive reads one message and the descriptor that came with it, if any.
func receive(c *net.UnixConn, v any) (*os.File, error) {
	body, oob := make([]byte, maxMessage), make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := c.ReadMsgUnix(body, oob)
	if err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, io.EOF
	}
	var file *os.File
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return nil, err
	}
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil || len(fds) != 1 {
			return nil, fmt.Errorf("run: %d descriptors: %v", len(fds), err)
		}
		unix.CloseOnExec(fds[0])
		file = os.NewFile(uintptr(fds[0]), "inside")
	}
	return file, json.Unmarshal(body[:n], v)
}
