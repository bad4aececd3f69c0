#!/bin/sh
# Installs, upgrades, removes and purges the deb in a root of Debian's own:
#
#	packaging/package/debtest.sh OLD.deb NEW.deb ROOT
#
# Needs root. ROOT is what debootstrap makes (--variant=minbase will do); nothing is
# written to it.
set -eu

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp "$1" "$work/old.deb"
cp "$2" "$work/new.deb"
cat >"$work/steps" <<'STEPS'
set -eu
fail() { echo "FAILED: $*" >&2; exit 1; }
version() { dpkg-query -W -f '${Version}' pilot; }
echo "== install"
dpkg -i /debtest/old.deb
old=$(version)
[ -x /usr/bin/pilotctl ] || fail "no program"
getent group pilot || fail "no group"
[ -f /usr/lib/systemd/system/pilot.service ] || fail "no unit"
[ ! -e /etc/systemd/system/multi-user.target.wants/pilot.service ] || fail "installing enabled the service"
[ ! -e /var/lib/pilot ] || fail "installing made state"
[ ! -S /run/pilot/pilot.sock ] || fail "installing started a daemon"
/usr/bin/pilotctl version
grep -q '^ExecStart=/usr/bin/pilotctl daemon run$' /usr/lib/systemd/system/pilot.service || fail "the unit runs something else"

echo "== an agent"
/usr/bin/pilotctl init --name debtest
id=$(sha256sum /var/lib/pilot/identity)

echo "== upgrade"
dpkg -i /debtest/new.deb
dpkg --compare-versions "$(version)" gt "$old" || fail "$(version) after $old"
[ "$(sha256sum /var/lib/pilot/identity)" = "$id" ] || fail "upgrading changed the identity"
[ ! -S /run/pilot/pilot.sock ] || fail "upgrading started a daemon"
[ -z "$(dpkg -V pilot | grep -v /usr/share/doc/ | grep -v /usr/share/man/)" ] || fail "files are not as packaged: $(dpkg -V pilot)"

echo "== install again"
dpkg -i /debtest/new.deb

echo "== remove"
dpkg -r pilot
[ ! -e /usr/bin/pilotctl ] && [ ! -e /usr/lib/systemd/system/pilot.service ] || fail "files remain"
[ "$(sha256sum /var/lib/pilot/identity)" = "$id" ] || fail "removing took the identity"

echo "== purge"
dpkg -i /debtest/new.deb >/dev/null
dpkg -P pilot
[ ! -e /var/lib/pilot ] && [ ! -e /etc/pilot ] || fail "state remains after purge"
! getent group pilot || fail "the group remains after purge"
echo "== all well"
STEPS
root=$(realpath "$3") work=$work unshare --mount --pid --fork sh -eu -c '
	mount --make-rprivate /
	mount -t tmpfs none /mnt
	mkdir /mnt/upper /mnt/work /mnt/root
	mount -t overlay -o "lowerdir=$root,upperdir=/mnt/upper,workdir=/mnt/work" none /mnt/root
	mkdir -p /mnt/root/debtest
	mount --bind "$work" /mnt/root/debtest
	mount -t proc proc /mnt/root/proc
	exec chroot /mnt/root /bin/sh /debtest/steps'
