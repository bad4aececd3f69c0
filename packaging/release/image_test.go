package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
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
		if err := writeImage(name, program, "1.2.3", "arm64", someDay); err != nil {
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
	if files := entries(t, layer); !bytes.Equal(files["pilotctl"], want) || files["var/lib/pilot/"] == nil {
		t.Error("the program is not in the image")
	}
	if words(at(config, "config", "Entrypoint"))[0] != "/pilotctl" {
		t.Errorf("%v", config)
	}
}

// The bill of this very test program names what it was linked from.
func TestBillOfMaterials(t *testing.T) {
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	text, err := billOfMaterials(program, "1.2.3", someDay)
	if err != nil {
		t.Fatal(err)
	}
	bill := unmarshal(t, text)
	if bill["spdxVersion"] != "SPDX-2.3" || at(bill, "creationInfo", "created") != "2026-11-01T00:00:00Z" {
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
	list := strings.Join(names, " ")
	for _, want := range []string{"github.com/pilotnet/pilot@1.2.3", "std@go1.", "go.yaml.in/yaml/v3@v3."} {
		if !strings.Contains(list, want) {
			t.Errorf("%s is not in %s", want, list)
		}
	}
	if _, err := billOfMaterials("main.go", "1", someDay); err == nil {
		t.Error("a bill of a text")
	}
}
