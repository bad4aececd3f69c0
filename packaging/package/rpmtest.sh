#!/bin/sh
# Installs, upgrades and removes the rpm with rpm itself, in a root of Debian's own:
#
#	packaging/package/rpmtest.sh OLD.rpm NEW.rpm ROOT
#
# Needs root and rpm. ROOT is what debootstrap makes; nothing is written to it. What
# the package requires of other rpms is not there, and not looked at.
set -eu

old=$(realpath "$1") new=$(realpath "$2") root=$(realpath "$3") exec unshare --mount --pid --fork sh -eu -c '
mount --make-rprivate /
mount -t proc proc /proc
mount -t tmpfs none /mnt
mkdir /mnt/upper /mnt/work /mnt/root
mount -t overlay -o "lowerdir=$root,upperdir=/mnt/upper,workdir=/mnt/work" none /mnt/root
mount -t proc proc /mnt/root/proc
cd /mnt/root
fail() { echo "FAILED: $*" >&2; exit 1; }
rpm() { command rpm --root /mnt/root "$@"; }
inside() { chroot /mnt/root "$@"; }
echo "== install"
command rpm -K --nosignature "$old" "$new"
rpm -i --nodeps "$old"
was=$(rpm -q pilot)
inside /usr/bin/pilotctl version
inside getent group pilot || fail "no group"
[ ! -e etc/systemd/system/multi-user.target.wants/pilot.service ] || fail "installing enabled the service"
[ ! -e var/lib/pilot ] || fail "installing made state"
rpm -V --nodeps pilot || fail "files are not as packaged"
echo "== an agent"
inside /usr/bin/pilotctl init --name rpmtest
id=$(sha256sum var/lib/pilot/identity)
echo "== upgrade"
rpm -U --nodeps "$new"
[ "$(rpm -q pilot)" != "$was" ] || fail "still $was"
rpm -q pilot
[ "$(sha256sum var/lib/pilot/identity)" = "$id" ] || fail "upgrading changed the identity"
inside /usr/bin/pilotctl version
rpm -V --nodeps pilot || fail "files are not as packaged"
echo "== remove"
rpm -e pilot
[ ! -e usr/bin/pilotctl ] && [ ! -e usr/lib/systemd/system/pilot.service ] || fail "files remain"
[ "$(sha256sum var/lib/pilot/identity)" = "$id" ] || fail "removing took the identity"
echo "== all well"'
