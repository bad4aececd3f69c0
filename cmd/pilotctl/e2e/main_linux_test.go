package e2e_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const (
	root   = "../../.." // of the repository
	script = root + "/../shared/lab/natlab.sh"
)

// pilotctl is the program under test; its directory comes first in the PATH of
// everything that runs in a lab.
var pilotctl string

func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == actAs {
		os.Exit(act(os.Args[2:]))
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if missing() != "" {
		return m.Run() // each test says why it is skipped
	}
	dir, err := os.MkdirTemp("", "pilot-e2e")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil { // nobody runs it too
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	pilotctl = filepath.Join(dir, "pilotctl")
	build := exec.Command("go", "build", "-trimpath", "-o", pilotctl, "./cmd/pilotctl")
	build.Dir = root
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "go build ./cmd/pilotctl: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// absent says why there is no lab to be had from this place.
func absent() string {
	if _, err := os.Stat(script); err != nil {
		return fmt.Sprintf("the lab is not beside the repository: %v", err)
	}
	return ""
}

// missing says what this machine lacks.
func missing() string {
	if os.Geteuid() != 0 {
		return "needs root"
	}
	var lack []string
	for tool, pkg := range map[string]string{
		"ip": "iproute2", "nft": "nftables", "conntrack": "conntrack", "unshare": "util-linux", "setpriv": "util-linux",
		"curl": "curl", "python3": "python3", "ping": "iputils-ping", "nc": "netcat-openbsd", "ssh": "openssh-client", "sshd": "openssh-server",
	} {
		if lookup(tool) == "" {
			lack = append(lack, tool+" (package "+pkg+")")
		}
	}
	if len(lack) > 0 {
		return "needs " + strings.Join(lack, ", ")
	}
	if out, err := exec.Command(lookup("unshare"), "-mn", "true").CombinedOutput(); err != nil {
		return fmt.Sprintf("needs namespaces: %v: %s", err, out)
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		return fmt.Sprintf("needs /dev/net/tun: %v", err)
	}
	return ""
}

// lookup finds a program also where only root's PATH leads.
func lookup(tool string) string {
	if path, err := exec.LookPath(tool); err == nil {
		return path
	}
	path, err := exec.LookPath("/usr/sbin/" + tool)
	if err != nil {
		return ""
	}
	return path
}

// needLab skips a test that cannot have a lab.
func needLab(t *testing.T) {
	t.Helper()
	if why := absent(); why != "" {
		t.Skip(why)
	}
	needHosts(t)
}

// needHosts skips a test that cannot have hosts.
func needHosts(t *testing.T) {
	t.Helper()
	why := missing()
	switch {
	case why == "":
	case os.Getenv("PILOT_REQUIRE_ROOT") == "1":
		t.Fatalf("%s, and PILOT_REQUIRE_ROOT=1 forbids to skip", why)
	default:
		t.Skip(why)
	}
}
