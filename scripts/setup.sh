#!/bin/sh
# Installs the Debian packages of apt-packages.txt that are missing. Does
# nothing, quickly, when all are there.
set -eu

# wanted is the list without its comments; the shell reads it itself, since this runs before every build.
wanted=
while read -r p; do
	case $p in '' | '#'*) ;; *) wanted="$wanted $p" ;; esac
done <"$(dirname "$0")/apt-packages.txt"

missing() {
	# dpkg-query exits with an error when it does not know a package at all.
	known=$(dpkg-query -W -f '${db:Status-Status} ${Package};' $wanted 2>/dev/null) || true
	for p in $wanted; do
		case ";$known" in *";installed $p;"*) ;; *) printf '%s ' "$p" ;; esac
	done
}

step() { # step NAME COMMAND...: run it, three times at most, and say how long it took
	name=$1
	shift
	began=$(date +%s)
	for attempt in 1 2 3; do
		if "$@"; then
			echo "setup: $name: $(($(date +%s) - began)) s"
			return 0
		fi
		[ "$attempt" = 3 ] || sleep $((attempt * 5))
	done
	echo "setup: $name: given up after 3 attempts" >&2
	return 1
}

packages=$(missing)
if [ -z "$packages" ]; then
	exit 0
fi
if [ "$(id -u)" != 0 ]; then
	echo "setup: run as root: apt-get install $packages" >&2
	exit 1
fi
export DEBIAN_FRONTEND=noninteractive
install() { apt-get install -y -q --no-install-recommends $packages >/dev/null; }
update() { apt-get update -q >/dev/null; }

# The first attempt fails when there are no package lists, or old ones.
began=$(date +%s)
if install 2>/dev/null; then
	echo "setup: install $packages: $(($(date +%s) - began)) s"
else
	step "update package lists" update
	step "install $packages" install
fi
