package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// hasNebula says whether Nebula can take part: it is not built from here, since
// nothing of ours depends on it.
func hasNebula() bool { return lookup("nebula") != "" && lookup("nebula-cert") != "" }

// defaultContenders is who takes part unless told otherwise.
func defaultContenders() string {
	if hasNebula() {
		return "veth,wireguard-go,nebula,pilot"
	}
	return "veth,wireguard-go,pilot"
}

// nebulaConfig is the least that two hosts need which know each other's place:
// everything else is Nebula's default. Its firewall lets all through.
const nebulaConfig = `
pki: {ca: %[1]s/ca.crt, cert: %[1]s/%[2]s.crt, key: %[1]s/%[2]s.key}
static_host_map: {"fd78::%[3]d": ["10.99.0.%[3]d:4242"]}
lighthouse: {am_lighthouse: false}
listen: {host: "0.0.0.0", port: 4242}
tun: {dev: %[4]s}
logging: {level: error}
firewall:
  outbound: [{port: any, proto: any, host: any}]
  inbound: [{port: any, proto: any, host: any}]
`

// startNebula runs the nebula that is installed, with certificates of its own.
func startNebula(w *world) (*contestant, error) {
	if !hasNebula() {
		return nil, fmt.Errorf("nebula and nebula-cert are not installed")
	}
	dir := filepath.Join(w.dir, "nebula")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	cert := func(args ...string) error {
		c := w.command(w.ctx, "R", append([]string{lookup("nebula-cert")}, args...)...)
		if c.Dir = dir; c.Err != nil {
			return c.Err
		}
		if out, err := c.CombinedOutput(); err != nil {
			return fmt.Errorf("nebula-cert %s: %w: %s", args[0], err, out)
		}
		return nil
	}
	if err := cert("ca", "-name", "bench", "-version", "2"); err != nil {
		return nil, err
	}
	c := &contestant{address: "fd78::2", about: "version " + strings.TrimSpace(strings.TrimPrefix(output(lookup("nebula"), "-version"), "Version:")) + ", MTU 1300"}
	for i, host := range []string{"A", "B"} {
		if err := cert("sign", "-name", host, "-networks", fmt.Sprintf("fd78::%d/64", i+1)); err != nil {
			return nil, err
		}
		config := filepath.Join(dir, host+".yml")
		text := fmt.Sprintf(nebulaConfig, dir, host, 2-i, fmt.Sprintf("neb%d%s", os.Getpid(), host))
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			return nil, err
		}
		d, err := w.start(host, "nebula"+host, nil, lookup("nebula"), "-config", config)
		if err != nil {
			return nil, err
		}
		c.pids = append(c.pids, d.Process.Pid)
	}
	if err := w.reachable(c.address); err != nil {
		return nil, fmt.Errorf("%w: %s", err, w.log("nebulaA"))
	}
	return c, nil
}
