package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"
	"time"
)

var someDay = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)

// entries reads a tar.
func entries(t *testing.T, data []byte) map[string][]byte {
	t.Helper()
	found := map[string][]byte{}
	for r := tar.NewReader(bytes.NewReader(data)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return found
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Uid != 0 || h.Gid != 0 || !h.ModTime.Equal(someDay) {
			t.Errorf("%s: owner %d:%d, time %v", h.Name, h.Uid, h.Gid, h.ModTime)
		}
		if found[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
}

// blob is what a descriptor points at, with its size and digest checked.
func blob(t *testing.T, layout map[string][]byte, descriptor any) []byte {
	t.Helper()
	digest := at(descriptor, "digest").(string)
	data := layout["blobs/sha256/"+strings.TrimPrefix(digest, "sha256:")]
	if got := fmt.Sprintf("sha256:%x", sha256.Sum256(data)); got != digest || float64(len(data)) != at(descriptor, "size") {
		t.Fatalf("%d bytes with %s, want %v", len(data), got, descriptor)
	}
	return data
}

func unmarshal(t *testing.T, data []byte) map[string]any {
	t.Helper()
	var v map[string]any
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatalf("%v: %s", err, data)
	}
	return v
}

func TestImage(t *testing.T) {
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var made [2][]byte
	for i := range made {
		name := filepath.Join(t.TempDir(), "image.tar")
		if err := writeImage(name, program, "1.2.3", "arm64", []byte("terms\n"), someDay); err != nil {
			t.Fatal(err)
		}
		if made[i], err = os.ReadFile(name); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(made[0], made[1]) {
		t.Error("two images of one program differ")
	}
	layout := entries(t, made[0])
	if unmarshal(t, layout["oci-layout"])["imageLayoutVersion"] != "1.0.0" {
		t.Errorf("%s", layout["oci-layout"])
	}
	index := unmarshal(t, layout["index.json"])
	if at(index, "manifests", 0, "platform", "architecture") != "arm64" {
		t.Errorf("%v", index)
	}
	manifest := unmarshal(t, blob(t, layout, at(index, "manifests", 0)))
	config := unmarshal(t, blob(t, layout, at(manifest, "config")))
	z, err := gzip.NewReader(bytes.NewReader(blob(t, layout, at(manifest, "layers", 0))))
	if err != nil {
		t.Fatal(err)
	}
	layer, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprintf("sha256:%x", sha256.Sum256(layer)); at(config, "rootfs", "diff_ids", 0) != got {
		t.Errorf("the layer is %s: %v", got, config)
	}
	want, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	if files := entries(t, layer); !bytes.Equal(files["pilotctl"], want) || files["var/lib/pilot/"] == nil || string(files[thirdParty]) != "terms\n" {
		t.Error("the program is not in the image")
	}
	if words(at(config, "config", "Entrypoint"))[0] != "/pilotctl" {
		t.Errorf("%v", config)
	}
}

func TestBillOfMaterials(t *testing.T) {
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// Of a test program Go keeps no modules: these are added.
	info, err := buildinfo.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	info.Deps = []*debug.Module{
		{Path: "example.org/a", Version: "v1.2.3", Sum: "h1:abc="},
		{Path: "example.org/b", Version: "v1.0.0", Replace: &debug.Module{Path: "example.org/c", Version: "v2.0.0"}},
	}
	text, err := bill(info, "0123", "1.2.3", someDay)
	if err != nil {
		t.Fatal(err)
	}
	bill := unmarshal(t, text)
	if bill["spdxVersion"] != "SPDX-2.3" || at(bill, "creationInfo", "created") != "2026-11-01T00:00:00Z" || at(bill, "packages", 0, "checksums", 0, "checksumValue") != "0123" {
		t.Errorf("%v", bill)
	}
	known := map[any]bool{"SPDXRef-DOCUMENT": true}
	var names []string
	for _, p := range bill["packages"].([]any) {
		if known[at(p, "SPDXID")] {
			t.Errorf("%v twice", at(p, "SPDXID"))
		}
		known[at(p, "SPDXID")] = true
		names = append(names, at(p, "name").(string)+"@"+at(p, "versionInfo").(string))
	}
	for _, r := range bill["relationships"].([]any) {
		if !known[at(r, "spdxElementId")] || !known[at(r, "relatedSpdxElement")] {
			t.Errorf("%v leads nowhere", r)
		}
	}
	want := "github.com/pilotnet/pilot@1.2.3 std@" + info.GoVersion + " example.org/a@v1.2.3 example.org/c@v2.0.0"
	if got := strings.Join(names, " "); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if _, err := billOfMaterials("main.go", "1", someDay); err == nil {
		t.Error("a bill of a text")
	}
}

// TestLicenses: texts that modules share are there once, with the names of all; a module
// without one is an error, since nobody may hand it out.
func TestLicenses(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"a/LICENSE": "do this\n", "b/Licence.txt": "do this\r\n", "b/NOTICE": "made by b", "b/license.go": "package b", "c/README": "c"} {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	l := licenseTexts{users: map[string][]string{}}
	for _, module := range []string{"a", "b"} {
		if err := l.add(module+" v1", filepath.Join(dir, module)); err != nil {
			t.Fatal(err)
		}
	}
	line := strings.Repeat("=", 79)
	if got, want := string(l.text()), "\n"+line+"\n\na v1, LICENSE\nb v1, Licence.txt\n\ndo this\n\n"+line+"\n\nb v1, NOTICE\n\nmade by b\n"; !strings.HasSuffix(got, want) {
		t.Errorf("%s\nwant %s", got, want)
	}
	if err := l.add("c v1", filepath.Join(dir, "c")); err == nil {
		t.Error("a module without a license is accepted")
	}
}
