package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/pilotnet/pilot/overlay"
	"github.com/pilotnet/pilot/overlay/services"
	"github.com/pilotnet/pilot/overlay/services/exchange"
)

func (p *program) fileGetCommand() *cli.Command {
	return &cli.Command{
		Name:      "get",
		Usage:     "fetch a file that a peer offers, or take one out of the inbox",
		ArgsUsage: "PEER:NAME|inbox:PEER/NAME [DST]",
		Description: `DST is a file, a directory or - for stdout; without it the file keeps its name
here. The SHA-256 is checked before the file gets its name. What arrived before a
transfer was cut off stays in a hidden file, and the same command goes on there.`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "force", Usage: "replace what is at DST"},
			patienceFlag(),
		},
		Action: p.fileGet,
	}
}

// A fileSource is where get reads: a peer's exchange, or the own inbox.
type fileSource interface {
	Fetch(ctx context.Context, e exchange.Entry, offset int64) (io.ReadCloser, error)
}

func (p *program) fileGet(c *cli.Context) error {
	args := c.Args().Slice()
	if len(args) != 1 && len(args) != 2 {
		return usagef("%s needs a file and perhaps where it goes", c.Command.HelpName).WithHint("%s bob:report.pdf", c.Command.HelpName)
	}
	from, err := parsePlace(args[0])
	if err != nil {
		return err
	}
	if from.path == "" || from.where == placeShare || from.where == placeQueue {
		return usagef("%s does not name a file to fetch", args[0]).WithHint("write PEER:NAME or inbox:PEER/NAME")
	}
	d, err := p.fileDesk(c)
	if err != nil {
		return err
	}
	run := getting{fileDesk: d, force: c.Bool("force"), patience: c.Duration("patience"), from: args[0]}
	if len(args) == 2 {
		run.to = args[1]
	}
	return run.run(c.Context, from)
}

// A getting is one run of get.
type getting struct {
	*fileDesk
	source   fileSource
	entry    exchange.Entry
	from, to string
	force    bool
	patience time.Duration
}

func (r *getting) run(ctx context.Context, from filePlace) error {
	if err := r.find(ctx, from); err != nil {
		return err
	}
	if r.to == "-" {
		return r.toStdout(ctx)
	}
	name, err := exchange.CleanName(r.entry.Name)
	if err != nil {
		return badFileName(err, "choose a name: give DST")
	}
	if r.to == "" {
		r.to = name
	} else if info, err := os.Stat(r.to); err == nil && info.IsDir() {
		r.to = filepath.Join(r.to, name)
	}
	if _, err := os.Lstat(r.to); err == nil && !r.force {
		return overlay.Errorf(overlay.CodeConflict, "%s exists", r.to).WithHint("give another DST, or replace it with --force")
	}
	if err := r.toFile(ctx); err != nil {
		return fileError(err)
	}
	m := fileMoved{Name: r.entry.Name, Size: r.entry.Size, SHA256: r.entry.SHA256, State: "fetched", From: r.from, To: r.to}
	return r.result(m, func(w io.Writer) {
		fmt.Fprintf(w, "fetched  %s  %s  sha256:%s\n", m.To, bytesText(uint64(m.Size)), m.SHA256)
	})
}

// find learns what the file is.
func (r *getting) find(ctx context.Context, from filePlace) error {
	if from.where == placeInbox {
		e, err := r.inboxEntry(ctx, from)
		if err != nil {
			return err
		}
		r.source = r.own
		r.entry, err = r.own.Stat(ctx, e)
		return ownError(err)
	}
	peer, err := r.peer(ctx, from.where)
	if err != nil {
		return err
	}
	name, err := exchange.CleanName(from.path)
	if err != nil {
		return badFileName(err, wantsPlace)
	}
	client, err := r.exchange(peer)
	if err != nil {
		return err
	}
	r.source = client
	err = patiently(ctx, r.patience, func() (bool, error) {
		r.entry, err = client.Stat(ctx, name)
		return false, err
	})
	return fileError(err)
}

