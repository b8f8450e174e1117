#!/bin/sh
# Everything that make test, demo, lint and bench need: Debian packages and .venv.
# Idempotent; says nothing when nothing is to do.
set -eu
cd "$(dirname "$0")/.."

sh netns-fixtures/setup.sh
sh netns-fixtures/setup-envoy.sh
sh netns-fixtures/setup-promtool.sh

stamp=.venv/.installed-from
wanted=$(cat pyproject.toml scripts/setup.sh | sha256sum)
if [ "$(cat "$stamp" 2>/dev/null || true)" != "$wanted" ]; then
    rm -rf .venv
    python3 -m venv .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --use-pep517 -e '.[iptables,plug,dev]'
    printf '%s\n' "$wanted" >"$stamp"
fi
sh scripts/setup-ansible.sh
sh scripts/setup-pipx.sh
