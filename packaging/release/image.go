package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"os"
	"path"
	"strings"
	"time"
)

// A file goes into an archive. One whose name ends with a slash is a directory.
type file struct {
	name string
	from string // file with its content, or
	data []byte
	mode int64
}

// writeTar writes files that belong to root and have one time.
func writeTar(w io.Writer, files []file, date time.Time) error {
	t := tar.NewWriter(w)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Mode: f.mode, ModTime: date, Format: tar.FormatUSTAR, Typeflag: tar.TypeReg}
		data := f.data
		if strings.HasSuffix(f.name, "/") {
			h.Typeflag = tar.TypeDir
		} else if f.from != "" {
			var err error
			if data, err = os.ReadFile(f.from); err != nil {
				return err
			}
		}
		h.Size = int64(len(data))
		if err := t.WriteHeader(h); err != nil {
			return err
		}
		if _, err := t.Write(data); err != nil {
			return err
		}
	}
	return t.Close()
}

// pack makes a compressed archive, and returns the digest of the archive within.
func pack(files []file, date time.Time) (packed []byte, plain string, err error) {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	sum := sha256.New()
	if err := writeTar(io.MultiWriter(z, sum), files, date); err != nil {
		return nil, "", err
	}
	if err := z.Close(); err != nil {
		return nil, "", err
	}
	return b.Bytes(), "sha256:" + hex.EncodeToString(sum.Sum(nil)), nil
}

// Media types of the OCI image specification 1.1.
const (
	typeIndex    = "application/vnd.oci.image.index.v1+json"
	typeManifest = "application/vnd.oci.image.manifest.v1+json"
	typeConfig   = "application/vnd.oci.image.config.v1+json"
	typeLayer    = "application/vnd.oci.image.layer.v1.tar+gzip"
)

type object = map[string]any

// An imageLayout collects the blobs of an OCI image layout.
type imageLayout struct{ files []file }

// add keeps a blob and returns its descriptor.
func (l *imageLayout) add(mediaType string, data []byte) object {
	sum := sha256.Sum256(data)
	digest := hex.EncodeToString(sum[:])
	l.files = append(l.files, file{name: path.Join("blobs/sha256", digest), data: data, mode: 0o644})
	return object{"mediaType": mediaType, "digest": "sha256:" + digest, "size": len(data)}
}

func (l *imageLayout) addJSON(mediaType string, v any) (object, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	return l.add(mediaType, data), nil
}

// What the image says of itself, as the Containerfile does.
var (
	imageEnv     = []string{"PATH=/", "PILOT_STATE_DIR=/var/lib/pilot", "PILOT_SOCKET=/run/pilot/pilot.sock"}
	imageArgs    = []string{"daemon", "run", "--init"}
	imageVolumes = []string{"/var/lib/pilot", "/run/pilot"}
)

const imageEntry = "/pilotctl"

// writeImage writes an OCI image layout as one tar, which "docker load", "podman
// load" and "skopeo copy oci-archive:" read. The image is that of the
// Containerfile: the program, the terms of what is linked into it, and the directories that
// it writes to.
func writeImage(name, program, version, arch string, terms []byte, date time.Time) error {
	layer, plain, err := pack([]file{
		{name: "etc/", mode: 0o755}, {name: "tmp/", mode: 0o1777},
		{name: "run/", mode: 0o755}, {name: "run/pilot/", mode: 0o755},
		{name: "var/", mode: 0o755}, {name: "var/lib/", mode: 0o755}, {name: "var/lib/pilot/", mode: 0o700},
		{name: "pilotctl", from: program, mode: 0o755}, {name: thirdParty, data: terms, mode: 0o644},
	}, date)
	if err != nil {
		return err
	}
	var l imageLayout
	layerAt := l.add(typeLayer, layer)
	created := date.Format(time.RFC3339)
	volumes := object{}
	for _, dir := range imageVolumes {
		volumes[dir] = object{}
	}
	configAt, err := l.addJSON(typeConfig, object{
		"created": created, "architecture": arch, "os": "linux",
		"config": object{
			"Env":        imageEnv,
			"Entrypoint": []string{imageEntry}, "Cmd": imageArgs,
			"Volumes":    volumes,
			"WorkingDir": "/",
			"Labels":     object{"org.opencontainers.image.version": version, "org.opencontainers.image.licenses": "Apache-2.0"},
		},
		"rootfs":  object{"type": "layers", "diff_ids": []string{plain}},
		"history": []object{{"created": created, "created_by": "packaging/release"}},
	})
	if err != nil {
		return err
	}
	manifestAt, err := l.addJSON(typeManifest, object{"schemaVersion": 2, "mediaType": typeManifest, "config": configAt, "layers": []object{layerAt}})
	if err != nil {
		return err
	}
	manifestAt["platform"] = object{"architecture": arch, "os": "linux"}
	manifestAt["annotations"] = object{"org.opencontainers.image.ref.name": version, "io.containerd.image.name": "pilot:" + version}
	index, err := json.Marshal(object{"schemaVersion": 2, "mediaType": typeIndex, "manifests": []object{manifestAt}})
	if err != nil {
		return err
	}
	out, err := os.Create(name)
	if err != nil {
		return err
	}
	defer out.Close()
	files := append([]file{
		{name: "oci-layout", data: []byte(`{"imageLayoutVersion":"1.0.0"}`), mode: 0o644},
		{name: "index.json", data: index, mode: 0o644},
		{name: "blobs/", mode: 0o755}, {name: "blobs/sha256/", mode: 0o755},
	}, l.files...)
	if err := writeTar(out, files, date); err != nil {
		return err
	}
	return out.Close()
}
