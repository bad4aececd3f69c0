package resolv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// filesHeader is the first line of our files in /etc/resolver. Others are not
// touched.
const filesHeader = "# Added by pilot, which removes it when it stops.\n"

// DefaultResolverDir is where macOS looks for resolvers of single domains
// (resolver(5)).
const DefaultResolverDir = "/etc/resolver"

// files is a directory with one file for each domain that has a resolver of its
// own. macOS watches it.
type files struct {
	Config
	dir string
}

func (f *files) mode() Mode               { return Files }
func (f *files) check()                   {}
func (f *files) changed() <-chan struct{} { return nil }
func (f *files) close()                   {}

func (f *files) set(context.Context, []Entry) error {
	if err := os.MkdirAll(f.dir, 0o755); err != nil {
		return err
	}
	server := "nameserver " + f.Server.String() + "\n"
	content := map[string]string{f.Domain: server, f.Reverse: server}
	if f.Search {
		content["search.pilot"] = "search " + f.Domain + "\n"
	}
	for name, text := range content {
		if err := f.write(filepath.Join(f.dir, name), []byte(filesHeader+text)); err != nil {
			return errors.Join(err, RemoveFiles(f.dir))
		}
	}
	return nil
}

// write puts the whole file there at once, unless somebody else's is.
func (f *files) write(path string, content []byte) error {
	old, err := os.ReadFile(path)
	switch {
	case err == nil && bytes.Equal(old, content):
		return nil
	case err == nil && !bytes.HasPrefix(old, []byte(filesHeader)):
		return fmt.Errorf("%s was made by somebody else", path)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	}
	t, err := os.CreateTemp(f.dir, ".pilot-*")
	if err != nil {
		return err
	}
	_, err = t.Write(content)
	if err == nil {
		err = t.Chmod(0o644)
	}
	err = errors.Join(err, t.Close())
	if err == nil {
		err = os.Rename(t.Name(), path)
	}
	if err != nil {
		os.Remove(t.Name())
	}
	return err
}

func (f *files) undo(context.Context) error { return RemoveFiles(f.dir) }

// RemoveFiles removes our files from a directory like /etc/resolver, also those
// of an agent that was killed. It is no error if there are none.
func RemoveFiles(dir string) error {
	list, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range list {
		if !e.Type().IsRegular() {
			continue
		}
		path := filepath.Join(dir, e.Name())
		text, readErr := os.ReadFile(path)
		if readErr == nil && bytes.HasPrefix(text, []byte(filesHeader)) {
			err = errors.Join(err, os.Remove(path))
		}
	}
	return err
}
