package e2e_test

import (
	"archive/tar"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"
)

// composed is what the compose file says of the agent's container.
type composed struct {
	Command      []string          `yaml:"command"`
	Environment  map[string]string `yaml:"environment"`
	Secrets      []string          `yaml:"secrets"`
	Devices      []string          `yaml:"devices"`
	Drop         []string          `yaml:"cap_drop"`
	Add          []string          `yaml:"cap_add"`
	SecurityOpt  []string          `yaml:"security_opt"`
	ReadOnly     bool              `yaml:"read_only"`
	Privileged   bool              `yaml:"privileged"`
	Sysctls      map[string]string `yaml:"sysctls"`
	Volumes      []string          `yaml:"volumes"`
	HealthChecks struct {
		Test []string `yaml:"test"`
	} `yaml:"healthcheck"`
}

func readCompose(t *testing.T) composed {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "packaging", "container", "compose.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Services map[string]composed `yaml:"services"`
	}
	if err := yaml.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	c := file.Services["pilot"]
	if c.Privileged || !c.ReadOnly || strings.Join(c.Add, " ") != "NET_ADMIN" || strings.Join(c.Drop, " ") != "ALL" ||
		strings.Join(c.Devices, " ") != "/dev/net/tun" || strings.Join(c.SecurityOpt, " ") != "no-new-privileges:true" || c.HealthChecks.Test[0] != "CMD" {
		t.Fatalf("the compose file is not what this test runs: %+v", c)
	}
	return c
}

// An ociImage is an unpacked image: its files, and what it says should be run.
type ociImage struct {
	rootfs string
	Config struct {
		Env        []string
		Entrypoint []string
		Cmd        []string
	} `json:"config"`
}

