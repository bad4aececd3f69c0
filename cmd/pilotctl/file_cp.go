package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"mime"
	"os"
	"path/filepath"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/pilotnet/pilot/overlay"
	"github.com/pilotnet/pilot/overlay/services"
	"github.com/pilotnet/pilot/overlay/services/exchange"
)

const defaultPatience = time.Minute

func patienceFlag() cli.Flag {
	return &cli.DurationFlag{Name: "patience", Value: defaultPatience, Usage: "give up when nothing moved for that long; the same command goes on later"}
}

func (p *program) fileCopyCommand() *cli.Command {
	return &cli.Command{
		Name:      "cp",
		Usage:     "send files to a peer's inbox, or offer them to peers",
		ArgsUsage: "SRC... PEER:[NAME] | SRC... share:[PEER/][NAME]",
		Description: `The receiver checks the SHA-256 and keeps a file only as a whole. From 4 MiB on a
transfer that was cut off, on either side, goes on where it stopped: run the same
command again. A name that is taken is an error, unless it is the same file.`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "queue", Usage: "if the peer is offline, keep a copy and let the daemon send it later"},
			&cli.BoolFlag{Name: "force", Usage: "replace another file of that name"},
			patienceFlag(),
		},
		Action: p.fileCopy,
	}
}

func (p *program) fileCopy(c *cli.Context) error {
	args := c.Args().Slice()
	if len(args) < 2 {
		return usagef("%s needs files and where they go", c.Command.HelpName).WithHint("%s report.pdf bob:", c.Command.HelpName)
	}
	return p.copyFiles(c, args[:len(args)-1], args[len(args)-1])
}

// sendFileCommand has the words of the published Pilot texts.
func (p *program) sendFileCommand() *cli.Command {
	return &cli.Command{
		Name: "send-file", Usage: "send a file to a peer's inbox", ArgsUsage: "PEER FILE", Flags: p.fileCopyCommand().Flags,
		Action: func(c *cli.Context) error {
			args, err := arguments(c, "a peer", "a file")
			if err != nil {
				return err
			}
			return p.copyFiles(c, args[1:], args[0]+":")
		},
	}
}

func (p *program) copyFiles(c *cli.Context, sources []string, last string) error {
	to, err := parsePlace(last)
	if err != nil {
		return err
	}
	dir, name := "", to.path
	if to.where == placeShare {
		dir, name = to.split()
	}
	switch {
	case to.where == placeInbox || to.where == placeQueue:
		return usagef("nothing can be copied to %s", last).WithHint("cp sends to PEER: and offers at share:")
	case name != "" && len(sources) > 1:
		return usagef("%d files cannot all be called %.60q", len(sources), name).WithHint("end with PEER: and they keep their names")
	}
	if name != "" {
		if name, err = cleanFileName(name); err != nil {
			return err
		}
	}
	d, err := p.fileDesk(c)
	if err != nil {
		return err
	}
	run := copying{fileDesk: d, queue: c.Bool("queue"), force: c.Bool("force"), patience: c.Duration("patience")}
	if to.where == placeShare {
		run.shareDir = dir
		run.target, err = d.shareTarget(c.Context, dir)
	} else {
		run.peer, err = d.peer(c.Context, to.where)
	}
	if err != nil {
		return err
	}
	moved := []fileMoved{}
	for _, path := range sources {
		m, err := run.one(c.Context, path, name)
		if err != nil {
			return err
		}
		if !p.json {
			fmt.Fprintf(p.stdout, "%s  %s  %s  sha256:%s\n", m.State, m.To, bytesText(uint64(m.Size)), m.SHA256)
		}
		moved = append(moved, m)
	}
	return p.result(moved, func(io.Writer) {})
}

// A copying is one run of cp, to a peer or to share.
type copying struct {
	*fileDesk
	peer     overlay.Peer
	target   string // of share: "all" or a fingerprint
	shareDir string // as it was written
	queue    bool
	force    bool
	patience time.Duration
}

