package e2e_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// machineOfItsOwn gives a shell an /etc, /var/lib, /run and /opt that end with it.
// systemd seems to be there; its own systemctl does what it does in a chroot: it
// enables and disables, and ignores orders to processes.
const machineOfItsOwn = `set -eu
mount -t tmpfs none /mnt && cp -a /etc /mnt/ && mount --bind /mnt/etc /etc
mount -t tmpfs none /var/lib && mount -t tmpfs none /run && mount -t tmpfs none /opt
mkdir -p /run/systemd/system && cp "$1" /opt/pilotctl && chmod 755 /opt/pilotctl
export SYSTEMD_OFFLINE=1 HOME=/nonexistent
unset PILOT_STATE_DIR PILOT_SOCKET PILOT_CONFIG || true
unit=/etc/systemd/system/pilot.service
link=/etc/systemd/system/multi-user.target.wants/pilot.service
fail() { echo "FAILED: $*" >&2; exit 1; }
status() { want=$1; shift; code=0; "$@" || code=$?; [ $code = $want ] || fail "exit $code, want $want: $*"; }
`

const installSteps = `
echo '== not there yet'
status 4 /opt/pilotctl service status
status 0 /opt/pilotctl service uninstall
echo '== no agent to start'
status 4 /opt/pilotctl service install --now
[ ! -e $unit ] || fail 'installed all the same'
echo '== a program that a service cannot run'
status 7 /opt/pilotctl service install --program "$1"
status 2 /opt/pilotctl service install now
echo '== install'
/opt/pilotctl service install
/opt/pilotctl service print systemd | cmp - $unit
/opt/pilotctl service print systemd-online | cmp - /etc/systemd/system/pilot-online.service
[ "$(readlink -f $link)" = $unit ] || fail 'not enabled'
getent group pilot || fail 'no group'
[ ! -e /var/lib/pilot ] || fail 'made an agent'
echo '== again'
/opt/pilotctl --json service install | grep '"changed":false' || fail 'changed what was right'
echo '== bring up to date'
echo '# of an older version' >>$unit
/opt/pilotctl --json service install | grep '"changed":true' || fail 'left an old unit'
/opt/pilotctl service print systemd | cmp - $unit
echo '== start'
mkdir -m 700 /var/lib/pilot && cp "$2" /var/lib/pilot/identity && chmod 600 /var/lib/pilot/identity
/opt/pilotctl service install --now
echo '== status'
status 0 /opt/pilotctl service status
echo '== another user'
status 8 setpriv --reuid 65534 --regid 65534 --clear-groups /opt/pilotctl service uninstall
[ -e $unit ] || fail 'nobody removed the service'
echo '== uninstall'
/opt/pilotctl service uninstall
[ ! -e $unit ] && [ ! -L $link ] && [ ! -e /etc/systemd/system/pilot-online.service ] || fail 'files remain'
[ -e /var/lib/pilot/identity ] || fail 'the agent is lost'
status 0 /opt/pilotctl service uninstall
echo '== purge'
/opt/pilotctl service install >/dev/null
/opt/pilotctl service uninstall --purge
[ ! -e /var/lib/pilot ] && [ ! -e /etc/pilot ] && [ ! -e $unit ] || fail 'state remains'
`

// TestServiceInstall: install, again, up to date, remove and purge, with the
// systemctl of this machine and files that end with the test.
func TestServiceInstall(t *testing.T) {
	t.Parallel()
	needHosts(t)
	if lookup("systemctl") == "" {
		if os.Getenv("PILOT_REQUIRE_TOOLS") == "1" {
			t.Fatal("systemctl (package systemd) is missing, and PILOT_REQUIRE_TOOLS=1 forbids to skip")
		}
		t.Skip("needs systemctl (package systemd)")
	}
	identity, err := filepath.Abs(filepath.Join(root, "ipam", "testdata", "alice.identity"))
	if err != nil {
		t.Fatal(err)
	}
	c := exec.CommandContext(t.Context(), lookup("unshare"), "-m", "sh", "-c", machineOfItsOwn+installSteps, "sh", pilotctl, identity)
	c.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	out, err := c.CombinedOutput()
	if err != nil {
		t.Errorf("%v", err)
	}
	t.Logf("%s", out)
}
