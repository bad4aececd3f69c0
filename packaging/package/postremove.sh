#!/bin/sh
# After removing. Key and trust stay, since nobody can make them again; "purge" of
# a deb removes them, rpm has no such step.
set -e

if [ -d /run/systemd/system ]; then
	systemctl daemon-reload || true
fi
if [ "$1" = purge ]; then
	rm -rf /var/lib/pilot /etc/pilot /run/pilot
	if getent group pilot >/dev/null; then
		groupdel pilot || true
	fi
fi
