// Release makes everything that is handed out: programs, deb and rpm
// packages, a container image, the manual, completions, bills of materials, the licenses
// of what is linked in, and the checksums of all. It needs Go and nothing else; nfpm is built from its sources at
// a fixed version.
//
//	go run ./packaging/release [-out DIR] [-platforms linux/amd64,...] [-nfpm PROGRAM]
//	go run ./packaging/release -image pilot.tar
//
// The second makes no more than the container image for this machine.
//
// What it makes follows from the commit alone: times are the commit's, or
// SOURCE_DATE_EPOCH. "-reproducible" checks that of the program: it builds it twice
// from clones of the repository in different places, with caches of their own, and
// compares.
package main

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	nfpm       = "github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.43.4"
	thirdParty = "THIRD-PARTY" // file with the licenses of the modules
)

func main() {
	out := flag.String("out", "dist/release", "directory for what is made; emptied first")
	platforms := flag.String("platforms", "linux/amd64,linux/arm64,darwin/amd64,darwin/arm64", "what to build for")
	packager := flag.String("nfpm", "", "an nfpm that is there already")
	twice := flag.Bool("reproducible", false, "only build the program twice and compare")
	image := flag.String("image", "", "only make this file, the container image for this machine")
	terms := flag.String("licenses", "", "only make this file, the licenses of what is linked into -program")
	program := flag.String("program", "", "the pilotctl that goes into -image; default: it is built")
	version := flag.String("version", "", "what the packages call themselves; default: what the program says")
	flag.Parse()
	err := errors.New("no arguments are known: " + strings.Join(flag.Args(), " "))
	switch {
	case flag.NArg() > 0:
	case *twice:
		err = reproducible()
	case *terms != "":
		err = onlyLicenses(*terms, *program)
	case *image != "":
		err = onlyImage(*image, *program)
	default:
		err = release(*out, strings.Split(*platforms, ","), *packager, *version)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "release:", err)
		os.Exit(1)
	}
}

// A maker makes one release.
type maker struct {
	out     string // absolute
	stage   string // what goes into packages
	version string
	date    time.Time
	nfpm    []string // command line
}

func release(out string, platforms []string, packager, version string) error {
	out, err := filepath.Abs(out)
	if err != nil {
		return err
	}
	if err := os.RemoveAll(out); err != nil {
		return err
	}
	m := &maker{out: out, stage: filepath.Join(out, "stage"), nfpm: []string{"go", "run", nfpm}}
	if packager != "" {
		m.nfpm = []string{packager}
	}
	if m.date, err = commitTime(); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(m.stage, "completion"), 0o755); err != nil {
		return err
	}
	if err := m.texts(); err != nil {
		return err
	}
	if version != "" {
		m.version = version
	}
	for _, platform := range platforms {
		goos, arch, ok := strings.Cut(platform, "/")
		if !ok {
			return fmt.Errorf("%q is no platform: want OS/ARCH", platform)
		}
		if err := m.platform(goos, arch); err != nil {
			return fmt.Errorf("%s: %w", platform, err)
		}
	}
	if err := os.RemoveAll(m.stage); err != nil {
		return err
	}
	return m.sums()
}

// texts makes what the program itself prints, with one that runs here.
func (m *maker) texts() error {
	program := filepath.Join(m.stage, "host-pilotctl")
	if err := compile(".", runtime.GOOS, runtime.GOARCH, program); err != nil {
		return err
	}
	defer os.Remove(program)
	var err error
	if m.version, err = versionOf(program); err != nil {
		return err
	}
	for name, args := range map[string][]string{
		"completion/pilotctl.bash": {"completion", "bash"},
		"completion/pilotctl.zsh":  {"completion", "zsh"},
		"completion/pilotctl.fish": {"completion", "fish"},
		"pilotctl.8":               {"man"},
		"pilot.service":            {"service", "print", "systemd", "--program", "/usr/bin/pilotctl"},
		"pilot-online.service":     {"service", "print", "systemd-online", "--program", "/usr/bin/pilotctl"},
	} {
		text, err := output(program, args...)
		if err == nil {
			err = os.WriteFile(filepath.Join(m.stage, name), text, 0o644)
		}
		if err != nil {
			return err
		}
	}
	return compress(filepath.Join(m.stage, "pilotctl.8"))
}