func (r *getting) toStdout(ctx context.Context) error {
	if r.json {
		return usagef("the file and --json cannot both go to stdout").WithHint("give DST as a file")
	}
	body, err := r.source.Fetch(ctx, r.entry, 0)
	if err != nil {
		return fileError(err)
	}
	defer body.Close()
	h := sha256.New()
	if _, err := io.Copy(io.MultiWriter(r.stdout, h), body); err != nil {
		return fileError(err)
	}
	return r.check(h.Sum(nil))
}

func (r *getting) check(sum []byte) error {
	if hex.EncodeToString(sum) == r.entry.SHA256 {
		return nil
	}
	return overlay.Errorf(overlay.CodeInternal, "what arrived is not the file that was announced: its SHA-256 is another one").Retry()
}

// toFile fetches into a file beside DST that is named after the digest, so that a
// later call finds it, and renames it when it is complete.
func (r *getting) toFile(ctx context.Context) error {
	sum, err := hex.DecodeString(r.entry.SHA256)
	if err != nil || len(sum) != sha256.Size {
		return overlay.Errorf(overlay.CodeInternal, "the digest of the file is not known")
	}
	part := filepath.Join(filepath.Dir(r.to), ".pilot-"+r.entry.SHA256[:16]+".part")
	f, err := os.OpenFile(part, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o644)
	if err != nil {
		return localError(err)
	}
	defer f.Close()
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return overlay.Errorf(overlay.CodeConflict, "another call fetches this file into this directory").Retry()
	}
	h := sha256.New()
	have, err := io.Copy(h, io.LimitReader(f, r.entry.Size+1))
	if err == nil && have > r.entry.Size {
		have, err = 0, f.Truncate(0)
		h.Reset()
	}
	if err != nil {
		return localError(err)
	}
	progress, end := r.bar(r.entry.Name, r.entry.Size)
	defer end()
	err = patiently(ctx, r.patience, func() (bool, error) {
		before := have
		err := r.rest(ctx, f, h, &have, progress)
		return have > before, err
	})
	if err != nil {
		return err
	}
	if err := r.check(h.Sum(nil)); err != nil {
		os.Remove(part)
		return err
	}
	if err := f.Sync(); err != nil {
		return localError(err)
	}
	return r.name(part)
}

// rest appends what is missing.
func (r *getting) rest(ctx context.Context, f *os.File, h io.Writer, have *int64, progress func(int64)) error {
	if *have == r.entry.Size {
		return nil
	}
	body, err := r.source.Fetch(ctx, r.entry, *have)
	if err != nil {
		return err
	}
	defer body.Close()
	buf := make([]byte, 128<<10)
	for *have < r.entry.Size {
		n, err := body.Read(buf[:min(int64(len(buf)), r.entry.Size-*have)])
		if _, err := f.WriteAt(buf[:n], *have); err != nil {
			return localError(err)
		}
		h.Write(buf[:n])
		*have += int64(n)
		progress(*have)
		if err == io.EOF && *have < r.entry.Size {
			err = &services.Error{Code: services.CodeOffline, Message: "the file ended early", Retryable: true}
		}
		if err != nil && err != io.EOF {
			return err
		}
	}
	return nil
}

// name gives the complete file its name. Without --force it does not replace one
// that came meanwhile.
func (r *getting) name(part string) error {
	if r.force {
		if err := os.Rename(part, r.to); err != nil {
			return localError(err)
		}
		return nil
	}
	err := os.Link(part, r.to)
	switch {
	case errors.Is(err, fs.ErrExist):
		return overlay.Errorf(overlay.CodeConflict, "%s exists", r.to).WithHint("give another DST, or replace it with --force")
	case err != nil: // a file system without links
		if err := os.Rename(part, r.to); err != nil {
			return localError(err)
		}
		return nil
	}
	os.Remove(part)
	return nil
}
