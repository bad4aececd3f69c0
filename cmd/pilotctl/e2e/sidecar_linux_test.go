package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"
)

// A sidecar is what the Kubernetes manifest says of the agent's container.
type sidecar struct {
	Name     string                  `yaml:"name"`
	Args     []string                `yaml:"args"`
	Env      []struct{ Name string } `yaml:"env"`
	Startup  httpProbe               `yaml:"startupProbe"`
	Liveness httpProbe               `yaml:"livenessProbe"`
	Rights   struct {
		Privileged   bool `yaml:"privileged"`
		Escalation   bool `yaml:"allowPrivilegeEscalation"`
		ReadOnly     bool `yaml:"readOnlyRootFilesystem"`
		Capabilities struct {
			Add  []string `yaml:"add"`
			Drop []string `yaml:"drop"`
		} `yaml:"capabilities"`
	} `yaml:"securityContext"`
}

type httpProbe struct {
	Get struct {
		Path string `yaml:"path"`
		Port int    `yaml:"port"`
	} `yaml:"httpGet"`
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
// The agent has exactly the capabilities of the manifest, makes itself and uses the
// invitation of a peer; the other is an HTTP server that binds 127.0.0.1 and knows
// nothing. It reaches the peer by name, and the peer it. A reset has the server forget the
// agent, and the peer its trust.
func TestSidecar(t *testing.T) {
	t.Parallel()
	p := readPod(t)
	c := p.Init[0]
	if c.Rights.Privileged || c.Rights.Escalation || !c.Rights.ReadOnly ||
		strings.Join(c.Rights.Capabilities.Add, " ") != "NET_ADMIN" || strings.Join(c.Rights.Capabilities.Drop, " ") != "ALL" {
		t.Fatalf("the manifest is not what this test runs: %+v", c)
	}
	l := wire(t, "a1", "b1")
	s := l.server(t)
	alice, bob := l.agent(t, "a1", "alice"), l.machine(t, "b1", "bob")
	alice.up(t, s)
	l.website(t, "a1", "[::]:8080")
	made := answer[struct{ Token string }](t, alice, "trust", "invite", "--ports", "8080", "--ttl", "1h", "--name", "bob")

	for _, set := range p.Security.Sysctls {
		l.output(t, "b1", "sh", "-c", `echo "$2" >"/proc/sys/$1"`, "sh", strings.ReplaceAll(set.Name, ".", "/"), set.Value)
	}
	l.ignorant(t, "b1")
	if err := os.Mkdir(bob.state, 0o700); err != nil { // the volume
		t.Fatal(err)
	}
	command := bob.prepared(t.Context(), strict, append([]string{"setpriv", "--bounding-set", "-all,+net_admin", "--inh-caps=-all", "--no-new-privs", "pilotctl"}, c.Args...)...)
	for _, v := range c.Env {
		value, ok := map[string]string{"PILOT_NAME": "bob", "PILOT_INVITE": made.Token}[v.Name]
		if !ok {
			t.Fatalf("the manifest has %s, which this test does not know", v.Name)
		}
		command.Env = append(command.Env, v.Name+"="+value)
	}
	daemon := launch(t, "the sidecar", command)
	// Probes come from the node, not from within.
	succeeds := func(p httpProbe) bool {
		return alice.run(t, "curl", "-sf", "-m", "5", fmt.Sprintf("http://%s:%d%s", wired("b1"), p.Get.Port, p.Get.Path)).status == 0
	}
	within(t, 60*time.Second, "the startup probe succeeds", func() bool { return succeeds(c.Startup) })
	if !succeeds(c.Liveness) {
		t.Error("the liveness probe fails")
	}
	pid := l.daemonOf(t, "b1")
	wantRights(t, pid, 1<<unix.CAP_NET_ADMIN)

	within(t, 20*time.Second, "the invitation is used", func() bool { return bob.peer(t, "alice").Trust == "active" })
	if o := bob.run(t, "curl", "-sS", "-m", "10", "http://alice.pilot.internal:8080/"); o.stdout != page {
		t.Errorf("the program's neighbour does not lead it to alice: %s", o)
	}
	bob.pilot(t, "serve", "http", "8000", "--port", "80")
	trust(t, alice, bob, "80")
	readsIgnorant(t, alice, "bob")

	contact := bob.id(t).Contact
	daemon.end(t, func() error { bob.pilot(t, "reset", "--yes"); return nil })
	alice.refused(t, 4, []string{"knows no agent"}, "trust", "request", contact, "--reason", "is it gone?")
	within(t, 10*time.Second, "alice trusts bob no more", func() bool { return alice.peer(t, "bob").Trust != "active" })
}