// versionOf is what a pilotctl says of itself.
func versionOf(program string) (string, error) {
	var version struct {
		Data struct {
			Version string `json:"version"`
		} `json:"data"`
	}
	text, err := output(program, "version", "--json")
	if err == nil {
		err = json.Unmarshal(text, &version)
	}
	return version.Data.Version, err
}

func onlyLicenses(name, program string) error {
	text, err := licenses(program, "linux")
	if err != nil {
		return err
	}
	return os.WriteFile(name, text, 0o644)
}

// onlyImage makes the container image for this machine and nothing else.
func onlyImage(name, program string) error {
	if program == "" {
		dir, err := os.MkdirTemp("", "pilot-image")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		program = filepath.Join(dir, "pilotctl")
		if err := compile(".", "linux", runtime.GOARCH, program); err != nil {
			return err
		}
	}
	version, err := versionOf(program)
	if err != nil {
		return err
	}
	terms, err := licenses(program, "linux")
	if err != nil {
		return err
	}
	date, err := commitTime()
	if err != nil {
		return err
	}
	return writeImage(name, program, version, runtime.GOARCH, terms, date)
}

// compress makes NAME.gz of a file, without a time or name in it.
func compress(name string) error {
	text, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	z, _ := gzip.NewWriterLevel(&b, gzip.BestCompression)
	z.Write(text)
	if err := z.Close(); err != nil {
		return err
	}
	return os.WriteFile(name+".gz", b.Bytes(), 0o644)
}

// platform makes all for one kind of machine.
func (m *maker) platform(goos, arch string) error {
	fmt.Fprintf(os.Stderr, "%s/%s\n", goos, arch)
	program := filepath.Join(m.stage, "pilotctl")
	if err := compile(".", goos, arch, program); err != nil {
		return err
	}
	terms, err := licenses(program, goos)
	if err == nil {
		err = os.WriteFile(filepath.Join(m.stage, thirdParty), terms, 0o644)
	}
	if err != nil {
		return err
	}
	base := filepath.Join(m.out, fmt.Sprintf("pilot-%s-%s-%s", m.version, goos, arch))
	if err := m.archive(base+".tar.gz", filepath.Base(base)); err != nil {
		return err
	}
	bill, err := billOfMaterials(program, m.version, m.date)
	if err == nil {
		err = os.WriteFile(base+".spdx.json", bill, 0o644)
	}
	if err != nil || goos != "linux" {
		return err
	}
	if err := writeImage(filepath.Join(m.out, fmt.Sprintf("pilot-%s-oci-%s.tar", m.version, arch)), program, m.version, arch, terms, m.date); err != nil {
		return err
	}
	for _, kind := range []string{"deb", "rpm"} {
		args := append(slices.Clone(m.nfpm), "package", "--config", "packaging/package/nfpm.yaml", "--packager", kind, "--target", m.out)
		c := exec.Command(args[0], args[1:]...)
		c.Env = append(os.Environ(), "PILOT_ARCH="+arch, "PILOT_VERSION="+m.version, "PILOT_STAGE="+m.stage,
			"SOURCE_DATE_EPOCH="+strconv.FormatInt(m.date.Unix(), 10))
		if text, err := c.CombinedOutput(); err != nil {
			return fmt.Errorf("nfpm: %w: %s", err, text)
		}
	}
	return nil
}

