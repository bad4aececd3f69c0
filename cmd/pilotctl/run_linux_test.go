package main

import (
	"io/fs"
	"strings"
	"testing"
)

// Where user namespaces are not to be had, the hint names the setting at fault.
func TestNamespaceHint(t *testing.T) {
	for _, c := range []struct {
		sysctls map[string]string
		want    string
	}{
		{map[string]string{"kernel/unprivileged_userns_clone": "0\n"}, "sysctl kernel.unprivileged_userns_clone=1"},
		{map[string]string{"kernel/unprivileged_userns_clone": "1\n", "user/max_user_namespaces": "0\n"}, "sysctl user.max_user_namespaces="},
		{map[string]string{"user/max_user_namespaces": "9\n", "kernel/apparmor_restrict_unprivileged_userns": "1\n"}, "apparmor_restrict_unprivileged_userns=0"},
		{nil, "seccomp"},
	} {
		got := namespaceHint(func(path string) ([]byte, error) {
			if v, ok := c.sysctls[strings.TrimPrefix(path, "/proc/sys/")]; ok {
				return []byte(v), nil
			}
			return nil, fs.ErrNotExist
		})
		if !strings.Contains(got, c.want) || !strings.Contains(got, "--tun userspace") {
			t.Errorf("%v: %s", c.sysctls, got)
		}
	}
}
