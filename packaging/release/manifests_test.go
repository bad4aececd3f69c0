package main

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

const packaging = ".."

// documents reads a YAML file, which may hold several.
func documents(t *testing.T, name string) []map[string]any {
	t.Helper()
	f, err := os.Open(filepath.Join(packaging, name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var list []map[string]any
	for d := yaml.NewDecoder(f); ; {
		var doc map[string]any
		err := d.Decode(&doc)
		if errors.Is(err, io.EOF) {
			return list
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		list = append(list, doc)
	}
}

// at walks into maps by name and into lists by number; nil if there is no such
// thing.
func at(v any, path ...any) any {
	for _, step := range path {
		switch step := step.(type) {
		case string:
			m, _ := v.(map[string]any)
			v = m[step]
		case int:
			l, _ := v.([]any)
			if step >= len(l) {
				return nil
			}
			v = l[step]
		}
	}
	return v
}

func words(v any) []string {
	l, _ := v.([]any)
	var list []string
	for _, w := range l {
		s, _ := w.(string)
		list = append(list, s)
	}
	return list
}

// The sidecar is a native one, has one capability and the device, and is not
// privileged; the program beside it needs nothing.
func TestKubernetesManifest(t *testing.T) {
	docs := documents(t, "kubernetes/sidecar.yaml")
	if len(docs) != 2 || docs[0]["kind"] != "Secret" || docs[1]["kind"] != "StatefulSet" {
		t.Fatalf("%v", docs)
	}
	spec := at(docs[1], "spec", "template", "spec")
	sidecar := at(spec, "initContainers", 0)
	if at(sidecar, "restartPolicy") != "Always" {
		t.Error("not a native sidecar: restartPolicy is not Always")
	}
	if got := words(at(sidecar, "args")); !slices.Equal(got, []string{"daemon", "run", "--init"}) {
		t.Errorf("runs %v", got)
	}
	rights := at(sidecar, "securityContext")
	add, drop := words(at(rights, "capabilities", "add")), words(at(rights, "capabilities", "drop"))
	if !slices.Equal(add, []string{"NET_ADMIN"}) || !slices.Equal(drop, []string{"ALL"}) {
		t.Errorf("capabilities %v without %v", add, drop)
	}
	if at(rights, "privileged") != false || at(rights, "allowPrivilegeEscalation") != false || at(rights, "readOnlyRootFilesystem") != true {
		t.Errorf("%v", rights)
	}
	if got := words(at(sidecar, "startupProbe", "exec", "command")); !slices.Equal(got, []string{"/pilotctl", "status", "--check", "ready"}) {
		t.Errorf("the program starts after %v", got)
	}
	volumes := map[string]any{}
	for _, v := range at(spec, "volumes").([]any) {
		volumes[at(v, "name").(string)] = v
	}
	volumes[at(docs[1], "spec", "volumeClaimTemplates", 0, "metadata", "name").(string)] = true
	for _, m := range at(sidecar, "volumeMounts").([]any) {
		if volumes[at(m, "name").(string)] == nil {
			t.Errorf("no volume %v", at(m, "name"))
		}
	}
	if at(volumes["tun"], "hostPath", "path") != "/dev/net/tun" || at(volumes["tun"], "hostPath", "type") != "CharDevice" {
		t.Errorf("the device is %v", volumes["tun"])
	}
	if at(spec, "securityContext", "sysctls", 0, "name") != "net.ipv4.ip_unprivileged_port_start" || at(spec, "securityContext", "sysctls", 0, "value") != "0" {
		t.Errorf("services below port 1024 are refused: %v", at(spec, "securityContext"))
	}
	if program := at(spec, "containers", 0); at(program, "securityContext") != nil || at(program, "env") != nil || at(program, "volumeMounts") != nil {
		t.Errorf("the program knows of its neighbour: %v", program)
	}
	if at(spec, "hostNetwork") != nil || at(spec, "hostPID") != nil {
		t.Error("the pod gets at the node")
	}
}

func TestComposeFile(t *testing.T) {
	docs := documents(t, "container/compose.yaml")
	pilot, web := at(docs[0], "services", "pilot"), at(docs[0], "services", "web")
	if got := words(at(pilot, "cap_add")); !slices.Equal(got, []string{"NET_ADMIN"}) {
		t.Errorf("capabilities %v", got)
	}
	if got := words(at(pilot, "cap_drop")); !slices.Equal(got, []string{"ALL"}) {
		t.Errorf("drops %v", got)
	}
	if at(pilot, "privileged") != nil || !slices.Equal(words(at(pilot, "devices")), []string{"/dev/net/tun"}) {
		t.Errorf("%v", pilot)
	}
	if at(pilot, "sysctls", "net.ipv6.conf.all.disable_ipv6") != "0" {
		t.Errorf("sysctls %v", at(pilot, "sysctls"))
	}
	if at(web, "network_mode") != "service:pilot" || at(web, "depends_on", "pilot", "condition") != "service_healthy" {
		t.Errorf("%v", web)
	}
	dockerfile := at(pilot, "build", "dockerfile").(string)
	if _, err := os.Stat(filepath.Join(packaging, "..", dockerfile)); err != nil {
		t.Error(err)
	}
	for _, v := range words(at(pilot, "volumes")) {
		name, _, _ := strings.Cut(v, ":")
		if _, ok := at(docs[0], "volumes").(map[string]any)[name]; !ok {
			t.Errorf("no volume %s", name)
		}
	}
}

// What the packages are made of exists, or is made by this program.
func TestPackageDescription(t *testing.T) {
	doc := documents(t, "package/nfpm.yaml")[0]
	made := []string{"pilotctl", "pilot.service", "pilot-online.service", "pilotctl.8.gz", "completion/pilotctl.bash", "completion/pilotctl.zsh", "completion/pilotctl.fish"}
	for _, c := range doc["contents"].([]any) {
		src := at(c, "src").(string)
		if name, ok := strings.CutPrefix(src, "${PILOT_STAGE}/"); ok {
			if !slices.Contains(made, name) {
				t.Errorf("nothing makes %s", src)
			}
			if at(c, "expand") != true {
				t.Errorf("%s: a variable without expand", src)
			}
		} else if _, err := os.Stat(filepath.Join(packaging, "..", src)); err != nil {
			t.Error(err)
		}
	}
	for step, name := range doc["scripts"].(map[string]any) {
		text, err := os.ReadFile(filepath.Join(packaging, "..", name.(string)))
		if err != nil || !strings.HasPrefix(string(text), "#!/bin/sh\n") {
			t.Errorf("%s: %v", step, err)
		}
	}
}
