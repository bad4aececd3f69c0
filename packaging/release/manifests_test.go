package main

import (
	"errors"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
)

const (
	packaging = ".."
	drain     = 2 // seconds that an agent needs at most to end, as TestSidecar shows
)

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
	// That pilotctl takes these arguments is shown by TestManifestsFitTheProgram there.
	args := words(at(sidecar, "args"))
	health := slices.Index(args, "--health")
	if health < 0 || !slices.Equal(args[:3], []string{"daemon", "run", "--init"}) {
		t.Fatalf("runs %v", args)
	}
	port, err := netip.ParseAddrPort(args[health+1])
	if err != nil || !port.Addr().IsUnspecified() || !port.Addr().Is4() {
		t.Errorf("probes from the node come to %v, %v", port, err)
	}
	for probe, path := range map[string]string{"startupProbe": "/readyz", "livenessProbe": "/healthz"} {
		if at(sidecar, probe, "httpGet", "path") != path || at(sidecar, probe, "httpGet", "port") != int(port.Port()) {
			t.Errorf("%s: %v", probe, at(sidecar, probe))
		}
	}
	if grace, ok := at(spec, "terminationGracePeriodSeconds").(int); !ok || grace < 2*drain {
		t.Errorf("%d s to end, which takes %d", grace, drain)
	}
	if key := at(sidecar, "env", 1, "valueFrom", "secretKeyRef", "key"); at(docs[0], "stringData", "invite") == nil || key != "invite" {
		t.Errorf("the token is %v of the secret", key)
	}
	rights := at(sidecar, "securityContext")
	add, drop := words(at(rights, "capabilities", "add")), words(at(rights, "capabilities", "drop"))
	if !slices.Equal(add, []string{"NET_ADMIN"}) || !slices.Equal(drop, []string{"ALL"}) {
		t.Errorf("capabilities %v without %v", add, drop)
	}
	if at(rights, "privileged") != false || at(rights, "allowPrivilegeEscalation") != false || at(rights, "readOnlyRootFilesystem") != true {
		t.Errorf("%v", rights)
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
	secret, ok := strings.CutPrefix(at(pilot, "environment", "PILOT_INVITE_FILE").(string), "/run/secrets/")
	if !ok || !slices.Contains(words(at(pilot, "secrets")), secret) || at(docs[0], "secrets", secret, "environment") != "PILOT_INVITE" {
		t.Errorf("the token is in %v of %v", at(pilot, "environment"), at(docs[0], "secrets"))
	}
	if grace, err := time.ParseDuration(at(pilot, "stop_grace_period").(string)); err != nil || grace < 2*drain*time.Second {
		t.Errorf("%v to end, which takes %d s: %v", grace, drain, err)
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
	made := []string{"pilotctl", "pilot.service", "pilot-online.service", "pilotctl.8.gz", thirdParty, "completion/pilotctl.bash", "completion/pilotctl.zsh", "completion/pilotctl.fish"}
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

// TestContainerfileBuildsTheSame: with an engine the image has the program of the releases.
func TestContainerfileBuildsTheSame(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(packaging, "container", "Containerfile"))
	if err != nil {
		t.Fatal(err)
	}
	flags := slices.Clone(buildFlags)
	flags[len(flags)-1] = "'" + flags[len(flags)-1] + "'"
	if want := "RUN CGO_ENABLED=0 go build " + strings.Join(flags, " ") + " -o /pilotctl ./cmd/pilotctl\n"; !strings.Contains(string(text), want) {
		t.Errorf("want %s in\n%s", want, text)
	}
	for _, want := range []string{"ENV " + strings.Join(imageEnv, " "), `ENTRYPOINT ["` + imageEntry + `"]`, `CMD ["` + strings.Join(imageArgs, `", "`) + `"]`, "VOLUME " + strings.Join(imageVolumes, " ")} {
		if !strings.Contains(string(text), want+"\n") {
			t.Errorf("want %s in\n%s", want, text)
		}
	}
}
