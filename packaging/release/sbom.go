package main

import (
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/json"
	"fmt"
	"os"
	"runtime/debug"
	"time"
)

// billOfMaterials lists what a program was linked from, by what Go wrote into it,
// in the format of SPDX 2.3. Licences are not in a program: NOASSERTION.
func billOfMaterials(program, version string, date time.Time) ([]byte, error) {
	info, err := buildinfo.ReadFile(program)
	if err != nil {
		return nil, err
	}
	data, err := os.ReadFile(program)
	if err != nil {
		return nil, err
	}
	return bill(info, fmt.Sprintf("%x", sha256.Sum256(data)), version, date)
}

// bill is the bill of a program with that build information and SHA-256.
func bill(info *debug.BuildInfo, digest, version string, date time.Time) ([]byte, error) {
	const self = "SPDXRef-pilot"
	main := object{
		"SPDXID": self, "name": info.Main.Path, "versionInfo": version, "downloadLocation": "NOASSERTION", "filesAnalyzed": false,
		"licenseConcluded": "Apache-2.0", "licenseDeclared": "Apache-2.0", "copyrightText": "NOASSERTION",
		"primaryPackagePurpose": "APPLICATION",
		"checksums":             []object{{"algorithm": "SHA256", "checksumValue": digest}},
		"externalRefs":          []object{purl(info.Main.Path, version)},
		"sourceInfo":            "built with " + info.GoVersion + settings(info),
	}
	packages := []object{main}
	relations := []object{{"spdxElementId": "SPDXRef-DOCUMENT", "relationshipType": "DESCRIBES", "relatedSpdxElement": self}}
	for i, dep := range append([]*debug.Module{{Path: "std", Version: info.GoVersion}}, info.Deps...) {
		if dep.Replace != nil {
			dep = dep.Replace
		}
		id := fmt.Sprintf("SPDXRef-module-%d", i)
		p := object{
			"SPDXID": id, "name": dep.Path, "versionInfo": dep.Version, "downloadLocation": "NOASSERTION", "filesAnalyzed": false,
			"licenseConcluded": "NOASSERTION", "licenseDeclared": "NOASSERTION", "copyrightText": "NOASSERTION",
			"externalRefs": []object{purl(dep.Path, dep.Version)},
		}
		if dep.Sum != "" {
			p["sourceInfo"] = "go.sum " + dep.Sum
		}
		packages = append(packages, p)
		relations = append(relations, object{"spdxElementId": self, "relationshipType": "DEPENDS_ON", "relatedSpdxElement": id})
	}
	return json.MarshalIndent(object{
		"spdxVersion": "SPDX-2.3", "dataLicense": "CC0-1.0", "SPDXID": "SPDXRef-DOCUMENT",
		"name":              "pilotctl-" + version,
		"documentNamespace": "https://github.com/pilotnet/pilot/spdx/" + digest,
		"creationInfo":      object{"created": date.Format(time.RFC3339), "creators": []string{"Tool: pilot-packaging-release"}},
		"packages":          packages, "relationships": relations,
	}, "", " ")
}

func purl(path, version string) object {
	return object{"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": "pkg:golang/" + path + "@" + version}
}

// settings are those with which the program was built.
func settings(info *debug.BuildInfo) string {
	text := ""
	for _, s := range info.Settings {
		switch s.Key {
		case "GOOS", "GOARCH", "CGO_ENABLED", "vcs.revision", "vcs.modified", "-trimpath":
			text += " " + s.Key + "=" + s.Value
		}
	}
	return text
}
