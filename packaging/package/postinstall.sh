#!/bin/sh
# After unpacking. Nothing is started that did not run: an agent is made first
# ("pilotctl init"), then "pilotctl service install --now". After an upgrade a
# service that runs goes on with the new program.
set -e

if ! getent group pilot >/dev/null; then
	groupadd --system pilot
fi

if [ -d /run/systemd/system ]; then
	systemctl daemon-reload || true
	# deb: "configure OLD-VERSION"; rpm: the number of versions installed.
	case "$1:$2" in
	configure:?* | 2:*) systemctl try-restart pilot.service || true ;;
	esac
fi
