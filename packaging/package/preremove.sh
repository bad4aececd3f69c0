#!/bin/sh
# Before removing, and not before an upgrade: deb "remove", rpm "0".
set -e

case "$1" in
remove | 0)
	if [ -d /run/systemd/system ]; then
		systemctl disable --now pilot.service || true
	else
		rm -f /etc/systemd/system/multi-user.target.wants/pilot.service
	fi
	# One that was started by hand.
	pilotctl down >/dev/null 2>&1 || true
	;;
esac