func (r *copying) one(ctx context.Context, path, name string) (fileMoved, error) {
	if name == "" {
		var err error
		if name, err = cleanFileName(filepath.Base(path)); err != nil {
			return fileMoved{}, err
		}
	}
	f, err := os.Open(path)
	if err != nil {
		return fileMoved{}, localError(err)
	}
	defer f.Close()
	s, err := r.sending(f, name)
	if err != nil {
		return fileMoved{}, err
	}
	m := fileMoved{Name: name, Size: s.Size, SHA256: s.SHA256, From: path}
	progress, end := r.bar(name, s.Size)
	defer end()
	s.Progress = progress
	if r.target != "" {
		m.State, m.To = "offered", placeShare+":"+name
		if r.shareDir != "" {
			m.To = placeShare + ":" + r.shareDir + "/" + name
		}
		_, err := r.own.Offer(ctx, r.target, s)
		if e := new(services.Error); errors.As(err, &e) && e.Code == services.CodeConflict {
			e.Hint = "offer it under another name, or replace that one with --force"
		}
		return m, ownError(err)
	}
	m.State, m.To = "sent", r.peer.Name+":"+name
	there, err := r.send(ctx, s)
	e := new(services.Error)
	switch {
	case err == nil && there:
		m.State = "present"
	case errors.As(err, &e) && r.queue && (e.Code == services.CodeOffline || e.Code == services.CodeTimeout):
		m.State = "queued"
		_, err = r.own.Enqueue(ctx, r.peer.Fingerprint, s)
		return m, ownError(err)
	}
	failed := new(overlay.Error)
	if err = fileError(err); errors.As(err, &failed) {
		return m, offlineHint(failed, r.peer.Name)
	}
	return m, err
}

// offlineHint says what helps with a peer that is not there.
func offlineHint(e *overlay.Error, peer string) *overlay.Error {
	if e.Hint == "" && (e.Code == overlay.CodePeerOffline || e.Code == overlay.CodeTimeout) {
		return e.WithHint("pilotctl ping %s shows whether it is there; the same command goes on later, and with --queue by itself", peer)
	}
	return e
}

// send is patient with a peer that was there; with --queue it is not.
func (r *copying) send(ctx context.Context, s exchange.Sending) (there bool, err error) {
	client, err := r.exchange(r.peer)
	if err != nil {
		return false, err
	}
	defer client.Close()
	patience := r.patience
	if r.queue {
		patience = 0
	}
	progress, most := s.Progress, int64(0)
	err = patiently(ctx, patience, func() (bool, error) {
		before := most
		s.Progress = func(done int64) {
			most = max(most, done)
			progress(done)
		}
		_, there, err = client.Send(ctx, s)
		return most > before, err
	})
	return there, err
}

// sending reads a file for its digest.
func (r *copying) sending(f *os.File, name string) (exchange.Sending, error) {
	info, err := f.Stat()
	if err != nil {
		return exchange.Sending{}, localError(err)
	}
	if !info.Mode().IsRegular() {
		return exchange.Sending{}, usagef("%s is not a regular file", f.Name()).WithHint("pack a directory first: tar cf NAME.tar DIRECTORY")
	}
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return exchange.Sending{}, localError(err)
	}
	return exchange.Sending{Name: name, Type: mime.TypeByExtension(filepath.Ext(name)), Size: info.Size(),
		SHA256: hex.EncodeToString(h.Sum(nil)), Source: f, Replace: r.force}, nil
}

// localError is what the file system of this machine said.
func localError(err error) error {
	switch {
	case errors.Is(err, os.ErrNotExist):
		return overlay.Errorf(overlay.CodeNotFound, "%v", err)
	case errors.Is(err, os.ErrPermission):
		return overlay.Errorf(overlay.CodeDenied, "%v", err)
	}
	return overlay.Errorf(overlay.CodeInternal, "%v", err)
}
