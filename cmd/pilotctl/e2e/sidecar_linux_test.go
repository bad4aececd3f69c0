package e2e_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"
)

// A sidecar is what the Kubernetes manifest says of the agent's container.
type sidecar struct {
	Name  string   `yaml:"name"`
	Args  []string `yaml:"args"`
	Probe struct {
		Exec struct {
			Command []string `yaml:"command"`
		} `yaml:"exec"`
	} `yaml:"startupProbe"`
	Rights struct {
		Privileged   bool `yaml:"privileged"`
		Escalation   bool `yaml:"allowPrivilegeEscalation"`
		ReadOnly     bool `yaml:"readOnlyRootFilesystem"`
		Capabilities struct {
			Add  []string `yaml:"add"`
			Drop []string `yaml:"drop"`
		} `yaml:"capabilities"`
	} `yaml:"securityContext"`
}

// A pod is what the manifest says of all its containers.
type pod struct {
	Security struct {
		Sysctls []struct{ Name, Value string } `yaml:"sysctls"`
	} `yaml:"securityContext"`
	Init []sidecar `yaml:"initContainers"`
}

func readPod(t *testing.T) pod {
	t.Helper()
	f, err := os.Open(filepath.Join(root, "packaging", "kubernetes", "sidecar.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for d := yaml.NewDecoder(f); ; {
		var set struct {
			Kind string `yaml:"kind"`
			Spec struct {
				Template struct {
					Spec pod `yaml:"spec"`
				} `yaml:"template"`
			} `yaml:"spec"`
		}
		if err := d.Decode(&set); err != nil {
			t.Fatalf("no sidecar in the manifest: %v", err)
		}
		if set.Kind == "StatefulSet" && len(set.Spec.Template.Spec.Init) == 1 {
			return set.Spec.Template.Spec
		}
	}
}

// TestSidecar: two processes that share a network, as the containers of a pod do.
// The agent has exactly the capabilities of the manifest and makes itself; the
// other is an HTTP server that binds 127.0.0.1 and knows nothing. A peer reaches it
// by name.
func TestSidecar(t *testing.T) {
	t.Parallel()
	p := readPod(t)
	c := p.Init[0]
	if c.Rights.Privileged || c.Rights.Escalation || !c.Rights.ReadOnly ||
		strings.Join(c.Rights.Capabilities.Add, " ") != "NET_ADMIN" || strings.Join(c.Rights.Capabilities.Drop, " ") != "ALL" {
		t.Fatalf("the manifest is not what this test runs: %+v", c)
	}
	l := newLab(t, "port", "linux")
	s := l.server(t)
	alice, bob := l.agent(t, "a1", "alice"), l.machine(t, "b1", "bob")
	alice.up(t, s)

	for _, set := range p.Security.Sysctls {
		l.output(t, "b1", "sh", "-c", `echo "$2" >"/proc/sys/$1"`, "sh", strings.ReplaceAll(set.Name, ".", "/"), set.Value)
	}
	pages := filepath.Join(l.dir, "pages")
	if err := os.Mkdir(pages, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(pages, "index.html"), []byte("what a program says that knows nothing\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	program := l.on(t.Context(), "b1", "setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs",
		"python3", "-m", "http.server", "8000", "--bind", "127.0.0.1", "--directory", pages)
	var complaint strings.Builder
	program.Stderr = &complaint
	if err := program.Start(); err != nil {
		t.Fatal(err)
	}
	defer program.Wait()
	defer program.Process.Kill()

	if err := os.Mkdir(bob.state, 0o700); err != nil { // the volume
		t.Fatal(err)
	}
	args := append([]string{"setpriv", "--bounding-set", "-all,+net_admin", "--inh-caps=-all", "--no-new-privs", "pilotctl"}, c.Args...)
	daemon := bob.prepared(t.Context(), strict, args...)
	daemon.Env = append(daemon.Env, "PILOT_NAME=bob", "PILOT_SERVER="+s.name)
	var said strings.Builder
	daemon.Stderr = &said
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- daemon.Wait() }()
	defer func() {
		if t.Failed() {
			daemon.Process.Kill()
			<-ended
			t.Logf("the sidecar: %s", &said)
			program.Process.Kill()
			program.Wait()
			t.Logf("the program: %s", &complaint)
		}
	}()
	within(t, 60*time.Second, "the startup probe succeeds", func() bool {
		return bob.run(t, append([]string{"pilotctl"}, c.Probe.Exec.Command[1:]...)...).status == 0
	})
	pid := l.daemonOf(t, "b1")
	wantRights(t, pid, 1<<unix.CAP_NET_ADMIN)
	within(t, 20*time.Second, "the program serves its neighbour", func() bool {
		return strings.Contains(finish(t, l.on(t.Context(), "b1", "curl", "-sS", "-m", "5", "http://127.0.0.1:8000/")).stdout, "knows nothing")
	})
	bob.pilot(t, "serve", "http", "8000", "--port", "80")
	trust(t, alice, bob, "80")
	o := alice.run(t, "curl", "-sS", "--max-time", "20", "http://bob.pilot.internal/")
	if o.status != 0 || !strings.Contains(o.stdout, "knows nothing") {
		t.Errorf("%s", o)
	}
	t.Logf("a peer reads: %s", strings.TrimSpace(o.stdout))

	begin := time.Now()
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("the sidecar ends with %v: %s", err, &said)
		}
		t.Logf("ended after %v", time.Since(begin).Round(time.Millisecond))
	case <-time.After(15 * time.Second):
		t.Error("the sidecar does not end")
	}
}
