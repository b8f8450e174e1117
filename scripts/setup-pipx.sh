#!/bin/sh
# What the test of the installation needs: pipx, and the wheels that it and pip ask the network for,
# in .venv-pipx. Idempotent; says nothing when nothing is to do.
set -eu
cd "$(dirname "$0")/.."

stamp=.venv-pipx/.installed-from
wanted=$(cat scripts/setup-pipx.sh | sha256sum)
if [ "$(cat "$stamp" 2>/dev/null || true)" != "$wanted" ]; then
    rm -rf .venv-pipx
    python3 -m venv .venv-pipx
    pip=".venv-pipx/bin/python -m pip --quiet --disable-pip-version-check"
    $pip install pipx
    $pip download --no-deps --only-binary=:all: --platform any --dest .venv-pipx/wheels \
        pip 'setuptools>=68' wheel 'tenacity>=8.2' 'tomli>=2'
    printf '%s\n' "$wanted" >"$stamp"
fi