// makeImage makes the container image of the program under test, without an engine,
// and unpacks it.
func makeImage(t *testing.T, dir string) (image ociImage) {
	t.Helper()
	name := filepath.Join(dir, "image.tar")
	made := exec.CommandContext(t.Context(), "go", "run", "./packaging/release", "-image", name, "-program", pilotctl)
	made.Dir = root
	made.Env = append(os.Environ(), "SOURCE_DATE_EPOCH=1793491200")
	if out, err := made.CombinedOutput(); err != nil {
		t.Fatalf("packaging/release -image: %v: %s", err, out)
	}
	layout := filepath.Join(dir, "layout")
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	unpack(t, f, layout)
	read := func(v any, path ...string) {
		t.Helper()
		text, err := os.ReadFile(filepath.Join(append([]string{layout}, path...)...))
		if err == nil {
			err = json.Unmarshal(text, v)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	type descriptor struct{ Digest string }
	blob := func(d descriptor) string { return "blobs/sha256/" + strings.TrimPrefix(d.Digest, "sha256:") }
	var index struct{ Manifests []descriptor }
	var manifest struct {
		Config descriptor
		Layers []descriptor
	}
	read(&index, "index.json")
	read(&manifest, blob(index.Manifests[0]))
	read(&image, blob(manifest.Config))
	image.rootfs = filepath.Join(dir, "rootfs")
	for _, layer := range manifest.Layers {
		f, err := os.Open(filepath.Join(layout, blob(layer)))
		if err != nil {
			t.Fatal(err)
		}
		z, err := gzip.NewReader(f)
		if err != nil {
			t.Fatal(err)
		}
		unpack(t, z, image.rootfs)
		f.Close()
	}
	return image
}

// unpack writes the directories and files of a tar.
func unpack(t *testing.T, from io.Reader, to string) {
	t.Helper()
	for r := tar.NewReader(from); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Join(to, h.Name)
		if h.Typeflag == tar.TypeDir {
			err = os.MkdirAll(name, 0o755)
		} else if err = os.MkdirAll(filepath.Dir(name), 0o755); err == nil {
			var f *os.File
			if f, err = os.OpenFile(name, os.O_CREATE|os.O_WRONLY, os.FileMode(h.Mode)); err == nil {
				_, err = io.Copy(f, r)
				err = errors.Join(err, f.Close())
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// A box is one container, and the runtime that runs it.
type box struct {
	runtime []string // command line
	bundle  string
	id      string
}

func (b *box) do(t *testing.T, args ...string) outcome {
	t.Helper()
	return finish(t, exec.CommandContext(t.Context(), b.runtime[0], append(b.runtime[1:len(b.runtime):len(b.runtime)], args...)...))
}

// pilot runs pilotctl in the container.
func (b *box) pilot(t *testing.T, args ...string) outcome {
	t.Helper()
	return b.do(t, append([]string{"exec", b.id, "/pilotctl"}, args...)...)
}

// configure writes what the container is: the image, and on top of it what the compose
// file gives it, in the network of a host.
func (b *box) configure(t *testing.T, image ociImage, c composed, namespace string, mounts map[string]string, args, env []string) {
	t.Helper()
	type object = map[string]any
	capabilities := []string{}
	for _, name := range c.Add {
		capabilities = append(capabilities, "CAP_"+name)
	}
	all := []object{
		{"destination": "/proc", "type": "proc", "source": "proc"},
		{"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": []string{"nosuid", "mode=755", "size=64k"}},
	}
	for at, from := range mounts {
		all = append(all, object{"destination": at, "type": "bind", "source": from, "options": []string{"bind", "nosuid", "nodev"}})
	}
	tun := object{"type": "c", "major": 10, "minor": 200}
	node, rule := object{"path": c.Devices[0], "fileMode": 0o600}, object{"allow": true, "access": "rw"}
	for k, v := range tun {
		node[k], rule[k] = v, v
	}
	text, err := json.Marshal(object{
		"ociVersion": "1.0.2", "hostname": "box",
		"root": object{"path": image.rootfs, "readonly": c.ReadOnly},
		"process": object{
			"user": object{"uid": 0, "gid": 0}, "cwd": "/", "args": args, "env": env, "noNewPrivileges": true,
			"capabilities": object{"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
		},
		"mounts": all,
		"linux": object{
			"namespaces": []object{{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "network", "path": "/run/netns/" + namespace}},
			"devices":    []object{node},
			"resources":  object{"devices": []object{{"allow": false, "access": "rwm"}, rule}},
			"sysctl":     c.Sysctls,
		},
	})
	if err == nil {
		err = os.WriteFile(filepath.Join(b.bundle, "config.json"), text, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// runtimes are the OCI runtimes of Debian, in a form that needs least of the machine.
var runtimes = [][]string{{"runc"}, {"crun", "--cgroup-manager=disabled"}}

// newBox finds a runtime that runs here, which one within a container often does not.
func newBox(t *testing.T, l *lab, image ociImage, c composed, host string) *box {
	t.Helper()
	var complaints []string
	for _, line := range runtimes {
		path := lookup(line[0])
		if path == "" {
			continue
		}
		b := &box{runtime: append([]string{path, "--root", filepath.Join(l.dir, line[0])}, line[1:]...), bundle: filepath.Join(l.dir, "bundle"), id: l.prefix}
		if err := os.MkdirAll(b.bundle, 0o755); err != nil {
			t.Fatal(err)
		}
		b.configure(t, image, c, l.namespace(host), nil, []string{"/pilotctl", "version"}, image.Config.Env)
		o := b.do(t, "run", "--bundle", b.bundle, b.id)
		if o.status == 0 && strings.HasPrefix(o.stdout, "pilotctl ") {
			t.Logf("%s runs it: %s", line[0], o)
			return b
		}
		complaints = append(complaints, fmt.Sprintf("%s: %s", line[0], o))
		b.do(t, "delete", "--force", b.id)
	}
	if len(complaints) == 0 && os.Getenv("PILOT_REQUIRE_TOOLS") == "1" {
		t.Fatal("runc and crun are missing, and PILOT_REQUIRE_TOOLS=1 forbids to skip")
	}
	t.Skipf("needs an OCI runtime (package runc or crun) that can start a container here: %s", strings.Join(complaints, "; "))
	return nil
}

// TestContainer: the image, made without an engine and started by an OCI runtime with
// what the compose file gives it: one capability, one device, nothing to write but its
// volumes. It uses the token of a peer by itself and is ready for the health check. The
// program that shares its network reaches the peer by name, and the peer it.
func TestContainer(t *testing.T) {
	t.Parallel()
	c := readCompose(t)
	l := wire(t, "a1", "b1")
	image := makeImage(t, l.dir)
	b := newBox(t, l, image, c, "b1")
	s := l.server(t)
	alice, bob := l.agent(t, "a1", "alice"), l.agent(t, "b1", "bob") // his state is the volume
	alice.up(t, s)
	l.website(t, "a1", "[::]:8080")
	made := answer[struct{ Token string }](t, alice, "trust", "invite", "--ports", "8080", "--ttl", "1h", "--name", "bob")

	mounts := map[string]string{"/etc/hosts": bob.hosts} // as engines do
	volumes := map[string]string{"state": bob.state, "run": filepath.Join(l.dir, "run")}
	for _, v := range c.Volumes {
		name, at, _ := strings.Cut(v, ":")
		if volumes[name] == "" {
			t.Fatalf("the compose file has a volume %s, which this test does not know", name)
		}
		if err := os.MkdirAll(volumes[name], 0o755); err != nil {
			t.Fatal(err)
		}
		mounts[at] = volumes[name]
	}
	for _, secret := range c.Secrets {
		file := filepath.Join(l.dir, secret)
		if err := os.WriteFile(file, []byte(made.Token+"\n"), 0o400); err != nil {
			t.Fatal(err)
		}
		mounts["/run/secrets/"+secret] = file
	}
	env := image.Config.Env
	for name, value := range c.Environment {
		env = append(env, name+"="+value)
	}
	b.configure(t, image, c, l.namespace("b1"), mounts, append(image.Config.Entrypoint, c.Command...), env)
	daemon := launch(t, "the container", exec.Command(b.runtime[0], append(b.runtime[1:len(b.runtime):len(b.runtime)], "run", "--bundle", b.bundle, b.id)...))
	t.Cleanup(func() {
		finish(t, exec.Command(b.runtime[0], append(b.runtime[1:len(b.runtime):len(b.runtime)], "delete", "--force", b.id)...))
	})

	within(t, 60*time.Second, "the health check succeeds", func() bool {
		return b.do(t, append([]string{"exec", b.id}, c.HealthChecks.Test[1:]...)...).status == 0
	})
	wantRights(t, l.daemonOf(t, "b1"), 1<<unix.CAP_NET_ADMIN)
	within(t, 20*time.Second, "the invitation is used", func() bool { return strings.Contains(b.pilot(t, "peers").stdout, "alice") })
	if o := bob.run(t, "curl", "-sS", "-m", "10", "http://alice.pilot.internal:8080/"); o.stdout != page {
		t.Errorf("a program beside the container does not get to alice: %s", o)
	}

	l.ignorant(t, "b1")
	if o := b.pilot(t, "serve", "http", "8000", "--port", "80"); o.status != 0 {
		t.Fatal(o)
	}
	alice.pilot(t, "trust", "request", bob.id(t).Contact, "--reason", "a test", "--ports", "80")
	within(t, 10*time.Second, "bob sees the request", func() bool { return strings.Contains(b.pilot(t, "trust", "pending").stdout, "alice") })
	if o := b.pilot(t, "trust", "approve", "alice"); o.status != 0 {
		t.Fatal(o)
	}
	within(t, 10*time.Second, "alice has the grant", func() bool { return alice.peer(t, "bob").Out == "80" })
	readsIgnorant(t, alice, "bob")

	daemon.end(t, func() error {
		if o := b.do(t, "kill", b.id, "TERM"); o.status != 0 {
			return errors.New(o.String())
		}
		return nil
	})
}
