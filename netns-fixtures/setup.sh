#!/bin/sh
# Installs the Debian packages that the lab needs, and nothing else. Idempotent;
# silent when nothing is to do.
set -eu

packages="haproxy nginx-light redis-server iptables nftables iproute2 procps util-linux
gcc libc6-dev make curl libfaketime cron zsh fish groff-base systemd libcap2-bin kmod
debian-archive-keyring python3 python3-venv python3-dev ca-certificates libserver-starter-perl
podman crun busybox-static man-db"
policy=/usr/sbin/policy-rc.d
set_aside=$policy.netlab-set-aside

installed() {
    [ "$(dpkg-query -W -f '${db:Status-Abbrev}' "$1" 2>/dev/null)" = "ii " ]
}

missing=
for package in $packages; do
    installed "$package" || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" -ne 0 ]; then
    echo "missing packages; run as root: apt-get update && apt-get install -y --no-install-recommends$missing" >&2
    exit 1
fi

restore_policy() {
    rm -f "$policy"
    if [ -e "$set_aside" ] || [ -L "$set_aside" ]; then
        mv "$set_aside" "$policy"
    fi
}

# The lab starts its own daemons in its own namespaces; those of the packages must not
# start. policy-rc.d answers 101 ("not allowed") while we install: invoke-rc.d(8).
if [ -e "$policy" ] || [ -L "$policy" ]; then
    mv "$policy" "$set_aside"
fi
trap restore_policy EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
printf '#!/bin/sh\nexit 101\n' >"$policy"
chmod 755 "$policy"

export DEBIAN_FRONTEND=noninteractive
install_missing() {
    # shellcheck disable=SC2086  # a list of words
    apt-get install -qq -y --no-install-recommends $missing </dev/null >&2
}
# Package lists that are there may be enough; refresh them only when they are not.
install_missing 2>/dev/null || {
    apt-get update -qq
    install_missing
}

for package in $missing; do
    installed "$package" || {
        echo "package $package is still missing after apt-get install" >&2
        exit 1
    }
done
