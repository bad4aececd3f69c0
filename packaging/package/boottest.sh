#!/bin/sh
# Boots a root of Debian's own with systemd, and has it run the agent as a service, from
# the deb, as on a machine:
#
#	packaging/package/boottest.sh OLD.deb NEW.deb ROOT
#
# Needs root and systemd-nspawn. ROOT is what debootstrap makes with
# --include=systemd,systemd-sysv,dbus,iproute2; nothing is written to it.
set -eu

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
cp "$1" "$work/old.deb"
cp "$2" "$work/new.deb"
cat >"$work/steps" <<'STEPS'
#!/bin/sh
exec >/boottest/out 2>&1
set -u
fail() { echo "FAILED: $*" >&2; journalctl -n 50 -u pilot --no-pager >&2; exit 1; }
status() { want=$1; shift; code=0; "$@" || code=$?; [ $code = $want ] || fail "exit $code, want $want: $*"; }
until_() { what=$1; shift; for i in $(seq 300); do "$@" >/dev/null 2>&1 && return; sleep 0.1; done; fail "not yet: $what"; }
main() { systemctl show -p MainPID --value pilot; }
other() { [ "$(main)" != "$1" ] && [ "$(main)" != 0 ] && systemctl is-active pilot; }
changed() { case $(pilotctl --json service install --now) in *"\"changed\":$1"*) ;; *) fail "install --now: want changed $1" ;; esac; }

echo "== install"
dpkg -i /boottest/old.deb || fail "dpkg"
status 0 pilotctl service status
[ "$(systemctl is-enabled pilot)" = disabled ] || fail "installing enabled the service"
status 4 pilotctl service install --now
systemctl start pilot; [ "$(systemctl is-active pilot)" = inactive ] || fail "runs without an agent"

echo "== a server, and the agent as a service"
ip link add name lan type bridge && ip addr add 192.0.2.1/24 dev lan && ip link set lan up
systemd-run -q -u server -p Type=exec sh -c 'exec pilotctl server run --listen 192.0.2.1:3478 --state-dir /run/server >/run/server.line'
until_ "the server is up" grep -q '^--server' /run/server.line
pilotctl init --name boot --server "$(sed -n 's/^--server //p' /run/server.line)" || fail "init"
status 0 pilotctl service install --now
status 0 pilotctl service status
systemctl is-enabled pilot || fail "not enabled"
until_ "a server knows it" pilotctl status --check ready
ip -6 route show dev pilot0 | grep fd50:494c:4f54 || fail "no route"
pid=$(main)
for set in CapEff CapPrm CapBnd; do
	grep "^$set:" /proc/$pid/status
	[ "$(sed -n "s/^$set:\t//p" /proc/$pid/status)" = 0000000000003400 ] || fail "$set: not NET_ADMIN, NET_BIND_SERVICE and NET_RAW"
done
grep -q '^Seccomp:	2' /proc/$pid/status || fail "no filter of system calls"
nsenter -t $pid -m touch /usr/x 2>/dev/null && fail "it may write to the system"
echo "-- a unit that needs the overlay"
systemctl start pilot-online || fail "pilot-online"
systemctl is-active pilot-online
echo "-- who may use it"
setpriv --reuid 65534 --regid 65534 --groups "$(getent group pilot | cut -d: -f3)" pilotctl status --check live || fail "the group may not"
setpriv --reuid 65534 --regid 65534 --clear-groups pilotctl status && fail "anybody may"

echo "== again"
changed false
[ "$(main)" = "$pid" ] || fail "install --now started it anew for nothing"

echo "== killed"
kill -KILL "$pid"
until_ "it runs again" other "$pid"
until_ "a server knows it again" pilotctl status --check ready
[ "$(systemctl show -p NRestarts --value pilot)" = 1 ] || fail "restarts"

echo "== hanging"
mkdir -p /run/systemd/system/pilot.service.d
printf '[Service]\nWatchdogSec=2\n' >/run/systemd/system/pilot.service.d/soon.conf
systemctl daemon-reload && systemctl restart pilot || fail "restart"
pid=$(main)
kill -STOP "$pid"
until_ "the watchdog has started it anew" other "$pid"
journalctl -u pilot --no-pager | grep -i 'watchdog timeout' || fail "not the watchdog"

echo "== upgrade while it runs"
pid=$(main)
dpkg -i /boottest/new.deb || fail "dpkg"
until_ "the new program runs" other "$pid"
until_ "a server knows it still" pilotctl status --check ready

echo "== stop"
begin=$(date +%s%N)
systemctl stop pilot || fail "stop"
echo "stopped after $((($(date +%s%N) - begin) / 1000000)) ms"
ip link show pilot0 2>/dev/null && fail "the device remains"
[ "$(systemctl show -p Result --value pilot)" = success ] || fail "it did not end well"

echo "== uninstall"
status 0 pilotctl service install --now
status 0 pilotctl service uninstall
status 0 pilotctl service uninstall
[ "$(systemctl is-enabled pilot)" = disabled ] && [ "$(systemctl is-active pilot)" = inactive ] || fail "still there"
[ -e /var/lib/pilot/identity ] || fail "the agent is lost"

echo "== remove while it runs"
status 0 pilotctl service install --now
dpkg -r pilot || fail "dpkg -r"
[ "$(systemctl is-active pilot)" != active ] && ! ip link show pilot0 2>/dev/null || fail "it runs on"
[ -e /var/lib/pilot/identity ] || fail "the agent is lost"
dpkg -P pilot || fail "dpkg -P"
[ ! -e /var/lib/pilot ] || fail "state remains"

echo "== without a package"
hash -r
cp /boottest/pilotctl /usr/local/bin/pilotctl && chmod 755 /usr/local/bin/pilotctl
status 4 pilotctl service status
pilotctl init --name boot || fail "init"
status 0 pilotctl service install --now
[ "$(systemctl is-active pilot)" = active ] || fail "does not run"
changed false
status 0 pilotctl service uninstall --purge
[ ! -e /etc/systemd/system/pilot.service ] && [ ! -e /var/lib/pilot ] && ! ip link show pilot0 2>/dev/null || fail "something remains"
echo "== all well"
STEPS
dpkg-deb --fsys-tarfile "$1" | tar -x -C "$work" --strip-components=3 --wildcards '*/usr/bin/pilotctl'
chmod 755 "$work/steps"
# systemd's container gets a network of its own, and the device as an engine would give it.
code=0
timeout 280 systemd-nspawn --quiet --boot --register=no --keep-unit --private-network --volatile=overlay \
	--directory="$(realpath "$3")" --machine="pilot-boottest-$$" --bind="$work:/boottest" --bind=/dev/net/tun --console=pipe \
	systemd.run=/boottest/steps systemd.log_level=warning >"$work/console" 2>&1 </dev/null || code=$?
if ! cat "$work/out" || ! grep -qx "== all well" "$work/out"; then
	tail -n 40 "$work/console" >&2
	echo "FAILED: systemd-nspawn ended with $code" >&2
	exit 1
fi