// archive packs the program, what a shell and man want to know of it, and what to
// read.
func (m *maker) archive(name, top string) error {
	files := []file{
		{name: "pilotctl", from: filepath.Join(m.stage, "pilotctl"), mode: 0o755},
		{name: "pilotctl.8", from: filepath.Join(m.stage, "pilotctl.8"), mode: 0o644},
		{name: thirdParty, from: filepath.Join(m.stage, thirdParty), mode: 0o644},
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		path := "completion/pilotctl." + shell
		files = append(files, file{name: path, from: filepath.Join(m.stage, path), mode: 0o644})
	}
	for _, text := range []string{"README.md", "CHANGELOG.md", "SECURITY.md", "LICENSE"} {
		files = append(files, file{name: text, from: text, mode: 0o644})
	}
	for i := range files {
		files[i].name = top + "/" + files[i].name
	}
	layer, _, err := pack(files, m.date)
	if err != nil {
		return err
	}
	return os.WriteFile(name, layer, 0o644)
}

// sums writes the checksums of all that was made.
func (m *maker) sums() error {
	var b strings.Builder
	err := filepath.WalkDir(m.out, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(m.out, path)
		fmt.Fprintf(&b, "%x  %s\n", sha256.Sum256(data), name)
		return err
	})
	if err != nil {
		return err
	}
	fmt.Print(b.String())
	return os.WriteFile(filepath.Join(m.out, "SHA256SUMS"), []byte(b.String()), 0o644)
}

// buildFlags are those of everything that is handed out. Without the state of a repository
// in it a program from an archive, or built within a container, has the same bytes.
var buildFlags = []string{"-trimpath", "-buildvcs=false", "-ldflags", "-s -w"}

// compile builds pilotctl from the sources in dir.
func compile(dir, goos, arch, to string, env ...string) error {
	c := exec.Command("go", slices.Concat([]string{"build"}, buildFlags, []string{"-o", to, "./cmd/pilotctl"})...)
	c.Dir = dir
	c.Env = append(append(os.Environ(), "CGO_ENABLED=0", "GOOS="+goos, "GOARCH="+arch), env...)
	if text, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w: %s", err, text)
	}
	return nil
}

// commitTime is the time that all files get.
func commitTime() (time.Time, error) {
	text := os.Getenv("SOURCE_DATE_EPOCH")
	if text == "" {
		out, err := output("git", "log", "-1", "--format=%ct")
		if err != nil {
			return time.Time{}, fmt.Errorf("%w (outside a repository, set SOURCE_DATE_EPOCH)", err)
		}
		text = strings.TrimSpace(string(out))
	}
	seconds, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("SOURCE_DATE_EPOCH: %w", err)
	}
	return time.Unix(seconds, 0).UTC(), nil
}

func output(name string, args ...string) ([]byte, error) {
	out, err := exec.Command(name, args...).Output()
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		return nil, fmt.Errorf("%s %s: %w: %s", filepath.Base(name), strings.Join(args, " "), err, exit.Stderr)
	}
	return out, err
}

// reproducible builds the last commit twice, with nothing in common but Go and
// the sources of the modules.
func reproducible() error {
	work, err := os.MkdirTemp("", "pilot-release")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	var sums [2][sha256.Size]byte
	for i, name := range []string{"one", "the/other"} {
		dir := filepath.Join(work, name)
		if _, err := output("git", "clone", "--quiet", "--no-hardlinks", ".", dir); err != nil {
			return err
		}
		program := filepath.Join(work, fmt.Sprintf("pilotctl-%d", i))
		if err := compile(dir, runtime.GOOS, runtime.GOARCH, program, "GOCACHE="+filepath.Join(work, fmt.Sprintf("cache-%d", i))); err != nil {
			return err
		}
		data, err := os.ReadFile(program)
		if err != nil {
			return err
		}
		sums[i] = sha256.Sum256(data)
		fmt.Printf("%x  %s\n", sums[i], name)
	}
	if sums[0] != sums[1] {
		return errors.New("two builds of one commit differ")
	}
	fmt.Println("the two builds are equal")
	return nil
}
