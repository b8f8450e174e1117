#!/bin/sh
# Everything that make test, demo, lint and bench need: Debian packages, .venv with synplug, and
# beside it ansible-core and pipx for their tests. Idempotent; says nothing when nothing is to do.
set -eu
cd "$(dirname "$0")/.."

sh netns-fixtures/setup.sh
sh netns-fixtures/setup-envoy.sh
sh netns-fixtures/setup-promtool.sh

# A virtual environment: where, and what pip installs in it. Anew when that or pyproject.toml changes.
environment() {
    home=$1
    shift
    stamp=$home/.installed-from
    wanted=$(printf '%s\n' "$@" | cat - pyproject.toml | sha256sum)
    [ "$(cat "$stamp" 2>/dev/null || true)" != "$wanted" ] || return 0
    rm -rf "$home"
    python3 -m venv "$home"
    pip="$home/bin/python -m pip --quiet --disable-pip-version-check"
    $pip install "$@"
    # What builds synplug and is installed with it: its installation is tested without a network.
    [ "$home" = .venv ] || $pip download --no-deps --only-binary=:all: --platform any \
        --dest "$home/wheels" pip 'setuptools>=68' wheel 'tenacity>=8.2' 'tomli>=2'
    printf '%s\n' "$wanted" >"$stamp"
}

environment .venv --use-pep517 -e '.[iptables,plug,dev]'
environment .venv-ansible 'ansible-core>=2.15' antsibull-docs-parser voluptuous yamllint \
    'setuptools>=68' wheel
environment .venv-pipx pipx
