#!/bin/sh
# Installs, upgrades, removes and purges the deb in a root of Debian's own:
#
#	packaging/package/debtest.sh DEB [ROOT]
#
# Needs root, dpkg-deb and, where ROOT is not there yet, debootstrap and a mirror.
# The root is used in a mount namespace; what was in it before stays.
set -eu

deb=$(realpath "$1")
root=${2:-$(mktemp -d)/root}
[ -e "$root/bin/sh" ] || debootstrap --variant=minbase bookworm "$root" >&2

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp "$deb" "$work/new.deb"
# The release before: the same with a lower version.
dpkg-deb -R "$deb" "$work/old"
sed -i 's/^Version: .*/Version: 0.0.1/' "$work/old/DEBIAN/control"
dpkg-deb -b "$work/old" "$work/old.deb" >/dev/null
rm -rf "$work/old"
cat >"$work/steps" <<'STEPS'
set -eu
fail() { echo "FAILED: $*" >&2; exit 1; }
echo "== install 0.0.1"
dpkg -i /debtest/old.deb
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
[ "$(dpkg-query -W -f '${Version}' pilot)" != 0.0.1 ] || fail "still the old version"
[ "$(sha256sum /var/lib/pilot/identity)" = "$id" ] || fail "upgrading changed the identity"
[ ! -S /run/pilot/pilot.sock ] || fail "upgrading started a daemon"
dpkg -V pilot || fail "files are not as packaged"

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
root=$root work=$work unshare --mount --pid --fork sh -eu -c '
	mount --make-rprivate /
	mkdir -p "$root/debtest"
	mount --bind "$work" "$root/debtest"
	mount -t proc proc "$root/proc"
	exec chroot "$root" /bin/sh /debtest/steps'
