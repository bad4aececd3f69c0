package main

import (
	"debug/buildinfo"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
)

// need skips a test that lacks a program, or fails it where none may be missing.
func need(t *testing.T, tool, pkg string) {
	t.Helper()
	if _, err := exec.LookPath(tool); err == nil {
		return
	}
	if os.Getenv("PILOT_REQUIRE_TOOLS") == "1" {
		t.Fatalf("%s (package %s) is missing, and PILOT_REQUIRE_TOOLS=1 forbids to skip", tool, pkg)
	}
	t.Skipf("needs %s (package %s)", tool, pkg)
}

// tell runs a program in the root of the repository and shows what it prints.
func tell(t *testing.T, name string, args ...string) {
	t.Helper()
	c := exec.CommandContext(t.Context(), name, args...)
	c.Dir = filepath.Join(packaging, "..")
	out, err := c.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatalf("%s %q: %v", name, args, err)
	}
}

// TestPackages does with what "make release" made what a user does: it checks the sums,
// and installs, upgrades and removes the packages in a root of Debian's own; in one of
// the ways with systemd running the agent. "make packages" has it do so.
func TestPackages(t *testing.T) {
	dir := os.Getenv("PILOT_PACKAGES")
	if dir == "" {
		t.Skip("PILOT_PACKAGES, the directory of a release, is not set: make packages sets it")
	}
	dir, err := filepath.Abs(filepath.Join(packaging, "..", dir))
	if err != nil {
		t.Fatal(err)
	}
	one := func(t *testing.T, dir, pattern string) string {
		t.Helper()
		found, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil || len(found) != 1 {
			t.Fatalf("%s: %v, %v", pattern, found, err)
		}
		return found[0]
	}
	t.Run("sums", func(t *testing.T) { tell(t, "sh", "-c", `cd "$1" && sha256sum -c SHA256SUMS`, "sh", dir) })
	t.Run("bill", func(t *testing.T) {
		text, err := os.ReadFile(one(t, dir, "*-linux-"+runtime.GOARCH+".spdx.json"))
		if err != nil {
			t.Fatal(err)
		}
		program := filepath.Join(t.TempDir(), "pilotctl")
		tell(t, "sh", "-c", `tar -xzOf "$1" --wildcards '*/pilotctl' >"$2"`, "sh", one(t, dir, "*-linux-"+runtime.GOARCH+".tar.gz"), program)
		info, err := buildinfo.ReadFile(program)
		if err != nil {
			t.Fatal(err)
		}
		var listed []string
		for _, p := range unmarshal(t, text)["packages"].([]any)[2:] {
			listed = append(listed, at(p, "name").(string)+" "+at(p, "versionInfo").(string))
		}
		var linked []string
		for _, dep := range info.Deps {
			linked = append(linked, dep.Path+" "+dep.Version)
		}
		if !slices.Equal(listed, linked) || len(linked) < 20 {
			t.Errorf("the bill lists %v, linked are %v", listed, linked)
		}
	})
	if os.Geteuid() != 0 {
		t.Skip("the packages can be installed by root only")
	}
	next := t.TempDir()
	tell(t, "go", "run", "./packaging/release", "-out", next, "-platforms", "linux/"+runtime.GOARCH, "-version", "99.0.0")
	debian := os.Getenv("PILOT_DEBIAN")
	if debian == "" {
		need(t, "debootstrap", "debootstrap")
		debian = filepath.Join(t.TempDir(), "debian")
		tell(t, "debootstrap", "--variant=minbase", "--include=systemd,systemd-sysv,dbus,iproute2", "bookworm", debian)
	}
	deb := "*_" + runtime.GOARCH + ".deb"
	t.Run("lintian", func(t *testing.T) {
		need(t, "lintian", "lintian")
		tell(t, "lintian", "--allow-root", "--fail-on", "error", one(t, dir, deb))
	})
	for _, c := range []struct{ name, script, tool, pkg, pattern string }{
		{"deb", "debtest.sh", "dpkg-deb", "dpkg", deb},
		{"rpm", "rpmtest.sh", "rpm", "rpm", "*." + map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[runtime.GOARCH] + ".rpm"},
		{"boot", "boottest.sh", "systemd-nspawn", "systemd-container", deb},
	} {
		t.Run(c.name, func(t *testing.T) {
			need(t, c.tool, c.pkg)
			tell(t, filepath.Join("packaging", "package", c.script), one(t, dir, c.pattern), one(t, next, c.pattern), debian)
		})
	}
}
