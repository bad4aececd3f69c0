//go:build !linux

package resolv

import "runtime"

// systemMeans are the means of this system that are better than the hosts file.
func systemMeans(c Config) []means {
	if runtime.GOOS == "darwin" {
		return []means{&files{Config: c, dir: DefaultResolverDir}}
	}
	return nil
}

func systemNotes() []string { return nil }
